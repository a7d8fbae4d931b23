"""Learns the shape of the events that come, and reads more of that shape in half the time. Pure.

Most producers write the same fields again and again. `agent.quick` reads the metadata of an
event into a dictionary; a type made for the very keys that were seen needs no dictionary,
and whether ids and times are there is known without a look at each event. Nothing is taken
that the quick check would not take: the types of the fields are the same, and a block with
anything else in it is not read at all.
"""

from __future__ import annotations

from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from agent.quick import ERRORS, Found, FullId, Id, Name, Time, Value, cost_is_fine, has_nul

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_LEARN_FROM = 32  # events; fewer are read quickly enough
_MOST_KEYS = 48
_LONGEST_WAIT = 1024
_metadata_of = attrgetter("metadata")


class _Llm(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """`metadata._llm` with what Polar wants of it, and nothing that it does not know."""

    vendor: str
    model: str
    input_tokens: int
    output_tokens: int
    total_tokens: int
    cached_input_tokens: int | UnsetType = UNSET
    prompt: str | None = None
    response: str | None = None


class _Cost(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """`metadata._cost`; whether its amount is fine, `agent.quick` tells."""

    amount: int | float
    currency: Literal["usd"]


class Shapes:
    """The shape that was learned last; what it is changes how fast a block is read, never the outcome.

    Attributes:
        trusted: the last blocks were of the shape, but for bad lines: one that is not of it is
            probably bad.
    """

    __slots__ = (
        "_decoder",
        "_keys",
        "_passed_over",
        "_wait",
        "_with_costs",
        "_with_ids",
        "_with_times",
        "trusted",
    )

    def __init__(self) -> None:
        self.trusted = False
        self._decoder: msgspec.json.Decoder[Any] | None = None
        self._keys: dict[str, None] = {}
        self._with_costs = False
        self._with_ids = False
        self._with_times = False
        self._wait = 1  # how many blocks of another shape come before the next lesson
        self._passed_over = 0

    def read(self, block: bytes) -> Found | None:
        """Return what is in a block of lines if all of them are fine and of the shape; else None.

        Args:
            block: as for `agent.quick.check_block`.
        """
        if self._decoder is None or has_nul(block):
            return None
        try:
            events = self._decoder.decode_lines(block)
        except ERRORS:
            return None
        if self._with_costs and not all(map(_cost_is_fine, events)):
            return None
        self._wait = 1
        self.trusted = True
        return Found(events, self._with_ids, self._with_times)

    def read_each(self, lines: Sequence[bytes]) -> Found | None:
        """Return what is in each line, None for one that is not of the shape; None without one.

        Args:
            lines: each of them without blanks at its ends.
        """
        if self._decoder is None:
            return None
        decode = self._decoder.decode
        events: list[Any] = []
        for line in lines:
            try:
                event = decode(line)
            except ERRORS:
                event = None
            else:
                if has_nul(line) or (self._with_costs and not _cost_is_fine(event)):
                    event = None
            events.append(event)
        return Found(events, self._with_ids, self._with_times)

    def learn(self, found: Found) -> None:
        """See what a block, read by the quick check, had in it.

        Lessons become rarer while they do not help: events that are all different have no shape.
        """
        self._passed_over += 1
        if self._passed_over < self._wait or len(found.events) < _LEARN_FROM:
            return
        self._passed_over = 0
        self._wait = min(2 * self._wait, _LONGEST_WAIT)
        self._decoder = None
        with_ids, with_times = found.with_ids, found.with_times
        if with_ids is None or with_times is None:
            return
        # In the order in which they come, which is that in which the reader looks for them.
        seen = dict.fromkeys(chain.from_iterable(filter(None, map(_metadata_of, found.events))))
        keys = seen | self._keys
        if len(keys) > _MOST_KEYS:
            keys = seen
        if len(keys) > _MOST_KEYS or not all(map(may_be_a_field, keys)):
            self._keys = {}
            return
        self._keys, self._with_ids, self._with_times = keys, with_ids, with_times
        self._with_costs = "_cost" in keys
        self._decoder = msgspec.json.Decoder(_event_type(keys, with_ids, with_times))


_KINDS: Final = {"_cost": ("cost", _Cost), "_llm": ("llm", _Llm)}
"""The fields for the two keys with a meaning, and their types."""


def may_be_a_field(key: str) -> bool:
    """Tell whether msgspec can name a field so."""
    return key.isprintable() and '"' not in key and "\\" not in key


def _cost_is_fine(event: Any) -> bool:
    """Tell whether the event costs nothing, or an amount that is surely fine."""
    cost = event.metadata and event.metadata.cost
    return not cost or cost_is_fine(cost)


def _event_type(keys: Iterable[str], with_ids: bool, with_times: bool) -> type[msgspec.Struct]:
    """Return the type of events whose metadata has no keys but these."""
    fields: list[Any] = [("name", Name), ("external_customer_id", Id)]
    if with_ids:
        fields.append(("external_id", FullId))
    if with_times:
        fields.append(("timestamp", Time))
    metadata = _metadata_type(keys)
    fields += [("metadata", metadata | UnsetType, UNSET), ("parent_id", Id | None, None)]
    return msgspec.defstruct("_Event", fields, gc=False, forbid_unknown_fields=True)


def _metadata_type(keys: Iterable[str]) -> type[msgspec.Struct]:
    """Return the type of metadata that has some of these keys and no others."""
    names = {_KINDS.get(key, (f"f{number}",))[0]: key for number, key in enumerate(keys)}
    fields: list[Any] = []
    for name, key in names.items():
        kind = _KINDS[key][1] if key in _KINDS else Value
        fields.append((name, kind | UnsetType, UNSET))
    return msgspec.defstruct("_Metadata", fields, rename=names, gc=False, forbid_unknown_fields=True)
