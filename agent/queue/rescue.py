"""What can be read of a damaged queue: every row whose checksum holds, by whatever way it is found.

There are two ways. The raw pages (`agent.queue.pages`) show also what nothing leads to any
more, and the commits that SQLite gives up behind damage in its log. SQL, from both ends
of the table and of its index, shows what the first way may have overlooked.

Rows that were settled are not brought back as far as the pages tell: what the newest whole
version of a page does not list is gone. Where only older versions are left, what they
list is taken: to send an event again is harmless, to forget it is not.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from agent import chunk
from agent.queue import Books, Checkpoint, Chunk, DeadLetter, check, look, wal
from agent.queue.pages import Cell, Pages
from agent.queue.rows import BOOKS, CHECKPOINT, DEAD, META, DamagedRowError, Meta, number_of, unseal

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator
    from pathlib import Path

_T = TypeVar("_T")
_Record = TypeVar("_Record", bound=msgspec.Struct)
_ORDERS = (
    "NOT INDEXED ORDER BY rowid",
    "NOT INDEXED ORDER BY rowid DESC",
    "INDEXED BY Cache_key_raw ORDER BY key, raw",
    "INDEXED BY Cache_key_raw ORDER BY key DESC, raw DESC",
)


class Row(NamedTuple):
    """A chunk that was rescued.

    Attributes:
        key: of the chunk.
        data: its row, as it was written.
        chunk: what is in it.
    """

    key: int
    data: bytes
    chunk: Chunk


class Rescue:
    """Everything that can be read of the database in a directory, which is left as it is.

    To be closed. This process must not go on using that database; see `agent.queue.raw`.

    Args:
        directory: where the database lies.
        seen: what a glance at its log told, before SQLite opened it.
        outside: not the daemon asks, but somebody who must not change anything.

    Attributes:
        books: the newest copy; None when none can be read.
        meta: likewise.
        damaged_chunks: keys of the chunks that were seen but are not what was written; known
            once `chunks` has been gone through.
        damaged_letters: numbers of the dead letters of that kind, known after `dead_letters`.
    """

    def __init__(self, directory: Path, seen: wal.Glance, *, outside: bool = False) -> None:
        self._pages = Pages(directory, seen)
        self._cells: dict[int | str, list[Cell]] = defaultdict(list)
        for number in self._pages.leaves():
            self._look_at(number)
        self._sql = _Sql(directory, seen, outside=outside)
        self.damaged_chunks: list[int] = []
        self.damaged_letters: list[int] = []
        self.books = max(self._records(BOOKS, Books), key=_age, default=None)
        self.meta = max(self._records(META, Meta), key=lambda meta: (meta.format, meta.server), default=None)

    def close(self) -> None:
        """Let go of the files."""
        self._sql.close()
        self._pages.close()

    @property
    def unreadable(self) -> int:
        """How often the disk refused to read."""
        return self._pages.unreadable

    @property
    def missing(self) -> int:
        """How many pages are known to be cut off the end of the log."""
        return self._pages.missing

    def chunks(self) -> Iterator[Row]:
        """Yield every chunk whose checksum holds, in order of keys."""
        keys = {key for key in (*self._cells, *self._sql.rowids) if isinstance(key, int) and key > 0}
        for key in sorted(keys):
            rows = self._read(key, partial(_row, key))
            if rows:
                # With each settlement a chunk shrinks: of two, the smaller one is newer.
                yield min(rows, key=lambda row: row.chunk.count)
            else:
                self.damaged_chunks.append(key)

    def dead_letters(self) -> Iterator[DeadLetter]:
        """Yield every dead letter that is what was written, in order of numbers."""
        for key in sorted(key for key in {*self._cells, *self._sql.rowids} if isinstance(key, str)):
            number = number_of(DEAD, key)
            if number is not None:
                letters = [letter for letter in self._records(key, DeadLetter) if letter.id == number]
                yield from letters[:1]
                if not letters:
                    self.damaged_letters.append(number)

    def checkpoints(self) -> Iterator[Checkpoint]:
        """Yield every checkpoint that is what was written, in order of ids.

        Of several versions it is the one that is least far: lines that are read again get the
        same ids and are known at Polar as duplicates, those that are passed over are gone.
        """
        for key in sorted(key for key in {*self._cells, *self._sql.rowids} if isinstance(key, str)):
            if key.startswith(CHECKPOINT):
                found = [
                    checkpoint
                    for checkpoint in self._records(key, Checkpoint)
                    if checkpoint.id == key.removeprefix(CHECKPOINT)
                ]
                if found:
                    yield min(found, key=lambda checkpoint: checkpoint.offset)

    def _look_at(self, number: int) -> None:
        """Note the rows of one page."""
        listed: set[int | str] | None = None  # by the newest version that is whole
        doubtful: set[int | str] = set()  # the same, of one that may be of another page
        for version in self._pages.versions(number):
            leaf = self._pages.leaf(number, version)
            keys = {cell.key for cell in leaf.cells}
            if listed is None and keys & doubtful:
                listed = doubtful
            for cell in leaf.cells:
                if listed is None or cell.key in listed or version.newest:
                    self._cells[cell.key].append(cell)
            if leaf.whole and listed is None:
                listed = keys if version.certain else None
                doubtful = keys
            if version.final:
                return

    def _records(self, key: str, kind: type[_Record]) -> list[_Record]:
        """Return the records under `key`."""
        return self._read(key, partial(unseal, key, kind=kind))

    def _read(self, key: int | str, decode: Callable[[bytes], _T]) -> list[_T]:
        """Return what the rows under `key` hold, as far as they are what was written."""
        found = []
        for cell in self._cells.get(key, ()):
            for value in self._pages.values(cell):
                with contextlib.suppress(chunk.DamagedChunkError, DamagedRowError):
                    found.append(decode(value))
                    break
        for value in () if found else self._sql.values(key):
            with contextlib.suppress(chunk.DamagedChunkError, DamagedRowError):
                found.append(decode(value))
        return found


class _Sql:
    """What SQLite still gives out.

    Attributes:
        rowids: where rows are, by key; nothing where SQLite does not take all of the log, since
            it would give out an older state.
    """

    def __init__(self, directory: Path, seen: wal.Glance, *, outside: bool) -> None:
        self.rowids: dict[int | str, int] = {}
        self._db: sqlite3.Connection | None = None
        with contextlib.suppress(*check.SQL_ERRORS):
            self._db = look.connect(directory) if outside else check.connect(directory)
        list(self._rows("SELECT name FROM sqlite_master"))
        taken = wal.takes(directory / check.LOG) if outside else wal.taken(directory / check.INDEX)
        if not seen.lost(taken):
            for order in _ORDERS:
                for key, rowid in self._rows(f"SELECT key, rowid FROM Cache {order}"):  # noqa: S608  # ours
                    self.rowids[key] = rowid

    def values(self, key: int | str) -> list[bytes]:
        """Return the value of the row under `key`, if it can be had."""
        if key not in self.rowids:
            return []
        rows = self._rows("SELECT value FROM Cache NOT INDEXED WHERE rowid = ?", self.rowids[key])
        return [value for (value,) in rows if isinstance(value, bytes)]

    def _rows(self, query: str, *values: object) -> Iterator[tuple[Any, ...]]:
        """Yield rows up to the first error, as which SQLite takes a tree that leads back to itself, too."""
        if self._db is not None:
            with contextlib.suppress(*check.SQL_ERRORS):
                yield from self._db.execute(query, values)

    def close(self) -> None:
        """Let go of the database."""
        if self._db is not None:
            self._db.close()


def _row(key: int, data: bytes) -> Row:
    """Return a chunk as it was rescued."""
    return Row(key, data, chunk.decode(data, key))


def _age(books: Books) -> tuple[int, ...]:
    """Return numbers that only grow."""
    told = books.accepted + books.refused + books.delivered + books.duplicates
    return books.next_key, told, books.next_dead
