"""A look at a queue from outside, whether a daemon has it or not."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from agent import chunk
from agent.errors import QueueError
from agent.queue import Books, Checkpoint, DeadLetter, look
from agent.queue.check import DATABASE
from agent.queue.rows import BOOKS, CHECKPOINT, DEAD, META, DamagedRowError, Meta, numbered, unseal

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_Record = TypeVar("_Record", bound=msgspec.Struct)
_LOOKS = 50
_PAUSE_SECONDS = 0.02


class DiskReader:
    """Looks at a queue, live or not, without writing to it or slowing it (`agent.queue.look`).

    Raises:
        QueueError: there is no queue, it cannot be read, or a newer version wrote it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        if not look.is_there(directory):
            raise QueueError("read the queue", str(directory), "there is none", "`agent run` makes it")
        if not (directory / DATABASE).exists():
            raise look.damaged(directory, f"{DATABASE} is missing")
        self._resting = False
        self._db: sqlite3.Connection | None = None
        try:
            meta = self._record(META, Meta)
            look.refuse_newer(directory, meta.format if meta else 0)
        except QueueError:
            self.close()
            raise

    def server(self) -> str:
        """Return the server that the events are meant for; empty when the queue does not know."""
        meta = self._record(META, Meta)
        return meta.server if meta else ""

    def books(self) -> Books:
        """Return the books as of the last commit."""
        return self._record(BOOKS, Books) or Books()

    def oldest_arrival(self) -> float | None:
        """Return when the oldest pending chunk was taken, in Unix seconds; None when none is."""
        oldest = self.oldest()
        return None if oldest is None else oldest.arrived_ms / 1000

    def oldest(self) -> chunk.Chunk | None:
        """Return the oldest pending chunk; None when there is none, or it is damaged."""
        rows = self._query("SELECT key, value FROM Cache WHERE typeof(key) = 'integer' ORDER BY key LIMIT 1")
        if not rows:
            return None
        ((key, row),) = rows
        try:
            return chunk.decode(bytes(row), key)
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
        if self._db is not None:
            self._db.close()
            self._db = None

    def _record(self, key: str, kind: type[_Record]) -> _Record | None:
        """Return the record under `key`, or None."""
        rows = self._query("SELECT value FROM Cache WHERE key = ? AND raw = 1", key)
        return self._unseal(key, rows[0][0], kind) if rows else None

    def _unseal(self, key: str, row: object, kind: type[_Record]) -> _Record:
        """Return the record of a row."""
        try:
            return unseal(key, row, kind)
        except DamagedRowError as error:
            raise look.damaged(self._directory, f"{key} is damaged: {error}") from error

    def _query(self, statement: str, *values: object) -> list[Any]:
        """Return the rows that a statement gives; wait while a daemon starts or ends."""
        for _ in range(_LOOKS):
            try:
                return self._rows(statement, values)
            except QueueError as error:
                if not look.is_passing(self._directory, error):
                    raise
            self.close()
            _pause()
        return self._rows(statement, values)

    def _rows(self, statement: str, values: tuple[object, ...]) -> list[Any]:
        """Do what `_query` says, without waiting."""
        with look.reading(self._directory):
            if self._resting and not look.rests(self._directory):
                self.close()  # a daemon has begun to write
            if self._db is None:
                self._resting = look.rests(self._directory)
                self._db = look.connect(self._directory)
            return self._db.execute(statement, values).fetchall()


def _pause() -> None:
    """Let the daemon get on."""
    threading.Event().wait(_PAUSE_SECONDS)
