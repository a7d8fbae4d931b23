"""A first start makes the database in some forty steps, each synced: a second on a slow disk.

Where it was killed meanwhile, the next one found "damage", set it aside and raised the alarm, over a
queue that had never taken an event.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from support.damage import DATABASE, copy, reports
from support.queues import chunk_of, pending

from agent.queue import Change
from agent.queue.disk import DiskQueue

if TYPE_CHECKING:
    from pathlib import Path

STEPS = [
    "PRAGMA auto_vacuum = 1",
    "PRAGMA journal_mode = wal",
    "CREATE TABLE Settings (key TEXT NOT NULL UNIQUE, value)",
    "INSERT INTO Settings VALUES ('count', 0)",
    """
    CREATE TABLE Cache (
        rowid INTEGER PRIMARY KEY, key BLOB, raw INTEGER, store_time REAL, expire_time REAL, access_time REAL,
        access_count INTEGER DEFAULT 0, tag BLOB, size INTEGER DEFAULT 0, mode INTEGER DEFAULT 0,
        filename TEXT, value BLOB
    )
    """,
]
"""As diskcache takes them, so far as they differ in what they leave."""


def assert_usable(directory: Path) -> None:
    """See that an agent starts on it as if nothing had been."""
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        assert pending(queue) == ["a"]
    assert not reports(directory)


@pytest.mark.parametrize("steps", range(1, len(STEPS) + 1))
def test_a_database_that_was_not_made_to_its_end_is_no_damage(tmp_path: Path, steps: int) -> None:
    (tmp_path / "live").mkdir()
    with closing(sqlite3.connect(tmp_path / "live" / DATABASE, isolation_level=None)) as db:
        for step in STEPS[:steps]:
            db.execute(step)
        killed = copy(tmp_path / "live", tmp_path / "killed")

    assert_usable(killed)


def test_nor_is_one_that_was_only_begun(tmp_path: Path) -> None:
    (tmp_path / DATABASE).touch()
    (tmp_path / f"{DATABASE}-journal").touch()

    assert_usable(tmp_path)
