"""Room on the disk that is kept for the queue, and given back when the queue needs it to drain.

On a full disk nothing can be deleted from a database: a change goes to SQLite's log first,
and the log cannot grow. So a file without use lies beside the database, and what SQLite
needs to take out events that were delivered is cut off that file. As long as it is whole,
everything in the log fits on the disk a second time, which is what moving it to the
database takes; `agent.queue.backfill` and the writer keep the log that small.

Two more files are for a start alone: opening a database takes room, and names for new
files. They are there when the disk was full, others took what the queue gave back, and
the daemon is started anew.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MOST_BYTES = 6 << 20
_MOST_PORTION = 2 << 20  # more is no quicker, and takes memory
_SHARE = 4  # of a small disk, one part in so many
_PAGE_BYTES = 4096
_START_BYTES = 512 << 10
_ENOUGH_TO_START = 2 * _START_BYTES
_ENOUGH_NAMES = 4
_BLOCK_BYTES = 8192


def size_on(disk: os.statvfs_result) -> int:
    """Return how large the ballast on a disk is to be."""
    return min(MOST_BYTES, disk.f_blocks * disk.f_frsize // _SHARE) // _PAGE_BYTES * _PAGE_BYTES


def portion_on(disk: os.statvfs_result) -> int:
    """Return how many bytes of events one transaction may have."""
    return min(_MOST_PORTION, size_on(disk) // 2)


def log_on(disk: os.statvfs_result) -> int:
    """Return how many bytes may be in the log before another transaction.

    With that transaction they have to fit into the ballast; a quarter is left to the rows about
    events, to indexes, and to what a deletion moves.
    """
    return (size_on(disk) - portion_on(disk)) // 4 * 3


class Ballast:
    """The ballast of one queue.

    Args:
        directory: where the queue lies.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / "ballast"
        self._start_file = directory / "ballast.start"
        self._start_name = directory / "ballast.name"
        self._whole = False
        self._start_made = False

    def make_way(self) -> None:
        """Give everything back where the disk has too little for a start; raises OSError."""
        disk = os.statvfs(self._directory)
        no_names = bool(disk.f_files) and disk.f_favail < _ENOUGH_NAMES
        if no_names or _free(disk) < _ENOUGH_TO_START:
            self.give_back()
            for file in (self._start_file, self._start_name):
                file.unlink(missing_ok=True)

    def give_back(self) -> bool:
        """Give the room back; True when there was some to give. Raises OSError."""
        self._whole = False
        try:
            size = self._file.stat().st_size
            os.truncate(self._file, 0)
        except FileNotFoundError:
            return False
        return size > 0

    def keep(self) -> bool:
        """Take the room again where that is possible; False when there is none to take.

        True as well when it cannot be taken, but is there: without names for files, say.
        """
        if self._whole and self._start_made:
            return True
        if self._whole:
            self._keep_for_start()
            return True
        try:
            disk = os.statvfs(self._directory)
            size = size_on(disk)
            self._whole = self._has(self._file, size)
            if not self._whole:
                if _free(disk) < size + size // _SHARE:
                    return False
                _fill(self._file, size)
                self._whole = True
        except OSError:
            return self._is_there()
        self._keep_for_start()
        return True

    def _keep_for_start(self) -> None:
        """Make the files that are for a start, if that is possible."""
        with contextlib.suppress(OSError):
            self._start_name.touch(mode=0o600)
            self._start_made = self._has(self._start_file, _START_BYTES)
            if not self._start_made and _free(os.statvfs(self._directory)) > _ENOUGH_TO_START:
                _fill(self._start_file, _START_BYTES)
                self._start_made = True

    def _is_there(self) -> bool:
        """Tell whether there is room for the ballast, although it could not be made."""
        with contextlib.suppress(OSError):
            disk = os.statvfs(self._directory)
            return _free(disk) > 2 * size_on(disk)
        return False

    @staticmethod
    def _has(file: Path, size: int) -> bool:
        """Tell whether a file takes so much room; raises OSError."""
        try:
            status = file.stat()
        except FileNotFoundError:
            return False
        return status.st_size >= size and status.st_blocks * 512 >= size


def _free(disk: os.statvfs_result) -> int:
    return disk.f_bavail * disk.f_frsize


def _fill(path: Path, size: int) -> None:
    """Make a file that takes so much room, now and not later.

    Raises:
        OSError: that is not possible; the file is empty.
    """
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        left = size
        while left > 0:
            # Nothing that a file system could leave out or compress.
            left -= os.write(file, os.urandom(min(left, _BLOCK_BYTES)))
        os.fsync(file)
    except OSError:
        os.ftruncate(file, 0)
        raise
    finally:
        os.close(file)
