"""Stamps that were made before Polar's time was known, and what becomes of them. Pure.

Until Polar's first answer after a start, events are stamped by this machine's clock, and it may be
wrong. Such a stamp is marked: a tab stands before its value, which is a blank to every reader of
JSON, and cannot be in a text. Once Polar's time is known, it is corrected before it is sent, and a
blank takes the place of the tab, so that it is not corrected twice. Only what we wrote is marked: a
program's line that ends like that is accepted with a blank for its tab.
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise
from typing import Self

TAB = b"\t"
"""Stands in every line that is marked, and in hardly any other: it is found quickly."""

_KEY = b',"timestamp":'
_VALUE = rb'"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z)"}'
_MARKED = re.compile(_KEY + rb"\t(" + _VALUE + rb")$", re.MULTILINE)
_ENDS = re.compile(_KEY + rb"[\t ]" + _VALUE + rb"$")
_END = re.compile(_VALUE + rb"\n")
_END_BYTES = len(b'"2026-12-01T05:00:00.123Z"}\n')
_MEMBER_BYTES = len(_KEY + TAB) + _END_BYTES - 1


class Guess(float):
    """The time by this machine's clock, Unix seconds, as long as nobody knows Polar's.

    Args:
        wall: what programs here believe the time to be.
        stamp: what events are stamped with: it takes no notice when the clock is set.
    """

    __slots__ = ("stamp",)

    stamp: float

    def __new__(cls, wall: float, stamp: float) -> Self:
        """Make one."""
        new = super().__new__(cls, wall)
        new.stamp = stamp
        return new


def iso(now: float) -> bytes:
    """Return Unix seconds as RFC 3339 in UTC, cut (never rounded up) to the millisecond."""
    return _text(int(now * 1000))


def member(now: float) -> bytes:
    """Return the timestamp to write into events, with the comma before it; marked if `now` is a guess."""
    if isinstance(now, Guess):
        return b',"timestamp":\t"%b"' % iso(now.stamp)
    return b',"timestamp":"%b"' % iso(now)


def unmarked(lines: bytes) -> bytes:
    """Return lines of programs so that none of them looks as if we had marked it."""
    return _MARKED.sub(_KEY + rb" \1", lines) if TAB in lines else lines


def correct(lines: bytes, offset: float, now: float) -> bytes:
    """Return lines with their marked stamps corrected; all else stays, and every length.

    Args:
        lines: events, joined by newlines.
        offset: how far Polar is ahead of the clock that they were stamped by, seconds.
        now: Unix seconds by Polar's clock; no stamp is later.
    """
    if TAB not in lines:
        return lines
    latest, shift = int(now * 1000), int(offset * 1000 // 1)
    known: dict[bytes, bytes] = {}
    pieces = (lines + b"\n").split(TAB)  # to look for one byte is much faster than for several
    result = pieces[:1]
    for before, piece in pairwise(pieces):
        end = piece[:_END_BYTES]
        new = known.get(end)
        if new is None:
            new = known[end] = _corrected(end, shift, latest)
        if before.endswith(_KEY):
            result += (new, piece[_END_BYTES:])
        else:
            result += (TAB, piece)
    return b"".join(result)[:-1]


def may_be_ours(line: bytes) -> bool:
    """Tell whether a line ends with a stamp that is marked, or was before it was corrected."""
    return _ENDS.match(line, len(line) - _MEMBER_BYTES) is not None


def _corrected(end: bytes, shift: int, latest: int) -> bytes:
    """Return a marked stamp with its right time, a blank before it; with its tab where it is none of ours."""
    found = _END.fullmatch(end)
    if found is None:
        return TAB + end
    text = found[1]
    with suppress(ValueError):
        milliseconds = _seconds(text[:19]) * 1000 + int(text[20:23])
        text = _text(max(0, min(milliseconds + shift, latest)))
    return b' "%b"}\n' % text


def _text(milliseconds: int) -> bytes:
    """Return Unix milliseconds as RFC 3339 in UTC."""
    return b"%b.%03dZ" % (_date(milliseconds // 1000), milliseconds % 1000)


@lru_cache(64)
def _date(seconds: int) -> bytes:
    """Return Unix seconds as a date and a time in UTC."""
    # Without `strftime`, which takes 20 microseconds; behind the seconds stands the offset.
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19].encode()


@lru_cache(64)
def _seconds(date: bytes) -> int:
    """Return the Unix seconds of such a text.

    Raises:
        ValueError: there is no such time.
    """
    return int(datetime.fromisoformat(date.decode()).replace(tzinfo=UTC).timestamp())
