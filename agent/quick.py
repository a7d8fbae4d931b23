"""The quick check: proves in one call that a whole block of lines is fine, or says nothing. Pure.

It knows a part of what Polar takes, and takes nothing that Polar refuses; everything
else is left to `agent.refusal.full_check`. Where msgspec is laxer than the server,
a guard below says so and how the gap is closed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import repeat
from operator import attrgetter, is_
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

if TYPE_CHECKING:
    from collections.abc import Sequence

ABSENT: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""Stands (as this very object) for a timestamp that the line does not carry."""

NO_ID: Final = "\0"
"""Stands for an `external_id` that the line does not carry; none that is taken can be this."""

_EARLIEST = datetime(2, 1, 1, tzinfo=UTC)  # an offset may take an earlier one before year 1: the server fails
_MAX_DEPTH = 400  # a line of less nesting than the server takes goes to the full check; deeper ones must
_MAX_INT_DIGITS = 4300
_STRIDE = _MAX_INT_DIGITS // 2 - 1
_UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.ASCII)

# 600 characters are at most 2,400 bytes: below what PostgreSQL's index takes uncompressed.
Id = Annotated[str, Meta(max_length=600)]
FullId = Annotated[str, Meta(min_length=1, max_length=600)]
Name = Annotated[str, Meta(max_length=128)]
Text = Annotated[str, Meta(min_length=1, max_length=500)]
Time = Annotated[datetime, Meta(tz=True)]
Value = Text | int | float | bool
"""What stands in metadata, but for the two objects with a meaning."""


class _Plain(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """The common event: an external customer, flat metadata, nothing else."""

    name: Name
    external_customer_id: Id
    external_id: Id | None = NO_ID
    timestamp: Time = ABSENT
    parent_id: Id | None = None
    metadata: dict[str, Value] = {}  # msgspec makes a new one each time


class _Object(msgspec.Struct, gc=False):
    """`_cost` or `_llm`: which, its key tells."""

    amount: int | float | str | UnsetType = UNSET
    currency: Literal["usd"] | UnsetType = UNSET
    vendor: str | UnsetType = UNSET
    model: str | UnsetType = UNSET
    prompt: str | None = None
    response: str | None = None
    input_tokens: int | UnsetType = UNSET
    cached_input_tokens: int | UnsetType = UNSET
    output_tokens: int | UnsetType = UNSET
    total_tokens: int | UnsetType = UNSET


class _Rich(msgspec.Struct, gc=False):
    """Any event that the quick check knows; `_fine` looks at what its types cannot say."""

    name: Name
    external_customer_id: Id | UnsetType = UNSET
    customer_id: str | UnsetType = UNSET
    external_id: Id | None = NO_ID
    timestamp: Time = ABSENT
    parent_id: Id | None = None
    metadata: dict[str, Value | _Object] | UnsetType = UNSET
    member_id: UnsetType = UNSET
    external_member_id: UnsetType = UNSET
    organization_id: None = None


Event = _Plain | _Rich
"""What the quick check read of an event; `external_id` and `timestamp` are of use."""

_id_of = attrgetter("external_id")
time_of = attrgetter("timestamp")

_plain = msgspec.json.Decoder(_Plain)
_rich = msgspec.json.Decoder(_Rich)
ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Found:
    """What was read of a block that is fine.

    Attributes:
        events: one for each line; None stands for one in doubt, where lines were read one by one.
        with_ids: True if each has an `external_id` that counts, False if none has the field at
            all, None if neither.
        with_times: the same for `timestamp`.
    """

    events: list[Any]
    with_ids: bool | None
    with_times: bool | None


def check_block(block: bytes, lines: int) -> Found | None:
    """Return what is in `block` if all of its lines are fine; None where one is in doubt.

    Args:
        block: lines joined by newlines, each of them beginning with `{` and ending with `}`:
            msgspec would also take two objects on one line, or one over two.
        lines: how many lines these are.
    """
    events = _check_plain(block)
    if events is None:
        events = _check_rich(block, lines)
    return found_in(events) if events is not None and len(events) == lines else None


def check_line(line: bytes) -> Event | None:
    """Return the `Event` of one line, without blanks at its ends, if it is fine, else None."""
    if not (line.startswith(b"{") and line.endswith(b"}")):
        return None
    events = _check_plain(line)
    if events is None:
        events = _check_rich(line, 1)
    return events[0] if events is not None and len(events) == 1 else None


def read_each(lines: Sequence[bytes]) -> Found:
    """Return what is in each line, None in the place of one that is in doubt."""
    return Found([check_line(line) for line in lines], None, None)


def found_in(events: list[Any]) -> Found:
    """Return what was read of lines that are fine."""
    return Found(events, _with_ids(events), _with_times(events))


def lacks(line: bytes, latest: datetime) -> str | None:
    """Return the field that a line lacks, if with that it were fine: so nothing else is wrong with it.

    Args:
        line: one that is not fine.
        latest: the newest timestamp allowed.
    """
    if not line.startswith(b"{"):
        return None
    for name in ("external_customer_id", "name"):
        if name.encode() in line:
            continue
        events = _check_plain(b'{"%b":"x",%b' % (name.encode(), line[1:]))
        if events is not None and len(events) == 1:
            time = events[0].timestamp
            if time is ABSENT or (earliest_is_safe([time]) and time <= latest):
                return name
    return None


def _with_ids(events: list[Any]) -> bool | None:
    ids = list(map(_id_of, events))
    absent = ids.count(NO_ID)
    return False if absent == len(ids) else True if not absent and all(ids) else None


def _with_times(events: list[Any]) -> bool | None:
    # That very object: a line may carry an equal time.
    absent = sum(map(is_, map(time_of, events), repeat(ABSENT)))
    return False if absent == len(events) else None if absent else True


def has_nul(block: bytes) -> bool:
    """Tell whether a NUL may be in a text: the server refuses it, msgspec does not."""
    return b"\\" in block and b"\\u0000" in block


def _check_plain(block: bytes) -> list[Any] | None:
    """Check events that have known fields only; so msgspec reads, and checks, every byte."""
    if has_nul(block):
        return None
    try:
        events = _plain.decode_lines(block)
    except ERRORS:
        return None
    # These two keys want an object, which the type of `metadata` here does not know.
    if [1 for event in events if "_cost" in event.metadata or "_llm" in event.metadata]:
        return None
    return events


def _check_rich(block: bytes, lines: int) -> list[Any] | None:
    """Check events of any kind; what is in unknown fields, msgspec passes over with less care."""
    if not _text_is_safe(block) or not _nesting_is_safe(block, lines):
        return None
    try:
        events = _rich.decode_lines(block)
    except ERRORS:
        return None
    return events if all(map(_fine, events)) else None


def _text_is_safe(block: bytes) -> bool:
    """Close gaps in how msgspec reads text: what it skips, it does not decode."""
    if not block.isascii():
        try:
            block.decode()
        except UnicodeDecodeError:
            return False
    return b"\\u0000" not in block and not _has_long_number(block)


def _has_long_number(block: bytes) -> bool:
    """Tell whether an integer of more than 4,300 digits may be there (the server answers 400).

    Such a run of digits covers two neighbouring points of a grid of half its length.
    """
    if len(block) <= _MAX_INT_DIGITS:
        return False
    grid = block[::_STRIDE]
    return any(
        block[point * _STRIDE : (point + 1) * _STRIDE].isdigit()
        for point in range(len(grid) - 1)
        if grid[point : point + 2].isdigit()
    )


def _nesting_is_safe(block: bytes, lines: int) -> bool:
    """Tell that no line can be nested so deeply that readers of JSON differ."""
    # Each line has a closing brace of its own, so one line has at most the others' excess.
    if _closers(block) - lines <= _MAX_DEPTH:
        return True
    return all(len(line) <= 2 * _MAX_DEPTH or _closers(line) <= _MAX_DEPTH for line in block.split(b"\n"))


def _closers(text: bytes) -> int:
    return text.count(b"}") + text.count(b"]")


def _fine(event: _Rich) -> bool:
    """Tell whether what the types of `_Rich` allow is what Polar takes."""
    customer = event.customer_id
    if customer is UNSET:
        if event.external_customer_id is UNSET:
            return False
    elif event.external_customer_id is not UNSET or _UUID4.fullmatch(customer) is None:
        return False  # with both, which one counts is more than can be told here
    metadata = event.metadata
    if metadata is UNSET:
        return True
    objects = 0
    cost = metadata.get("_cost")
    if cost is not None:
        if type(cost) is not _Object or not cost_is_fine(cost):
            return False
        objects += 1
    llm = metadata.get("_llm")
    if llm is not None:
        if type(llm) is not _Object or not _llm_is_fine(llm):
            return False
        objects += 1
    return sum(1 for value in metadata.values() if type(value) is _Object) == objects


def cost_is_fine(cost: _Object) -> bool:
    """Tell that the amount surely has at most 5 digits before and 12 after the point."""
    amount = cost.amount
    if cost.currency is UNSET or amount is UNSET:
        return False
    if type(amount) is float:
        text = repr(amount)
        return len(text) <= 13 and "e" not in text and -100_000 < amount < 100_000
    return type(amount) is int and -100_000 < amount < 100_000


def _llm_is_fine(llm: _Object) -> bool:
    """Tell that the five fields that Polar wants are there."""
    return not (
        llm.vendor is UNSET
        or llm.model is UNSET
        or llm.input_tokens is UNSET
        or llm.output_tokens is UNSET
        or llm.total_tokens is UNSET
    )


def own_id(event: Event) -> str:
    """Return the line's `external_id`; empty where it has none."""
    return event.external_id if event.external_id and event.external_id != NO_ID else ""


def earliest_is_safe(timestamps: list[datetime]) -> bool:
    """Tell that no timestamp can fall before year 1 in UTC, where the server fails."""
    return min(timestamps) >= _EARLIEST
