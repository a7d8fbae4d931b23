"""What the disk says when it refuses: in words, with what to do, and whether it is only full."""

from __future__ import annotations

import errno
import os
import sqlite3
from typing import TYPE_CHECKING

from agent.errors import QueueError, QueueFullError
from agent.queue.store import reason

if TYPE_CHECKING:
    from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_ROOM_BYTES = 64 << 10  # less than the index of SQLite's log grows by at once


def fault(operation: str, directory: Path, error: BaseException) -> QueueError:
    """Return our error for what a call of the store, or of the system, raised.

    Args:
        operation: what was being done: ``write``, say.
        directory: of the queue.
        error: one of `agent.queue.store.ERRORS`.
    """
    what, subject = f"{operation} the queue", str(directory)
    if _is_full(error, directory):
        return QueueFullError(
            what, subject, "the disk is full", "make room on it: the queue goes on by itself"
        )
    if _is_read_only(directory):
        return QueueError(
            what,
            subject,
            "the file system is read-only",
            "mount it for writing again, and see the disk's health",
        )
    return QueueError(what, subject, _in_words(error), "see the disk's health, and the kernel's log")


def _is_full(error: BaseException, directory: Path) -> bool:
    """Tell whether the disk, or the user's share of it, is full."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    code = getattr(error, "sqlite_errorcode", 0)
    if code & 0xFF == sqlite3.SQLITE_FULL:
        return True
    # Of the index of its log, SQLite only says that it failed.
    if code & 0xFF != sqlite3.SQLITE_IOERR and code & 0xFF != sqlite3.SQLITE_CANTOPEN:
        return False
    try:
        disk = os.statvfs(directory)
    except OSError:
        return False
    no_names = bool(disk.f_files) and disk.f_favail == 0 and code & 0xFF == sqlite3.SQLITE_CANTOPEN
    return no_names or disk.f_bavail * disk.f_frsize < _NO_ROOM_BYTES


def _is_read_only(directory: Path) -> bool:
    try:
        return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _in_words(error: BaseException) -> str:
    """Return the text of an error, with SQLite's name for it where that says more."""
    name = getattr(error, "sqlite_errorname", "")
    return f"{reason(error)} ({name})" if name.startswith("SQLITE_IOERR") else reason(error)
