"""Writes into events what they lack: an `external_id`, a `timestamp`. Pure.

What a producer wrote stays as it is, digit for digit; what is added stands before the
closing brace.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from itertools import repeat
from operator import itemgetter
from typing import TYPE_CHECKING

import msgspec

from agent.chunk import MAX_EVENTS
from agent.guess import TAB, member, unmarked
from agent.ids import uuid7_block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from agent.ids import Ids
    from agent.refusal import Facts

_OPENING, _CLOSING = b"{}"
_first_of, _last_of = itemgetter(0), itemgetter(-2)  # of a line with a newline
_body_of = itemgetter(slice(None, -2))


@dataclass(frozen=True, slots=True)
class Cut:
    """Whole lines, one object each, cut at their closing braces.

    Attributes:
        data: the lines, joined by newlines.
        lines: each of them with a newline.
        bodies: each of them without the brace that ends it.
    """

    data: bytes
    lines: list[bytes]
    bodies: list[bytes]

    @property
    def count(self) -> int:
        """How many lines."""
        return len(self.lines)


def cut(data: bytes) -> Cut | None:
    """Cut lines; None when they are not one object each, as far as their ends tell.

    In valid JSON, a brace, a newline and a brace stand only between two objects. So where no
    other newline is left, and a reader finds as many objects as there are lines, each line
    is one object.
    """
    if not (data.startswith(b"{") and data.endswith(b"}")):
        return None
    # `split` compares byte by byte, this lets the C library search: four times as fast.
    lines = BytesIO(data).readlines()
    lines[-1] += b"\n"
    if set(map(_first_of, lines)) != {_OPENING} or set(map(_last_of, lines)) != {_CLOSING}:
        return None
    return Cut(data, lines, list(map(_body_of, lines)))


def groups(whole: Cut) -> list[tuple[bytes, int]]:
    """Return lines that lack nothing in groups that fit into chunks, with their counts."""
    if TAB in whole.data:
        whole = Cut(unmarked(whole.data), list(map(unmarked, whole.lines)), whole.bodies)
    if whole.count <= MAX_EVENTS:
        return [(whole.data, whole.count)]
    return [
        (b"".join(whole.lines[share]).removesuffix(b"\n"), share.stop - share.start)
        for share in _shares(whole.count)
    ]


def write_in(
    whole: Cut, now: float, *, times: bool, ids: Callable[[slice], Ids] | None
) -> list[tuple[bytes, int]]:
    """Write ids, times or both into lines that all lack them; return them in groups, with their counts.

    Args:
        whole: the lines.
        now: the time of receipt, Unix seconds; may be a `Guess`.
        times: they lack times.
        ids: gives those for some of the lines, where they lack them.
    """
    end = member(now) + b"}\n" if times else b"}\n"
    result = []
    for share in _shares(whole.count):
        count = share.stop - share.start
        columns: list[Sequence[bytes]] = [whole.bodies[share]]
        words = [end]
        if ids is not None:
            some = ids(share)
            columns += some.columns
            words = [b',"external_id":"' + some.words[0], *some.words[1:], b'"' + end]
        line = [b""] * (2 * len(words))
        line[1::2] = words
        # All texts of all lines, one after the other.
        texts = line * count
        for place, column in enumerate(columns):
            texts[2 * place :: len(line)] = column
        texts[-1] = texts[-1].removesuffix(b"\n")
        result.append((b"".join(texts), count))
    return result


def _shares(count: int) -> Iterator[slice]:
    """Yield slices that share so many lines out evenly to as few chunks as can hold them."""
    chunks = -(-count // MAX_EVENTS)
    for number in range(chunks):
        yield slice(count * number // chunks, count * (number + 1) // chunks)


class Stamper:
    """Stamps lines of which each may lack something else.

    Args:
        now: the time of receipt, Unix seconds; may be a `Guess`.

    Attributes:
        now: the same as a datetime.
    """

    def __init__(self, now: float) -> None:
        self.now = datetime.fromtimestamp(now, UTC)
        self._seconds = now
        self._time = member(now)
        self._ids: list[bytes] = []

    def stamp(self, line: bytes, facts: Facts, given: bytes | None = None) -> bytes:
        """Return `line` with an id, the given one or a new one, and a timestamp."""
        added = b""
        if not facts.identity:
            if b'"external_id"' in line:
                line = _without(line, "external_id")
            added = b',"external_id":"%b"' % (given or self._new_id())
        if facts.timestamp is None:
            if facts.idle_customer_id:
                # Of an event with both ids Polar takes the external one; but with a timestamp, which
                # we are about to add, its choice between its two kinds of event would be the other.
                rest = _without(line, "customer_id")
                added += b',"customer_id":null' if rest is line else b""
                line = rest
            added += self._time
        return line[:-1] + added + b"}" if added else unmarked(line)

    def join(
        self, lines: Sequence[bytes], facts: Sequence[Facts], given: Sequence[bytes] | None = None
    ) -> tuple[bytes, int]:
        """Stamp lines and return them as one group, with their count."""
        ids: Iterable[bytes | None] = repeat(None) if given is None else given
        return b"\n".join(map(self.stamp, lines, facts, ids)), len(lines)

    def _new_id(self) -> bytes:
        """Return an id that nobody else gets."""
        if not self._ids:
            self._ids = uuid7_block(self._seconds, 256)[::-1]
        return self._ids.pop()


def _without(line: bytes, name: str) -> bytes:
    """Take a member out of an object, every other value as it was written.

    Where msgspec cannot read the line (`NaN` in a field that Polar ignores), it stays: of
    two members of one name, the later wins with every reader that the server uses.
    """
    try:
        members = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return line
    members.pop(name, None)
    return msgspec.json.encode(members)
