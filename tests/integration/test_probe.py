"""What a start finds wrong with a queue before it uses it, each by itself; and what it does not look for."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from support.damage import DATABASE, INDEX, LOG, copy, reports, write
from support.queues import chunk_of, letter, pending

from agent.errors import QueueError
from agent.queue import Change, check, losses, wal
from agent.queue.check import JOURNAL
from agent.queue.disk import DiskQueue
from agent.queue.mend import read_report
from agent.queue.rows import BOOKS, DEAD, numbered

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HEADER, FRAME, PAGE = 32, 24 + 4096, 4096
NAMES = ["a", "b", "c"]


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A queue at rest: three events, each in a chunk, and a dead letter."""
    with closing(DiskQueue(tmp_path / "queue")) as queue:
        queue.commit(Change(appends=[chunk_of(name) for name in NAMES], letters=[letter("bad")]))
    return tmp_path / "queue"


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """The same events, as a daemon leaves them that is killed: in the log, a commit for each."""
    with closing(DiskQueue(tmp_path / "live")) as queue:
        for name in NAMES:
            queue.commit(Change(appends=[chunk_of(name)]))
        return copy(tmp_path / "live", tmp_path / "killed")


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every database counts as a large one."""
    monkeypatch.setattr(check, "_SMALL_BYTES", 0)


def change(directory: Path, statement: str, *values: object) -> None:
    """Change the database past everything."""
    with closing(sqlite3.connect(directory / DATABASE)) as db, db:
        db.execute(statement, values)


def without_an_index(place: Path) -> None:
    """Write zeros over the index of the rows."""
    with closing(sqlite3.connect(place / DATABASE)) as db:
        ((page,),) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'Cache_key_raw'")
    write(place / DATABASE, (page - 1) * PAGE, bytes(PAGE))


def without_a_way(place: Path) -> None:
    """Take a chunk out of the index of the rows, and leave it in the table."""
    change(place, "CREATE TABLE kept AS SELECT * FROM Cache WHERE key = 2")
    change(place, "DELETE FROM Cache WHERE key = 2")
    with closing(sqlite3.connect(place / DATABASE)) as db:
        ((*index,),) = db.execute("SELECT * FROM sqlite_master WHERE name = 'Cache_key_raw'")
    change_schema(place, "DELETE FROM sqlite_master WHERE name = 'Cache_key_raw'")
    change(place, "INSERT INTO Cache SELECT * FROM kept")
    change_schema(place, "INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", *index)
    change(place, "DROP TABLE kept")


def change_schema(place: Path, statement: str, *values: object) -> None:
    """Change what SQLite knows of tables and indexes, and nothing in them."""
    with closing(sqlite3.connect(place / DATABASE)) as db, db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute(statement, values)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "no SQLite's": lambda place: write(place / DATABASE, 0, b"?"),
    "of no page size": lambda place: write(place / DATABASE, 16, b"\x07"),
    "without a log": lambda place: write(place / DATABASE, 18, b"\1\1"),
    "of an older kind": lambda place: write(place / DATABASE, 44, b"\0\0\0\1"),
    "of no tables": lambda place: write(place / DATABASE, 40, bytes(8)),
    "of other letters": lambda place: write(place / DATABASE, 56, b"\0\0\0\2"),
    "without an index": without_an_index,
    "without a way to a row": without_a_way,
    "with a row of another kind": lambda place: change(
        place, "UPDATE Cache SET mode = 4 WHERE key = ?", numbered(DEAD, 1)
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_database_that_is_not_what_was_written_is_mended_at_the_start(
    closed: Path, damage: Callable[[Path], Any]
) -> None:
    damage(closed)

    with closing(DiskQueue(closed)) as queue:
        assert len(reports(closed)) == 1
        assert pending(queue) == NAMES


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_where_nothing_is_to_be_mended_a_start_changes_nothing_of_it(
    closed: Path, damage: Callable[[Path], Any]
) -> None:
    damage(closed)
    before = (closed / DATABASE).read_bytes()

    with pytest.raises(QueueError, match="it is damaged"):
        DiskQueue(closed, rescue=False)

    assert (closed / DATABASE).read_bytes() == before


def test_a_chunk_that_is_gone_is_counted_at_the_start(closed: Path) -> None:
    change(closed, "DELETE FROM Cache WHERE key = 2")

    with closing(DiskQueue(closed)) as queue:
        assert (queue.books().pending, queue.books().lost) == (2, 1)


def test_a_dead_letter_that_is_gone_is_counted_at_the_start(closed: Path) -> None:
    change(closed, "DELETE FROM Cache WHERE key = ?", numbered(DEAD, 1))

    with closing(DiskQueue(closed)) as queue:
        assert (queue.books().dead, queue.books().lost) == (0, 1)


@pytest.mark.parametrize("value", ["text", 5, None])
def test_a_chunk_that_is_not_bytes_says_that_it_holds_nothing(closed: Path, value: object) -> None:
    change(closed, "UPDATE Cache SET value = ? WHERE key = 2", value)

    assert check.claims(closed) == {1: 1, 2: 0, 3: 1}


# -- large ones ----------------------------------------------------------------------------


@pytest.mark.usefixtures("large")
def test_of_a_large_queue_the_books_are_not_checked_at_the_start(closed: Path) -> None:
    """That would take as long as reading it."""
    change(closed, "DELETE FROM Cache WHERE key = 2")

    DiskQueue(closed).close()

    assert not reports(closed)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(
    ("statement", "books"), [("DELETE FROM Cache", "gone"), ("UPDATE Cache SET raw = 0", "read")]
)
def test_books_that_are_gone_are_missed_in_a_large_queue_too(
    closed: Path, statement: str, books: str
) -> None:
    change(closed, f"{statement} WHERE key = ?", BOOKS)

    with closing(DiskQueue(closed)) as queue:
        assert queue.books().pending == len(NAMES)

    (report,) = map(read_report, closed.glob("quarantine-*"))
    assert report.books == books


@pytest.mark.usefixtures("large")
def test_a_large_database_that_is_cut_off_is_mended_at_the_start(tmp_path: Path) -> None:
    """Where there is a log, SQLite takes the size from there, and notices nothing."""
    with closing(DiskQueue(tmp_path / "live")) as queue:
        queue.commit(Change(appends=[chunk_of(*range(3000))]))
        queue._backfill._run("PASSIVE")
        queue.commit(Change(appends=[chunk_of("a")]))
        killed = copy(tmp_path / "live", tmp_path / "killed")
    with (killed / DATABASE).open("r+b") as file:
        file.truncate((killed / DATABASE).stat().st_size - PAGE)

    DiskQueue(killed).close()

    assert len(reports(killed)) == 1


def test_what_an_operator_keeps_beside_the_queue_does_not_keep_it_from_being_mended(closed: Path) -> None:
    (closed / "quarantine-of-mine").mkdir()
    write(closed / DATABASE, 0, b"?")

    with closing(DiskQueue(closed)) as queue:
        assert pending(queue) == NAMES


# -- files that are gone -------------------------------------------------------------------


@pytest.mark.parametrize(
    "left", [(), (DATABASE,), (DATABASE, JOURNAL)], ids=["no file", "empty", "a journal"]
)
def test_what_is_in_a_log_without_its_database_is_rescued(killed: Path, left: tuple[str, ...]) -> None:
    (killed / DATABASE).unlink()
    for name in left:
        (killed / name).touch()

    with closing(DiskQueue(killed)) as queue:
        assert pending(queue) == NAMES


def test_a_database_that_was_emptied_is_told(closed: Path) -> None:
    (closed / DATABASE).write_bytes(b"")

    DiskQueue(closed).close()

    (report,) = map(read_report, closed.glob("quarantine-*"))
    assert "cache.db is empty" in report.found


def test_a_log_that_is_gone_is_missed(killed: Path) -> None:
    frames = wal.taken(killed / INDEX)
    (killed / LOG).unlink()

    DiskQueue(killed).close()

    (report,) = map(read_report, killed.glob("quarantine-*"))
    assert report.log_pages_missing == frames


def test_what_the_index_told_is_known_after_a_start_that_was_broken_off(
    killed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite makes it anew when the database is opened, and it is the only witness of the last commit."""
    end = wal.taken(killed / INDEX)
    write(killed / LOG, HEADER + (end - 1) * FRAME, bytes(FRAME))
    with monkeypatch.context() as patch:
        patch.setattr(losses, "mend", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            DiskQueue(killed)
    assert (killed / check.KEPT).stat().st_mode & 0o077 == 0

    DiskQueue(killed).close()

    assert len(reports(killed)) == 1


# -- no damage -----------------------------------------------------------------------------


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN])
def test_a_disk_that_refuses_at_the_start_is_no_damage(
    closed: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    error = sqlite3.OperationalError("refused")
    error.sqlite_errorcode = code

    def refuse(_: Path) -> sqlite3.Connection:
        raise error

    monkeypatch.setattr(check, "connect", refuse)

    assert check.probe(closed, check.glance(closed)) is None
