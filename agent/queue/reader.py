"""A look at a queue from outside, whether a daemon has it or not."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import msgspec

from agent import chunk
from agent.errors import QueueError, reason_of
from agent.queue import Books, Checkpoint, DeadLetter
from agent.queue.check import DATABASE, LOG, is_damage
from agent.queue.rows import BOOKS, CHECKPOINT, DEAD, DamagedRowError, numbered, unseal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_DAMAGE_HINT = "`agent queue verify` tells more; the daemon rescues what can be read when it starts"
_Record = TypeVar("_Record", bound=msgspec.Struct)


class DiskReader:
    """Looks at a queue, live or not, without writing to it or slowing it.

    diskcache writes when it opens a directory, so this reads the database itself. SQLite
    does so too, even for reading: it makes the files of its log where there are none.
    There are none when no daemon runs, so then it is told that nothing will change.

    Raises:
        QueueError: there is no queue, or it cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / DATABASE
        self._subject = str(directory)
        if not self._path.exists():
            raise QueueError("read the queue", self._subject, "there is none", "`agent run` makes it")
        self._resting = self._rests()
        self._db = self._connect()

    def books(self) -> Books:
        """Return the books as of the last commit."""
        return self._record(BOOKS, Books) or Books()

    def oldest_arrival(self) -> float | None:
        """Return when the oldest pending chunk was taken, in Unix seconds; None when none is."""
        rows = self._query("SELECT key, value FROM Cache WHERE typeof(key) = 'integer' ORDER BY key LIMIT 1")
        if not rows:
            return None
        ((key, row),) = rows
        try:
            return chunk.decode(bytes(row), key).arrived_ms / 1000
        except ValueError:
            return None

    def dead_letters(self, ids: Iterable[int] | None = None) -> Iterator[DeadLetter]:
        """Yield the dead letters of these numbers, or all, oldest first."""
        if ids is not None:
            letters = (self._record(numbered(DEAD, number), DeadLetter) for number in sorted(set(ids)))
            yield from (letter for letter in letters if letter is not None)
            return
        last = DEAD
        while page := self._dead_page(last):
            yield from (self._unseal(key, row, DeadLetter) for key, row in page)
            last = page[-1][0]

    def _dead_page(self, after: str) -> list[tuple[str, bytes]]:
        """Return the keys and rows of the next dead letters."""
        query = "SELECT key, value FROM Cache WHERE key > ? AND key < ? ORDER BY key LIMIT 500"
        return self._query(query, after, DEAD + "~")

    def checkpoints(self) -> list[Checkpoint]:
        """Return all checkpoints, in order of their ids."""
        query = "SELECT key, value FROM Cache WHERE key > ? AND key < ? ORDER BY key"
        rows = self._query(query, CHECKPOINT, CHECKPOINT + "~")
        return [self._unseal(key, row, Checkpoint) for key, row in rows]

    def close(self) -> None:
        """Let go of the database."""
        self._db.close()

    def _record(self, key: str, kind: type[_Record]) -> _Record | None:
        """Return the record under `key`, or None."""
        rows = self._query("SELECT value FROM Cache WHERE key = ? AND raw = 1", key)
        return self._unseal(key, rows[0][0], kind) if rows else None

    def _unseal(self, key: str, row: object, kind: type[_Record]) -> _Record:
        """Return the record of a row."""
        try:
            return unseal(key, row if isinstance(row, bytes) else b"", kind)
        except DamagedRowError as error:
            raise QueueError(
                "read the queue", self._subject, f"{key} is damaged: {error}", _DAMAGE_HINT
            ) from error

    def _query(self, statement: str, *values: object) -> list[Any]:
        """Return the rows that a statement gives."""
        if self._resting and not self._rests():
            # A daemon has begun to write.
            self._resting = False
            self._db.close()
            self._db = self._connect()
        with self._reading():
            return self._db.execute(statement, values).fetchall()

    def _rests(self) -> bool:
        """Tell whether nobody writes to the database now: all of it is in its main file then."""
        return not self._path.with_name(LOG).exists()

    def _connect(self) -> sqlite3.Connection:
        """Open the database for reading."""
        options = "mode=ro&immutable=1" if self._resting else "mode=ro"
        with self._reading():
            return sqlite3.connect(f"file:{quote(str(self._path))}?{options}", uri=True, timeout=5)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn SQLite's exceptions into ours."""
        try:
            yield
        except sqlite3.Error as error:
            hint = _DAMAGE_HINT if is_damage(error) else "is the directory readable for you?"
            raise QueueError("read the queue", self._subject, reason_of(error), hint) from error
