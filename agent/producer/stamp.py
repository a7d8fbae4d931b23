"""Gives an `external_id` to events that have none, a block of lines at a time.

Pure. What is no valid event stays as it is, for the daemon to refuse. A block whose
lines are all alike, the usual case, is done without a step of Python for each line.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import msgspec

from agent import ids

if TYPE_CHECKING:
    from collections.abc import Sequence

_KEY = b'"external_id"'
_SPACE = b" \t\r"
_SHORT = 16


class _Event(msgspec.Struct, gc=False):
    """Of an event, only what decides whether it needs an id."""

    external_id: str | None = None


_EVENT = msgspec.json.Decoder(_Event)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NO_JSON = (msgspec.MsgspecError, RecursionError, UnicodeError)


def stamp(
    block: bytes, unix_seconds: float, given: Sequence[bytes] | None = None
) -> tuple[bytes, list[int] | None, int]:
    """Give every event of a block an `external_id` that has none (absent, null or empty).

    Args:
        block: lines, each ending with a newline; at most `ids.BLOCK` of them without an id,
            as many as 256 KiB can hold.
        unix_seconds: the time that new ids carry.
        given: the id for each line, blank ones included; new ones are made if not given.

    Returns:
        The lines without the blank ones; their places in the block, counted from 0 and
        with the blank ones, or None when there were no blank ones; how many they are.
    """
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
    count = block.count(b"\n")
    bodies = block.split(b"}\n")
    bodies.pop()
    with contextlib.suppress(*_NO_JSON):
        events = _EVENT.decode_lines(block)
        # A brace before every newline: no line is blank; and as }\n{ stands inside of no JSON
        # value, every good line is one of `events`, whatever the bad ones are.
        if len(events) == count == len(bodies):
            known = [event.external_id for event in events]
            if all(known):
                return block, None, count
            # A short body may be that of an empty object, which takes no comma.
            if not any(known) and _KEY not in block and min(map(len, bodies)) >= _SHORT:
                return _stamp_all(bodies, unix_seconds, given), None, count
    return _stamp_each(block, unix_seconds, given)


def _stamp_all(bodies: list[bytes], unix_seconds: float, given: Sequence[bytes] | None) -> bytes:
    """Put a new id and the last brace behind every line that was cut before its last brace.

    A member that follows others makes no bad line good and no good line bad.
    """
    count = len(bodies)
    pieces = [b'"}\n'] * (4 * count)
    pieces[0::4] = bodies
    prefix = b"" if given is not None else ids.uuid7_prefix(unix_seconds)
    pieces[1::4] = [b',"external_id":"' + prefix] * count
    pieces[2::4] = ids.suffixes(count) if given is None else given
    return b"".join(pieces)


def _stamp_each(
    block: bytes, unix_seconds: float, given: Sequence[bytes] | None
) -> tuple[bytes, list[int] | None, int]:
    """Do the work of `stamp` line by line."""
    lines = block.split(b"\n")
    lines.pop()
    kept: list[bytes] = []
    places: list[int] = []
    prefix = ids.uuid7_prefix(unix_seconds)
    new = 0
    for place, line in enumerate(lines):
        text = line.strip(_SPACE)
        if not text:
            continue
        places.append(place)
        try:
            wanting = not _EVENT.decode(text).external_id
        except _NO_JSON:
            wanting = False  # no event; the daemon says what is wrong with it
        if wanting:
            text = _without_id(text) if _KEY in text else text
            body = text[:-1].rstrip(_SPACE)
            if body != b"{" or _KEY in line:
                comma = b"" if body == b"{" else b","
                own_id = given[place] if given is not None else b"%b%04x" % (prefix, new)
                text = b'%b%b"external_id":"%b"}' % (body, comma, own_id)
                new += 1
        kept.append(text)
    kept.append(b"")
    return b"\n".join(kept), None if len(places) == len(lines) else places, len(places)


def _without_id(line: bytes) -> bytes:
    """Take a null or empty `external_id` out, every other value as it was written.

    Where that cannot be done it stays: of two members of one name the later one counts.
    """
    try:
        members = _MEMBERS.decode(line)
    except _NO_JSON:
        return line
    members.pop("external_id", None)
    return msgspec.json.encode(members)
