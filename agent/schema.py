"""Polar's event schema: what `POST /v1/events/ingest` takes, refuses, and chokes on.

The models have the shape of Polar's own, on the library that Polar checks events with,
so that an event gets the server's own verdict: the same set of error types at the same
locations. Every rule here is one that a real server was seen to follow; where its
published schema says otherwise, its behaviour won.

Two kinds of refusal are told apart:

- *errors* are what the server names in a 422;
- *poison* is what passes its schema, and then breaks it: the server answers 500 for
  the whole batch, and does not say because of which event (`PoisonError`).

Pure: no I/O and no clock; the newest timestamp allowed is an argument.
"""

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, NotRequired

from pydantic import (
    UUID4,
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import ErrorDetails
from typing_extensions import TypedDict

from agent.pglz import compressed_size
from agent.polar_json import MAX_DEPTH, MAX_INT_DIGITS, BodyError, parse_json

__all__ = [
    "MAX_DEPTH",
    "MAX_INT_DIGITS",
    "BodyError",
    "Event",
    "EventCreateCustomer",
    "EventCreateExternalCustomer",
    "PoisonError",
    "check_poison",
    "errors_of",
    "event_errors",
    "index_overflow",
    "parse_event",
    "parse_json",
]

_MAX_INDEX_ROW = 2704  # bytes; a row of a btree index is at most about a third of PostgreSQL's 8 KiB page
_INDEX_ROW_FIXED = 8 + 16  # its header, and the organization's id, which stands beside the text
_MAX_PLAIN = _MAX_INDEX_ROW - _INDEX_ROW_FIXED - 4
_MAX_COMPRESSED = _MAX_INDEX_ROW - _INDEX_ROW_FIXED - 8


class PoisonError(Exception):
    """An event that the server answers 500 to, without naming it.

    Attributes:
        field: the field at fault.
        reason: why, in words for the producer.
        loc: the way to the value at fault, beginning with the field.
    """

    def __init__(self, field: str, reason: str, *within: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason
        self.loc = (field, *within)


# -- the models ------------------------------------------------------------------------


def _no_nul(value: str | None) -> str | None:
    if value is not None and "\0" in value:
        raise ValueError("This value contains invalid characters")
    return value


def _no_nul_inside(value: Any) -> Any:
    """Refuse NUL in any key or string of the metadata that was kept."""
    if _has_nul(value):
        raise ValueError("This value contains invalid characters")
    return value


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any("\0" in key or _has_nul(item) for key, item in value.items())
    return False


def _in_the_past(timestamp: datetime, info: ValidationInfo) -> datetime:
    """Refuse a timestamp after the one that the caller put into the context; return it in UTC."""
    try:
        timestamp = timestamp.astimezone(UTC)
    except OverflowError:
        raise PoisonError("timestamp", "in UTC it falls before the year 1 or after 9999") from None
    latest: datetime = info.context  # type: ignore[assignment]
    if timestamp > latest:
        raise ValueError("Timestamp must be in the past.")
    return timestamp


_Text = Annotated[str, AfterValidator(_no_nul)]
_OptionalText = Annotated[str | None, AfterValidator(_no_nul)]
_Value = Annotated[str, StringConstraints(min_length=1, max_length=500)] | int | float | bool


class CostMetadata(TypedDict):
    """`metadata._cost`."""

    amount: Annotated[Decimal, Field(max_digits=17, decimal_places=12)]
    # The server searches for the pattern, so "xusd" passes.
    currency: Annotated[str, Field(pattern="usd")]


class LLMMetadata(TypedDict):
    """`metadata._llm`; texts are not limited, unknown keys are dropped."""

    vendor: str
    model: str
    prompt: Annotated[str | None, Field(default=None)]
    response: Annotated[str | None, Field(default=None)]
    input_tokens: int
    cached_input_tokens: NotRequired[int]
    output_tokens: int
    total_tokens: int


class EventMetadata(TypedDict, total=False, extra_items=_Value):  # type: ignore[call-arg]
    """`metadata`: two keys with a meaning, and any other with a plain value."""

    _cost: CostMetadata
    _llm: LLMMetadata


class EventCreate(BaseModel):
    """What both kinds of event have; `timestamp` is None when the event has none."""

    # Polar's models read attributes too; that is why a list is a `model_attributes_type` error.
    model_config = ConfigDict(from_attributes=True)

    timestamp: Annotated[AwareDatetime, AfterValidator(_in_the_past)] = Field(default=None)  # type: ignore[assignment]
    name: Annotated[str, StringConstraints(max_length=128), AfterValidator(_no_nul)]
    organization_id: UUID4 | None = None
    external_id: _OptionalText = None
    parent_id: _OptionalText = None
    metadata: Annotated[EventMetadata, AfterValidator(_no_nul_inside)] = Field(default_factory=EventMetadata)


class EventCreateCustomer(EventCreate):
    """An event of a customer by Polar's id."""

    customer_id: UUID4
    member_id: UUID4 | None = None


class EventCreateExternalCustomer(EventCreate):
    """An event of a customer by the sender's own id."""

    external_customer_id: _Text
    external_member_id: _OptionalText = None


Event = EventCreateCustomer | EventCreateExternalCustomer
"""An accepted event. The class tells which kind of customer id counts."""

_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


# -- verdicts --------------------------------------------------------------------------


def parse_event(event: Any, latest: datetime) -> Event:
    """Check one event against the server's schema.

    Args:
        event: what `parse_json` made of it.
        latest: the newest timestamp allowed, with its time zone.

    Returns:
        The event as the server understands it: `timestamp` in UTC, None when absent.

    Raises:
        ValidationError: the server answers 422; `errors_of` lists what it names.
        PoisonError: the server answers 500 while checking.
    """
    return _EVENT.validate_python(event, context=latest)


def event_errors(event: Any, latest: datetime) -> list[ErrorDetails]:
    """Return what the server's schema finds wrong with one event; empty when nothing.

    Each error has `type`, `loc`, `msg` and `input` as in the server's answer; `loc`
    begins with the branch, without `"body", "events", index`.

    Raises:
        PoisonError: the server answers 500 while checking.
    """
    try:
        parse_event(event, latest)
    except ValidationError as error:
        return errors_of(error)
    return []


def errors_of(error: ValidationError) -> list[ErrorDetails]:
    """Return the errors as the server's answer lists them."""
    return error.errors(include_url=False)


def check_poison(event: Event) -> None:
    """Raise PoisonError when the server's database would choke on this accepted event."""
    texts = {"external_id": event.external_id, "parent_id": event.parent_id}
    if isinstance(event, EventCreateExternalCustomer):
        texts["external_customer_id"] = event.external_customer_id
    for field, text in texts.items():
        if text is not None and index_overflow(text):
            raise PoisonError(field, "too long for an index of Polar's database")
    if isinstance(event, EventCreateExternalCustomer):
        texts["external_member_id"] = event.external_member_id
    for field, value in (*texts.items(), ("metadata", event.metadata)):
        for within, leaf in _leaves(value):
            if isinstance(leaf, float) and not math.isfinite(leaf):
                raise PoisonError(field, "a number that is not finite", *within)
            if isinstance(leaf, str) and not _is_unicode(leaf):
                raise PoisonError(field, "half of a surrogate pair, which is no character", *within)


def _leaves(value: Any, within: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every plain value, after the keys that lead to it."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*within, key))
    else:
        yield within, value


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def index_overflow(text: str) -> bool:
    """Tell whether an id is too long for a row of PostgreSQL's index.

    The index holds `external_id`, `external_customer_id` and `parent_id`, compressed when
    that saves a quarter: of text that hardly repeats, 2,600 bytes were taken and 2,750
    refused. In doubt it is False: an event wrongly refused is usage that is never billed.
    """
    if len(text) * 4 <= _MAX_PLAIN:
        return False
    data = text.encode("utf-8", "surrogatepass")
    if len(data) <= _MAX_PLAIN:
        return False
    size = compressed_size(data, _MAX_COMPRESSED)
    return size is not None and size > _MAX_COMPRESSED
