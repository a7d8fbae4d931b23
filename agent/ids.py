"""Identifiers that we give to events: UUIDs of version 7 (RFC 9562).

A whole block of events gets its ids from one draw of random bits and a counter in
the last 16 bits: one system call for a thousand events instead of a thousand.
58 bits are random for each block and millisecond.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BLOCK = 1 << 16
"""How many ids one prefix serves."""

_POOL = 4096

_HEX4 = [b"%04x" % number for number in range(4096)]


class Ids(NamedTuple):
    """Ids of events that follow one another, as columns of text: so none of them has to be made alone.

    Attributes:
        words: what stands before each column, the same in every id.
        columns: of each id the part that differs; all are equally long.
    """

    words: Sequence[bytes]
    columns: Sequence[Sequence[bytes]]

    def some(self, share: slice) -> Ids:
        """Return those of some events."""
        return Ids(self.words, [column[share] for column in self.columns])

    def each(self) -> list[bytes]:
        """Return them one by one."""
        form = b"%b".join([*self.words, b""])
        return [form % parts for parts in zip(*self.columns, strict=True)]


class _Random:
    """Random bytes of the system, many at a time: each call to it lets other threads go first."""

    def __init__(self) -> None:
        self._pool: Iterator[bytes] = iter(())
        # A child must not draw what its parent draws.
        os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        """Throw what is left away."""
        self._pool = iter(())

    def take(self) -> bytes:
        """Return 8 bytes that nobody else gets; any thread may ask."""
        while True:
            try:
                return next(self._pool)
            except StopIteration:
                fresh = os.urandom(_POOL)
                self._pool = iter([fresh[place : place + 8] for place in range(0, _POOL, 8)])


_random = _Random()


def uuid7_prefix(unix_seconds: float, random_bytes: bytes | None = None) -> bytes:
    """Return the first 32 of a UUIDv7's 36 characters; four hexadecimal digits complete it.

    Args:
        unix_seconds: the time that the ids carry, to the millisecond.
        random_bytes: 8 bytes to take instead of random ones.
    """
    milliseconds = int(unix_seconds * 1000) & 0xFFFF_FFFF_FFFF
    bits = int.from_bytes(_random.take() if random_bytes is None else random_bytes)
    return b"%08x-%04x-7%03x-%04x-%08x" % (
        milliseconds >> 16,
        milliseconds & 0xFFFF,
        bits & 0xFFF,
        0x8000 | (bits >> 12) & 0x3FFF,
        (bits >> 26) & 0xFFFF_FFFF,
    )


def suffixes(count: int) -> list[bytes]:
    """Return the last four characters of the first `count` ids of a block (at most `BLOCK`)."""
    if count <= len(_HEX4):
        return _HEX4[:count]
    return [b"%04x" % number for number in range(count)]


def uuid7_block(unix_seconds: float, count: int) -> list[bytes]:
    """Return `count` new ids (at most `BLOCK`) as ASCII bytes, each greater than the one before."""
    prefix = uuid7_prefix(unix_seconds)
    return [prefix + suffix for suffix in suffixes(count)]


def uuid7_ids(unix_seconds: float, share: slice) -> Ids:
    """Return new ids for some events (at most `BLOCK`), in columns."""
    return Ids([uuid7_prefix(unix_seconds)], [suffixes(share.stop - share.start)])
