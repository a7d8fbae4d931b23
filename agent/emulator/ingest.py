"""One batch of events: parsed, checked in two stages, stored. All or nothing.

The first stage is the schema, for all events; the second is what only the database
knows: organization, customers, members. Its errors show only when the first has none.
"""

from __future__ import annotations

import json
import uuid
from email.message import Message
from typing import TYPE_CHECKING, Any

import msgspec
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from agent.emulator.answers import ApiError, CrashError, plain_error, to_micros, validation_error
from agent.emulator.options import ORGANIZATION_ID
from agent.emulator.store import Row
from agent.schema import (
    MAX_DEPTH,
    BodyError,
    Event,
    EventCreateCustomer,
    EventCreateExternalCustomer,
    PoisonError,
    errors_of,
    index_overflow,
    parse_json,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from agent.emulator.auth import Token
    from agent.emulator.state import Emulator

_BAD_REQUEST = 400
_MAX_DEPTH = MAX_DEPTH + 2  # an event stands in a list in an object


class EventsIngest(BaseModel):
    """The body."""

    model_config = ConfigDict(from_attributes=True)

    events: list[Event]


class _RawBody(msgspec.Struct):
    events: list[msgspec.Raw]


_EXTERNAL = TypeAdapter(list[EventCreateExternalCustomer])
_RAW = msgspec.json.Decoder(_RawBody)
_METADATA = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=str)


def ingest(emulator: Emulator, token: Token, content_type: str | None, body: bytes) -> Response:
    """Answer `POST /v1/events/ingest`; blocks, so it belongs into a worker thread.

    Raises:
        ApiError: the body cannot be read.
        CrashError: what makes the real server fail.
    """
    value = _read(content_type, body)
    if isinstance(value, Response):
        return value
    now = emulator.now()
    try:
        events = _validate(value, now)
    except ValidationError as error:
        return _schema_errors(error, value)
    except PoisonError as error:
        raise CrashError(str(error)) from error
    errors = [
        error for index, event in enumerate(events) for error in _second_stage(emulator, token, index, event)
    ]
    if errors:
        return validation_error("PolarRequestValidationError", errors)
    faults = emulator.dice.faults
    if faults.max_events is not None and len(events) > faults.max_events:
        raise CrashError("more events than the fault `max_events` allows")
    if faults.poison_external_ids and any(
        event.external_id in faults.poison_external_ids for event in events
    ):
        return plain_error(faults.poison_status)
    inserted = _store(emulator, events, _texts(body, value), now)
    return JSONResponse({"inserted": inserted, "duplicates": len(events) - inserted})


def _read(content_type: str | None, body: bytes) -> Any:
    """Return the body's value, or the answer to a body that is no JSON."""
    if not body or not _is_json(content_type):
        return body.decode("utf-8", "replace") or None
    try:
        return parse_json(body.decode(json.detect_encoding(body), "surrogatepass"), _MAX_DEPTH)
    except json.JSONDecodeError as error:
        detail = {
            "type": "json_invalid",
            "loc": ["body", error.pos],
            "msg": "JSON decode error",
            "input": {},
            "ctx": {"error": error.msg},
        }
        return validation_error("RequestValidationError", [detail])
    except BodyError as error:
        if error.status != _BAD_REQUEST:
            raise CrashError(str(error)) from error
        raise ApiError(_BAD_REQUEST, {"detail": "There was an error parsing the body"}) from error
    except UnicodeDecodeError as error:
        raise ApiError(_BAD_REQUEST, {"detail": "There was an error parsing the body"}) from error


def _is_json(content_type: str | None) -> bool:
    if content_type is None:
        return False
    message = Message()
    message["content-type"] = content_type
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (
        subtype == "json" or subtype.endswith("+json")
    )


def _validate(value: Any, latest: datetime) -> Sequence[Event]:
    """Check the whole body against the schema; raise ValidationError with the server's errors."""
    events = value.get("events") if type(value) is dict else None
    # Without a customer_id the first branch of the union fails for certain. Checking only the
    # other one gives the same events in half the time; errors are left to the whole union.
    if type(events) is list and not any(type(event) is dict and "customer_id" in event for event in events):
        try:
            return _EXTERNAL.validate_python(events, context=latest)
        except ValidationError:
            pass
    return EventsIngest.model_validate(value, context=latest).events


def _schema_errors(error: ValidationError, value: Any) -> Response:
    if value is None:
        errors: list[Any] = [{"type": "missing", "loc": ["body"], "msg": "Field required", "input": None}]
    else:
        errors = [{**item, "loc": ["body", *item["loc"]]} for item in errors_of(error)]
    return validation_error("RequestValidationError", errors)


def _second_stage(emulator: Emulator, token: Token, index: int, event: Event) -> list[Any]:
    """Return what only the database knows to be wrong with an event."""

    def error(kind: str, field: str, message: str, value: object) -> list[Any]:
        return [{"type": kind, "loc": ["body", "events", index, field], "msg": message, "input": value}]

    organization = event.organization_id
    if token.personal:
        if organization is None:
            return error("missing", "organization_id", "organization_id is required.", None)
        if organization != ORGANIZATION_ID:
            return error("organization_id", "organization_id", "Organization not found.", str(organization))
    elif organization is not None:
        return error(
            "organization_token",
            "organization_id",
            "Setting organization_id is disallowed when using an organization token.",
            str(organization),
        )
    if isinstance(event, EventCreateCustomer):
        if str(event.customer_id) not in emulator.customers:
            return error("customer_id", "customer_id", "Customer not found.", str(event.customer_id))
        if event.member_id is not None:
            return error("member_id", "member_id", "Member not found.", str(event.member_id))
    return []


def _texts(body: bytes, value: Any) -> list[str]:
    """Return the text of each event as it came, on one line."""
    try:
        # A line break in JSON is never part of a value.
        return [bytes(raw).decode().replace("\n", " ").replace("\r", " ") for raw in _RAW.decode(body).events]
    except (msgspec.DecodeError, UnicodeDecodeError):
        # The server's parser takes more than JSON, such as NaN.
        return [json.dumps(event) for event in value["events"]]


def _store(emulator: Emulator, events: Sequence[Event], texts: Sequence[str], now: datetime) -> int:
    received_at = to_micros(now)
    stored_at = emulator.stored_at()
    try:
        rows = [_row(event, text, received_at, stored_at) for event, text in zip(events, texts, strict=True)]
        return emulator.store.insert(rows)
    except ValueError as error:
        # NaN is no JSON, and half a surrogate pair no text, for this database as for Polar's.
        raise CrashError("the database refuses an event") from error


def _row(event: Event, text: str, received_at: int, stored_at: int) -> Row:
    customer_id = external_customer_id = member_id = external_member_id = None
    if isinstance(event, EventCreateExternalCustomer):
        external_customer_id = event.external_customer_id
        external_member_id = event.external_member_id
    else:
        customer_id = str(event.customer_id)
        member_id = None if event.member_id is None else str(event.member_id)
    for indexed in (event.external_id, event.parent_id, external_customer_id):
        if indexed is not None and index_overflow(indexed):
            raise CrashError("an id is too long for the index")
    timestamp: datetime | None = event.timestamp
    return Row(
        str(uuid.uuid4()),
        event.external_id,
        event.parent_id,
        received_at if timestamp is None else to_micros(timestamp),
        received_at,
        stored_at,
        event.name,
        customer_id,
        external_customer_id,
        member_id,
        external_member_id,
        _METADATA.encode(event.metadata),
        text,
    )
