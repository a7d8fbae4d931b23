"""One batch of events: parsed, checked in two stages, stored. All or nothing.

The first stage is the schema, for all events; the second is what only the database
knows: organization, customers, members. Its errors show only when the first has none.
"""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError

from agent.emulator.answers import ApiError, CrashError, plain_error, to_micros, validation_error
from agent.emulator.options import ORGANIZATION_ID
from agent.emulator.store import Row
from agent.ingest_body import (
    BAD_REQUEST,
    SCHEMA_ERROR,
    SECOND_STAGE_ERROR,
    UnreadableError,
    check_body,
    event_error,
    event_texts,
    organization_given,
    organization_missing,
    parse_body,
    schema_errors,
)
from agent.schema import (
    BodyError,
    Event,
    EventCreateCustomer,
    EventCreateExternalCustomer,
    PoisonError,
    index_overflow,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from agent.emulator.auth import Token
    from agent.emulator.state import Emulator

_METADATA = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=str)


def ingest(emulator: Emulator, token: Token, content_type: str | None, body: bytes) -> Response:
    """Answer `POST /v1/events/ingest`; blocks, so it belongs into a worker thread.

    Raises:
        ApiError: the body cannot be read.
        CrashError: what makes the real server fail.
    """
    now = emulator.now()
    value = None
    try:
        value = parse_body(content_type, body)
        events = check_body(value, now)
    except UnreadableError as error:
        if error.error is None:
            raise ApiError(400, BAD_REQUEST) from error
        return validation_error(error.error, error.detail)
    except ValidationError as error:
        return validation_error(SCHEMA_ERROR, schema_errors(error, value))
    except (BodyError, PoisonError) as error:
        raise CrashError(str(error)) from error
    errors = [
        error for index, event in enumerate(events) for error in _second_stage(emulator, token, index, event)
    ]
    if errors:
        return validation_error(SECOND_STAGE_ERROR, errors)
    faults = emulator.dice.faults
    if faults.max_events is not None and len(events) > faults.max_events:
        raise CrashError("more events than the fault `max_events` allows")
    if faults.poison_external_ids and any(
        event.external_id in faults.poison_external_ids for event in events
    ):
        return plain_error(faults.poison_status)
    inserted = _store(emulator, events, event_texts(body), now)
    return JSONResponse({"inserted": inserted, "duplicates": len(events) - inserted})


def _second_stage(emulator: Emulator, token: Token, index: int, event: Event) -> list[Any]:
    """Return what only the database knows to be wrong with an event."""

    def error(field: str, message: str, value: object) -> list[Any]:
        return [event_error(field, index, [field], message, str(value))]

    organization = event.organization_id
    if token.personal:
        if organization is None:
            return [organization_missing(index)]
        if organization != ORGANIZATION_ID:
            return error("organization_id", "Organization not found.", organization)
    elif organization is not None:
        return [organization_given(index, str(organization))]
    if isinstance(event, EventCreateCustomer):
        if str(event.customer_id) not in emulator.customers:
            return error("customer_id", "Customer not found.", event.customer_id)
        if event.member_id is not None:
            return error("member_id", "Member not found.", event.member_id)
    return []


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
