"""What the disk says when it refuses: in words, with what to do, and whether it is only full."""

from __future__ import annotations

import errno
import os
import sqlite3
from typing import TYPE_CHECKING

from agent.errors import QueueError, QueueFullError, hint_of, reason_of
from agent.queue.store import reason

if TYPE_CHECKING:
    from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT}
_HINT = "see the disk's health, and the kernel's log"
_NO_ROOM_BYTES = 64 << 10  # less than the index of SQLite's log grows by at once


def fault(operation: str, directory: Path, error: BaseException) -> QueueError:
    """Return our error for what a call of the store, or of the system, raised.

    Args:
        operation: what was being done: ``write``, say.
        directory: of the queue.
        error: one of `agent.queue.store.ERRORS`.
    """
    what, subject = f"{operation} the queue", str(directory)
    try:
        disk = os.statvfs(directory)
    except OSError:
        return QueueError(what, subject, *_refused(error))
    no_names = bool(disk.f_files) and disk.f_favail == 0
    if _is_full(error, disk, no_names=no_names):
        lack = "the disk can have no more files: its inodes are used up" if no_names else "the disk is full"
        return QueueFullError(what, subject, lack, "make room on it")
    if disk.f_flag & os.ST_RDONLY or _refuses_changes(directory):
        return QueueError(what, subject, "the file system is read-only", "mount it for writing again")
    return QueueError(what, subject, *_refused(error))


def _refused(error: BaseException) -> tuple[str, str]:
    """Return what was refused, and what to do; of files that cannot be opened, SQLite does not say why."""
    try:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CANTOPEN:
            os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as refusal:
        return reason_of(refusal), hint_of(refusal) or _HINT
    return _in_words(error), hint_of(error) or _HINT


def _is_full(error: BaseException, disk: os.statvfs_result, *, no_names: bool) -> bool:
    """Tell whether the disk, or the user's share of it, is full."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    # Of the index of its log, and of new files, SQLite only says that it failed.
    return (
        code == sqlite3.SQLITE_FULL
        or (code == sqlite3.SQLITE_CANTOPEN and no_names)
        or (
            code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
            and disk.f_bavail * disk.f_frsize < _NO_ROOM_BYTES
        )
    )


def _refuses_changes(directory: Path) -> bool:
    """Tell whether a file system has made itself read-only, as ext4 does upon an error of its own.

    It does not say so to those who ask; and of SQLite one hears only that a write failed.
    """
    try:
        os.utime(directory)
    except OSError as error:
        return error.errno == errno.EROFS
    return False


def _in_words(error: BaseException) -> str:
    """Return the text of an error, with SQLite's name for it where that says more."""
    name = getattr(error, "sqlite_errorname", "")
    return f"{reason(error)} ({name})" if name.startswith("SQLITE_IOERR") else reason(error)
