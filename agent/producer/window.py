"""The lines on their way: what to write next, what to write again, which line an answer is about.

Pure. Lines are numbered from 0 in the order in which they were fed; the daemon numbers
those of one connection from 1. `rewind` begins a connection. Of two answers about one
line only the first counts, since a resend repeats refusals.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


class ProtocolError(Exception):
    """An answer is about lines that were not sent: it is not our daemon that answers."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A line that the daemon refused.

    Attributes:
        source: the name it was fed under, a file for instance.
        line: its number there, counted from 1 and with blank lines, as an editor does.
        error: what the daemon says: `type`, `loc`, `msg`.
    """

    source: str
    line: int
    error: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Block:
    """Lines that are written together.

    Attributes:
        data: the lines as they are sent.
        count: how many they are.
        first: the number of the first of them.
        source: the name they were fed under.
        line: the number there of the line at place 0.
        places: the place of each line; None when they follow each other.
    """

    data: bytes
    count: int
    first: int
    source: str
    line: int
    places: Sequence[int] | None

    @property
    def end(self) -> int:
        """The number of the line after the last."""
        return self.first + self.count

    def line_in_source(self, number: int) -> int:
        """Return where in its source a line stands."""
        place = number - self.first
        return self.line + (place if self.places is None else self.places[place])

    def offset(self, number: int) -> int:
        """Return where in `data` a line starts."""
        position = 0
        for _ in range(number - self.first):
            position = self.data.index(b"\n", position) + 1
        return position


class Window:
    """Lines that are not acknowledged, oldest first, and the counts of all.

    Attributes:
        fed: how many lines were ever added.
        acknowledged: how many of them are settled: durable, or refused with a reason.
        refused: how many were refused.
        held_bytes: how many bytes are kept for sending again.
    """

    def __init__(self) -> None:
        self.fed = 0
        self.acknowledged = 0
        self.refused = 0
        self.held_bytes = 0
        self._blocks: list[Block] = []
        self._written = 0  # lines of blocks that were written as a whole, at least once
        self._refused_open: set[int] = set()  # refused, and not acknowledged
        # of the present connection
        self._base = 0  # lines acknowledged before it
        self._cursor = 0  # the block to write next …
        self._offset = 0  # … and from where

    def __bool__(self) -> bool:
        """Tell whether there are lines that are not acknowledged."""
        return bool(self._blocks)

    @property
    def sent(self) -> int:
        """How many lines went out, each counted once, in whole blocks."""
        return max(self._written, self.acknowledged)

    @property
    def accepted(self) -> int:
        """How many lines are durable."""
        return self.acknowledged - (self.refused - len(self._refused_open))

    def first_unacknowledged(self) -> tuple[str, int] | None:
        """Return source and line number where sending would go on; None when all is acknowledged."""
        if not self._blocks:
            return None
        return self._blocks[0].source, self._blocks[0].line_in_source(self.acknowledged)

    def add(self, data: bytes, count: int, source: str, line: int, places: Sequence[int] | None) -> None:
        """Take a block of `count` lines that is to be written; see `Block` for the others."""
        self._blocks.append(Block(data, count, self.fed, source, line, places))
        self.fed += count
        self.held_bytes += len(data)

    def rewind(self) -> None:
        """Begin a connection: what is not acknowledged is to be written, again or for the first time."""
        self._base = self.acknowledged
        self._cursor = 0
        self._offset = self._blocks[0].offset(self.acknowledged) if self._blocks else 0

    def to_write(self) -> memoryview | None:
        """Return the bytes to write next, None when all is written."""
        if self._cursor == len(self._blocks):
            return None
        return memoryview(self._blocks[self._cursor].data)[self._offset :]

    def wrote(self, size: int) -> None:
        """Note that the first `size` bytes of `to_write` are written."""
        block = self._blocks[self._cursor]
        self._offset += size
        if self._offset == len(block.data):
            self._cursor += 1
            self._offset = 0
            self._written = max(self._written, block.end)

    def acknowledge(self, lines: int) -> bool:
        """Let go of the first `lines` lines of this connection; False when that is no news."""
        total = self._base + lines
        if total <= self.acknowledged:
            return False
        done = bisect.bisect_right(self._blocks, total, key=lambda block: block.end)
        if total > self.fed or done > self._cursor:
            raise ProtocolError("it acknowledged lines that were not sent")
        self.acknowledged = total
        self.held_bytes -= sum(len(block.data) for block in self._blocks[:done])
        del self._blocks[:done]
        self._cursor -= done
        if self._refused_open:
            self._refused_open = {number for number in self._refused_open if number >= total}
        return True

    def refuse(self, line: int, error: dict[str, Any]) -> Refusal | None:
        """Note that line `line` of this connection, from 1, was refused; None when that is no news."""
        number = self._base + line - 1
        if not self.acknowledged <= number < self.fed:
            raise ProtocolError("it refused a line that was not sent")
        if number in self._refused_open:
            return None
        self._refused_open.add(number)
        self.refused += 1
        block = self._blocks[bisect.bisect_right(self._blocks, number, key=lambda block: block.first) - 1]
        return Refusal(block.source, block.line_in_source(number), error)
