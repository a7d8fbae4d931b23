"""The routes below /v1/events: ingest, list, names, get."""

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import UUID4, AwareDatetime, ValidationError

from agent.emulator.answers import ApiError, to_micros
from agent.emulator.ingest import ingest
from agent.emulator.options import ORGANIZATION_ID
from agent.emulator.query import EventQuery, Filter, NamesQuery, Sorting
from agent.emulator.render import event_json, name_json
from agent.emulator.state import Emulator, Reader, State, Writer

router = APIRouter(prefix="/v1/events")

_MAX_LIMIT = 100
_MIN_QUERY = 3
_MAX_OFFSET = 2**62  # what an SQLite integer holds
_METADATA_PARAMETER = re.compile(r"metadata\[([^\]]+)\]")


class EventSource(StrEnum):
    """Who made an event; here it is always the user."""

    system = "system"
    user = "user"


class EventSort(StrEnum):
    """What events are sorted by."""

    timestamp = "timestamp"
    timestamp_down = "-timestamp"


class NameSort(StrEnum):
    """What event names are sorted by."""

    name = "name"
    name_down = "-name"
    occurrences = "occurrences"
    occurrences_down = "-occurrences"
    first_seen = "first_seen"
    first_seen_down = "-first_seen"
    last_seen = "last_seen"
    last_seen_down = "-last_seen"


# A parameter that may be repeated. The server's errors name both branches of these unions.
_Ids = Annotated[UUID4 | Sequence[UUID4] | None, Query()]
_Texts = Annotated[str | Sequence[str] | None, Query()]
_Sources = Annotated[EventSource | Sequence[EventSource] | None, Query()]
_Page = Annotated[int, Query(gt=0)]


@router.get("/")
def list_events(  # noqa: PLR0917 - FastAPI calls it by name
    emulator: State,
    token: Reader,
    request: Request,
    filter: str | None = None,  # noqa: A002 - the names of parameters are Polar's
    start_timestamp: AwareDatetime | None = None,
    end_timestamp: AwareDatetime | None = None,
    organization_id: _Ids = None,
    customer_id: _Ids = None,
    external_customer_id: _Texts = None,
    meter_id: UUID4 | None = None,
    name: _Texts = None,
    source: _Sources = None,
    query: str | None = None,
    parent_id: UUID4 | None = None,
    depth: Annotated[int | None, Query(ge=0, le=5)] = None,
    page: _Page = 1,
    limit: _Page = 10,
    sorting: Annotated[list[EventSort] | None, Query()] = None,
) -> Response:
    """List events, newest first."""
    del token
    clauses = _filter(filter)
    if query is not None:
        _check_query(query, organization_id)
    if meter_id is not None:
        detail = {
            "type": "meter_id",
            "loc": ["query", "meter_id"],
            "msg": "Meter not found.",
            "input": str(meter_id),
        }
        raise ApiError(422, {"error": "PolarRequestValidationError", "detail": [detail]})
    limit = min(limit, _MAX_LIMIT)
    wanted = EventQuery(
        limit=limit,
        offset=_offset(page, limit),
        sorting=_sorting(sorting or [EventSort.timestamp_down]),
        nothing=_nothing(organization_id, source),
        customers=_customers(emulator, customer_id, external_customer_id),
        text=query,
        names=_several(name),
        after=None if start_timestamp is None else to_micros(start_timestamp),
        until=None if end_timestamp is None else to_micros(end_timestamp),
        metadata=_metadata(request),
        filter=clauses,
        parent_id=None if parent_id is None else str(parent_id),
        depth=depth,
    )
    events, total = emulator.store.find(wanted, emulator.readable_until())
    return _page([event_json(event, emulator.customers) for event in events], total, limit)


@router.get("/names")
def list_names(  # noqa: PLR0917 - FastAPI calls it by name
    emulator: State,
    token: Reader,
    organization_id: _Ids = None,
    customer_id: _Ids = None,
    external_customer_id: _Texts = None,
    source: _Sources = None,
    query: str | None = None,
    page: _Page = 1,
    limit: _Page = 10,
    sorting: Annotated[list[NameSort] | None, Query()] = None,
) -> Response:
    """List event names, last seen first."""
    del token
    limit = min(limit, _MAX_LIMIT)
    wanted = NamesQuery(
        limit=limit,
        offset=_offset(page, limit),
        sorting=_sorting(sorting or [NameSort.last_seen_down]),
        nothing=_nothing(organization_id, source),
        customers=_customers(emulator, customer_id, external_customer_id),
        text=query,
    )
    names, total = emulator.store.names(wanted, emulator.readable_until())
    return _page([name_json(name) for name in names], total, limit)


@router.get("/{id}")
def get_event(emulator: State, token: Reader, id: UUID4) -> Response:  # noqa: A002 - Polar's name
    """Return one event."""
    del token
    event = emulator.store.get(str(id), emulator.readable_until())
    if event is None:
        raise ApiError(404, {"error": "ResourceNotFound", "detail": "Not found"})
    return JSONResponse(event_json(event, emulator.customers))


@router.post("/ingest")
async def ingest_events(emulator: State, token: Writer, request: Request) -> Response:
    """Take a batch of events."""
    body = await request.body()
    return await run_in_threadpool(ingest, emulator, token, request.headers.get("content-type"), body)


def _filter(text: str | None) -> Filter | None:
    if text is None:
        return None
    try:
        return Filter.model_validate_json(text)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


def _check_query(query: str, organization_id: object) -> None:
    message = None
    if organization_id is None:
        message = "Query is only supported when organization_id is provided."
    elif len(query) < _MIN_QUERY:
        message = f"Query must have at least {_MIN_QUERY} characters."
    if message is not None:
        raise RequestValidationError(
            [{"type": "value_error", "msg": message, "loc": ("query", "query"), "input": query}]
        )


def _several(value: object) -> list[Any]:
    """Return a parameter's values; FastAPI gives one that may be repeated as a list."""
    return list(value) if isinstance(value, Sequence) else []


def _nothing(organization_id: object, source: object) -> bool:
    """Tell whether no event can match: there is one organization, and only the user makes events."""
    organizations, sources = _several(organization_id), _several(source)
    return bool(organizations and ORGANIZATION_ID not in organizations) or bool(
        sources and EventSource.user not in sources
    )


def _customers(
    emulator: Emulator, customer_id: object, external_customer_id: object
) -> tuple[list[str], list[str]] | None:
    """Return the customers asked for by both kinds of id: an event has only one of them."""
    ids = [str(customer) for customer in _several(customer_id)]
    external_ids: list[str] = _several(external_customer_id)
    if not ids and not external_ids:
        return None
    known = [(str(customer.id), customer.external_id) for customer in emulator.options.customers]
    return (
        ids + [id_ for id_, external_id in known if external_id in external_ids],
        external_ids + [external_id for id_, external_id in known if external_id and id_ in ids],
    )


def _offset(page: int, limit: int) -> int:
    return min((page - 1) * limit, _MAX_OFFSET)


def _metadata(request: Request) -> dict[str, list[str]]:
    """Return the conditions `metadata[key]=value`, several values of a key being alternatives."""
    wanted: dict[str, list[str]] = {}
    for parameter, value in request.query_params.multi_items():
        match = _METADATA_PARAMETER.match(parameter)
        if match:
            wanted.setdefault(match[1], []).append(value)
    return wanted


def _sorting(words: Sequence[StrEnum]) -> list[Sorting]:
    return [Sorting(word.value.removeprefix("-"), word.value.startswith("-")) for word in words]


def _page(items: list[Any], total: int, limit: int) -> Response:
    if not items:
        # The server counts along with the rows of the page: past the end it counts none.
        total = 0
    return JSONResponse(
        {"items": items, "pagination": {"total_count": total, "max_page": -(-total // limit)}}
    )
