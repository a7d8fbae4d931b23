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
from typing import Self

TAB = b"\t"
"""Stands in every line that is marked, and in hardly any other: it is found quickly."""

_KEY = rb'(,"timestamp":)'
_VALUE = rb'"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z)"}$'
_MARKED = re.compile(_KEY + rb"\t" + _VALUE, re.MULTILINE)
_ENDS = re.compile(_KEY + rb"[\t ]" + _VALUE)
_MEMBER_BYTES = len(b',"timestamp":\t"2026-12-01T05:00:00.123Z"}')


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
    return _MARKED.sub(rb'\1 "\2"}', lines) if TAB in lines else lines


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

    def replace(found: re.Match[bytes]) -> bytes:
        old = found[2]
        new = known.get(old)
        if new is None:
            new = known[old] = _shifted(old, shift, latest)
        return b'%b "%b"}' % (found[1], new)

    return _MARKED.sub(replace, lines)


def may_be_ours(line: bytes) -> bool:
    """Tell whether a line ends with a stamp that is marked, or was before it was corrected."""
    return _ENDS.match(line, len(line) - _MEMBER_BYTES) is not None


def _shifted(stamp: bytes, shift: int, latest: int) -> bytes:
    """Return a stamp moved by some milliseconds, between 1970 and `latest`; as it is where it is no time."""
    with suppress(ValueError):
        moment = datetime.fromisoformat(stamp[:-1].decode()).replace(tzinfo=UTC)
        seconds = int(moment.replace(microsecond=0).timestamp())
        milliseconds = seconds * 1000 + moment.microsecond // 1000
        return _text(max(0, min(milliseconds + shift, latest)))
    return stamp


def _text(milliseconds: int) -> bytes:
    """Return Unix milliseconds as RFC 3339 in UTC."""
    moment = datetime.fromtimestamp(milliseconds // 1000, UTC)
    # Without `strftime`, which takes 20 microseconds; behind the seconds stands the offset.
    return b"%b.%03dZ" % (moment.isoformat()[:19].encode(), milliseconds % 1000)
