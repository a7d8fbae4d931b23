"""Files that are there already, read once: the lines that a tail would read, with their ids.

What the tail knows of its files tells which of them each is; so lines that it took, or takes later, have the
ids that they have here, and Polar counts them as duplicates. Nothing is remembered: of a file that is read
again all lines are given again, under the same ids.
"""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from agent.queue import Checkpoint
from agent.tail.block import Block, Kind, advance, next_block, read_bytes, skips, wants_head
from agent.tail.identity import BOM, HEAD_BYTES, line_id
from agent.tail.known import KnownFiles
from agent.tail.open_file import OpenFile, open_file
from agent.tail.tailed import key_of, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_PIECE_BYTES = 256 * 1024
_BLANK = b" \t\r\n"
_HOLE = re.compile(rb"^\0+", re.MULTILINE)


class Piece(NamedTuple):
    """Some of a file.

    Attributes:
        lines: whole lines, each with its newline; empty in the place of a line that is too long.
        ids: of each of them, blank ones included.
        line: the number of the first of them, from 1.
        read: bytes of the file, as it lies on the disk, that are read so far.
    """

    lines: bytes
    ids: list[bytes]
    line: int
    read: int


class Once:
    """Reads files.

    Args:
        checkpoints: what a tail knows.
        max_line_bytes: the longest line.
    """

    def __init__(self, checkpoints: Iterable[Checkpoint], max_line_bytes: int) -> None:
        self._known = KnownFiles(checkpoints, lambda _: None)
        self._max_line_bytes = max_line_bytes

    def read(self, path: str, tick: Callable[[], object] = lambda: None) -> Iterator[Piece]:
        """Yield what is in a file, compressed or not.

        Args:
            path: of the file.
            tick: is called now and then while nothing is to be yielded yet.

        Raises:
            OSError: it cannot be read, or it was changed; or, before anything of it was yielded, its
                compressed data is damaged or cut off.
        """
        file = open_file(path)
        try:
            if file.compressed:
                _look_through(file, tick)
            key = key_of(file.status())
            decision = self._known.meet(shown(path), key, file, settled=True, whole=True)
            if decision is None:
                return
            at = Checkpoint(id=decision.identity, path=shown(path), device=key.device, inode=key.inode)
            while (block := self._next(file, at)).kind is not Kind.NOTHING:
                after = self._advance(file, at, block)
                if block.kind is Kind.LINES:
                    yield from _pieces(at, block.data, file.place)
                elif block.kind is Kind.TOO_LONG:
                    yield Piece(b"", [], (at.line or 0) + 1, file.place)
                at = after
                # Another file that begins like this one is another one.
                self._known.put(at)
        finally:
            file.close()

    def _next(self, file: OpenFile, at: Checkpoint) -> Block:
        """Return what comes next."""
        size = read_bytes(self._max_line_bytes, _PIECE_BYTES)
        before, rest = file.read_behind(at.offset, at.tail_bytes, size)
        block = next_block(at, before, rest, self._max_line_bytes, final=True)
        if block.kind is Kind.CHANGED:
            raise OSError(errno.EIO, "it was truncated or written anew while it was read")
        return block

    @staticmethod
    def _advance(file: OpenFile, at: Checkpoint, block: Block) -> Checkpoint:
        """Return the checkpoint behind a block."""
        lines = block.data.count(b"\n") + 1 if block.kind is Kind.LINES else int(block.ended)
        head = file.read(0, HEAD_BYTES) if wants_head(at) else b""
        after = advance(at, block, head, lines=lines)
        return msgspec.structs.replace(after, skipping=skips(block))


def _look_through(file: OpenFile, tick: Callable[[], object]) -> None:
    """See whether compressed data is whole, by its check sums.

    They stand behind the data: what is decompressed from a damaged place on can look like events.

    Raises:
        OSError: it is not.
    """
    place = 0
    while data := file.read(place, _PIECE_BYTES):
        place += len(data)
        tick()
    if file.is_written():
        raise OSError(errno.EIO, "its compressed data is cut off, or damaged")


def _pieces(at: Checkpoint, data: bytes, read: int) -> Iterator[Piece]:
    """Cut a block of lines into pieces of a size that is quickly written."""
    data += b"\n"
    start, line = 0, (at.line or 0) + 1
    while start < len(data):
        end = data.rfind(b"\n", start, start + _PIECE_BYTES) + 1 or data.index(b"\n", start) + 1
        piece, offset, ids = data[start:end], at.offset + start, []
        for raw in piece.split(b"\n")[:-1]:
            text = (raw.removeprefix(BOM) if not offset else raw).lstrip(b"\0")
            # NUL bytes before a line are no part of it.
            begin = offset + (len(raw) - len(text) if raw.startswith(b"\0") else 0)
            ids.append(line_id(at.id, begin, text.strip(_BLANK)))
            offset += len(raw) + 1
        if b"\0" in piece:
            piece = _HOLE.sub(b"", piece)
        if not at.offset and not start:
            piece = piece.removeprefix(BOM)
        yield Piece(piece, ids, line, read)
        line += len(ids)
        start = end
