"""What `agent queue verify` looks at, each thing wrong by itself; and what it does beside a daemon."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.damage import DATABASE, LOG, copy, write
from support.queues import buried, checkpoint_of, chunk_of, delivered, names
from support.user import unprivileged

from agent import chunk
from agent.errors import QueueError
from agent.queue import Change, Settlement, look, verify, wal
from agent.queue.disk import DiskQueue
from agent.queue.reader import DiskReader
from agent.queue.rows import BOOKS, CHECKPOINT, DEAD, numbered, seal
from agent.queue.verify import inspect, rescued_chunks, stored_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A queue at rest: three events in two chunks, a dead letter, and how far a file is read."""
    directory = tmp_path / "queue"
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a", "b"), chunk_of("bad", "c")]))
        change = Change(settlements=[buried(2, "bad", rest=chunk_of("c"))], checkpoints=[checkpoint_of("f")])
        queue.commit(change)
    return directory


def change(directory: Path, statement: str, *values: object) -> None:
    """Change the database past everything."""
    with closing(sqlite3.connect(directory / DATABASE)) as db, db:
        db.execute(statement, values)


def row(directory: Path, key: object) -> bytes:
    with closing(sqlite3.connect(directory / DATABASE)) as db:
        ((found,),) = db.execute("SELECT value FROM Cache WHERE key = ?", (key,))
    return bytes(found)


def test_what_is_whole_has_no_problem(directory: Path) -> None:
    (directory / "quarantine-20260101.tar.gz").touch()  # as an operator may have made it of one

    findings = inspect(directory)

    assert (findings.problems, findings.quarantines) == ([], [])


LETTER = numbered(DEAD, 1)
PUT = "UPDATE Cache SET value = ? WHERE key = ?"
WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a chunk": (lambda place: change(place, PUT, row(place, 1)[:-1] + b"?", 1), "chunk 1: the checksum"),
    "a chunk of another key": (lambda place: change(place, PUT, row(place, 2), 1), "chunk 1: the checksum"),
    "a chunk that is gone": (
        lambda place: change(place, "DELETE FROM Cache WHERE key = 1"),
        "the books have 3 events pending, 1 are there",
    ),
    "a row of another kind": (
        lambda place: change(place, "UPDATE Cache SET mode = 4"),
        "not as it was written",
    ),
    "the books": (lambda place: change(place, PUT, row(place, BOOKS)[:-4] + b'0"}?', BOOKS), "row 'books'"),
    "a dead letter": (lambda place: change(place, PUT, b"{}", LETTER), f"row '{LETTER}'"),
    "a dead letter of another number": (
        lambda place: change(place, "UPDATE Cache SET key = ? WHERE key = ?", numbered(DEAD, 2), LETTER),
        "row 'dead-0000000000000002'",
    ),
    "a dead letter that says another number": (
        lambda place: change(place, PUT, seal(LETTER, buried(1, "x").dead[0]), LETTER),
        "it has the number of another one",
    ),
    "a dead letter that is gone": (
        lambda place: change(place, "DELETE FROM Cache WHERE key = ?", LETTER),
        "the books have 1 dead letters, 0 are there",
    ),
    "a checkpoint of another file": (
        lambda place: change(place, PUT, seal(f"{CHECKPOINT}f", checkpoint_of("g")), f"{CHECKPOINT}f"),
        "it is that of another file",
    ),
    "a row that nobody wrote": (
        lambda place: change(place, "UPDATE Cache SET key = 'strange' WHERE key = ?", f"{CHECKPOINT}f"),
        "row 'strange': nobody wrote it",
    ),
    "the header": (lambda place: write(place / DATABASE, 18, b"\1\1"), "the header of cache.db is damaged"),
    "the index of the rows": (
        lambda place: write(place / DATABASE, 4096 * page_of(place, "Cache_key_raw"), bytes(4096)),
        "SQLite:",
    ),
    "the count of free pages": (lambda place: write(place / DATABASE, 39, b"\5"), "SQLite: "),
    "no database at all": (lambda place: (place / DATABASE).write_bytes(b"x" * 9000), "SQLite:"),
}


def test_a_log_whose_header_is_damaged_is_told_at_once_and_not_as_a_matter_of_locks(tmp_path: Path) -> None:
    """SQLite would try a hundred times to read it, which takes ten seconds, and then speak of locks."""
    with closing(DiskQueue(tmp_path / "live")) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        killed = copy(tmp_path / "live", tmp_path / "killed")
    write(killed / LOG, 1, b"\x7e")

    assert "SQLite: the header of cache.db-wal is damaged" in inspect(killed).problems
    with pytest.raises(QueueError, match=r"the header of cache\.db-wal is damaged") as told:
        DiskReader(killed)
    assert "the daemon rescues what can be read" in told.value.hint


def test_a_log_that_begins_anew_while_it_is_looked_at_is_no_damaged_one(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([True, False])
    monkeypatch.setattr(wal, "is_beheaded", lambda _: next(looks))

    assert inspect(directory).problems == []


def page_of(directory: Path, name: str) -> int:
    """Return the number, from 0, of the page that a table or an index begins at."""
    with closing(sqlite3.connect(directory / DATABASE)) as db:
        ((page,),) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,))
    return int(page) - 1


@pytest.mark.parametrize(("damage", "told"), WRONG.values(), ids=WRONG)
def test_each_thing_that_is_wrong_is_told(directory: Path, damage: Callable[[Path], Any], told: str) -> None:
    damage(directory)

    problems = inspect(directory).problems

    assert [problem for problem in problems if told in problem], problems
    assert not [problem for problem in problems if "\n" in problem or "***" in problem]


def test_a_chunk_of_a_newer_version_is_told_by_all_who_read(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as later:
        later.setattr(chunk, "VERSION", chunk.VERSION + 1)
        newer = chunk_of("a", "b").encode(1)
    change(directory, PUT, newer, 1)

    problems = inspect(directory).problems

    assert problems[0].startswith(f"chunk 1: chunk version {chunk.VERSION + 1}")
    with pytest.raises(QueueError, match=f"chunk version {chunk.VERSION + 1}"):
        list(stored_chunks(directory))
    with pytest.raises(QueueError, match=f"chunk version {chunk.VERSION + 1}"):
        list(rescued_chunks(directory, problems))


@pytest.mark.parametrize("value", [b"?", "text", None])
def test_a_chunk_that_is_damaged_while_it_is_exported_is_told(directory: Path, value: object) -> None:
    change(directory, PUT, value, 2)
    exported = stored_chunks(directory)

    assert names(next(exported).lines) == ["a", "b"]
    with pytest.raises(QueueError, match="chunk 2 is damaged"):
        next(exported)


def test_a_chunk_that_cannot_be_rescued_is_named(directory: Path) -> None:
    change(directory, PUT, row(directory, 2)[:-1] + b"?", 2)
    problems: list[str] = []

    assert [names(found.lines) for found in rescued_chunks(directory, problems)] == [["a", "b"]]
    assert problems == ["chunk 2 cannot be read"]


def test_chunks_that_were_set_aside_before_are_counted_and_are_no_problem(directory: Path) -> None:
    change(directory, PUT, row(directory, 2)[:-1] + b"?", 2)
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(settlements=[Settlement(2, None, damaged=True)]))

    found = inspect(directory)

    assert (found.problems, found.set_aside, found.books.lost) == ([], 1, 1)


def test_of_many_problems_the_first_ones_are_told(tmp_path: Path) -> None:
    with closing(DiskQueue(tmp_path / "queue")) as queue:
        queue.commit(Change(appends=[chunk_of(number) for number in range(100)]))
    change(tmp_path / "queue", "UPDATE Cache SET value = x'00' WHERE typeof(key) = 'integer'")

    assert len(inspect(tmp_path / "queue").problems) == 20


def test_a_queue_that_this_user_may_not_read_is_told_from_a_damaged_one(directory: Path) -> None:
    with tempfile.TemporaryDirectory() as name:  # where nobody may come, too
        place = copy(directory, Path(name) / "queue")
        for path in (place.parent, place):
            path.chmod(0o755)
        (place / DATABASE).chmod(0o600 if os.geteuid() == 0 else 0)

        with unprivileged(), pytest.raises(QueueError, match="Permission denied") as told:
            inspect(place)

        place.chmod(0o700 if os.geteuid() == 0 else 0)
        with unprivileged(), pytest.raises(QueueError, match="Permission denied") as told_before:
            look.is_there(place)
        place.chmod(0o700)

    assert told.value.subject == str(place / DATABASE)
    assert told.value.hint == told_before.value.hint == "run this as the user of the daemon"


# -- beside a daemon ---------------------------------------------------------------------


@pytest.fixture
def daemon(directory: Path) -> Iterator[Callable[..., DiskQueue]]:
    """Begins to write to the queue when it is called."""
    started: list[DiskQueue] = []

    def start(*added: str) -> DiskQueue:
        if not started:
            started.append(DiskQueue(directory))
        started[0].commit(Change(appends=[chunk_of(*added)]))
        return started[0]

    yield start
    for queue in started:
        queue.close()


def test_a_queue_that_a_daemon_has_open_does_not_rest_though_its_log_is_empty(
    directory: Path, daemon: Callable[..., DiskQueue]
) -> None:
    """It may write at any moment; who takes it for resting reads without locks."""
    queue = daemon("d")
    queue._backfill.distrust()
    queue.recover()
    assert (directory / LOG).stat().st_size == 0

    assert not look.rests(directory)

    queue.close()
    assert look.rests(directory)


def test_what_looked_damaged_since_a_daemon_began_to_write_is_looked_at_again(
    directory: Path, daemon: Callable[..., DiskQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At rest, a database is read without locks: its pages may be of two states then."""
    look_once = verify._inspect

    def torn(place: Path) -> verify.Findings:
        monkeypatch.setattr(verify, "_inspect", look_once)
        found = look_once(place)
        daemon("d")
        found.wrong("torn")
        return found

    monkeypatch.setattr(verify, "_inspect", torn)

    found = inspect(directory)

    assert (found.problems, found.events) == ([], 4)


def test_an_export_that_began_before_a_daemon_is_to_be_done_again(
    directory: Path, daemon: Callable[..., DiskQueue]
) -> None:
    exported = stored_chunks(directory)
    next(exported)
    daemon("d")

    with pytest.raises(QueueError, match="a daemon has begun to write"):
        list(exported)


def test_an_export_reads_no_more_at_once_than_some_chunks(
    directory: Path, daemon: Callable[..., DiskQueue]
) -> None:
    queue = daemon("first")
    queue.commit(Change(appends=[chunk_of(number) for number in range(100)]))
    exported = stored_chunks(directory)
    first = [next(exported) for _ in range(3)]
    last = queue.books().next_key - 1

    queue.commit(Change(settlements=[delivered(key) for key in range(60, last + 1)]))
    queue.commit(Change(appends=[chunk_of("later")]))

    left = [name for found in (*first, *exported) for name in names(found.lines)]
    assert "later" not in left, "what comes meanwhile is not meant, else there might be no end"
    assert len(left) < 70, "all chunks were read at once"
