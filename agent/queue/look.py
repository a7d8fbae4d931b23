"""The database as one sees it who is not the daemon: nothing is written, nobody is kept from writing.

diskcache writes when it opens a directory. SQLite does so, too, even for reading: it makes the
index of the log anew where nobody has it open, and that index is the only witness of how much of
the log was committed. So SQLite is told to leave it alone, and keeps one in memory. Where there is no
log, because nobody is at work, it is told that nothing will change: else it would make one.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING
from urllib.parse import quote

from agent.errors import QueueError, reason_of
from agent.queue import wal
from agent.queue.check import DATABASE, INDEX, LOG, SQL_ERRORS, damage, glance, is_damage, refuse_empty
from agent.queue.rows import FORMAT, META, DamagedRowError, Meta, unseal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_DAMAGE_HINT = "`agent queue verify` tells more; the daemon rescues what can be read when it starts"
_USER_HINT = "run this as the user of the daemon"
_BUSY_SECONDS = 5.0
_PASSING = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PROTOCOL}
_LOOKS = 3


def is_there(directory: Path) -> bool:
    """Tell whether a directory holds a queue, or what is left of one.

    Raises:
        QueueError: this user may not look.
    """
    for name in (DATABASE, LOG):
        try:
            if (directory / name).stat().st_size or name == DATABASE:
                return True
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            hint = _USER_HINT if isinstance(error, PermissionError) else "see queue_dir"
            raise QueueError("read the queue", str(directory), reason_of(error), hint) from error
    return False


def rests(directory: Path) -> bool:
    """Tell whether nobody writes to the database now, and all of it is in its main file."""
    try:
        # An empty log without its index is nobody's; with it, a daemon may just have moved all of it.
        return (directory / LOG).stat().st_size == 0 and not (directory / INDEX).exists()
    except FileNotFoundError:
        return True


def connect(directory: Path) -> sqlite3.Connection:
    """Open the database of a queue.

    Raises:
        sqlite3.Error: it cannot be opened.
    """
    refuse_empty(directory)
    if all(wal.is_beheaded(directory / LOG) for _ in range(_LOOKS)):  # not one that begins anew just now
        raise damage(f"the header of {LOG} is damaged")
    if rests(directory):
        options = "immutable=1"
    elif (directory / INDEX).exists():
        options = "readonly_shm=1"
    else:
        options = ""  # where there is no index, SQLite does not go on without making one
    return sqlite3.connect(
        f"file:{quote(str(directory / DATABASE))}?mode=ro&{options}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
    )


@contextlib.contextmanager
def reading(directory: Path) -> Iterator[None]:
    """Turn SQLite's exceptions into ours."""
    try:
        yield
    except SQL_ERRORS as error:
        hint = _DAMAGE_HINT if is_damage(error) else "is the directory readable for you?"
        raise QueueError("read the queue", str(directory), reason_of(error), hint) from error


def is_passing(directory: Path, error: QueueError) -> bool:
    """Tell whether an error may be one of a moment in which a daemon starts or ends.

    The files of the log come and go then, and a new database is empty before its table is made.
    """
    cause = error.__cause__
    if not isinstance(cause, sqlite3.Error):
        return False
    with contextlib.suppress(OSError):
        if (directory / DATABASE).stat().st_size == 0:
            return True
    return (getattr(cause, "sqlite_errorcode", 0) & 0xFF) in _PASSING or "no such table" in str(cause)


def format_of(directory: Path) -> int:
    """Return the format of a queue; 0 when there is none, or it cannot be read."""
    with contextlib.suppress(*SQL_ERRORS, DamagedRowError), contextlib.closing(connect(directory)) as db:
        for (row,) in db.execute("SELECT value FROM Cache WHERE key = ? AND raw = 1", (META,)):
            return unseal(META, row, Meta).format
    return 0


def damaged(directory: Path, what: str) -> QueueError:
    """Return the error that tells of damage."""
    return QueueError("read the queue", str(directory), what, _DAMAGE_HINT)


def refuse_newer(directory: Path, version: int) -> None:
    """Raise QueueError when a queue is of a format that this program does not know."""
    if version > FORMAT:
        raise QueueError(
            "read the queue",
            str(directory),
            f"it was written by a newer version (format {version}; this one reads up to {FORMAT})",
            "install that version again, or choose another queue_dir",
        )


def log_is_cut(directory: Path) -> bool:
    """Tell whether SQLite takes, or at the next start would take, less of the log than was committed."""
    for _ in range(_LOOKS):
        before = wal.salts(directory / LOG)
        seen = glance(directory)
        taken = wal.takes(directory / LOG)
        if not seen.lost(taken):
            return False
        if wal.salts(directory / LOG) == before:
            return True
        # The log began anew between two looks at it: nothing is told by that.
    return False
