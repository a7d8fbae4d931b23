"""One daemon for each queue directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from agent.errors import QueueError, QueueLockedError

if TYPE_CHECKING:
    from pathlib import Path

_NAME = "lock"


class QueueLock:
    """Holds a queue directory for this process; the kernel lets go when the process ends, however it ends.

    Raises:
        QueueLockedError: another process holds it; the message names it.
    """

    def __init__(self, directory: Path) -> None:
        try:
            self._file = os.open(directory / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise QueueError(
                "lock the queue", str(directory), error.strerror or str(error), "is the directory yours?"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = _read_pid(self._file)
            os.close(self._file)
            raise QueueLockedError(
                "use the queue",
                str(directory),
                f"process {pid} uses it" if pid else "another process uses it",
                "stop that daemon, or give this one another queue_dir and socket_path",
            ) from error
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, b"%d\n" % os.getpid(), 0)

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
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_pid(file)
    finally:
        os.close(file)
    return None


def _read_pid(file: int) -> int | None:
    """Return the number that the holder wrote."""
    with contextlib.suppress(OSError, ValueError):
        return int(os.pread(file, 32, 0))
    return None
