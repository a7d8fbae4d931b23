"""What comes next in a file, from its bytes alone. Pure.

The bytes before the checkpoint must be what they were when they were read, or the first line what it was
where nothing was read yet; if not, the file was truncated, or somebody wrote over it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING
from zlib import crc32

import msgspec

from agent.tail.identity import (
    BOM,
    HEAD_BYTES,
    HEAD_LINES,
    TAIL_BYTES,
    fingerprint,
    fingerprint_of,
    head_lines,
    is_timed,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.queue import Checkpoint

_SLACK = len(BOM) + len(b"\r\n")


class Kind(Enum):
    """What comes next."""

    NOTHING = auto()
    """The file ends here."""
    PARTIAL = auto()
    """A line whose newline is not there yet."""
    LINES = auto()
    """Whole lines."""
    TOO_LONG = auto()
    """The beginning of a line that is longer than any may be."""
    SKIPPED = auto()
    """More of such a line."""
    HOLE = auto()
    """NUL bytes before a line: whoever does not append leaves them when the file is truncated."""
    CHANGED = auto()
    """The file is not what it was."""


@dataclass(frozen=True, slots=True)
class Block:
    """What comes next.

    Attributes:
        kind: what it is.
        data: its bytes; of lines, without the last one's newline.
        size: how many bytes it takes in the file.
        last: the bytes before the place behind it, as many as a checkpoint wants to know.
        ended: the line that is passed over ends here.
        before: the bytes before it that its checkpoint knows.
    """

    kind: Kind
    data: bytes = b""
    size: int = 0
    last: bytes = b""
    ended: bool = False
    before: bytes = b""


def read_bytes(max_line_bytes: int, preferred: int) -> int:
    """Return how much has to be read at once so that `next_block` can tell a long line."""
    return max(preferred, max_line_bytes + _SLACK + 1)


def next_block(
    at: Checkpoint, before: bytes, rest: bytes, max_line_bytes: int, *, final: bool = False
) -> Block:
    """Tell what comes next.

    Args:
        at: how far the file is read.
        before: the `at.tail_bytes` bytes before that, as they are now.
        rest: the bytes from there on, as many as `read_bytes` says.
        max_line_bytes: the longest line.
        final: nothing will be added to the file: its last line needs no newline.
    """
    changed = is_changed(at, before, rest)
    if changed or not rest:
        return Block(Kind.CHANGED if changed else Kind.NOTHING)
    if at.skipping:
        end = rest.find(b"\n") + 1
        part = rest[:end] if end else rest
        return Block(Kind.SKIPPED, part, len(part), _last(before, part, len(part)), ended=bool(end))
    hole = len(rest) - len(rest.lstrip(b"\0"))
    # At the end of a file they may be room that is still to be written to.
    if hole and (hole < len(rest) or final or len(rest) > max_line_bytes + _SLACK):
        return Block(Kind.HOLE, rest[:hole], hole, _last(before, rest, hole))
    end = rest.rfind(b"\n") + 1
    if not end and len(rest) > max_line_bytes + _SLACK:
        return Block(Kind.TOO_LONG, rest, len(rest), _last(before, rest, len(rest)))
    if not end and not final:
        return Block(Kind.PARTIAL)
    size = end or len(rest)
    lines = rest[: end - 1] if end else rest
    return Block(Kind.LINES, lines, size, _last(before, rest, size), before=before)


def is_changed(at: Checkpoint, before: bytes, rest: bytes) -> bool:
    """Tell whether a file is not what it was.

    Args:
        at: how far it is read.
        before: the `at.tail_bytes` bytes before that, as they are now.
        rest: where nothing is read yet, its first `FIRST_BYTES`; more does no harm.
    """
    if not at.offset:
        return fingerprint(rest, whole=True) != fingerprint_of(at.id)
    return len(before) < at.tail_bytes or crc32(before) != at.tail_crc


def beginning(block: Block, length: int) -> Block:
    """Return the first lines of a block of lines, so many bytes with the newline of the last one."""
    part = block.data[: length - 1]
    return Block(Kind.LINES, part, length, _last(block.before, block.data, length), before=block.before)


def skips(block: Block) -> bool:
    """Tell whether what follows a block is more of a line that is passed over."""
    return block.kind in (Kind.TOO_LONG, Kind.SKIPPED) and not block.ended


def pieces(lines: bytes, size: int) -> Iterator[tuple[int, bytes]]:
    """Cut lines into pieces of about the same size: yield where each begins, and its lines.

    Args:
        lines: joined by newlines.
        size: so many bytes has a piece, and the rest of its last line.
    """
    share = len(lines) // max(1, -(-len(lines) // size))
    start = 0
    while (end := lines.find(b"\n", start + share)) >= 0:
        yield start, lines[start:end]
        start = end + 1
    yield start, lines[start:] if start else lines


def wants_head(at: Checkpoint) -> bool:
    """Tell whether the checkpoint behind the next block has to know more of the file's first lines."""
    return len(at.head) < HEAD_LINES and at.offset < HEAD_BYTES


def advance(at: Checkpoint, block: Block, head: bytes, *, lines: int) -> Checkpoint:
    """Return the checkpoint behind a block.

    Args:
        at: the one before it.
        block: what was taken.
        head: the first `HEAD_BYTES` of the file, where `wants_head` says so.
        lines: how many lines ended in it.
    """
    offset = at.offset + block.size
    first, timed = at.head, at.timed
    if wants_head(at):
        read = head[: min(HEAD_BYTES, offset)]
        first, timed = head_lines(read), is_timed(read)
    return msgspec.structs.replace(
        at,
        offset=offset,
        line=None if at.line is None else at.line + lines,
        head=first,
        timed=timed,
        tail_bytes=len(block.last),
        tail_crc=crc32(block.last),
        done=False,
    )


def rewound(at: Checkpoint) -> Checkpoint:
    """Return the checkpoint of a file that is to be read from its beginning, under the same ids."""
    return msgspec.structs.replace(
        at,
        offset=0,
        line=0,
        head=(),
        timed=False,
        tail_bytes=0,
        tail_crc=0,
        skipping=False,
        done=False,
        refused=0,
    )


def _last(before: bytes, part: bytes, end: int) -> bytes:
    """Return the last bytes of what is read, up to so many of a part."""
    return part[end - TAIL_BYTES : end] if end >= TAIL_BYTES else (before + part[:end])[-TAIL_BYTES:]
