"""The events that producers named lately, so that one that comes again is known. Pure.

Polar keeps the first event of an `external_id` for ever and drops every later one in
silence, whatever it holds. So of two events with one id the second is no news: with the
same content it is a repeat, which is counted and not stored; with other content it would
be lost unseen, and is a conflict.

- An event is entered when it is on its way to the writer, and a repeat of it follows it
  there (`Writer.order`); commits are in order, so a repeat is acknowledged after its first
  is durable, or together with it. What was refused or dropped is not entered.
- The content is the line that the producer wrote, before our stamps: the same bytes, or
  else the same JSON value, so that blanks and the order of members do not matter.
- Kept are the lines themselves, as the blocks that were read: no hash of each is needed.
  Two generations of a bounded size: when the young one is full, the old one is forgotten.
- A dead letter's id is not at Polar: it is forgotten, and may come again, mended. Once it is
  retried it is entered again, as it goes out: with our stamps in it, which a producer that
  repeats the event does not write.
- It ends with the process, but for what is still in the queue: the newest of that is recalled when
  the first event comes that has an id, so that a start takes no longer for a full queue. It is
  there as it goes out, with our stamps. What is not remembered is taken once more, and Polar tells
  that it is a duplicate.

Who enters or asks holds `Writer.order`; `forget` may be called by any thread.
"""

from __future__ import annotations

import json
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from uuid import UUID

GENERATION_BYTES = 4 << 20
"""So much is surely remembered: some 10,000 usual events; twice that at most."""
EVENT_BYTES = 150
"""What an event takes beside its line: its id, and its place in a table."""

_NO_JSON = (ValueError, RecursionError)


class _Named(msgspec.Struct, gc=False):
    """Of an event, only what tells it from others."""

    external_id: str | None = None
    organization_id: str | None = None


_NAMED = msgspec.json.Decoder(_Named)


class _Generation:
    """Some of what is remembered.

    Attributes:
        places: the number of the block that an identity is in.
        blocks: lines joined by newlines.
        size: bytes that all this takes.
        revived: identities of dead letters that were retried.
        stamped: all lines have our stamps in them.
    """

    __slots__ = ("blocks", "places", "revived", "size", "stamped")

    def __init__(self, *, stamped: bool = False) -> None:
        self.stamped = stamped
        self.revived: set[str] = set()
        self.places: dict[str, int] = {}
        self.blocks: list[bytes] = []
        self.size = 0


class Memory(Protocol):
    """What a check asks; see `Seen` for each."""

    def enter(self, ids: Sequence[str], block: bytes) -> bool: ...  # noqa: D102
    def first_repeat(self, ids: Iterable[str]) -> int: ...  # noqa: D102
    def repeats(self, identity: str, line: bytes) -> bool | None: ...  # noqa: D102


class Lasting(Memory, Protocol):
    """One that can be asked without remembering."""

    def ask(self, identity: str, line: bytes) -> bool | None: ...  # noqa: D102
    def knows(self, identity: str) -> bool: ...  # noqa: D102


class Seen:
    """Remembers the latest events that have an `external_id` of their producer's.

    Args:
        generation_bytes: how much is surely remembered; at most twice that, and two blocks.
        recall: yields blocks of events from before, the newest first, as they go out.
    """

    def __init__(
        self, generation_bytes: int = GENERATION_BYTES, recall: Callable[[], Iterable[bytes]] | None = None
    ) -> None:
        self._generation_bytes = generation_bytes
        self._recall = recall
        self._young = _Generation()
        self._old = _Generation()
        self._forgotten: deque[str] = deque()
        self._opened: tuple[_Generation, int] | None = None
        self._lines: dict[str, bytes] = {}  # of the block that was opened last

    def enter(self, ids: Sequence[str], block: bytes) -> bool:
        """Remember events if every one of them is new; else remember none, and return False.

        Args:
            ids: their `external_id`, none empty; they have no `organization_id`.
            block: lines joined by newlines, these events among them.
        """
        self._prepare()
        young, old = self._young, self._old
        places = dict.fromkeys(ids, len(young.blocks))
        fresh = places.keys()
        if len(places) != len(ids) or not young.places.keys().isdisjoint(fresh):
            return False
        if old.places and not old.places.keys().isdisjoint(fresh):
            return False
        young.places.update(places)
        self._keep(block, len(ids))
        return True

    def first_repeat(self, ids: Iterable[str]) -> int:
        """Return the place of the first id that is remembered or stood there before; -1 when none is.

        Args:
            ids: of events; those without are empty.
        """
        self._prepare()
        met: set[str] = set()
        for place, one in enumerate(ids):
            if one and (one in met or one in self._young.places or one in self._old.places):
                return place
            met.add(one)
        return -1

    def repeats(self, identity: str, line: bytes) -> bool | None:
        """Remember an event if it is new, and return None; else tell whether it is the same as its first."""
        same = self.ask(identity, line)
        if same is None:
            self._young.places[identity] = len(self._young.blocks)
            self._keep(line, 1)
        return same

    def ask(self, identity: str, line: bytes) -> bool | None:
        """Tell whether an event is the same as the one that is remembered; None when none is."""
        self._prepare()
        for generation in (self._young, self._old):
            place = generation.places.get(identity)
            if place is not None:
                first = self._line(generation, place, identity)
                stamped = generation.stamped or identity in generation.revived
                return is_same(first, line) or (stamped and is_unstamped(first, line))
        return None

    def knows(self, identity: str) -> bool:
        """Tell whether an event is remembered."""
        self._prepare()
        return identity in self._young.places or identity in self._old.places

    def revive(self, identity: str, line: bytes) -> None:
        """Remember a dead letter that was put back on its way; `line` has our stamps in it."""
        if self.repeats(identity, line) is None:
            young = self._young if identity in self._young.places else self._old
            young.revived.add(identity)

    def forget(self, identities: Iterable[str]) -> None:
        """Forget events that Polar does not have and will not get; from any thread."""
        self._forgotten.extend(identities)

    def _keep(self, block: bytes, events: int) -> None:
        """Keep the lines of what was entered; make room when there is none."""
        young = self._young
        young.blocks.append(block)
        young.size += len(block) + events * EVENT_BYTES
        if young.size > self._generation_bytes:
            self._old, self._young = young, _Generation()
            self._opened, self._lines = None, {}

    def _prepare(self) -> None:
        """Recall what is to be recalled, and do what `forget` was asked for."""
        if self._recall is not None:
            recall, self._recall = self._recall, None
            for block in recall():
                self._remember(block)
                if self._old.size > self._generation_bytes:
                    break
        if self._forgotten:
            self._drop_forgotten()

    def _remember(self, block: bytes) -> None:
        """Put events from before into the old generation; where two have one id, the newer counts."""
        old = self._old
        old.stamped = True
        try:
            named = _NAMED.decode_lines(block)
        except msgspec.MsgspecError:
            return  # our check let something pass that msgspec does not read
        if any(event.organization_id for event in named):
            for line in block.split(b"\n"):
                old.places.setdefault(identity_of(line), len(old.blocks))
                old.blocks.append(line)
        else:
            for event in named:
                old.places.setdefault(event.external_id or "", len(old.blocks))
            old.blocks.append(block)
        old.size += len(block) + len(named) * EVENT_BYTES

    def _drop_forgotten(self) -> None:
        """Do what `forget` was asked for."""
        while self._forgotten:
            identity = self._forgotten.popleft()
            self._young.places.pop(identity, None)
            self._old.places.pop(identity, None)

    def _line(self, generation: _Generation, place: int, identity: str) -> bytes:
        """Return the line of an event that is remembered."""
        block = generation.blocks[place]
        if b"\n" not in block:
            return block
        if self._opened != (generation, place):
            lines = block.split(b"\n")
            named = _NAMED.decode_lines(block)
            self._lines = {event.external_id or "": line for event, line in zip(named, lines, strict=True)}
            self._opened = (generation, place)
        return self._lines[identity]


def identity(external_id: str, organization_id: UUID | None = None) -> str:
    """Return what Polar tells an event from others by: ids are unique within an organization."""
    return external_id if organization_id is None else f"{organization_id} {external_id}"


def identity_of(line: bytes) -> str:
    """Return the identity of an event that was checked; empty when it has none."""
    from uuid import UUID  # noqa: PLC0415  # rare, and the daemon starts sooner

    try:
        event = _NAMED.decode(line)
        organization = UUID(event.organization_id) if event.organization_id else None
    except (msgspec.MsgspecError, *_NO_JSON):
        return ""
    return identity(event.external_id, organization) if event.external_id else ""


def is_same(one: bytes, other: bytes) -> bool:
    """Tell whether two lines are one JSON value, however it is spelled."""
    if one == other:
        return True
    from decimal import Decimal  # noqa: PLC0415  # rare, and the daemon starts sooner

    try:
        return _equal(json.loads(one, parse_float=Decimal), json.loads(other, parse_float=Decimal))
    except _NO_JSON:
        return False


def is_unstamped(stamped: bytes, line: bytes) -> bool:
    """Tell whether a line is what another one was before it got its timestamp from us.

    With it, a `customer_id` beside an external one went out, see `agent.stamp`.
    """
    try:
        members, others = (msgspec.json.decode(one, type=dict[str, msgspec.Raw]) for one in (stamped, line))
    except (msgspec.MsgspecError, *_NO_JSON):
        return False
    members.pop("timestamp", None)
    if bytes(members.get("customer_id", b"null")) == b"null":
        for one in (members, others):
            one.pop("customer_id", None)
    return is_same(msgspec.json.encode(members), msgspec.json.encode(others))


def _equal(one: Any, other: Any) -> bool:
    """Compare JSON values; to Python, `true` and 1 are equal."""
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(_equal(value, other[name]) for name, value in one.items())
        )
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(_equal, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)
