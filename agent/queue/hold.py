"""A database whose files were taken away while this process has it open.

Files that are removed, or that others take the place of, stay what they were for whoever has
them open. But what is committed to them is gone with that process. So who commits looks
whether they still have their names (`Names`); if not, all that they hold (`Hold`) goes into a
fresh database, as what is rescued of a damaged one does.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from agent import chunk
from agent.errors import reason_of
from agent.queue import Books, Checkpoint, DeadLetter
from agent.queue.check import DATABASE, LOG, SQL_ERRORS
from agent.queue.rescue import Row
from agent.queue.rows import BOOKS, CHECKPOINT, DEAD, META, DamagedRowError, Meta, number_of, unseal

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from pathlib import Path

_Record = TypeVar("_Record", bound=msgspec.Struct)
_File = tuple[int, int]


class Names:
    """Which files a database was opened from.

    Args:
        directory: where it lies.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._known: dict[Path, _File] = {}

    def note(self) -> None:
        """Take the files that are there now for those that are open, but for those that are known."""
        for path in (self._directory, self._directory / DATABASE, self._directory / LOG):
            if path not in self._known:
                with contextlib.suppress(OSError):
                    self._known[path] = _file(path)

    def forget(self) -> None:
        """Know of no file any more: the database is closed, or about to be opened anew."""
        self._known.clear()

    def forget_log(self) -> None:
        """Know of no log any more: SQLite may make another one."""
        self._known.pop(self._directory / LOG, None)

    def gone(self) -> Path | None:
        """Return the file that is no more under its name, the directory first; None where all are."""
        lost = [path for path, file in self._known.items() if path != self._directory and _moved(path, file)]
        if not lost:
            return None
        return self._directory if _moved(self._directory, self._known[self._directory]) else lost[0]


class Hold:
    """What a connection to such a database still gives, as `agent.queue.rescue.Rescue` does.

    Args:
        db: the connection; it stays open.

    Attributes:
        books: the ledger; None when it cannot be read.
        meta: likewise.
        damaged_chunks: as of a rescue.
        damaged_letters: as of a rescue.
        missing: pages of the log that are missing: none.
        unreadable: how often the disk refused: then this is given up.
    """

    missing = unreadable = 0

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.damaged_chunks: list[int] = []
        self.damaged_letters: list[int] = []
        self.books = next((_read(BOOKS, row, Books) for _, row in self._rows("key = ?", BOOKS)), None)
        self.meta = next((_read(META, row, Meta) for _, row in self._rows("key = ?", META)), None)

    def close(self) -> None:
        """Do nothing: the connection is somebody else's."""

    def chunks(self) -> Iterator[Row]:
        """Yield every chunk that is what was written, in order of keys; raises OSError."""
        for key, row in self._rows("typeof(key) = 'integer'"):
            try:
                yield Row(key, row, chunk.decode(row, key))
            except chunk.DamagedChunkError:
                self.damaged_chunks.append(key)

    def dead_letters(self) -> Iterator[DeadLetter]:
        """Yield every dead letter that is what was written, in order of numbers; raises OSError."""
        for key, row in self._rows("key > ? AND key < ?", DEAD, DEAD + "~"):
            letter = _read(key, row, DeadLetter)
            if letter is not None:
                yield letter
            else:
                self.damaged_letters.append(number_of(DEAD, key) or 0)

    def checkpoints(self) -> Iterator[Checkpoint]:
        """Yield every checkpoint that is what was written, in order of ids; raises OSError."""
        for key, row in self._rows("key > ? AND key < ?", CHECKPOINT, CHECKPOINT + "~"):
            checkpoint = _read(key, row, Checkpoint)
            if checkpoint is not None:
                yield checkpoint

    def _rows(self, which: str, *values: str) -> Iterator[tuple[Any, bytes]]:
        """Yield keys and rows in order of keys."""
        query = f"SELECT key, value FROM Cache WHERE {which} ORDER BY key"  # noqa: S608  # all of it ours
        try:
            yield from self._db.execute(query, values)
        except SQL_ERRORS as error:
            raise OSError(reason_of(error)) from error


def _read(key: str, row: bytes, kind: type[_Record]) -> _Record | None:
    """Return the record of a row; None when it is not what was written."""
    try:
        return unseal(key, row, kind)
    except DamagedRowError:
        return None


def _file(path: Path) -> _File:
    """Return what tells one file from another."""
    status = os.stat(path)  # noqa: PTH116  # a quarter of pathlib's time, and this is at each commit
    return status.st_dev, status.st_ino


def _moved(path: Path, file: _File) -> bool:
    """Tell whether a file, as far as the disk says, is not under its name any more, or another one is."""
    try:
        return _file(path) != file
    except FileNotFoundError:
        return True
    except OSError:
        return False
