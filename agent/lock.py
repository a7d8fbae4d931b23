"""One daemon for each queue directory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from typing import TYPE_CHECKING

from agent.errors import QueueError, QueueLockedError

if TYPE_CHECKING:
    from pathlib import Path

_NAME = "lock"
_TRIES = 100


class QueueLock:
    """Holds a queue directory for this process; the kernel lets go when the process ends, however it ends.

    Raises:
        QueueLockedError: another process holds it; the message names it.
    """

    def __init__(self, directory: Path) -> None:
        try:
            self._file = os.open(directory / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            hint = "make room on it" if error.errno == errno.ENOSPC else "is the directory yours?"
            raise QueueError("lock the queue", str(directory), error.strerror or str(error), hint) from error
        if not _take(self._file):
            pid = _read_pid(self._file)
            os.close(self._file)
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
        os.close(self._file)


def holder(directory: Path) -> int | None:
    """Return the number of the process that holds a queue directory; None when none does."""
    try:
        file = os.open(directory / _NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return None if _flock(file, fcntl.LOCK_SH) else _read_pid(file)
    finally:
        os.close(file)


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
    return True


def _pause() -> None:
    """Let who looks get on."""
    threading.Event().wait(0.01)


def _read_pid(file: int) -> int | None:
    """Return the number that the holder wrote."""
    with contextlib.suppress(OSError, ValueError):
        return int(os.pread(file, 32, 0))
    return None
