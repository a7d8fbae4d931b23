"""What keeps a queue on disk whole in cases that seldom come together: each is held by one test."""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import stat
import threading
import zlib
from contextlib import closing
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from support.clock import FakeClock
from support.damage import DATABASE, INDEX, LOG, reports, write
from support.queues import chunk_of, delivered, letter, pending

from agent import chunk, lock
from agent.errors import QueueError, QueueFullError, QueueLockedError
from agent.lock import QueueLock, holder
from agent.queue import (
    Change,
    Settlement,
    backfill,
    ballast,
    check,
    disk,
    hold,
    look,
    losses,
    replace_books,
    store,
    wal,
)
from agent.queue.ballast import Ballast
from agent.queue.disk import DiskQueue
from agent.queue.fault import fault
from agent.queue.hold import Names
from agent.queue.rows import BOOKS, DEAD, FORMAT, META, numbered, seal
from agent.queue.store import DamageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MIB = 1 << 20


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "queue"


def disk_of(**changes: int) -> SimpleNamespace:
    """Return what `statvfs` says of a disk with room."""
    values = {"f_blocks": 25_600, "f_frsize": 4096, "f_bavail": 20_000, "f_files": 100, "f_favail": 50}
    return SimpleNamespace(**{**values, "f_flag": 0, **changes})


def refused(code: int) -> sqlite3.OperationalError:
    """Return an error of SQLite's."""
    error = sqlite3.OperationalError("refused")
    error.sqlite_errorcode = code
    return error


def raising(error: Exception) -> Callable[..., Any]:
    """Return a function that raises an error, whatever it is given."""

    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


# -- what the disk says ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "disk", "words"),
    [
        (OSError(errno.ENOSPC, "x"), {}, "the disk is full"),
        (OSError(errno.EDQUOT, "x"), {}, "the disk is full"),
        (refused(sqlite3.SQLITE_FULL), {}, "the disk is full"),
        (refused(sqlite3.SQLITE_IOERR), {"f_bavail": 1}, "the disk is full"),
        (refused(sqlite3.SQLITE_CANTOPEN), {"f_favail": 0}, "its inodes are used up"),
        (OSError(errno.ENOSPC, "x"), {"f_favail": 0}, "its inodes are used up"),
    ],
)
def test_a_disk_without_room_or_names_is_told_from_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, disk: dict[str, int], words: str
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: disk_of(**disk))

    told = fault("write", tmp_path, error)

    assert isinstance(told, QueueFullError)
    assert words in told.reason


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN])
def test_a_disk_that_fails_is_not_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: disk_of())

    assert not isinstance(fault("write", tmp_path, refused(code)), QueueFullError)


@pytest.mark.parametrize("tells", ["the system", "a write of its own"])
def test_a_file_system_that_became_read_only_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tells: str
) -> None:
    """ext4 makes itself so upon an error, and does not say so to those who ask for its state."""
    if tells == "the system":
        monkeypatch.setattr(os, "statvfs", lambda _: disk_of(f_flag=os.ST_RDONLY))
    else:
        monkeypatch.setattr(os, "utime", raising(OSError(errno.EROFS, os.strerror(errno.EROFS))))

    told = fault("write", tmp_path, refused(sqlite3.SQLITE_IOERR))

    assert told.reason == "the file system is read-only"


def test_a_directory_that_may_not_be_changed_is_no_read_only_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "utime", raising(PermissionError(errno.EPERM, os.strerror(errno.EPERM))))

    assert fault("write", tmp_path, refused(sqlite3.SQLITE_IOERR)).reason == "refused"


def test_a_file_system_that_does_not_count_its_files_can_have_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """btrfs says that there are none, and none to be had."""
    monkeypatch.setattr(os, "statvfs", lambda _: disk_of(f_files=0, f_favail=0))

    assert not isinstance(fault("write", tmp_path, refused(sqlite3.SQLITE_CANTOPEN)), QueueFullError)


def test_what_the_disk_refused_is_told_in_sqlites_words_too(tmp_path: Path) -> None:
    error = refused(sqlite3.SQLITE_IOERR_FSYNC)
    error.sqlite_errorname = "SQLITE_IOERR_FSYNC"

    assert fault("write", tmp_path, error).reason == "refused (SQLITE_IOERR_FSYNC)"


def test_a_disk_of_which_the_state_cannot_be_told_is_told_by_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", raising(OSError(errno.EIO, os.strerror(errno.EIO))))

    assert fault("write", tmp_path, refused(sqlite3.SQLITE_IOERR)).reason == "refused"


def test_why_a_file_cannot_be_opened_is_told_where_sqlite_does_not_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "open", raising(OSError(errno.EMFILE, os.strerror(errno.EMFILE))))

    told = fault("write", tmp_path, refused(sqlite3.SQLITE_CANTOPEN))

    assert "Too many open files" in told.reason


# -- moving the log ----------------------------------------------------------------------


def test_of_a_hundred_commits_of_one_event_at_most_one_waits_until_the_log_is_moved(
    directory: Path,
) -> None:
    queue, index, waiting = DiskQueue(directory), wal.Index(directory / INDEX), []
    with closing(queue):
        for number in range(1000):
            queue.commit(Change(appends=[chunk_of(f"event-{number}")]))
            waiting.append(index.waiting())

    moved = sum(later < before for before, later in pairwise(waiting))

    assert 0 < moved <= 10


DAMAGE = {
    sqlite3.SQLITE_CORRUPT: True,
    sqlite3.SQLITE_NOTADB: True,
    sqlite3.SQLITE_ERROR: True,  # a table that is not there
    sqlite3.SQLITE_CONSTRAINT_UNIQUE: True,
    sqlite3.SQLITE_IOERR_SHORT_READ: True,
    sqlite3.SQLITE_CONSTRAINT: False,
    sqlite3.SQLITE_IOERR: False,
    sqlite3.SQLITE_IOERR_FSYNC: False,
    sqlite3.SQLITE_FULL: False,
    sqlite3.SQLITE_CANTOPEN: False,
    sqlite3.SQLITE_BUSY: False,
    sqlite3.SQLITE_READONLY: False,
}


@pytest.mark.parametrize(("code", "damaged"), DAMAGE.items())
def test_damage_is_told_from_a_disk_that_refuses(code: int, *, damaged: bool) -> None:
    assert check.is_damage(refused(code)) is damaged


@pytest.mark.parametrize(
    ("error", "damaged"),
    [
        (sqlite3.OperationalError("Could not decode to UTF-8 column 'key'"), True),
        (sqlite3.ProgrammingError("Cannot operate on a closed database."), False),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), True),
        (OSError(errno.EIO, "x"), False),
    ],
)
def test_damage_without_a_number_is_told_too(error: Exception, *, damaged: bool) -> None:
    assert check.is_damage(error) is damaged


@pytest.mark.parametrize(("first", "damaged"), [(sqlite3.SQLITE_CORRUPT, True), (sqlite3.SQLITE_FULL, False)])
def test_what_came_before_a_rollback_that_failed_counts(first: int, *, damaged: bool) -> None:
    rollback = sqlite3.OperationalError("cannot rollback - no transaction is active")
    rollback.sqlite_errorcode = sqlite3.SQLITE_ERROR
    rollback.__context__ = refused(first)

    assert check.is_damage(rollback) is damaged


# -- room --------------------------------------------------------------------------------


@pytest.mark.parametrize(("free", "kept"), [(20_000, True), (500, False)])
def test_room_that_is_there_counts_as_kept_where_no_file_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, *, kept: bool
) -> None:
    def no_names(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ballast, "_fill", no_names)
    monkeypatch.setattr(os, "statvfs", lambda _: disk_of(f_bavail=free))

    assert Ballast(tmp_path).keep() is kept


@pytest.mark.parametrize(
    "more", [{"appends": [chunk_of("b")]}, {"letters": [letter("b")]}], ids=["events", "dead letters"]
)
def test_the_room_that_is_kept_is_given_to_what_adds_no_events_alone(
    directory: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    with closing(DiskQueue(directory)) as queue:
        (key,) = queue.commit(Change(appends=[chunk_of("a")]))
        queue.recover()
        kept = (directory / "ballast").stat().st_size
        commit = queue._commit

        def full(change: Change) -> Any:
            if (directory / "ballast").stat().st_size:
                raise QueueFullError("write the queue", str(directory), "the disk is full")
            return commit(change)

        monkeypatch.setattr(queue, "_commit", full)
        with pytest.raises(QueueFullError):
            queue.commit(Change(**more))
        assert (directory / "ballast").stat().st_size == kept > 0

        queue.commit(Change(settlements=[delivered(key)]))

        assert queue.books().delivered == 1


def test_room_that_cannot_be_given_back_is_as_none(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(DiskQueue(directory)) as queue:
        (key,) = queue.commit(Change(appends=[chunk_of("a")]))
        queue.recover()
        (directory / "ballast").unlink()
        (directory / "ballast").mkdir()
        full = QueueFullError("write the queue", str(directory), "the disk is full")
        monkeypatch.setattr(queue, "_commit", raising(full))

        with pytest.raises(QueueFullError):
            queue.commit(Change(settlements=[delivered(key)]))


def test_room_is_kept_by_a_file_that_takes_it_and_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "ballast").open("wb") as hollow:
        hollow.truncate(ballast.MOST_BYTES)
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_ino), fsync(file)))

    assert Ballast(tmp_path).keep()

    for name in ("ballast", "ballast.start"):
        status = (tmp_path / name).stat()
        assert status.st_blocks * 512 >= status.st_size > 0
        assert status.st_ino in synced
    few = (tmp_path / "ballast").read_bytes()[: 1 << 16]
    assert len(zlib.compress(few)) > len(few), "a file system may compress what it holds"


def test_room_that_is_kept_counts_although_no_name_for_a_start_can_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(tmp_path), "touch", raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))

    assert Ballast(tmp_path).keep()


def test_what_is_for_a_start_is_made_once_there_is_room_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([20_000, 200, 20_000])  # blocks: for the ballast, and twice for a start
    monkeypatch.setattr(os, "statvfs", lambda _: disk_of(f_bavail=next(free)))
    kept = Ballast(tmp_path)

    assert kept.keep()
    assert not (tmp_path / "ballast.start").exists(), "the last of a full disk was taken"

    assert kept.keep()
    assert (tmp_path / "ballast.start").stat().st_size > 0


def test_no_room_is_kept_where_hardly_any_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: disk_of(f_bavail=ballast.MOST_BYTES // 4096 + 10))

    assert not Ballast(tmp_path).keep()

    assert not list(tmp_path.iterdir())


def test_room_that_could_not_all_be_taken_is_left_to_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: disk_of(f_bavail=ballast.MOST_BYTES // 4096 * 3 // 2))
    write_some, left = os.write, [40]

    def fills_up(file: int, data: bytes) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_some(file, data)

    monkeypatch.setattr(os, "write", fills_up)

    assert not Ballast(tmp_path).keep()

    assert (tmp_path / "ballast").stat().st_size == 0


@pytest.mark.parametrize(("blocks", "most"), [(1 << 20, 3 * MIB), (8 * MIB // 4096, 5 * MIB // 4)])
def test_the_log_never_grows_beyond_what_fits_into_the_room_that_is_kept(
    directory: Path, monkeypatch: pytest.MonkeyPatch, blocks: int, most: int
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: disk_of(f_blocks=blocks))
    with closing(DiskQueue(directory)) as queue:
        for number in range(70):
            lines = os.urandom(30_000).hex().encode()
            queue.commit(Change(appends=[chunk.Chunk(lines, 1, number)]))

        assert (directory / LOG).stat().st_size < most


def test_what_is_taken_out_is_given_back_at_once_where_room_is_short(directory: Path) -> None:
    with closing(DiskQueue(directory)) as queue:
        keys = queue.commit(Change(appends=[chunk_of(n, filler=1 << 20) for n in ("a", "b")]))
        queue.recover(short=True)
        large = (directory / DATABASE).stat().st_size
        queue.commit(Change(settlements=[delivered(key) for key in keys]))

        queue.recover(short=True)

        assert (directory / DATABASE).stat().st_size < large


@pytest.mark.parametrize("asked", ["make way", "look at the log", "open", "read"])
def test_what_the_disk_refuses_while_a_queue_is_opened_or_read_is_told_in_our_words(
    directory: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    refusal = raising(OSError(errno.EIO, os.strerror(errno.EIO)))
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        if asked == "read":
            monkeypatch.setattr(queue._cache, "get", refusal)
            with pytest.raises(QueueError, match=r"cannot read the queue: .*: Input/output error"):
                queue.get(1)
            return
    places = {
        "make way": (Ballast, "make_way"),
        "look at the log": (check, "keep_index"),
        "open": (disk, "open_store"),
    }
    monkeypatch.setattr(*places[asked], refusal)

    with pytest.raises(QueueError, match=r"cannot open the queue: .*: Input/output error"):
        DiskQueue(directory)

    assert not reports(directory)


# -- ready again -------------------------------------------------------------------------


def test_a_queue_is_ready_again_only_when_its_log_can_be_moved(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who waits for room would be called at once, and turned away again."""
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        queue._backfill.distrust()
        with monkeypatch.context() as refusing:
            refusing.setattr(queue._backfill, "_run", raising(OSError(errno.EIO, os.strerror(errno.EIO))))
            with pytest.raises(QueueError, match="Input/output error"):
                queue.recover()

        queue.recover()


def test_a_queue_is_ready_again_only_when_its_store_can_be_opened(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        queue._cache.close()
        queue._cache = None  # as after a mend whose result could not be opened
        with monkeypatch.context() as refusing:
            refusing.setattr(disk, "open_store", raising(OSError(errno.EMFILE, os.strerror(errno.EMFILE))))
            with pytest.raises(QueueError, match="Too many open files"):
                queue.recover()

        queue.recover()

        assert pending(queue) == ["a"]


@pytest.mark.parametrize("asked", ["recover", "commit"])
def test_after_a_move_of_the_log_that_failed_all_of_it_is_moved_before_more_is_written(
    directory: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        queue._backfill._most = 1  # it is time to move the log
        with monkeypatch.context() as refusing:
            refusing.setattr(queue._backfill, "_run", raising(OSError(errno.EIO, os.strerror(errno.EIO))))
            with pytest.raises(QueueError):
                queue.recover() if asked == "recover" else queue.commit(Change(appends=[chunk_of("b")]))
        run, modes = queue._backfill._run, []
        monkeypatch.setattr(queue._backfill, "_run", lambda mode: (modes.append(mode), run(mode)))

        queue.commit(Change(appends=[chunk_of("b")]))

        assert modes == ["TRUNCATE"]


def test_a_log_that_somebody_reads_is_not_taken_for_moved(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill, "_BUSY_SECONDS", 0.01)
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        with closing(sqlite3.connect(directory / DATABASE, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM Cache").fetchall()
            queue.commit(Change(appends=[chunk_of("b")]))
            queue._backfill.distrust()

            with pytest.raises(QueueError, match="another process holds the database"):
                queue.commit(Change(appends=[chunk_of("c")]))

        queue.commit(Change(appends=[chunk_of("d")]))
        assert pending(queue) == ["a", "b", "d"]


def test_a_connection_that_failed_to_move_the_log_is_not_used_again(directory: Path) -> None:
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        queue._backfill.distrust()
        queue._backfill.connection.close()
        with pytest.raises(QueueError):
            queue.recover()

        queue.recover()


@pytest.mark.parametrize(
    ("disk", "given"),
    [
        ({"f_bavail": 255}, True),
        ({"f_favail": 3}, True),
        ({}, False),
        ({"f_files": 0, "f_favail": 0}, False),  # a file system that does not count names
    ],
    ids=str,
)
def test_what_is_kept_is_given_back_before_a_start_without_room_or_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: dict[str, int], *, given: bool
) -> None:
    Ballast(tmp_path).keep()
    before = sorted(path.name for path in tmp_path.iterdir())
    assert before == ["ballast", "ballast.name", "ballast.start"]
    monkeypatch.setattr(os, "statvfs", lambda _: disk_of(**disk))

    Ballast(tmp_path).make_way()

    assert sorted(path.name for path in tmp_path.iterdir()) == (["ballast"] if given else before)
    assert bool((tmp_path / "ballast").stat().st_size) is not given


# -- damage that somebody comes upon -----------------------------------------------------


def malformed() -> sqlite3.DatabaseError:
    """Return what SQLite raises when it comes upon damage."""
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def test_damage_that_a_commit_comes_upon_is_mended_and_the_commit_done(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        monkeypatch.setattr(queue._cache, "set", raising(malformed()))

        queue.commit(Change(appends=[chunk_of("b")]))
        queue.commit(Change(appends=[chunk_of("c")]))

        assert pending(queue) == ["a", "b", "c"]
        assert len(reports(directory)) == 1, "the new files were taken for strange ones"


def test_events_whose_books_cannot_be_written_are_not_written_either(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is killed between the two would leave books that do not balance."""
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        write_row = queue._cache.set

        def no_books(key: object, row: bytes) -> None:
            if key == BOOKS:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            write_row(key, row)

        with monkeypatch.context() as refusing:
            refusing.setattr(queue._cache, "set", no_books)
            with pytest.raises(QueueError):
                queue.commit(Change(appends=[chunk_of("b")]))

        assert queue._cache.get(2) is None
        assert queue.audit() is False


def test_damage_that_opening_comes_upon_is_mended(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
    open_store, broken = disk.open_store, [malformed()]
    monkeypatch.setattr(
        disk, "open_store", lambda place: raising(broken.pop())() if broken else open_store(place)
    )

    with closing(DiskQueue(directory)) as queue:
        assert pending(queue) == ["a"]
        assert len(reports(directory)) == 1


def test_after_a_mend_it_is_the_log_of_the_new_database_that_is_moved(directory: Path) -> None:
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        queue._replace("damaged")
        queue.commit(Change(appends=[chunk_of("b")]))
        queue._backfill.distrust()

        queue.recover()

        assert (directory / LOG).stat().st_size == 0


def test_a_chunk_to_which_no_way_leads_has_the_queue_mended_when_it_is_missed(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        assert queue.audit() is False
        monkeypatch.setattr(queue, "_row", lambda _: None)  # as where an index is damaged

        assert queue.audit() is True

        assert len(reports(directory)) == 1
        assert pending(queue) == ["a"]


def test_a_dead_letter_that_is_met_damaged_has_the_queue_mended(directory: Path) -> None:
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(letters=[letter("a"), letter("b")]))
        queue._cache.set(numbered(DEAD, 1), queue._cache.get(numbered(DEAD, 1))[:-1] + b"?")

        assert [dead.external_id for dead in queue.dead_letters()] == ["b"]

        assert len(reports(directory)) == 1


def test_a_key_that_nobody_writes_has_the_queue_mended_when_it_is_met(directory: Path) -> None:
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        with closing(sqlite3.connect(directory / DATABASE)) as db, db:
            db.execute("UPDATE Cache SET raw = 0 WHERE key = 1")  # a key that was pickled

        assert queue.first_key() == 1

        assert len(reports(directory)) == 1
        assert pending(queue) == ["a"]


def test_damage_that_is_met_while_a_chunk_is_missed_has_the_queue_mended(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        monkeypatch.setattr(queue, "_row", raising(DamageError("it holds a value that is not ours")))

        assert queue.audit() is True


def test_where_nothing_is_to_be_mended_a_damaged_chunk_is_told_and_stays(directory: Path) -> None:
    told: list[str] = []
    with closing(DiskQueue(directory, rescue=False, on_damage=told.append)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        damaged = queue._cache.get(1)[:-1] + b"?"
        queue._cache.set(1, damaged)

        with pytest.raises(QueueError, match="it is damaged"):
            queue.commit(Change(settlements=[Settlement(1, None, damaged=True)]))

        assert set(told) == {"chunk 1 is not what was written"}
        assert queue._cache.get(1) == damaged
        assert (queue.books().pending, queue.books().lost) == (1, 0)


def test_a_chunk_that_is_as_it_was_written_after_all_stays(directory: Path) -> None:
    """A disk may give something else at one moment, and the right thing at the next one."""
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))

        queue.commit(Change(settlements=[Settlement(1, None, damaged=True)]))

        assert pending(queue) == ["a"]
        assert (queue.books().pending, queue.books().lost) == (1, 0)


def test_a_chunk_of_a_newer_version_is_not_set_aside_as_damaged(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(DiskQueue(directory)) as queue:
        with monkeypatch.context() as patch:
            patch.setattr(chunk, "VERSION", chunk.VERSION + 1)
            queue.commit(Change(appends=[chunk_of("a")]))
        before = queue._cache.get(1)

        queue.commit(Change(settlements=[Settlement(1, None, damaged=True)]))

        assert queue._cache.get(1) == before
        assert (queue.books().pending, queue.books().lost) == (1, 0)


def test_what_several_damaged_chunks_held_is_counted_once(directory: Path) -> None:
    with closing(DiskQueue(directory)) as queue:
        keys = queue.commit(Change(appends=[chunk_of("a"), chunk_of("b"), chunk_of("c")]))
        for key in keys[:2]:
            queue._cache.set(key, queue._cache.get(key)[:-1] + b"?")

        queue.commit(Change(settlements=[Settlement(key, None, damaged=True) for key in keys[:2]]))

        assert (queue.books().pending, queue.books().lost) == (1, 2)


def test_no_more_is_lost_than_was_there(directory: Path) -> None:
    """Other chunks may say that they hold more than all that the books have."""
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a"), chunk_of("b")]))
        queue._cache.set(1, queue._cache.get(1)[:-1] + b"?")
        queue._cache.set(2, chunk_of(*"bcdef").encode(2))

        queue.commit(Change(settlements=[Settlement(1, None, damaged=True)]))

        assert (queue.books().pending, queue.books().lost) == (2, 0)


def test_a_mend_that_failed_is_not_tried_again_at_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads and writes all of the queue, and whoever reads would have it done again."""
    clock, tries = FakeClock(), []

    def fail(*_: object, **__: object) -> None:
        tries.append(clock.monotonic())
        raise QueueError("rescue the damaged queue", str(directory), "the disk is full")

    with closing(DiskQueue(directory, clock=clock)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        monkeypatch.setattr(losses, "mend", fail)
        monkeypatch.setattr(queue, "_try", raising(DamageError("malformed")))
        for seconds in (0, 29, 1):
            clock.advance(seconds)
            with pytest.raises(QueueError):
                queue.get(1)

    assert len(tries) == 2


@pytest.mark.parametrize(("code", "damaged"), [(sqlite3.SQLITE_IOERR, False), (sqlite3.SQLITE_CORRUPT, True)])
def test_a_disk_that_refuses_to_read_is_no_damage(
    directory: Path, monkeypatch: pytest.MonkeyPatch, code: int, *, damaged: bool
) -> None:
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        with monkeypatch.context() as refusing:
            refusing.setattr(check, "miscounted", raising(refused(code)))

            assert queue.audit() is damaged

        assert len(reports(directory)) == damaged
        assert pending(queue) == ["a"]


def test_damage_that_is_found_when_the_log_is_moved_is_told_as_damage(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        queue._backfill.distrust()
        monkeypatch.setattr(queue._backfill, "_run", raising(malformed()))

        with pytest.raises(QueueError, match="it is damaged: database disk image is malformed"):
            queue.recover()


def test_a_reader_that_comes_upon_what_is_mended_meanwhile_has_it_not_mended_again(directory: Path) -> None:
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        first = queue._cache

        def read(cache: Any) -> bytes | None:
            if cache is first:
                queue._replace("another thread came upon it")
                raise DamageError("malformed")
            return cache.get(1)

        assert queue._read(read) is not None
        assert len(reports(directory)) == 1


@pytest.mark.parametrize("key", [-3, 0, 500])
def test_a_chunk_whose_key_cannot_be_is_not_taken_for_the_first_one(directory: Path, key: int) -> None:
    """The flusher begins there: behind the last key it would find nothing, and send nothing any more."""
    with closing(DiskQueue(directory)) as queue:
        if key < 500:
            queue.commit(Change(appends=[chunk_of("a")]))
        queue._cache.set(key, chunk_of("b").encode(key))

        assert 0 < queue.first_key() < queue.books().next_key

        assert len(reports(directory)) == 1


def test_a_chunk_that_was_lost_and_is_settled_all_the_same_is_counted_once_and_takes_no_room(
    directory: Path,
) -> None:
    """It was on its way when the queue was mended."""
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a", filler=900), chunk_of("b")]))
        queue._cache.set(1, queue._cache.get(1)[:-1] + b"?")
        queue._replace("damaged")
        assert (queue.books().pending, queue.books().lost) == (1, 1)

        for _ in range(2):  # the second one is of nothing that was lost
            queue.commit(Change(settlements=[delivered(1)]))

        books = queue.books()
        assert (books.pending, books.delivered, books.lost, books.dropped) == (1, 2, 0, 0)
        assert books.bytes == len(queue._cache.get(2))


def test_a_chunk_that_was_lost_and_is_settled_in_two_parts_at_once_is_found_again_once(
    directory: Path,
) -> None:
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a", "b"), chunk_of("c")]))
        queue._cache.set(1, queue._cache.get(1)[:-1] + b"?")
        queue._replace("damaged")
        assert (queue.books().pending, queue.books().lost) == (1, 2)

        queue.commit(Change(settlements=[delivered(1, 1, chunk_of("b")), delivered(1)]))

        books = queue.books()
        assert (books.accepted, books.pending, books.delivered, books.lost) == (3, 1, 2, 0)


def test_a_log_that_sqlite_makes_anew_after_a_failure_is_none_that_was_taken_away(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        queue._backfill.close()  # as after a failure of its own: the store has the only connection
        with monkeypatch.context() as refusing:
            refusing.setattr(queue._cache, "set", raising(OSError(errno.EIO, os.strerror(errno.EIO))))
            refusing.setattr(queue._backfill, "prepare", lambda: None)
            with pytest.raises(QueueError):
                queue.commit(Change(appends=[chunk_of("b")]))
        assert not (directory / LOG).exists()
        for number in range(50):
            (directory / f"takes-a-number-{number}").touch()  # the log's own may be given to the new one

        queue.commit(Change(appends=[chunk_of("c")]))

        assert pending(queue) == ["a", "c"]
        assert not reports(directory)


def test_the_sizes_that_are_kept_in_memory_are_few(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_SIZES_KEPT", 10)
    with closing(DiskQueue(directory)) as queue:
        for number in range(40):
            queue.commit(Change(appends=[chunk_of(number)]))

        assert len(queue._sizes) <= 11


# -- who looks from outside --------------------------------------------------------------


def test_a_live_queue_whose_log_was_just_moved_does_not_rest(directory: Path) -> None:
    """Who took it for one at rest would read pages while they are written."""
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        queue._backfill.distrust()
        queue.recover()
        assert (directory / LOG).stat().st_size == 0

        assert not look.rests(directory)

    assert look.rests(directory)


def test_a_log_that_begins_anew_while_it_is_looked_at_is_not_taken_for_cut(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a"), chunk_of("b")]))
        takes, looks = wal.takes, []

        def begins_anew(log: Path) -> int:
            looks.append(log)
            if len(looks) == 1:
                queue._backfill.distrust()
                queue.recover()
                queue.commit(Change(settlements=[delivered(1)]))
            return takes(log) if len(looks) > 1 else 0

        monkeypatch.setattr(wal, "takes", begins_anew)

        assert look.log_is_cut(directory) is False
        assert len(looks) == 2


# -- a fresh database ----------------------------------------------------------------------


def test_a_fresh_database_is_in_one_file_or_is_none(directory: Path) -> None:
    """It is moved to its place by its name: what is in its log would stay behind."""
    directory.mkdir()
    others: list[sqlite3.Connection] = []

    def rows() -> Iterator[tuple[int | str, bytes]]:
        others.append(sqlite3.connect(directory / DATABASE))
        others[0].execute("SELECT count(*) FROM Cache").fetchall()
        yield 1, b"row"

    with pytest.raises(OSError, match="left its log behind"):
        store.fill(directory, rows())

    others[0].close()


def test_a_fresh_database_is_written_while_it_is_read_and_not_held_in_memory(directory: Path) -> None:
    directory.mkdir()
    there: list[int] = []

    def rows() -> Iterator[tuple[int | str, bytes]]:
        for key in range(1, 4):
            with closing(sqlite3.connect(f"file:{directory / DATABASE}?mode=ro", uri=True)) as db:
                there.append(*db.execute("SELECT count(*) FROM Cache").fetchone())
            yield key, bytes(4 << 20)

    store.fill(directory, rows())

    assert there == [0, 1, 2]


def test_a_fresh_database_that_the_disk_does_not_take_is_told_as_what_a_disk_refuses(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "open_store", raising(refused(sqlite3.SQLITE_FULL)))

    with pytest.raises(OSError, match="refused"):
        store.fill(directory, iter([(1, b"row")]))


# -- found before it is opened -----------------------------------------------------------


@pytest.mark.parametrize("key", [BOOKS, META])
def test_what_is_found_before_a_queue_is_opened_leaves_its_files_as_they_were(
    directory: Path, key: str
) -> None:
    """diskcache writes when it opens a directory; and who wants no mending wants nothing changed."""
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        queue._cache.set(key, b'{"format":')
    before = (directory / DATABASE).read_bytes()

    with pytest.raises(QueueError, match="it is damaged"):
        DiskQueue(directory, rescue=False)

    assert (directory / DATABASE).read_bytes() == before


def test_a_database_that_opening_alone_shows_to_be_damaged_is_mended(directory: Path) -> None:
    """Settings of diskcache's own that are not what was written are none of what is looked at before."""
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
    with closing(sqlite3.connect(directory / DATABASE)) as db, db:
        db.execute("INSERT INTO Settings VALUES ('disk_strange', 1)")

    with closing(DiskQueue(directory)) as queue:
        assert pending(queue) == ["a"]

    assert len(reports(directory)) == 1


# -- newer -------------------------------------------------------------------------------


class Newer(msgspec.Struct):
    """The description of a queue that a later version made."""

    format: int
    server: str = ""


def test_a_newer_format_that_could_not_be_seen_at_first_is_refused_all_the_same(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(DiskQueue(directory)) as queue:
        queue._cache.set(META, seal(META, Newer(FORMAT + 1)))
    monkeypatch.setattr(look, "format_of", lambda _: 0)  # as where the disk refuses for a moment

    with pytest.raises(QueueError, match="newer version"):
        DiskQueue(directory)


def test_a_damaged_queue_of_a_newer_format_is_left_alone(directory: Path) -> None:
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a", filler=9000)]))
        queue._cache.set(META, seal(META, Newer(FORMAT + 1)))
    write(directory / DATABASE, 16, b"\xff" * 8)
    before = (directory / DATABASE).read_bytes()

    with pytest.raises(QueueError, match="newer version"):
        DiskQueue(directory)

    assert (directory / DATABASE).read_bytes() == before
    assert not reports(directory)


def test_a_damaged_queue_with_a_chunk_of_a_newer_version_is_left_alone(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(DiskQueue(directory)) as queue, monkeypatch.context() as patch:
        patch.setattr(chunk, "VERSION", chunk.VERSION + 1)
        queue.commit(Change(appends=[chunk_of("a", filler=9000)]))
    write(directory / DATABASE, 16, b"\xff" * 8)
    before = (directory / DATABASE).read_bytes()

    with pytest.raises(QueueError, match="newer version"):
        DiskQueue(directory)

    assert (directory / DATABASE).read_bytes() == before


# -- whose events they are ---------------------------------------------------------------


def test_the_organization_is_known_at_once_and_is_forgotten_with_the_last_event(directory: Path) -> None:
    with closing(DiskQueue(directory, server="https://one")) as queue:
        (key,) = queue.commit(Change(appends=[chunk_of("a")]))
        queue.commit(Change(organization="ours"))
        assert queue.organization == "ours"
    with closing(DiskQueue(directory, server="https://one")) as queue:
        assert queue.organization == "ours"
        queue.commit(Change(settlements=[delivered(key)]))
    with closing(DiskQueue(directory, server="https://one")) as queue:
        assert queue.organization == ""


# -- the lock ----------------------------------------------------------------------------


def test_where_directories_cannot_be_locked_the_file_alone_keeps_others_out(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.mkdir()
    flock = fcntl.flock

    def no_directories(file: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", no_directories)
    held = QueueLock(directory)

    with pytest.raises(QueueLockedError):
        QueueLock(directory)
    assert holder(directory) == os.getpid()
    held.release()
    assert holder(directory) is None
    QueueLock(directory).release()


def test_who_holds_a_directory_is_known_although_the_file_of_the_lock_is_gone(directory: Path) -> None:
    directory.mkdir()
    held = QueueLock(directory)
    (directory / "lock").unlink()

    assert holder(directory) == os.getpid()

    held.release()
    assert holder(directory) is None


def test_a_disk_that_does_not_take_the_number_of_the_process_keeps_no_daemon_from_starting(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.mkdir()
    monkeypatch.setattr(os, "pwrite", raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))

    QueueLock(directory).release()


def test_who_is_refused_holds_nothing(directory: Path) -> None:
    directory.mkdir()
    with (directory / "lock").open("w") as others:
        fcntl.flock(others, fcntl.LOCK_EX)
        with pytest.raises(QueueLockedError):
            QueueLock(directory)

    QueueLock(directory).release()


def test_who_waits_for_somebody_that_only_looks_keeps_no_third_one_out(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that start at once would else keep each other out for good."""
    directory.mkdir()
    looking, other = (os.open(directory, os.O_RDONLY) for _ in range(2))
    fcntl.flock(looking, fcntl.LOCK_SH)

    def pause() -> None:
        fcntl.flock(looking, fcntl.LOCK_UN)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_UN)

    monkeypatch.setattr(lock, "_pause", pause)

    QueueLock(directory).release()

    for file in (looking, other):
        os.close(file)


# -- a row that is not there -------------------------------------------------------------


def test_a_chunk_that_is_gone_when_it_is_settled_has_the_queue_mended(directory: Path) -> None:
    with closing(DiskQueue(directory)) as queue:
        keys = queue.commit(Change(appends=[chunk_of("a"), chunk_of("b")]))
        queue._cache.delete(keys[0])

        queue.commit(Change(settlements=[delivered(keys[0])]))

        assert len(reports(directory)) == 1
        assert (queue.books().pending, queue.books().delivered) == (1, 1)


# -- files that were taken away ----------------------------------------------------------


@pytest.mark.parametrize("state", ["of other books", "broken"])
def test_a_connection_that_does_not_hold_what_was_committed_last_is_not_believed(
    directory: Path, state: str
) -> None:
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        (directory / DATABASE).rename(directory / "elsewhere")
        held = queue._held()
        assert held is not None
        assert held.books == queue.books()
        if state == "broken":
            queue._backfill.connection.close()
        else:
            queue._books = replace_books(queue._books, refused=7)

        assert queue._held() is None

        (directory / "elsewhere").rename(directory / DATABASE)


def test_another_file_under_the_name_of_one_that_is_open_is_not_taken_for_it(tmp_path: Path) -> None:
    known = Names(tmp_path)
    (tmp_path / DATABASE).touch()
    known.note()
    (tmp_path / DATABASE).rename(tmp_path / "elsewhere")
    (tmp_path / DATABASE).touch()

    known.note()  # as after each commit

    assert known.gone() == tmp_path / DATABASE


def test_a_disk_that_does_not_tell_what_is_under_a_name_is_no_sign_that_it_was_taken_away(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        with monkeypatch.context() as refusing:
            refusing.setattr(hold, "_file", raising(OSError(errno.EIO, os.strerror(errno.EIO))))
            queue.commit(Change(appends=[chunk_of("b")]))

        assert pending(queue) == ["a", "b"]
        assert not reports(directory)


def test_damage_to_files_that_were_taken_away_is_told_and_the_rest_has_a_name_again(directory: Path) -> None:
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a"), chunk_of("b")], letters=[letter("c"), letter("d")]))
        for key in (1, numbered(DEAD, 1)):
            queue._cache.set(key, queue._cache.get(key)[:-1] + b"?")
        (directory / DATABASE).unlink()

        queue.commit(Change(appends=[chunk_of("e")]))

        assert pending(queue) == ["b", "e"]
        assert [dead.external_id for dead in queue.dead_letters()] == ["d"]
        (path,) = reports(directory)
        report = msgspec.json.decode(path.read_bytes())
        assert (report["damaged_chunks"], report["damaged_dead_letters"]) == ([1], [1])
        assert report["events_lost"] == queue.books().lost == 2


def test_files_that_were_taken_away_are_still_there_for_the_next_try_when_the_first_one_fails(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nowhere else is what was acknowledged."""
    clock = FakeClock()
    with closing(DiskQueue(directory, clock=clock)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        (directory / DATABASE).unlink()
        (directory / LOG).unlink()
        with monkeypatch.context() as full:
            full.setattr(losses, "fill", raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
            with pytest.raises(QueueError):
                queue.commit(Change(appends=[chunk_of("b")]))
        clock.advance(30)

        queue.commit(Change(appends=[chunk_of("c")]))

        assert pending(queue) == ["a", "c"]
        assert queue.books().lost == 0


# -- closing -----------------------------------------------------------------------------


def test_a_queue_that_is_closed_again_takes_nothing_for_taken_away(directory: Path) -> None:
    """Each thread closes it for itself, and with the last connection the log goes."""
    queue = DiskQueue(directory)
    queue.commit(Change(appends=[chunk_of("a")]))

    queue.close()
    queue.close()

    assert not (directory / LOG).exists()
    assert not reports(directory)


def test_room_that_was_given_back_is_kept_again_for_the_next_start(directory: Path) -> None:
    queue = DiskQueue(directory)
    queue.recover()
    kept = (directory / "ballast").stat().st_size
    assert queue._give_back()

    queue.close()

    assert (directory / "ballast").stat().st_size == kept > 0


def test_a_queue_is_not_closed_under_a_commit(directory: Path) -> None:
    queue = DiskQueue(directory)
    queue.commit(Change(appends=[chunk_of("a")]))
    closer = threading.Thread(target=queue.close)
    with queue._write:
        closer.start()
        closer.join(0.3)
        assert closer.is_alive()
        assert queue._backfill.connection is not None

    closer.join()
    queue.close()


@pytest.mark.parametrize("what", ["a read that meets damage", "a read that opens the store", "an audit"])
def test_nothing_is_opened_or_mended_under_a_commit(
    directory: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """What is read of the books then would be older than what is about to be noted."""
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        mends, replace = [], queue._replace
        monkeypatch.setattr(queue, "_replace", lambda found: (mends.append(found), replace(found)))
        if what == "a read that meets damage":
            queue._cache.set(-1, b"nobody wrote this")
        elif what == "a read that opens the store":
            queue._cache.close()
            queue._cache = None  # as after a mend whose result could not be opened
        thread = threading.Thread(target=queue.audit if what == "an audit" else queue.first_key)
        with queue._write:
            thread.start()
            thread.join(0.3)
            assert thread.is_alive()
            assert not mends
        thread.join()

        assert len(mends) == (what == "a read that meets damage")
        assert pending(queue) == ["a"]


def test_a_queue_whose_directory_is_away_can_be_closed(directory: Path) -> None:
    queue = DiskQueue(directory)
    queue.commit(Change(appends=[chunk_of("a")]))
    directory.rename(directory.with_name("elsewhere"))

    queue.close()

    directory.with_name("elsewhere").rename(directory)
    with closing(DiskQueue(directory)) as queue:
        assert pending(queue) == ["a"]
        assert not reports(directory)
