"""Whether a queue is what was written, as the daemon asks before it opens it and while it has it open.

SQLite checks what it needs as it goes, and no more; so a small database is looked through
before it is opened, and of a large one that much which is needed to begin with. What is found
later is dealt with when it is found. `agent.queue.verify` looks at everything, from outside.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING
from urllib.parse import quote

from agent import chunk
from agent.queue import Books, wal
from agent.queue.raw import RawFile
from agent.queue.rows import BOOKS, DEAD, META, DamagedRowError, Meta, unseal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATABASE, LOG, INDEX, JOURNAL = "cache.db", "cache.db-wal", "cache.db-shm", "cache.db-journal"
KEPT = "cache.db-shm.kept"
"""What the index said before SQLite opened the database; there until that was found whole, or was mended."""

_SMALL_BYTES = 16 << 20
_EMPTY_PAGES = 4  # a database that was not made to its end: the table of rows begins behind them
_BUSY_SECONDS = 5.0
ODD = (
    "raw IS NOT 1 OR mode IS NOT 1 OR expire_time IS NOT NULL OR filename IS NOT NULL"
    " OR typeof(value) <> 'blob'"
)

# What SQLite says of a disk that is full, away, read-only or busy, and of our own mistakes.
_NO_DAMAGE = {
    sqlite3.SQLITE_AUTH,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_MISUSE,
    sqlite3.SQLITE_NOLFS,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_READONLY,
}
_DAMAGED_AFTER_ALL = {
    sqlite3.SQLITE_CONSTRAINT_UNIQUE,  # we never give a row a key that is taken
    sqlite3.SQLITE_IOERR_CORRUPTFS,
    sqlite3.SQLITE_IOERR_DATA,
    sqlite3.SQLITE_IOERR_SHORT_READ,
}


SQL_ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""What a statement on a damaged database may raise: SQLite may put damaged text into its message."""


def is_damage(error: BaseException | None) -> bool:
    """Tell whether an error of SQLite means that the database is not what was written."""
    while error is not None:
        if isinstance(error, UnicodeDecodeError) or (
            isinstance(error, sqlite3.Error) and _tells_of_damage(error)
        ):
            return True
        # When a rollback fails in its turn, the first error stands behind that one.
        error = error.__context__
    return False


def _tells_of_damage(error: sqlite3.Error) -> bool:
    """Tell the same of one error alone."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return "decode" in str(error)  # a text that is none; this one comes from Python itself
    if code == sqlite3.SQLITE_ERROR and "transaction" in str(error):
        return False  # there is none to be rolled back: SQLite did so by itself
    return code in _DAMAGED_AFTER_ALL or code & 0xFF not in _NO_DAMAGE


def damage(told: str) -> sqlite3.DatabaseError:
    """Return the error by which SQLite would tell of damage that it does not see."""
    error = sqlite3.DatabaseError(told)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def glance(directory: Path) -> wal.Glance:
    """Look at the log of a queue, before SQLite opens it and makes its index anew."""
    kept = directory / KEPT
    return wal.glance(directory / LOG, directory / INDEX if wal.head(kept) is None else kept)


def keep_index(directory: Path) -> None:
    """Keep what the index says, until `forget_index`, for a start after one that breaks off."""
    kept = directory / KEPT
    head = wal.head(directory / INDEX)
    if head is not None and wal.head(kept) is None:
        kept.touch(mode=0o600)
        kept.write_bytes(head)


def forget_index(directory: Path) -> None:
    """End of `keep_index`: the database is whole."""
    (directory / KEPT).unlink(missing_ok=True)


def probe(directory: Path, seen: wal.Glance) -> str | None:
    """Tell what is wrong with a queue, as far as that can be seen quickly; None when nothing is.

    To be asked while nobody has it open.

    Args:
        directory: where it lies.
        seen: what a glance at its log told just now.
    """
    if not (directory / DATABASE).exists():
        return f"{DATABASE} is missing" if seen.last or seen.frames else None
    problem = wrong_header(directory / DATABASE)
    if problem is not None:
        return problem
    try:
        with contextlib.closing(connect(directory)) as db:
            problem = _wrong_rows(db) or _cut_short(directory, db, seen)
            if seen.lost(taken := wal.taken(directory / INDEX)):
                problem = f"{LOG} is damaged behind frame {taken}"
    except SQL_ERRORS as error:
        return f"{DATABASE}: {error}" if is_damage(error) else None
    return problem


def miscounted(directory: Path, books: Books) -> str | None:
    """Tell in what the rows do not make up the books; None when they do.

    Raises:
        sqlite3.Error: they cannot be read.
    """
    with contextlib.closing(connect(directory)) as db:
        return _wrong_sum(db, books)


def claims(directory: Path) -> dict[int, int]:
    """Return how many events each chunk says it holds, by keys, found without the index.

    Raises:
        sqlite3.Error: they cannot be read.
    """
    with contextlib.closing(connect(directory)) as db:
        return dict(_claims(db))


def connect(directory: Path) -> sqlite3.Connection:
    """Open a queue's database for reading; nothing is written but SQLite's index of the log.

    Raises:
        sqlite3.Error: it cannot be opened.
    """
    refuse_empty(directory)
    return sqlite3.connect(
        f"file:{quote(str(directory / DATABASE))}?mode=ro",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
    )


def refuse_empty(directory: Path) -> None:
    """Keep SQLite away from an empty file: even when it may only read, it deletes the log of one.

    Raises:
        sqlite3.DatabaseError: it is empty.
    """
    with contextlib.suppress(OSError):
        # With a journal, which a queue has no more once it has a log, it is one that is only being made.
        made = (directory / LOG).exists() or not (directory / JOURNAL).exists()
        if made and (directory / DATABASE).stat().st_size == 0:
            raise damage(f"{DATABASE} is empty")


def wrong_header(database: Path) -> str | None:
    """Tell what is wrong with the first bytes of a database, where SQLite would go on all the same."""
    with contextlib.closing(RawFile(database)) as file:
        header, size = file.read(0, 100), file.size
    if size <= _EMPTY_PAGES * wal.PAGE_SIZE and header[40:44] == bytes(4):
        return None  # no table was ever made in it
    same = (
        header[18:24] == b"\x02\x02\x00\x40\x20\x20"  # with a log, no room left over, fixed shares
        and header[44:48] == b"\0\0\0\4"
    )
    return None if same else f"the header of {DATABASE} is damaged"


def _wrong_rows(db: sqlite3.Connection) -> str | None:
    """Tell what is wrong with the rows: those that opening needs, and all of them when they are few."""
    ((pages,),) = db.execute("PRAGMA page_count")
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    if "Cache" not in tables and pages <= _EMPTY_PAGES:
        return None
    records = dict(db.execute("SELECT key, value FROM Cache WHERE key IN (?, ?) AND raw = 1", (META, BOOKS)))
    try:
        if META in records:
            unseal(META, records[META], Meta)
        books = unseal(BOOKS, records[BOOKS], Books) if BOOKS in records else Books()
    except DamagedRowError as error:
        return f"the books or the format cannot be read: {error}"
    others = db.execute("SELECT 1 FROM Cache WHERE key NOT IN (?, ?) LIMIT 1", (META, BOOKS)).fetchall()
    if (others and BOOKS not in records) or ((others or records) and META not in records):
        return "the books or the format are missing"
    ((page_size,),) = db.execute("PRAGMA page_size")
    if pages * page_size > _SMALL_BYTES:
        return None
    ((told,),) = db.execute("PRAGMA integrity_check(1)")
    return _wrong_sum(db, books) if told == "ok" else f"SQLite: {in_one_line(told)}"


def in_one_line(told: str) -> str:
    """Return what SQLite finds wrong without its headings."""
    return "; ".join(line for line in told.splitlines() if not line.startswith("***"))


def _wrong_sum(db: sqlite3.Connection, books: Books) -> str | None:
    """Tell in what the rows do not make up the books."""
    ((odd,),) = db.execute(f"SELECT count(*) FROM Cache WHERE {ODD}")  # noqa: S608  # all of it ours
    if odd:
        return f"{odd} rows are not as they were written"
    there = sum(count for _, count in _claims(db))
    if there != books.pending:
        return f"the books have {books.pending} events pending, {there} are there"
    ((dead,),) = db.execute("SELECT count(*) FROM Cache WHERE key GLOB ?", (DEAD + "*",))
    return None if dead == books.dead else f"the books have {books.dead} dead letters, {dead} are there"


def _claims(db: sqlite3.Connection) -> Iterator[tuple[int, int]]:
    """Yield the keys of all chunks, and how many events each says it holds."""
    query = "SELECT key, substr(value, 1, ?) FROM Cache NOT INDEXED WHERE typeof(key) = 'integer'"
    for key, head in db.execute(query, (chunk.HEAD_BYTES,)):
        yield key, chunk.claimed_events(head if isinstance(head, bytes) else b"")


def _cut_short(directory: Path, db: sqlite3.Connection, seen: wal.Glance) -> str | None:
    """Tell that pages are missing at the end of the file, which the log does not have either."""
    ((pages,),), ((page_size,),) = db.execute("PRAGMA page_count"), db.execute("PRAGMA page_size")
    there = (directory / DATABASE).stat().st_size // page_size
    missing = sum(number not in seen.pages for number in range(there + 1, pages + 1))
    return f"{missing} pages are missing at the end of {DATABASE}" if missing else None
