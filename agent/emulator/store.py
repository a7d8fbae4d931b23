"""The events, in one SQLite table, in the order in which they were stored.

An event is never changed and never deleted. `external_id` is unique, for ever: a second
event with the same one is thrown away, whatever it says.
"""

from __future__ import annotations

import sqlite3
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from agent.emulator import query
from agent.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from agent.emulator.query import EventQuery, NamesQuery

_TABLE = """
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    external_id TEXT UNIQUE,
    parent_reference TEXT,
    timestamp INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    stored_at INTEGER NOT NULL,
    name TEXT NOT NULL,
    customer_id TEXT,
    external_customer_id TEXT,
    member_id TEXT,
    external_member_id TEXT,
    metadata TEXT NOT NULL,
    sent TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_by_time ON events (timestamp);
CREATE INDEX IF NOT EXISTS events_by_parent ON events (parent_reference)
    WHERE parent_reference IS NOT NULL;
"""

_PAGE = 1000


class Row(NamedTuple):
    """One event to store; times are microseconds since 1970.

    `received_at` is by the server's clock, which may be wrong; `stored_at` by the right one.
    `parent_reference` is the parent's id as it was sent, `metadata` JSON text as it will
    be read back, `sent` the JSON text that came.
    """

    id: str
    external_id: str | None
    parent_reference: str | None
    timestamp: int
    received_at: int
    stored_at: int
    name: str
    customer_id: str | None
    external_customer_id: str | None
    member_id: str | None
    external_member_id: str | None
    metadata: str
    sent: str


class StoredEvent(NamedTuple):
    """One event as it is read back."""

    id: str
    timestamp: int
    name: str
    customer_id: str | None
    external_customer_id: str | None
    member_id: str | None
    external_member_id: str | None
    metadata: str
    parent_id: str | None
    child_count: int


class NameStatistics(NamedTuple):
    """One event name and how often, and between which times, it occurs."""

    name: str
    occurrences: int
    first_seen: int
    last_seen: int


_INSERT = (
    f"INSERT INTO events ({', '.join(Row._fields)}) VALUES ({', '.join('?' * len(Row._fields))})"  # noqa: S608
    " ON CONFLICT (external_id) DO NOTHING"
)

# The parent is named by an external id or by Polar's; it may come later than its child.
_PARENT = """coalesce(
    (SELECT p.id FROM events p WHERE p.external_id = e.parent_reference),
    (SELECT p.id FROM events p WHERE p.id = e.parent_reference))"""

# Without its parent, an event cannot be read.
_VISIBLE = f"(e.parent_reference IS NULL OR {_PARENT} IS NOT NULL) AND e.stored_at <= ?"

_COLUMNS = (
    "e.id, e.timestamp, e.name, e.customer_id, e.external_customer_id, e.member_id,"  # noqa: S608
    f" e.external_member_id, e.metadata, CASE WHEN e.parent_reference IS NOT NULL THEN {_PARENT} END,"
    " (SELECT count(*) FROM events c WHERE c.parent_reference IN (e.id, e.external_id))"
)


class Store:
    """A store in a file, or in memory when there is none.

    Attributes:
        duplicates: how many events were thrown away as such since the start.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.duplicates = 0
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_TABLE)
        except sqlite3.Error as error:
            raise AgentError(
                "open the emulator's data", str(path), str(error), "name another file with --data"
            ) from error
        query.register(self._db)

    def insert(self, rows: Sequence[Row]) -> int:
        """Store all rows in one transaction, but for duplicates; return how many were stored."""
        with self._lock:
            before = self._db.total_changes
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(_INSERT, rows)
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
            inserted = self._db.total_changes - before
            self.duplicates += len(rows) - inserted
            return inserted

    def count(self) -> int:
        """Return how many events are stored."""
        return int(self._fetch("SELECT count(*) FROM events")[0][0])

    def find(self, wanted: EventQuery, before: int) -> tuple[list[StoredEvent], int]:
        """Return one page of the events that were stored up to `before`, and how many there are."""
        where, values = wanted.where()
        where = f"{_VISIBLE} AND {where}"
        total = self._fetch(f"SELECT count(*) FROM events e WHERE {where}", (before, *values))[0][0]  # noqa: S608
        rows = self._fetch(
            f"SELECT {_COLUMNS} FROM events e WHERE {where} ORDER BY {wanted.order()} LIMIT ? OFFSET ?",  # noqa: S608
            (before, *values, wanted.limit, wanted.offset),
        )
        return [StoredEvent(*row) for row in rows], int(total)

    def get(self, event_id: str, before: int) -> StoredEvent | None:
        """Return the event with Polar's id, if it was stored up to `before`."""
        rows = self._fetch(
            f"SELECT {_COLUMNS} FROM events e WHERE {_VISIBLE} AND e.id = ?",  # noqa: S608
            (before, event_id),
        )
        return StoredEvent(*rows[0]) if rows else None

    def names(self, wanted: NamesQuery, before: int) -> tuple[list[NameStatistics], int]:
        """Return one page of the event names, and how many there are."""
        where, values = wanted.where()
        rows = self._fetch(
            "SELECT e.name, count(*) AS occurrences, min(e.timestamp) AS first_seen,"  # noqa: S608
            f" max(e.timestamp) AS last_seen FROM events e WHERE {_VISIBLE} AND {where}"
            f" GROUP BY e.name ORDER BY {wanted.order()}",
            (before, *values),
        )
        page = rows[wanted.offset : wanted.offset + wanted.limit]
        return [NameStatistics(*row) for row in page], len(rows)

    def sent(self) -> Iterator[list[tuple[str | None, int, str]]]:
        """Yield external id, time of receipt and text of all events, in order of storing, by pages."""
        last = 0
        while rows := self._fetch(
            "SELECT number, external_id, received_at, sent FROM events"
            " WHERE number > ? ORDER BY number LIMIT ?",
            (last, _PAGE),
        ):
            yield [(external_id, received_at, text) for _, external_id, received_at, text in rows]
            last = rows[-1][0]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _fetch(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()
