"""Files without SQLite: one of a damaged queue, read as far as the disk gives it; names made durable."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_STEP = 4096
_TRIES = 5  # what a disk refuses but now and then is no damage


class RawFile:
    """Reads at any place and never fails: what is missing or cannot be read is zeros. To be closed.

    SQLite's locks are bound to the process, and closing any descriptor of a file drops them. So
    this is for files that this process has not open with SQLite, or will not use any more.

    Attributes:
        size: of the file in bytes; 0 when there is none.
        unreadable: how often the disk refused.
    """

    def __init__(self, path: Path) -> None:
        self.unreadable = 0
        self._file: int | None = None
        self.size = 0
        for _ in range(_TRIES):
            try:
                if self._file is None:
                    self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                self.size = os.fstat(self._file).st_size
            except FileNotFoundError:
                return
            except OSError:
                continue
            return
        self.unreadable += 1

    def is_at(self, path: Path) -> bool:
        """Tell whether this is the file that has a name now."""
        with contextlib.suppress(OSError):
            return self._file is not None and os.path.samestat(os.fstat(self._file), path.stat())
        return False

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes."""
        data = self._some(offset, length)
        if data is None:
            pieces = (self._some(place, _STEP) or b"" for place in range(offset, offset + length, _STEP))
            data = b"".join(piece.ljust(_STEP, b"\0") for piece in pieces)[:length]
        return data.ljust(length, b"\0")

    def _some(self, offset: int, length: int) -> bytes | None:
        """Return what is there, at most `length` bytes; None when the disk refuses."""
        if self._file is None:
            return b""
        for _ in range(_TRIES):
            with contextlib.suppress(OSError):
                return os.pread(self._file, length, offset)
        self.unreadable += 1
        return None

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable; without that, a power cut may take a new file away."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
