"""When what is in SQLite's log is moved to the database.

SQLite does that by itself, at the end of a commit, and is silent when it fails. Here it is
done before a commit, so that a disk which refuses is noticed while nothing is promised yet,
and early enough that what is in the log fits into the ballast (`agent.queue.ballast`).

After a failure everything is moved and the log is emptied before anything is promised again.
When a sync fails, the kernel may drop what was to be written and yet show it to whoever
reads, and the next sync says that all is well. A log with such a hole ends there for whoever
reads it after a power cut: all that was committed behind it would be lost. The same holds
for a log that another process left: nobody knows how its syncs went.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from typing import TYPE_CHECKING
from urllib.parse import quote

from agent.queue import check, wal
from agent.queue.ballast import log_on

if TYPE_CHECKING:
    from pathlib import Path

PAGE_BYTES = 4096
_MOST_PAGES = 720  # a commit of one event writes five: fewer than one such commit in a hundred has to wait
_BUSY_SECONDS = 5.0


class Backfill:
    """Moves the log of one database.

    Args:
        database: its file; open already, so that the log is there.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._index = wal.Index(database.with_name(check.INDEX))
        self._db: sqlite3.Connection | None = None
        self._logged = 0  # pages in the log, guessed high
        self._most = _MOST_PAGES
        self._distrusted = True

    def prepare(self, *, all_of_it: bool = False) -> None:
        """Move the log if it is time, or `all_of_it`: the database shrinks only then.

        Raises:
            sqlite3.Error: the disk refuses.
            OSError: the same.
        """
        if self._distrusted:
            self._most = min(_MOST_PAGES, log_on(os.statvfs(self._database.parent)) // PAGE_BYTES)
            self._run("TRUNCATE")
            self._distrusted = False
        elif (most := 1 if all_of_it else self._most) <= self._logged and self._count() >= most:
            self._run("PASSIVE")

    def wrote(self, size: int, rows: int) -> None:
        """Note a commit of rows of this many bytes in all, put in or taken out."""
        self._logged += size // PAGE_BYTES + 3 * rows + 8

    def _count(self) -> int:
        """Replace the guess by what the log's index says, if that can be believed; return it."""
        waiting = self._index.waiting()
        if waiting is not None:
            self._logged = waiting
        return self._logged

    def distrust(self) -> None:
        """Note that something failed: all of the log has to be moved before the next commit."""
        self._distrusted = True

    @property
    def connection(self) -> sqlite3.Connection | None:
        """The connection to the database, while there is one; for who holds the writer's lock."""
        return self._db

    def close(self) -> None:
        """Let go of the database."""
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    def _run(self, mode: str) -> None:
        """Have SQLite move the log; `TRUNCATE` waits for readers and empties it, `PASSIVE` does neither."""
        try:
            busy, log, moved = self._connect().execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except sqlite3.Error:
            self.close()
            raise
        if busy and mode == "TRUNCATE":
            raise OSError(errno.EBUSY, "another process holds the database")
        self._logged = max(0, log - moved)

    def _connect(self) -> sqlite3.Connection:
        """Return a connection of our own: a failure then leaves nothing behind in that of the store."""
        if self._db is None:
            self._db = sqlite3.connect(
                f"file:{quote(str(self._database))}?mode=rw",
                uri=True,
                timeout=_BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            self._db.execute("PRAGMA synchronous=FULL")
        return self._db
