"""Writes into events what they lack: an `external_id`, a `timestamp`. Pure.

What a producer wrote stays as it is, digit for digit; what is added stands before the
closing brace.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import repeat
from typing import TYPE_CHECKING

import msgspec

from agent.chunk import MAX_EVENTS
from agent.ids import suffixes, uuid7_block, uuid7_prefix

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from agent.refusal import Facts


@dataclass(frozen=True, slots=True)
class Cut:
    """Whole lines, one object each, cut at their closing braces.

    Attributes:
        data: the lines, joined by newlines.
        count: how many.
        width: pieces of each line.
        pieces: `width` for each line, each without the brace that ends it; but for the first
            line, the first of a line begins with the newline before it.
    """

    data: bytes
    count: int
    width: int
    pieces: list[bytes]

    def some(self, share: slice) -> list[bytes]:
        """Return the pieces of some lines; the first of them without its newline."""
        pieces = self.pieces[share.start * self.width : share.stop * self.width]
        pieces[0] = pieces[0].removeprefix(b"\n")
        return pieces


def cut(data: bytes) -> Cut | None:
    """Cut lines; None when they are not one object each, as far as their ends tell.

    In valid JSON, a brace, a newline and a brace stand only between two objects. So where no
    other newline is left, and a reader finds as many objects as there are lines, each line
    is one object.

    Looking for one byte is many times as fast as for several, so lines with equally many
    braces are cut at these; others at their newlines.
    """
    if not (data.startswith(b"{") and data.endswith(b"}")):
        return None
    # `count` compares byte by byte, `replace` lets the C library search.
    count = len(data) - len(data.replace(b"\n", b"")) + 1
    pieces = data.split(b"}")
    pieces.pop()
    width, more = divmod(len(pieces), count)
    if not more and all(map(bytes.startswith, pieces[width::width], repeat(b"\n{"))):
        return Cut(data, count, width, pieces)
    lines = data.split(b"\n")
    if not all(line.startswith(b"{") and line.endswith(b"}") for line in lines):
        return None
    pieces = [b"\n" + line[:-1] for line in lines]
    pieces[0] = pieces[0][1:]
    return Cut(data, count, 1, pieces)


def groups(whole: Cut) -> list[tuple[bytes, int]]:
    """Return lines that lack nothing in groups that fit into chunks, with their counts."""
    if whole.count <= MAX_EVENTS:
        return [(whole.data, whole.count)]
    return [
        (b"}".join([*whole.some(share), b""]), share.stop - share.start) for share in _shares(whole.count)
    ]


def write_in(
    whole: Cut, now: float, *, ids: bool, times: bool, given: Sequence[bytes] | None = None
) -> list[tuple[bytes, int]]:
    """Write ids, times or both into lines that all lack them; return them in groups, with their counts.

    Args:
        whole: the lines.
        now: the time of receipt.
        ids: they lack ids.
        times: they lack times.
        given: the ids; new ones are made where this is None.
    """
    time = b',"timestamp":"%b"' % iso(now) if times else b""
    width = whole.width
    result = []
    for share in _shares(whole.count):
        some, count = whole.some(share), share.stop - share.start
        line = [b"", b"}"] * width
        if ids:
            line[-1:] = b',"external_id":"' + (uuid7_prefix(now) if given is None else b""), b"", b'"'
            line[-1] += time + b"}"
        else:
            line[-1] = time + b"}"
        texts = line * count
        for place in range(width):
            texts[2 * place :: len(line)] = some[place::width]
        if ids:
            texts[2 * width :: len(line)] = suffixes(count) if given is None else given[share]
        result.append((b"".join(texts), count))
    return result


def _shares(count: int) -> Iterator[slice]:
    """Yield slices that share so many lines out evenly to as few chunks as can hold them."""
    chunks = -(-count // MAX_EVENTS)
    for number in range(chunks):
        yield slice(count * number // chunks, count * (number + 1) // chunks)


def iso(now: float) -> bytes:
    """Return Unix seconds as RFC 3339 in UTC, cut (never rounded up) to the millisecond."""
    milliseconds = int(now * 1000)
    moment = datetime.fromtimestamp(milliseconds // 1000, UTC)
    # Without `strftime`, which takes 20 microseconds; behind the seconds stands the offset.
    return b"%b.%03dZ" % (moment.isoformat()[:19].encode(), milliseconds % 1000)


class Stamper:
    """Stamps lines of which each may lack something else.

    Args:
        now: the time of receipt, Unix seconds.

    Attributes:
        now: the same as a datetime.
    """

    def __init__(self, now: float) -> None:
        self.now = datetime.fromtimestamp(now, UTC)
        self._seconds = now
        self._time = iso(now)
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
            added += b',"timestamp":"%b"' % self._time
        return line[:-1] + added + b"}" if added else line

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
