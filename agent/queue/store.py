"""diskcache, made to keep what it is given. Its only importer.

diskcache is a cache: left alone, it evicts, pickles, expires, writes large values to
files that it never syncs, and leaves the last commits to the next power cut. Every
setting below closes one of these, and `_BytesDisk` the way to code execution through
pickle (CVE-2025-69872).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import diskcache
import msgspec

from agent.errors import reason_of
from agent.queue.check import DATABASE, SQL_ERRORS
from agent.queue.rows import CHECKPOINT, DEAD, DamagedRowError, number_of, unseal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SETTINGS = {
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
_FILL_BYTES = 4 << 20
_Record = TypeVar("_Record", bound=msgspec.Struct)

Cache: TypeAlias = diskcache.Cache

ERRORS = (*SQL_ERRORS, diskcache.Timeout, OSError)
"""What a call of a store may raise."""


class DamageError(Exception):
    """The store is not what was written."""


class _BytesDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
    """Stores and fetches bytes within the database alone; never a pickle, never a file."""

    def put(self, key: Any) -> tuple[Any, bool]:
        if type(key) not in (int, str):
            raise TypeError(f"a key must be int or str, not {type(key).__name__}")
        return key, True

    def get(self, key: Any, raw: Any) -> Any:
        if not raw or type(key) not in (int, str):
            raise DamageError("it holds a key that is not ours")
        return key

    def store(self, value: Any, read: Any, key: Any = None) -> tuple[int, int, None, Any]:
        del key
        if type(value) is not bytes or read:
            raise TypeError(f"a value must be bytes, not {type(value).__name__}")
        return 0, _MODE_RAW, None, sqlite3.Binary(value)

    def fetch(self, mode: Any, filename: Any, value: Any, read: Any) -> bytes:
        del read
        if mode != _MODE_RAW or filename is not None or type(value) is not bytes:
            raise DamageError("it holds a value that is not ours")
        return value

    def remove(self, file_path: Any) -> None:
        """Delete no file: no row of ours has one."""


def open_store(directory: Path) -> Cache:
    """Open or make a database, readable for its owner only."""
    umask = os.umask(0o077)
    try:
        # One that cannot be opened must not be closed here: closing, SQLite moves what it believes of a
        # damaged log and deletes the rest, before it could be rescued. `tests/crash/test_disk_calls.py`.
        return Cache(str(directory), disk=_BytesDisk, timeout=30, **SETTINGS)
    finally:
        os.umask(umask)


def fill(directory: Path, rows: Iterator[tuple[int | str, bytes]]) -> None:
    """Make a database of these rows in a new directory: one file, durable.

    Raises:
        OSError: that is not possible.
    """
    try:
        with contextlib.closing(open_store(directory)) as cache:
            while batch := _some(rows):
                with cache.transact():
                    for key, row in batch:
                        cache.set(key, row)
    except (*SQL_ERRORS, diskcache.Timeout) as error:
        raise OSError(reason(error)) from error
    if [file.name for file in directory.iterdir()] != [DATABASE]:
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


def record(cache: Cache, *, key: str, kind: type[_Record]) -> _Record | None:
    """Return the record under `key`."""
    row = cache.get(key)
    try:
        return None if row is None else unseal(key, row, kind)
    except DamagedRowError as error:
        raise DamageError(f"{key} is damaged: {error}") from error


def dead_ids(cache: Cache) -> list[int]:
    """Return the numbers of all dead letters, oldest first."""
    numbers: list[int] = []
    for key in cache.iterkeys(reverse=True):
        if not isinstance(key, str) or key < DEAD:
            break
        number = number_of(DEAD, key)
        if number is not None:
            numbers.append(number)
    return numbers[::-1]


def checkpoint_keys(cache: Cache) -> list[str]:
    """Return the keys of all checkpoints, in their order."""
    keys: list[str] = []
    for key in cache.iterkeys(reverse=True):
        if not isinstance(key, str) or key < CHECKPOINT:
            break
        if key.startswith(CHECKPOINT):
            keys.append(key)
    return keys[::-1]


def reason(error: BaseException) -> str:
    """Return the text of one of `ERRORS` for people."""
    return "another process holds the database" if isinstance(error, diskcache.Timeout) else reason_of(error)
