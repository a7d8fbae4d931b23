"""The body of `POST /v1/events/ingest`, as Polar reads it: its events, or what is wrong with them.

The emulator and the agent's own API answer through this, so that a program gets the same
words from both as from Polar. Pure.
"""

from __future__ import annotations

import json
from email.message import Message
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from agent.polar_json import event_lines
from agent.schema import (
    MAX_DEPTH,
    BodyError,
    Event,
    EventCreateExternalCustomer,
    errors_of,
    parse_json,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

_MAX_DEPTH = MAX_DEPTH + 2  # an event stands in a list in an object
_PART = 500


class EventsIngest(BaseModel):
    """The body."""

    model_config = ConfigDict(from_attributes=True)

    events: list[Event]


class UnreadableError(Exception):
    """A body that is no JSON.

    Attributes:
        error: the kind of a 422, which has `detail`; None when Polar answers 400 without one.
        detail: the findings.
    """

    def __init__(self, error: str | None, detail: list[dict[str, Any]]) -> None:
        super().__init__(error)
        self.error = error
        self.detail = detail


BAD_REQUEST = {"detail": "There was an error parsing the body"}
SCHEMA_ERROR = "RequestValidationError"
SECOND_STAGE_ERROR = "PolarRequestValidationError"

_EXTERNAL = TypeAdapter(list[EventCreateExternalCustomer])


def parse_body(content_type: str | None, body: bytes) -> Any:
    """Return the body's value; what is not sent as JSON is a text, or None when there is nothing.

    Raises:
        UnreadableError: it is no JSON.
        BodyError: its `status` is 500: it is nested too deep.
    """
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
        raise UnreadableError(SCHEMA_ERROR, [detail]) from error
    except BodyError as error:
        if error.status != 400:
            raise
        raise UnreadableError(None, []) from error
    except UnicodeDecodeError as error:
        raise UnreadableError(None, []) from error


def parse_parts(content_type: str | None, body: bytes) -> Iterator[tuple[int, Any]]:
    """Yield a body's value in parts that are small enough for nobody to wait for one; see `parse_body`.

    Each part is as a body of its own would be, with the index of its first event.
    """
    try:
        if not _is_json(content_type):
            raise ValueError  # noqa: TRY301  # what is not sent as JSON is one text
        texts = event_lines(body)
    except ValueError:
        value = parse_body(content_type, body)
        events = value.get("events") if type(value) is dict else None
        if type(events) is not list or not events:
            yield 0, value
            return
        for start in range(0, len(events), _PART):
            yield start, {"events": events[start : start + _PART]}
        return
    for start in range(0, max(1, len(texts)), _PART):
        part = b'{"events":[%b]}' % b",".join(texts[start : start + _PART])
        yield start, parse_body(content_type, part)


def _is_json(content_type: str | None) -> bool:
    if content_type is None:
        return False
    message = Message()
    message["content-type"] = content_type
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (
        subtype == "json" or subtype.endswith("+json")
    )


def check_body(value: Any, latest: datetime) -> Sequence[Event]:
    """Check the whole body against the schema.

    Args:
        value: what `parse_body` returned.
        latest: the newest timestamp allowed, with its time zone.

    Raises:
        ValidationError: for `schema_errors`.
        PoisonError: the server answers 500 while checking.
    """
    events = value.get("events") if type(value) is dict else None
    # Without a customer_id the first branch of the union fails for certain. Checking only the
    # other one gives the same events in half the time; errors are left to the whole union.
    if type(events) is list and not any(type(event) is dict and "customer_id" in event for event in events):
        try:
            return _EXTERNAL.validate_python(events, context=latest)
        except ValidationError:
            pass
    return EventsIngest.model_validate(value, context=latest).events


def schema_errors(error: ValidationError, value: Any, start: int = 0) -> list[dict[str, Any]]:
    """Return the findings of a 422 as the server lists them; `start` is the index of the first event."""
    if value is None:
        return [{"type": "missing", "loc": ["body"], "msg": "Field required", "input": None}]
    return [{**item, "loc": ["body", *_moved(item["loc"], start)]} for item in errors_of(error)]


def _moved(loc: Sequence[Any], start: int) -> Sequence[Any]:
    """Return the place of a finding in the whole body."""
    return [loc[0], loc[1] + start, *loc[2:]] if start and len(loc) > 1 else loc


def event_error(kind: str, index: int, loc: Sequence[object], message: str, value: object) -> dict[str, Any]:
    """Return one finding about the event at an index."""
    return {"type": kind, "loc": ["body", "events", index, *loc], "msg": message, "input": value}


def organization_missing(index: int) -> dict[str, Any]:
    """Return the finding that a personal token needs the organization."""
    return event_error("missing", index, ["organization_id"], "organization_id is required.", None)


def organization_given(index: int, value: str) -> dict[str, Any]:
    """Return the finding that an organization's token does not."""
    message = "Setting organization_id is disallowed when using an organization token."
    return event_error("organization_token", index, ["organization_id"], message, value)


def error_json(error: str, detail: list[dict[str, Any]]) -> bytes:
    """Return the JSON of a 422.

    It repeats the input, and input with NaN or half a surrogate pair is no JSON: this is
    how a harmless mistake in one event makes the real server fail for the whole batch.

    Raises:
        ValueError: it cannot be written.
        RecursionError: likewise.
    """
    return json.dumps(
        {"error": error, "detail": detail},
        ensure_ascii=False,
        allow_nan=False,
        separators=(",", ":"),
        default=_plain,
    ).encode()


def _plain(value: Any) -> Any:
    """Return what stands for an object; an exception in an error's context is written as {}."""
    return vars(value) if isinstance(value, Exception) else str(value)


def event_texts(body: bytes) -> list[str]:
    """Return the text of each event of a body that `parse_parts` reads as it came, on one line."""
    try:
        return [line.decode() for line in event_lines(body)]
    except ValueError:
        # The server's parser takes more than JSON, such as NaN.
        return [json.dumps(event) for event in parse_body("application/json", body)["events"]]
