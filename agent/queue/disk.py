"""The queue on disk: a `diskcache.Cache` used as a log. The only importer of diskcache.

Rows: an integer key for each chunk, in order of arrival; for the others see `agent.queue.rows`.

diskcache is a cache: left alone, it evicts, pickles, expires, writes large values to
files that it never syncs, and leaves the last commits to the next power cut. Every
setting below closes one of these, and `_BytesDisk` the way to code execution through
pickle (CVE-2025-69872). Keys are our own and only ever grow: `push` uses keys again.

A database that is not what was written is set aside when that is noticed, and what can be
read of it goes into a fresh one (`agent.queue.mend`): at the start, and later as well. A
single chunk that is not what was written is set aside within the database.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sqlite3
import stat
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import diskcache
import msgspec

from agent import chunk
from agent.clock import Clock, SystemClock
from agent.errors import QueueError, UsageError
from agent.logs import get
from agent.queue import Books, Change, DeadLetter, Settlement, check, replace_books
from agent.queue.mend import finish, mend
from agent.queue.raw import sync_directory
from agent.queue.rows import (
    BOOKS,
    DAMAGED,
    DEAD,
    FORMAT,
    META,
    DamagedRowError,
    Meta,
    number_of,
    numbered,
    seal,
    unseal,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from agent.queue.wal import Glance

__all__ = ["FORMAT", "DiskQueue", "DiskReader", "prepare_directory", "sync_directory"]

_SETTINGS = {
    "eviction_policy": "none",
    "cull_limit": 0,
    "size_limit": 2**62,
    "statistics": 0,
    "tag_index": 0,
    "disk_min_file_size": 2**31,
    "sqlite_synchronous": 2,  # FULL: a commit returns once it is on the disk
    "sqlite_journal_mode": "wal",
    "sqlite_auto_vacuum": 1,
    "sqlite_mmap_size": 0,
    "sqlite_cache_size": 2**9,  # pages; a log has no use for a large cache
}
_MODE_RAW = 1
_SIZES_KEPT = 50_000
_MOST_MENDS = 3  # of one process: a disk that spoils a third fresh database is not to be written to
_MEND_AGAIN_SECONDS = 30.0
_FILL_BYTES = 4 << 20
_DAMAGE_HINT = "`agent queue verify` tells more; the daemon rescues what can be read when it starts"
_T = TypeVar("_T")
_Record = TypeVar("_Record", bound=msgspec.Struct)
_ERRORS = (sqlite3.Error, diskcache.Timeout, OSError)


class _DamageError(Exception):
    """The store is not what was written."""


class _AbsentError(Exception):
    """A change names a row that is not there."""


class _BytesDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
    """Stores and fetches bytes within the database alone; never a pickle, never a file."""

    def put(self, key: Any) -> tuple[Any, bool]:
        if type(key) not in (int, str):
            raise TypeError(f"a key must be int or str, not {type(key).__name__}")
        return key, True

    def get(self, key: Any, raw: Any) -> Any:
        if not raw or type(key) not in (int, str):
            raise _DamageError("it holds a key that is not ours")
        return key

    def store(self, value: Any, read: Any, key: Any = None) -> tuple[int, int, None, Any]:
        del key
        if type(value) is not bytes or read:
            raise TypeError(f"a value must be bytes, not {type(value).__name__}")
        return 0, _MODE_RAW, None, sqlite3.Binary(value)

    def fetch(self, mode: Any, filename: Any, value: Any, read: Any) -> bytes:
        del read
        if mode != _MODE_RAW or filename is not None or type(value) is not bytes:
            raise _DamageError("it holds a value that is not ours")
        return value

    def remove(self, file_path: Any) -> None:
        """Delete no file: no row of ours has one."""


class DiskQueue:
    """The durable queue of one directory.

    Args:
        directory: absolute; made (0700) when it is not there.
        server: the address that the events are meant for; the queue remembers it.
        clock: for the names of what is set aside.

    Raises:
        QueueError: the directory cannot be used, and why.
    """

    def __init__(self, directory: Path, *, server: str = "", clock: Clock | None = None) -> None:
        self._directory = directory
        self._server = server
        self._clock = clock or SystemClock()
        self._log = get("queue")
        self._write = threading.RLock()
        self._sizes: dict[int, int] = {}  # of rows that were written or read lately
        self._mends = 0
        self._mend_not_before = -math.inf
        self._astray = 0  # events that this process counted as lost and somebody may still have in hand
        self._cache: diskcache.Cache = None
        self._books = Books()
        prepare_directory(directory)
        finish(directory)
        found, seen = self._probe()
        if found is not None:
            self._rescue(found, seen, None)
        try:
            self._load()
        except _DamageError as damage:
            with self._damage_told("open"):
                self._rescue(str(damage), seen, None)
                self._load()

    def _probe(self) -> tuple[str | None, Glance]:
        """Return what is wrong with the store before it is opened, and what was seen of its log."""
        try:
            check.keep_index(self._directory)
            seen = check.glance(self._directory)
            found = check.probe(self._directory, seen)
            if found is None:
                check.forget_index(self._directory)
        except OSError as error:
            raise QueueError(
                "open the queue", str(self._directory), _reason(error), "see the disk's space and health"
            ) from error
        return found, seen

    @property
    def directory(self) -> Path:
        """Where the queue lies."""
        return self._directory

    # -- writing -----------------------------------------------------------------------

    def commit(self, change: Change) -> Sequence[int]:
        """Apply `change` whole and make it durable; return the keys of its new chunks.

        Raises:
            QueueError: nothing of it was applied.
        """
        with self._write, self._damage_told("write"):
            try:
                return self._commit(change)
            except _AbsentError as absent:
                found = self._wrong()
                if found is None:
                    raise QueueError("write the queue", str(self._directory), str(absent)) from absent
                self._replace(found)
            except _DamageError as damage:
                self._replace(str(damage))
            return self._commit(change)

    def _commit(self, change: Change) -> Sequence[int]:
        """Apply `change`."""
        cache, before, astray = self._store(), self._books, self._astray
        try:
            if self._mends or any(settlement.damaged for settlement in change.settlements):
                change, before, astray = self._regard_damage(change)
            books = change.count(before)
            with cache.transact():
                books, keys = self._apply(change, books)
                cache.set(BOOKS, seal(BOOKS, books))
        except BaseException as error:
            self._sizes.clear()
            if not isinstance(error, _ERRORS):
                raise
            # A COMMIT that failed is not rolled back by diskcache: start from a new connection.
            self._reopen()
            if check.is_damage(error):
                raise _DamageError(_reason(error)) from error
            raise QueueError(
                "write the queue", str(self._directory), _reason(error), "see the disk's space and health"
            ) from error
        self._books, self._astray = books, astray
        return keys

    def _apply(self, change: Change, books: Books) -> tuple[Books, list[int]]:
        """Write the rows of `change`; return the books with sizes and keys, and the new keys."""
        cache, sizes = self._cache, self._sizes
        if len(sizes) > _SIZES_KEPT:
            sizes.clear()
        size, key, dead = books.bytes, books.next_key, books.next_dead
        keys = []
        for new in (*change.appends, *change.requeued):
            row = new.encode(key)
            cache.set(key, row)
            sizes[key] = len(row)
            keys.append(key)
            key += 1
            size += len(row)
        for settlement in change.settlements:
            size -= self._row_size(settlement.key)
            sizes.pop(settlement.key, None)
            if settlement.damaged:
                cache.set(numbered(DAMAGED, settlement.key), cache.get(settlement.key))
            if settlement.rest is None:
                if not cache.delete(settlement.key) and not self._mends:
                    raise _AbsentError(f"there is no chunk {settlement.key}")
            else:
                row = settlement.rest.encode(settlement.key)
                cache.set(settlement.key, row)
                sizes[settlement.key] = len(row)
                size += len(row)
            for letter in settlement.dead:
                name = numbered(DEAD, dead)
                cache.set(name, seal(name, msgspec.structs.replace(letter, id=dead)))
                dead += 1
        for number in (*change.revived, *change.purged):
            if not cache.delete(numbered(DEAD, number)):
                raise _AbsentError(f"there is no dead letter {number}")
        return replace_books(books, bytes=size, next_key=key, next_dead=dead), keys

    def _row_size(self, key: int) -> int:
        """Return the size of a chunk's row, which must be there."""
        known = self._sizes.get(key)
        if known is not None:
            return known
        row = self._cache.get(key)
        if row is None and not self._mends:
            raise _AbsentError(f"there is no chunk {key}")
        return len(row or b"")

    # -- reading -----------------------------------------------------------------------

    def books(self) -> Books:
        """Return the books as of the last commit."""
        return self._books

    def first_key(self) -> int:
        """Return the key of the oldest chunk, or of the next one when there is none."""
        return self._read(self._first_key)

    def _first_key(self, cache: diskcache.Cache) -> int:
        first, end = next(iter(cache.iterkeys()), None), self._books.next_key
        if isinstance(first, int) and not 0 < first < end:
            raise _DamageError(f"it holds a chunk {first}, and the next one is to be {end}")
        return first if isinstance(first, int) else end

    def get(self, key: int) -> chunk.Chunk | None:
        """Return the chunk of `key`, or None when it is settled."""
        row: bytes | None = self._read(lambda cache: cache.get(key))
        if row is None:
            return None
        # What the writer noted meanwhile is newer than this row.
        self._sizes.setdefault(key, len(row))
        return chunk.decode(row, key)

    def dead_letters(self, ids: Iterable[int] | None = None) -> Iterator[DeadLetter]:
        """Yield the dead letters of these numbers, or all, oldest first."""
        for number in self._read(_dead_ids) if ids is None else sorted(set(ids)):
            letter = self._read(partial(_record, key=numbered(DEAD, number), kind=DeadLetter))
            if letter is not None:
                yield letter

    def _read(self, action: Callable[[diskcache.Cache], _T]) -> _T:
        """Read; where the store turns out not to be what was written, mend it and read again."""
        cache = self._store()
        with self._damage_told("read"):
            try:
                return self._try(action, cache)
            except _DamageError as damage:
                with self._write:
                    if cache is self._cache:
                        self._replace(str(damage))
                return self._try(action, self._store())

    def _try(self, action: Callable[[diskcache.Cache], _T], cache: diskcache.Cache) -> _T:
        """Read, turning a store's exceptions into ours."""
        try:
            return action(cache)
        except _ERRORS as error:
            if check.is_damage(error):
                raise _DamageError(_reason(error)) from error
            raise QueueError(
                "read the queue", str(self._directory), _reason(error), "see the disk's health"
            ) from error

    # -- damage ------------------------------------------------------------------------

    def audit(self) -> bool:
        """Look whether what is there makes up the books, and mend the queue if not; True when that was done.

        Raises:
            QueueError: it cannot be mended.
        """
        with self._write, self._damage_told("mend"):
            found = self._wrong()
            if found is not None:
                self._replace(found)
            return found is not None

    def _wrong(self) -> str | None:
        """Tell in what the rows, or the ways to them, do not make up the books."""
        try:
            found = check.miscounted(self._directory, self._books)
            astray = [key for key in check.claims(self._directory) if self._store().get(key) is None]
        except _DamageError as damage:
            return str(damage)
        except _ERRORS as error:
            return _reason(error) if check.is_damage(error) else None
        return found or (f"there is no way to chunk {astray[0]}" if astray else None)

    def _regard_damage(self, change: Change) -> tuple[Change, Books, int]:
        """Return `change` with its losses, the books to count it from, and how many events stay astray.

        What damaged chunks held is what the books have and the other chunks do not. A chunk that
        is gone since the queue was mended, while it was on its way, was counted as lost: its events
        are found again.
        """
        books, astray, settlements = self._books, self._astray, []
        named = {settlement.key for settlement in change.settlements if settlement.damaged}
        damaged = {key for key in named if self._is_damaged(key)}
        lost = 0
        restored: set[int] = set()
        if damaged:
            others = sum(count for key, count in check.claims(self._directory).items() if key not in damaged)
            lost = min(max(0, books.pending - others), books.pending)
        for settlement in change.settlements:
            if settlement.damaged and settlement.key not in damaged:
                continue  # it is as it was written after all, or gone
            if settlement.damaged:
                settlements.append(dataclasses.replace(settlement, lost=lost))
                self._log.error("a chunk is damaged: set aside", chunk=settlement.key, events_lost=lost)
                lost = 0
                continue
            if settlement.key not in restored and self._store().get(settlement.key) is None:
                restored.add(settlement.key)
                events = _events(settlement)
                found = min(events, astray)
                astray -= found
                books = replace_books(
                    books,
                    accepted=books.accepted + events - found,
                    dropped=books.dropped - found,
                    lost=books.lost - found,
                )
            settlements.append(settlement)
        return dataclasses.replace(change, settlements=settlements), books, astray

    def _is_damaged(self, key: int) -> bool:
        """Tell whether a chunk is there and is not what was written."""
        row = self._store().get(key)
        if row is None:
            return False
        try:
            chunk.decode(row, key)
        except chunk.DamagedChunkError:
            return True
        except chunk.NewerChunkError:
            return False
        return False

    def _replace(self, found: str) -> None:
        """Mend the store while it is in use."""
        old = self._cache
        self._rescue(found, check.glance(self._directory), self._books)
        self._cache = None
        self._store()
        # SQLite sees that its file has moved, and leaves the new one's log alone.
        with contextlib.suppress(*_ERRORS):
            old.close()

    def _rescue(self, found: str, seen: Glance, books: Books | None) -> None:
        """Put a fresh database in the place of the damaged one."""
        now = self._clock.monotonic()
        if self._mends == _MOST_MENDS or now < self._mend_not_before:
            raise _DamageError(found)
        try:
            report = mend(self._directory, found, seen, at=self._clock.wall(), fill=_fill, books=books)
        except QueueError:
            self._mend_not_before = now + _MEND_AGAIN_SECONDS
            raise
        self._mends += 1
        self._astray += report.events_lost
        self._sizes.clear()

    @contextlib.contextmanager
    def _damage_told(self, operation: str) -> Iterator[None]:
        """Turn damage that could not be mended into our error."""
        try:
            yield
        except (_DamageError, _AbsentError) as error:
            raise QueueError(
                f"{operation} the queue",
                str(self._directory),
                f"it is damaged: {error}",
                "see the disk's health",
            ) from error

    # -- the store ---------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the store (this thread's hold on it; the others end with their threads)."""
        if self._cache is not None:
            self._cache.close()

    def _store(self) -> diskcache.Cache:
        """Return the store; open it where that was left undone."""
        if self._cache is None:
            with self._write:
                self._load()
        return self._cache

    def _load(self) -> None:
        """Open the store and read what must be known of it."""
        cache = self._open()
        try:
            self._check_meta(cache)
            self._books = self._try(partial(_record, key=BOOKS, kind=Books), cache) or Books()
        except BaseException:
            cache.close()
            raise
        self._cache = cache

    def _open(self) -> diskcache.Cache:
        """Open or make the store, readable for its owner only, and make its files durable."""
        try:
            cache = _open(self._directory)
            sync_directory(self._directory)
            sync_directory(self._directory.parent)
        except _ERRORS as error:
            if check.is_damage(error):
                raise _DamageError(_reason(error)) from error
            raise QueueError(
                "open the queue", str(self._directory), _reason(error), "see the disk's space and health"
            ) from error
        except (TypeError, ValueError, KeyError) as error:
            # What comes of it when diskcache believes settings that are damaged.
            raise _DamageError(f"diskcache: {error}") from error
        return cache

    def _reopen(self) -> None:
        """Give this thread a new connection; the store's files stay as they are."""
        with contextlib.suppress(*_ERRORS):
            self._cache.close()

    def _check_meta(self, cache: diskcache.Cache) -> None:
        """Refuse a newer format and another destination; remember ours."""
        server = self._server
        known = self._try(partial(_record, key=META, kind=Meta), cache)
        meta = known or Meta()
        if meta.format > FORMAT:
            raise QueueError(
                "open the queue",
                str(self._directory),
                f"it was written by a newer version (format {meta.format}; this one reads up to {FORMAT})",
                "install that version again, or choose another queue_dir",
            )
        if server and meta.server and meta.server != server:
            books = self._try(partial(_record, key=BOOKS, kind=Books), cache)
            if books is not None and books.pending:
                raise UsageError(
                    "use the queue",
                    str(self._directory),
                    f"its events are meant for {meta.server}, but the settings say {server}",
                    "flush it with the old settings first, or choose another queue_dir",
                )
        wanted = Meta(FORMAT, server or meta.server)
        if known != wanted:
            self._try(lambda cache: cache.set(META, seal(META, wanted)), cache)


def _open(directory: Path) -> diskcache.Cache:
    """Open or make a database, readable for its owner only."""
    umask = os.umask(0o077)
    try:
        return diskcache.Cache(str(directory), disk=_BytesDisk, timeout=30, **_SETTINGS)
    finally:
        os.umask(umask)


def _fill(directory: Path, rows: Iterator[tuple[int | str, bytes]]) -> None:
    """Make a database of these rows in a new directory: one file, durable.

    Raises:
        OSError: that is not possible.
    """
    try:
        with contextlib.closing(_open(directory)) as cache:
            while batch := _some(rows):
                with cache.transact():
                    for key, row in batch:
                        cache.set(key, row)
    except (sqlite3.Error, diskcache.Timeout) as error:
        raise OSError(_reason(error)) from error
    if [file.name for file in directory.iterdir()] != [check.DATABASE]:
        raise OSError("SQLite left its log behind")


def _some(rows: Iterator[tuple[int | str, bytes]]) -> list[tuple[int | str, bytes]]:
    """Return the next rows, as many as one transaction should have."""
    some, size = [], 0
    for key, row in rows:
        some.append((key, row))
        size += len(row)
        if size >= _FILL_BYTES:
            break
    return some


def _record(cache: diskcache.Cache, *, key: str, kind: type[_Record]) -> _Record | None:
    """Return the record under `key`."""
    row = cache.get(key)
    try:
        return None if row is None else unseal(key, row, kind)
    except DamagedRowError as error:
        raise _DamageError(f"{key} is damaged: {error}") from error


def _dead_ids(cache: diskcache.Cache) -> list[int]:
    """Return the numbers of all dead letters, oldest first."""
    numbers: list[int] = []
    for key in cache.iterkeys(reverse=True):
        if not isinstance(key, str) or key < DEAD:
            break
        number = number_of(DEAD, key)
        if number is not None:
            numbers.append(number)
    return numbers[::-1]


def _events(settlement: Settlement) -> int:
    """Return how many events a settlement is about, those included that stay."""
    rest = settlement.rest.count if settlement.rest else 0
    return settlement.delivered + settlement.duplicates + len(settlement.dead) + rest


class DiskReader:
    """Looks at a queue, live or not, without writing to it or slowing it.

    diskcache writes when it opens a directory, so this reads the database itself. SQLite
    does so too, even for reading: it makes the files of its log where there are none.
    There are none when no daemon runs, so then it is told that nothing will change.

    Raises:
        QueueError: there is no queue, or it cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "cache.db"
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
        return not self._path.with_name(f"{self._path.name}-wal").exists()

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
            hint = _DAMAGE_HINT if check.is_damage(error) else "is the directory readable for you?"
            raise QueueError("read the queue", self._subject, _reason(error), hint) from error


def prepare_directory(directory: Path) -> None:
    """Make `directory` for its owner only, or check that it is so.

    Raises:
        QueueError: it cannot be made, is not ours, or others may look into it.
    """
    subject = str(directory)
    if "$" in subject or not directory.is_absolute():
        # diskcache expands variables and `~` in the path that it is given.
        raise QueueError("use the queue directory", subject, "the path must be absolute and hold no `$`")
    try:
        missing = [path for path in (directory, *directory.parents) if not path.exists()]
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for made in missing:
            sync_directory(made.parent)
        status = directory.stat()
    except FileExistsError as error:
        raise QueueError("use the queue directory", subject, "it is not a directory") from error
    except OSError as error:
        raise QueueError(
            "make the queue directory",
            subject,
            _reason(error),
            "set queue_dir to a directory that you may write",
        ) from error
    if status.st_uid != os.geteuid():
        raise QueueError(
            "use the queue directory",
            subject,
            f"it belongs to user {status.st_uid}, and this is user {os.geteuid()}",
            f"chown -R {os.geteuid()} {subject}",
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise QueueError(
            "use the queue directory",
            subject,
            "others may look into it or write there",
            f"chmod 700 {subject}",
        )


def _reason(error: BaseException) -> str:
    """Return an exception's text for people."""
    if isinstance(error, diskcache.Timeout):
        return "another process holds the database"
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
