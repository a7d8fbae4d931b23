"""Which events go together in one request, and what of a chunk is still open. Pure.

A `Lease` is a chunk on its way; a `Part` is some of its events; a `Batch` is the parts
of one request. However a batch is cut (halved, sifted), each event keeps its place in
its chunk, so that the chunk can be settled in pieces.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from agent.chunk import Chunk
from agent.guess import TAB, correct
from agent.queue import DeadLetter, Settlement

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_HEAD, _TAIL = b'{"events":[', b"]}"
OVERHEAD = len(_HEAD) + len(_TAIL)
"""Bytes of a body beside its events."""
_PIECE_BYTES = 128 * 1024


class Lease:
    """A chunk whose events are on their way; remembers which of them are settled.

    Args:
        key: the chunk's key.
        chunk: the events.
        fresh: this process has checked them.

    Attributes:
        guessed: some of their stamps may have been made before the server's time was known.
    """

    __slots__ = ("_lines", "_open", "chunk", "fresh", "guessed", "key")

    def __init__(self, key: int, chunk: Chunk, *, fresh: bool = False) -> None:
        self.key = key
        self.chunk = chunk
        self.fresh = fresh
        self.guessed = TAB in chunk.lines
        self._lines: list[bytes] | None = None
        self._open: set[int] | None = None  # None: all of them

    def part(self) -> Part:
        """Return all of the chunk as one part."""
        return Part(self, range(self.chunk.count), len(self.chunk.lines))

    def line(self, place: int) -> bytes:
        """Return one event."""
        if self._lines is None:
            self._lines = self.chunk.lines.split(b"\n")
        return self._lines[place]

    def correct(self, offset: float, now: float) -> None:
        """Correct the stamps that were guessed, see `agent.guess.correct`.

        A request that is under way may be reading them: no line changes its length, and either is right.
        It reads single lines only where this thread has split them already.
        """
        lines = correct(self.chunk.lines, offset, now)
        self.guessed = False
        if self._lines is not None:
            self._lines = lines.split(b"\n")
        self.chunk = replace(self.chunk, lines=lines)

    def close(self, places: Iterable[int]) -> Chunk | None:
        """Take events as settled; return the chunk of those that are still open, None when none is."""
        if self._open is None:
            self._open = set(range(self.chunk.count))
        self._open.difference_update(places)
        if not self._open:
            return None
        rest = [self.line(place) for place in sorted(self._open)]
        return Chunk(b"\n".join(rest), len(rest), self.chunk.arrived_ms, self.chunk.due_ms)


@dataclass(frozen=True, slots=True)
class Part:
    """Some events of one chunk.

    Attributes:
        lease: the chunk.
        places: their places in it, ascending.
        size: bytes of their lines with a separator between each two.
    """

    lease: Lease
    places: Sequence[int]
    size: int

    @property
    def whole(self) -> bool:
        """True when it is all of the chunk."""
        return len(self.places) == self.lease.chunk.count

    def lines(self) -> Iterator[bytes]:
        """Yield the events."""
        return (self.lease.line(place) for place in self.places)

    def text(self, separator: bytes) -> bytes:
        """Return the events joined by `separator`, one byte."""
        if self.whole:
            return self.lease.chunk.lines.replace(b"\n", separator)
        return separator.join(self.lines())

    def some(self, places: Sequence[int]) -> Part:
        """Return a part of it."""
        size = sum(len(self.lease.line(place)) + 1 for place in places) - 1
        return Part(self.lease, places, size)

    def cut(self, count: int) -> tuple[Part, Part]:
        """Return its first `count` events and the rest."""
        return self.some(self.places[:count]), self.some(self.places[count:])


@dataclass(frozen=True, slots=True)
class Body:
    """The body of a request; its bytes are made when they are sent, piece by piece.

    Attributes:
        parts: the events.
        size: how many bytes it has.
    """

    parts: Sequence[Part]
    size: int

    def __iter__(self) -> Iterator[bytes]:
        """Yield its pieces, none empty."""
        waiting, size = [_HEAD], 0
        for part in self.parts:
            if size >= _PIECE_BYTES:
                yield b"".join(waiting)
                waiting, size = [], 0
            waiting += (part.text(b","), b",")
            size += part.size
        waiting[-1] = waiting[-1].removesuffix(b",") + _TAIL
        yield b"".join(waiting)

    def __bytes__(self) -> bytes:
        """Return all of it."""
        return b"".join(self)

    def __len__(self) -> int:
        """Return its size."""
        return self.size

    @property
    def fresh(self) -> bool:
        """True when this process has checked its events."""
        return all(part.lease.fresh for part in self.parts)

    def may_hold(self, text: bytes) -> bool:
        """Tell whether `text` is in one of its events, or in one that came with them."""
        return any(text in part.lease.chunk.lines for part in self.parts)


NOTHING = Body((), OVERHEAD)
"""The body of a request without events."""


@dataclass(slots=True)
class Cut:
    """A batch that failed as a whole and was halved: when all of its events pass, it was too large.

    Attributes:
        events: how many events it had.
        size: bytes of its body.
        left: how many of its events have not passed yet.
        above: what it was cut from itself.
        spoiled: an event of it turned out to be bad.
    """

    events: int
    size: int
    left: int
    above: Cut | None
    spoiled: bool = False


@dataclass(slots=True)
class Batch:
    """The events of one request.

    Attributes:
        id: to recognise it in logs and dead letters.
        parts: what is in it.
        attempts: requests that carried it so far.
        first_attempt: when the first one was made, Unix seconds; 0 before.
        failures: how often the server failed on it, or refused it without naming an event,
            though it worked otherwise.
        doubted_at: the newest request when this first happened to it, or to the batch that it
            was cut from; infinite before.
        failed_at: the same for the last time.
        resent: it was sent again because the sums differed.
        guessed: it went out with stamps of which some may have been made before the server's time was known.
        uncertain: a request with it ended without a word whether the server stored it.
        cut: what it was cut from.
    """

    id: str
    parts: list[Part]
    attempts: int = 0
    first_attempt: float = 0.0
    failures: int = 0
    doubted_at: float = math.inf
    failed_at: float = math.inf
    resent: bool = False
    uncertain: bool = False
    cut: Cut | None = None
    guessed: bool = False
    events: int = field(init=False)
    size: int = field(init=False)

    def __post_init__(self) -> None:
        """Add up."""
        self.events = sum(len(part.places) for part in self.parts)
        self.size = OVERHEAD + sum(part.size + 1 for part in self.parts) - 1

    @property
    def weight(self) -> int:
        """How many bytes it keeps in memory, at most: its chunks are there as a whole."""
        return sum(len(part.lease.chunk.lines) for part in self.parts)

    def correct(self, offset: float | None, now: float) -> None:
        """Correct the stamps that were guessed, or note that this cannot be done yet.

        Args:
            offset: how far the server is ahead of the clock that was guessed by; None while nobody knows.
            now: Unix seconds by the server's clock.
        """
        guessed = [part.lease for part in self.parts if part.lease.guessed]
        self.guessed = bool(guessed) and offset is None
        if offset is not None:
            for lease in guessed:
                lease.correct(offset, now)

    def body(self) -> Body:
        """Return the request's body; the stored lines go into it as they are."""
        return Body(self.parts, self.size)

    def halves(self) -> tuple[Batch, Batch]:
        """Return its first and second half; it must have two events."""
        middle = self.events // 2
        first, second = self.choose(range(middle), ".1"), self.choose(range(middle, self.events), ".2")
        first.cut = second.cut = Cut(self.events, self.size, self.events, self.cut)
        return first, second

    def fit(self, max_events: int, max_bytes: int) -> tuple[Batch, Batch | None]:
        """Return its first events, as many as may go together, and the rest; one may always go."""
        if self.events <= max_events and self.size <= max_bytes:
            return self, None
        size = OVERHEAD
        for count, line in enumerate(line for part in self.parts for line in part.lines()):
            size += len(line) + 1
            if count and (count == max_events or size - 1 > max_bytes):
                return self.choose(range(count), ".1"), self.choose(range(count, self.events), ".2")
        return self, None

    def passed(self) -> list[Cut]:
        """Note that all of its events are at the server; return what was too large, as that shows."""
        found, cut = [], self.cut
        while cut is not None:
            cut.left -= self.events
            if cut.left == 0 and not cut.spoiled:
                found.append(cut)
            cut = cut.above
        return found

    def spoil(self) -> None:
        """Note that it is not the size of what it was cut from that is wrong."""
        cut = self.cut
        while cut is not None:
            cut.spoiled = True
            cut = cut.above

    def choose(self, indices: Sequence[int], mark: str = "") -> Batch:
        """Return a batch of the events at these places of the request, ascending."""
        parts: list[Part] = []
        wanted = deque(indices)
        start = 0
        for part in self.parts:
            end = start + len(part.places)
            places = []
            while wanted and wanted[0] < end:
                places.append(part.places[wanted.popleft() - start])
            if len(places) == len(part.places):
                parts.append(part)
            elif places:
                parts.append(part.some(places))
            start = end
        return Batch(
            self.id + mark,
            parts,
            self.attempts,
            self.first_attempt,
            doubted_at=self.doubted_at,
            failed_at=self.failed_at,
            uncertain=self.uncertain,
            cut=self.cut,
        )

    def line(self, index: int) -> bytes:
        """Return the event at a place of the request."""
        for part in self.parts:
            if index < len(part.places):
                return part.lease.line(part.places[index])
            index -= len(part.places)
        raise IndexError(index)

    def settlements(
        self,
        *,
        delivered: int = 0,
        duplicates: int = 0,
        dead: Sequence[DeadLetter] = (),
        resent: int = 0,
    ) -> list[Settlement]:
        """Return what to write when all of its events have met their end.

        The counts go with the first chunk: what is settled together is written together.
        """
        result: list[Settlement] = []
        for part in self.parts:
            rest = None if part.whole else part.lease.close(part.places)
            result.append(Settlement(part.lease.key, rest, delivered, duplicates, dead, resent=resent))
            delivered = duplicates = resent = 0
            dead = ()
        return result


@dataclass(slots=True)
class Backlog:
    """Parts that wait for a batch, in order."""

    parts: deque[Part] = field(default_factory=deque)
    events: int = 0
    size: int = 0

    def add(self, part: Part) -> None:
        """Put a part at the end."""
        self.parts.append(part)
        self.events += len(part.places)
        self.size += part.size + 1

    def full(self, max_events: int, max_bytes: int) -> bool:
        """Tell whether a batch of this size can be filled."""
        return self.events >= max_events or self.size + OVERHEAD >= max_bytes

    def take(self, max_events: int, max_bytes: int, *, fill: bool) -> list[Part]:
        """Take the parts of one batch.

        Chunks go whole where they fit: settling a whole chunk deletes a row, settling a part
        of it writes one.

        Args:
            max_events: the most events.
            max_bytes: the largest body; a single event goes even if it is larger.
            fill: cut a chunk to fill the batch: requests are dearer than writes.
        """
        taken: list[Part] = []
        events, size = 0, OVERHEAD
        while self.parts:
            part = self.parts[0]
            if events + len(part.places) <= max_events and size + part.size <= max_bytes:
                taken.append(self._pop())
                events += len(part.places)
                size += part.size + 1
                continue
            if not taken or fill:
                fitting = _fitting(part, max_events - events, max_bytes - size, at_least=0 if taken else 1)
                if fitting:
                    self._pop()
                    first, rest = part.cut(fitting) if fitting < len(part.places) else (part, None)
                    taken.append(first)
                    if rest is not None:
                        self.parts.appendleft(rest)
                        self.events += len(rest.places)
                        self.size += rest.size + 1
            break
        return taken

    def _pop(self) -> Part:
        part = self.parts.popleft()
        self.events -= len(part.places)
        self.size -= part.size + 1
        return part


def _fitting(part: Part, max_events: int, max_bytes: int, *, at_least: int) -> int:
    """Return how many events of `part` fit."""
    count = size = 0
    for line in part.lines():
        size += len(line) + 1
        if count == max_events or size - 1 > max_bytes:
            break
        count += 1
    return max(count, at_least)
