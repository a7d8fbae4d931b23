"""What comes next in a file, from its bytes alone. Pure.

Bytes are read from a little before the checkpoint on. Those before it must be what they were when
they were read; if not, the file was truncated, or somebody wrote over it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING
from zlib import crc32

import msgspec

from agent.tail.identity import BOM, HEAD_BYTES, HEAD_LINES, TAIL_BYTES, head_lines, is_timed

if TYPE_CHECKING:
    from collections.abc import Callable

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
    CHANGED = auto()
    """The file is not what it was."""


@dataclass(frozen=True, slots=True)
class Block:
    """What comes next.

    Attributes:
        kind: what it is.
        data: its bytes; those of a last line that has no newline and will get none do not end with one.
        last: the bytes before the place behind it, as many as a checkpoint wants to know.
        ended: the line that is passed over ends here.
    """

    kind: Kind
    data: bytes = b""
    last: bytes = b""
    ended: bool = False


def read_bytes(max_line_bytes: int, preferred: int) -> int:
    """Return how much has to be read at once so that `next_block` can tell a long line."""
    return max(preferred, max_line_bytes + _SLACK + 1)


def next_block(at: Checkpoint, data: bytes, max_line_bytes: int, *, final: bool = False) -> Block:
    """Tell what comes next.

    Args:
        at: how far the file is read.
        data: its bytes from `at.tail_bytes` before that on, as many as `read_bytes` says.
        max_line_bytes: the longest line.
        final: nothing will be added to the file: its last line needs no newline.
    """
    before = data[: at.tail_bytes]
    if len(before) < at.tail_bytes or crc32(before) != at.tail_crc:
        return Block(Kind.CHANGED)
    rest = data[at.tail_bytes :]
    if not rest:
        return Block(Kind.NOTHING)
    if at.skipping:
        end = rest.find(b"\n") + 1
        part = rest[:end] if end else rest
        return Block(Kind.SKIPPED, part, _last(before, part), ended=bool(end))
    end = rest.rfind(b"\n") + 1
    if end:
        part = rest[:end] if end < len(rest) else rest
        return Block(Kind.LINES, part, _last(before, part))
    if len(rest) > max_line_bytes + _SLACK:
        return Block(Kind.TOO_LONG, rest, _last(before, rest))
    return Block(Kind.LINES, rest, _last(before, rest)) if final else Block(Kind.PARTIAL, rest)


def beginning(block: Block, before: bytes, length: int) -> Block:
    """Return the first lines of a block of lines.

    Args:
        block: it.
        before: the bytes before it that its checkpoint knows.
        length: of the lines, bytes.
    """
    part = block.data[:length]
    return Block(Kind.LINES, part, _last(before, part))


def advance(at: Checkpoint, block: Block, head: Callable[[int], bytes], *, lines: int) -> Checkpoint:
    """Return the checkpoint behind a block.

    Args:
        at: the one before it.
        block: what was taken.
        head: returns so many bytes of the beginning of the file.
        lines: how many lines ended in it.
    """
    offset = at.offset + len(block.data)
    first, timed = at.head, at.timed
    if len(first) < HEAD_LINES and at.offset < HEAD_BYTES:
        bytes_of_head = head(min(HEAD_BYTES, offset))
        first, timed = head_lines(bytes_of_head), is_timed(bytes_of_head)
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


def _last(before: bytes, part: bytes) -> bytes:
    """Return the last bytes of what is read."""
    return part[-TAIL_BYTES:] if len(part) >= TAIL_BYTES else (before + part)[-TAIL_BYTES:]
