"""The queue on disk: a `diskcache.Cache` used as a log. The only importer of diskcache.

Rows: an integer key for each chunk, in order of arrival; ``dead-<number>`` for each
dead letter; ``books`` for the ledger; ``meta`` for the format and the destination.

diskcache is a cache: left alone, it evicts, pickles, expires, writes large values to
files that it never syncs, and leaves the last commits to the next power cut. Every
setting below closes one of these, and `_BytesDisk` the way to code execution through
pickle (CVE-2025-69872). Keys are our own and only ever grow: `push` uses keys again.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import diskcache
import msgspec

from agent import chunk
from agent.errors import QueueError, UsageError
from agent.queue import Books, Change, DeadLetter, replace_books

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

FORMAT = 1
"""The version of the directory's layout; a newer one is refused, an older one is read."""

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
_BOOKS, _META, _DEAD = "books", "meta", "dead-"
_MODE_RAW = 1
_SIZES_KEPT = 50_000
_T = TypeVar("_T")
_ERRORS = (sqlite3.Error, diskcache.Timeout, OSError)


class _Meta(msgspec.Struct, frozen=True):
    """What the queue is: its format and where its events are meant to go."""

    format: int = FORMAT
    server: str = ""


class _BytesDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
    """Stores and fetches bytes within the database alone; never a pickle, never a file."""

    def put(self, key: Any) -> tuple[Any, bool]:
        if type(key) not in (int, str):
            raise TypeError(f"a key must be int or str, not {type(key).__name__}")
        return key, True

    def get(self, key: Any, raw: Any) -> Any:
        if not raw or type(key) not in (int, str):
            raise QueueError("read the queue", self._directory, "it holds a key that is not ours")
        return key

    def store(self, value: Any, read: Any, key: Any = None) -> tuple[int, int, None, Any]:
        del key
        if type(value) is not bytes or read:
            raise TypeError(f"a value must be bytes, not {type(value).__name__}")
        return 0, _MODE_RAW, None, sqlite3.Binary(value)

    def fetch(self, mode: Any, filename: Any, value: Any, read: Any) -> bytes:
        del read
        if mode != _MODE_RAW or filename is not None or type(value) is not bytes:
            raise QueueError("read the queue", self._directory, "it holds a value that is not ours")
        return value


class DiskQueue:
    """The durable queue of one directory.

    Args:
        directory: absolute; made (0700) when it is not there.
        server: the address that the events are meant for; the queue remembers it.

    Raises:
        QueueError: the directory cannot be used, and why.
    """

    def __init__(self, directory: Path, *, server: str = "") -> None:
        self._directory = directory
        self._write = threading.Lock()
        self._sizes: dict[int, int] = {}  # of rows that were written or read lately
        prepare_directory(directory)
        self._cache = self._open()
        try:
            self._check_meta(server)
            self._books = self._read_books()
        except BaseException:
            self._cache.close()
            raise

    @property
    def directory(self) -> Path:
        """Where the queue lies."""
        return self._directory

    def commit(self, change: Change) -> Sequence[int]:
        """Apply `change` whole and make it durable; return the keys of its new chunks.

        Raises:
            QueueError: nothing of it was applied.
        """
        with self._write:
            books = change.count(self._books)
            try:
                with self._cache.transact():
                    books, keys = self._apply(change, books)
                    self._cache.set(_BOOKS, msgspec.json.encode(books))
            except _ERRORS as error:
                # A COMMIT that failed is not rolled back by diskcache: start from a new connection.
                self._reopen()
                self._sizes.clear()
                raise QueueError(
                    "write the queue", str(self._directory), _reason(error), "see the disk's space and health"
                ) from error
            self._books = books
            return keys

    def _apply(self, change: Change, books: Books) -> tuple[Books, list[int]]:
        """Write the rows of `change`; return the books with sizes and keys, and the new keys."""
        cache, sizes = self._cache, self._sizes
        if len(sizes) > _SIZES_KEPT:
            sizes.clear()
        size, key, dead = books.bytes, books.next_key, books.next_dead
        keys = []
        for new in (*change.appends, *change.requeued):
            row = new.encode()
            cache.set(key, row)
            sizes[key] = len(row)
            keys.append(key)
            key += 1
            size += len(row)
        for settlement in change.settlements:
            size -= self._row_size(settlement.key)
            sizes.pop(settlement.key, None)
            if settlement.rest is None:
                cache.delete(settlement.key)
            else:
                row = settlement.rest.encode()
                cache.set(settlement.key, row)
                sizes[settlement.key] = len(row)
                size += len(row)
            for letter in settlement.dead:
                cache.set(_dead_key(dead), msgspec.json.encode(msgspec.structs.replace(letter, id=dead)))
                dead += 1
        for number in (*change.revived, *change.purged):
            if not cache.delete(_dead_key(number)):
                raise sqlite3.DataError(f"there is no dead letter {number}")
        return replace_books(books, bytes=size, next_key=key, next_dead=dead), keys

    def _row_size(self, key: int) -> int:
        """Return the size of a chunk's row, which must be there."""
        known = self._sizes.get(key)
        if known is not None:
            return known
        row = self._cache.get(key)
        if row is None:
            raise sqlite3.DataError(f"there is no chunk {key}")
        return len(row)

    def books(self) -> Books:
        """Return the books as of the last commit."""
        return self._books

    def first_key(self) -> int:
        """Return the key of the oldest chunk, or of the next one when there is none."""
        with self._reading():
            first = next(iter(self._cache.iterkeys()), None)
        return first if isinstance(first, int) else self._books.next_key

    def get(self, key: int) -> chunk.Chunk | None:
        """Return the chunk of `key`, or None when it is settled."""
        with self._reading():
            row = self._cache.get(key)
        if row is None:
            return None
        self._sizes[key] = len(row)
        return chunk.decode(row)

    def dead_letters(self, ids: Iterable[int] | None = None) -> Iterator[DeadLetter]:
        """Yield the dead letters of these numbers, or all, oldest first."""
        with self._reading():
            wanted = self._dead_ids() if ids is None else sorted(set(ids))
            for number in wanted:
                row = self._cache.get(_dead_key(number))
                if row is not None:
                    yield _decode(row, DeadLetter, str(self._directory))

    def _dead_ids(self) -> list[int]:
        """Return the numbers of all dead letters, oldest first."""
        numbers: list[int] = []
        for key in self._cache.iterkeys(reverse=True):
            if not isinstance(key, str) or key < _DEAD:
                break
            if key.startswith(_DEAD):
                numbers.append(int(key.removeprefix(_DEAD)))
        return numbers[::-1]

    def close(self) -> None:
        """Let go of the store (this thread's hold on it; the others end with their threads)."""
        self._cache.close()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn a store's exceptions into ours."""
        try:
            yield
        except _ERRORS as error:
            raise QueueError(
                "read the queue", str(self._directory), _reason(error), "see the disk's health"
            ) from error

    def _open(self) -> diskcache.Cache:
        """Open or make the store, readable for its owner only, and make its files durable."""
        umask = os.umask(0o077)
        try:
            cache = diskcache.Cache(str(self._directory), disk=_BytesDisk, timeout=30, **_SETTINGS)
            sync_directory(self._directory)
            sync_directory(self._directory.parent)
        except _ERRORS as error:
            raise QueueError(
                "open the queue", str(self._directory), _reason(error), "see the disk's space and health"
            ) from error
        finally:
            os.umask(umask)
        return cache

    def _reopen(self) -> None:
        """Give this thread a new connection; the store's files stay as they are."""
        with contextlib.suppress(*_ERRORS):
            self._cache.close()

    def _check_meta(self, server: str) -> None:
        """Refuse a newer format and another destination; remember ours."""
        with self._reading():
            row = self._cache.get(_META)
        meta = _Meta() if row is None else _decode(row, _Meta, str(self._directory))
        if meta.format > FORMAT:
            raise QueueError(
                "open the queue",
                str(self._directory),
                f"it was written by a newer version (format {meta.format}; this one reads up to {FORMAT})",
                "install that version again, or choose another queue_dir",
            )
        if server and meta.server and meta.server != server:
            if self._read_books().pending:
                raise UsageError(
                    "use the queue",
                    str(self._directory),
                    f"its events are meant for {meta.server}, but the settings say {server}",
                    "flush it with the old settings first, or choose another queue_dir",
                )
            row = None
        if row is None or (server and not meta.server):
            with self._reading():
                self._cache.set(_META, msgspec.json.encode(_Meta(FORMAT, server or meta.server)))

    def _read_books(self) -> Books:
        """Read the books from the store."""
        with self._reading():
            row = self._cache.get(_BOOKS)
        return Books() if row is None else _decode(row, Books, str(self._directory))


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
        row = self._row(_BOOKS)
        return Books() if row is None else _decode(row, Books, self._subject)

    def oldest_arrival(self) -> float | None:
        """Return when the oldest pending chunk was taken, in Unix seconds; None when none is."""
        rows = self._query("SELECT value FROM Cache WHERE typeof(key) = 'integer' ORDER BY key LIMIT 1")
        if not rows:
            return None
        try:
            return chunk.decode(bytes(rows[0][0])).arrived_ms / 1000
        except ValueError:
            return None

    def dead_letters(self, ids: Iterable[int] | None = None) -> Iterator[DeadLetter]:
        """Yield the dead letters of these numbers, or all, oldest first."""
        if ids is not None:
            rows = (self._row(_dead_key(number)) for number in sorted(set(ids)))
            yield from (_decode(row, DeadLetter, self._subject) for row in rows if row is not None)
            return
        last = _DEAD
        while page := self._dead_page(last):
            yield from (_decode(row, DeadLetter, self._subject) for _, row in page)
            last = page[-1][0]

    def _dead_page(self, after: str) -> list[tuple[str, bytes]]:
        """Return the keys and rows of the next dead letters."""
        query = "SELECT key, value FROM Cache WHERE key > ? AND key < ? ORDER BY key LIMIT 500"
        return self._query(query, after, _DEAD + "~")

    def close(self) -> None:
        """Let go of the database."""
        self._db.close()

    def _row(self, key: str) -> bytes | None:
        """Return a row's value, or None."""
        rows = self._query("SELECT value FROM Cache WHERE key = ? AND raw = 1", key)
        return bytes(rows[0][0]) if rows else None

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
            raise QueueError(
                "read the queue", self._subject, _reason(error), "is the directory readable for you?"
            ) from error


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
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
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


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable; without that, a power cut may take a new file away."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _dead_key(number: int) -> str:
    """Return the key of a dead letter; zeros keep their order that of the numbers."""
    return f"{_DEAD}{number:016d}"


def _decode(row: bytes, kind: type[_T], subject: str) -> _T:
    """Return what a row of ours holds.

    Raises:
        QueueError: it is not what was written.
    """
    try:
        return msgspec.json.decode(row, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise QueueError(
            "read the queue",
            subject,
            f"it is damaged: {error}",
            "see the disk's health; choose another queue_dir",
        ) from error


def _reason(error: BaseException) -> str:
    """Return an exception's text for people."""
    if isinstance(error, diskcache.Timeout):
        return "another process holds the database"
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
