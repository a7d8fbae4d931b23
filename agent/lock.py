"""One daemon for each queue directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import threading
from typing import TYPE_CHECKING

from agent.errors import QueueError, QueueLockedError, hint_of, reason_of

if TYPE_CHECKING:
    from pathlib import Path

_NAME = "lock"
_TRIES = 100


class QueueLock:
    """Holds a queue directory for this process; the kernel lets go when the process ends, however it ends.

    It locks the directory itself, so that nobody gets in by removing a file, and a file that
    tells who has it; on a file system that locks no directories, the file alone.

    Raises:
        QueueLockedError: another process holds it; the message names it.
    """

    def __init__(self, directory: Path) -> None:
        self._place = self._file = -1
        try:
            self._place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._file = os.open(directory / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            taken = _take(self._place) and _take(self._file)
        except OSError as error:
            self.release()
            hint = hint_of(error) or "is the directory yours?"
            raise QueueError("lock the queue", str(directory), reason_of(error), hint) from error
        if not taken:
            pid = _pid(self._place, self._file)
            self.release()
            raise QueueLockedError(
                "use the queue",
                str(directory),
                f"process {pid} uses it" if pid else "another process uses it",
                "stop that daemon, or give this one another queue_dir and socket_path",
            )
        # The number is for messages alone: a disk that does not take it must not keep us from starting.
        with contextlib.suppress(OSError):
            # In this order, so that a full disk needs no new block for it.
            os.ftruncate(self._file, os.pwrite(self._file, b"%d\n" % os.getpid(), 0))

    def release(self) -> None:
        """Let others have it."""
        for file in (self._file, self._place):
            if file >= 0:
                os.close(file)
        self._place = self._file = -1


def holder(directory: Path) -> int | None:
    """Return the number of the process that holds a queue directory; None when none does, or nobody knows."""
    place = file = -1
    try:
        place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with contextlib.suppress(FileNotFoundError):
            file = os.open(directory / _NAME, os.O_RDONLY | os.O_CLOEXEC)
        if _flock(place, fcntl.LOCK_SH) and (file < 0 or _flock(file, fcntl.LOCK_SH)):
            return None
        return _pid(place, file)
    except OSError:
        return None
    finally:
        for descriptor in (place, file):
            if descriptor >= 0:
                os.close(descriptor)


def _take(file: int) -> bool:
    """Take the lock; False when a daemon has it."""
    for _ in range(_TRIES):
        if _flock(file, fcntl.LOCK_EX):
            return True
        if not _flock(file, fcntl.LOCK_SH):
            return False
        # Somebody only looks, as `holder` does, and will be gone in a moment.
        _flock(file, fcntl.LOCK_UN)
        _pause()
    return False


def _flock(file: int, operation: int) -> bool:
    """Lock or unlock a file without waiting; False when another lock forbids it."""
    try:
        fcntl.flock(file, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        if not stat.S_ISDIR(os.fstat(file).st_mode):
            raise
        # This file system locks no directories.
    return True


def _pause() -> None:
    """Let who looks get on."""
    threading.Event().wait(0.01)


def _pid(place: int, file: int) -> int | None:
    """Return the number of the holder: as Linux tells it, else as it wrote it."""
    status = os.fstat(place)
    lock = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with contextlib.suppress(OSError, ValueError), open("/proc/locks", encoding="ascii") as table:  # noqa: PTH123
        for line in table:
            words = line.split()
            if words[1] == "FLOCK" and words[3] == "WRITE" and words[5] == lock and int(words[4]) > 0:
                return int(words[4])
    with contextlib.suppress(OSError, ValueError):
        return int(os.pread(file, 32, 0))
    return None
