"""Cuts a stream of bytes into newline-terminated lines, with a bound on a line's length.

Pure and without knowledge of JSON. What `feed` returns keeps the order of the
stream: blocks of whole lines, and `TOO_LONG` in the place of each line that is
longer than the bound; such a line is skipped up to its newline, never stored.
"""

from __future__ import annotations

from typing import Final


class _TooLong:
    """The place of a line that was too long."""

    def __repr__(self) -> str:
        return "TOO_LONG"


TOO_LONG: Final = _TooLong()

Segment = bytes | _TooLong
"""Whole lines, each ending with a newline; or the place of a line that was too long."""


class Framer:
    """The framing state of one connection.

    Args:
        max_line_bytes: the longest line that is taken, its newline not counted.
    """

    __slots__ = ("_held", "_max", "_skipping")

    def __init__(self, max_line_bytes: int) -> None:
        self._max = max_line_bytes
        self._held = bytearray()  # of a line whose newline has not come
        self._skipping = False

    @property
    def partial(self) -> bool:
        """True while a line has begun whose newline has not come."""
        return self._skipping or bool(self._held)

    @property
    def held(self) -> int:
        """Bytes that are kept of a line whose newline has not come."""
        return len(self._held)

    def forget(self) -> None:
        """Keep nothing of a line whose newline has not come."""
        self._held.clear()
        self._skipping = False

    def feed(self, data: bytes | bytearray, size: int | None = None) -> list[Segment]:
        """Take what was received; return the segments that it completes, in order.

        Args:
            data: what was received, or a buffer that may be used anew afterwards.
            size: how many bytes of it were; all when None.
        """
        size = len(data) if size is None else size
        end = data.rfind(b"\n", 0, size) + 1
        if not end:
            self._hold(data[:size])
            return []
        segments: list[Segment] = []
        start = 0
        if self._skipping:
            start = data.index(b"\n") + 1
            self._skipping = False
            segments.append(TOO_LONG)
        block = b"".join((self._held, memoryview(data)[start:end]))
        self._held.clear()
        if len(block) > self._max + 1 and not self._all_short(block):
            segments.extend(self._bounded(block))
        elif block:
            segments.append(block)
        if end != size:
            self._hold(data[end:size])
        return segments

    def finish(self) -> list[Segment]:
        """Take the end of the stream: a last line without its newline counts as a line."""
        if self._skipping:
            self._skipping = False
            return [TOO_LONG]
        if not self._held:
            return []
        line = bytes(self._held) + b"\n"
        self._held.clear()
        return self._bounded(line)

    def _hold(self, piece: bytes | bytearray) -> None:
        """Keep the beginning of a line, unless it is too long already."""
        if self._skipping:
            return
        # One more than the bound: the last byte may be the \r of a \r\n.
        if len(self._held) + len(piece) > self._max + 1:
            self._held.clear()
            self._skipping = True
        else:
            self._held += piece

    def _all_short(self, block: bytes) -> bool:
        """Tell, without looking at each line, that none is too long."""
        start = 0
        while start < len(block):
            end = block.rfind(b"\n", start, start + self._max + 1)
            if end < 0:
                return False
            start = end + 1
        return True

    def _bounded(self, block: bytes) -> list[Segment]:
        """Split a block at its lines that are too long."""
        segments: list[Segment] = []
        good: list[bytes] = []
        for piece in block.split(b"\n")[:-1]:
            line = piece + b"\n"
            if len(piece) - piece.endswith(b"\r") <= self._max:
                good.append(line)
                continue
            if good:
                segments.append(b"".join(good))
                good = []
            segments.append(TOO_LONG)
        if good:
            segments.append(b"".join(good))
        return segments
