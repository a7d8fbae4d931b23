"""One row of the queue: many events as newline-joined lines, compressed, with a checksum.

Layout (little endian): magic ``PA``, version, codec, count of events u32, bytes of
the lines u32, time of arrival in Unix milliseconds u64, time before which the
events are not to be sent in Unix milliseconds u64 (0: at once), CRC-32 u32 over
all of the row but itself; then the lines, as they are or compressed with LZ4.
SQLite's main file has no checksum of its own, so a row carries one. It begins with the
row's key, so that a row is not taken for another one when an index is damaged; only
version 1 left the key out.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import lz4.block

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

VERSION = 2
MAX_EVENTS = 1024
"""What one read of usual events brings; half as many make more rows, and each costs as much as 100 events."""
MAX_BYTES = 1 << 20

_MAGIC = b"PA"
_HEAD = struct.Struct("<2sBBIIQQ")
_CRC = struct.Struct("<I")
_SIZE = _HEAD.size + _CRC.size
_PLAIN, _LZ4 = 0, 1
_WORTH_COMPRESSING = 512
_LARGEST = 64 << 20  # no writer makes more; a damaged length must not allocate memory
HEAD_BYTES = _SIZE
"""So many bytes of a row tell what it claims to be."""


class DamagedChunkError(ValueError):
    """A row is not a chunk, or not the one that was written."""


class NewerChunkError(ValueError):
    """A row was written by a newer version of this program."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Events that travel together.

    Attributes:
        lines: JSON objects joined by newlines, without one at the end.
        count: how many.
        arrived_ms: when they were taken, Unix milliseconds.
        due_ms: not to be sent before, Unix milliseconds by the server's clock; 0 for at once.
    """

    lines: bytes
    count: int
    arrived_ms: int = 0
    due_ms: int = 0

    def encode(self, key: int = 0) -> bytes:
        """Return the row that is to stand under `key`."""
        lines = self.lines
        codec, payload = _PLAIN, lines
        if len(lines) >= _WORTH_COMPRESSING:
            packed: bytes = lz4.block.compress(lines, store_size=False)
            if len(packed) < len(lines):
                codec, payload = _LZ4, packed
        head = _HEAD.pack(_MAGIC, VERSION, codec, self.count, len(lines), self.arrived_ms, self.due_ms)
        checksum = zlib.crc32(payload, zlib.crc32(head, _seed(VERSION, key)))
        return b"".join((head, _CRC.pack(checksum), payload))


def decode(row: bytes, key: int = 0) -> Chunk:
    """Return the chunk of the row that stands under `key`.

    Raises:
        NewerChunkError: its version is newer than this program's.
        DamagedChunkError: anything else is wrong with it.
    """
    if len(row) < _SIZE:
        raise DamagedChunkError(f"a row of {len(row)} bytes is too short for a chunk")
    magic, version, codec, count, size, arrived_ms, due_ms = _HEAD.unpack_from(row)
    payload = row[_SIZE:]
    (checksum,) = _CRC.unpack_from(row, _HEAD.size)
    if zlib.crc32(payload, zlib.crc32(row[: _HEAD.size], _seed(version, key))) != checksum:
        raise DamagedChunkError("the checksum does not match")
    if magic != _MAGIC:
        raise DamagedChunkError("not a chunk")
    if version > VERSION:
        raise NewerChunkError(f"chunk version {version}; this program reads up to {VERSION}")
    if codec == _LZ4 and size <= _LARGEST:
        try:
            lines = lz4.block.decompress(payload, uncompressed_size=size)
        except lz4.block.LZ4BlockError as error:
            raise DamagedChunkError(f"cannot be decompressed: {error}") from error
    elif codec == _PLAIN:
        lines = payload
    else:
        raise DamagedChunkError(f"unknown codec {codec}, {size} bytes")
    if len(lines) != size:
        raise DamagedChunkError(f"{len(lines)} bytes of lines where {size} were written")
    return Chunk(lines, count, arrived_ms, due_ms)


def claimed_events(head: bytes) -> int:
    """Return how many events a row says it holds, by its first bytes; 0 when that cannot be so."""
    if len(head) < _SIZE:
        return 0
    magic, _, codec, count, size, _, _ = _HEAD.unpack_from(head)
    # A line has two bytes at least, and a newline stands between each two.
    believable = magic == _MAGIC and codec in (_PLAIN, _LZ4) and size <= _LARGEST and count * 3 <= size + 1
    return count if believable else 0


def _seed(version: int, key: int) -> int:
    """Return what the checksum begins with."""
    return key & 0xFFFFFFFF if version > 1 else 0


def pack(groups: Iterable[tuple[bytes, int]], arrived_ms: int) -> list[Chunk]:
    """Pack lines in order into as few chunks as their bounds allow.

    Args:
        groups: lines joined by newlines, with their count; none empty.
        arrived_ms: when they were taken, Unix milliseconds.
    """
    chunks: list[Chunk] = []
    waiting: list[bytes] = []
    count = size = 0
    for lines, number in groups:
        pieces = [(lines, number)] if number <= MAX_EVENTS and len(lines) <= MAX_BYTES else _split(lines)
        for piece, events in pieces:
            if waiting and (count + events > MAX_EVENTS or size + len(piece) > MAX_BYTES):
                chunks.append(Chunk(b"\n".join(waiting), count, arrived_ms))
                waiting, count, size = [], 0, 0
            waiting.append(piece)
            count += events
            size += len(piece) + 1
    if waiting:
        chunks.append(Chunk(b"\n".join(waiting), count, arrived_ms))
    return chunks


def _split(lines: bytes) -> Iterator[tuple[bytes, int]]:
    """Split lines into pieces within the bounds; a line longer than the bound goes alone."""
    waiting: list[bytes] = []
    size = 0
    for line in lines.split(b"\n"):
        if waiting and (len(waiting) == MAX_EVENTS or size + len(line) > MAX_BYTES):
            yield b"\n".join(waiting), len(waiting)
            waiting, size = [], 0
        waiting.append(line)
        size += len(line) + 1
    yield b"\n".join(waiting), len(waiting)
