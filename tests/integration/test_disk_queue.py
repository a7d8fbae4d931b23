"""Each trap of diskcache, and each promise of the directory, held by a test of its own.

The traps are diskcache's defaults: it evicts, expires, pickles, writes large values to
files that it never syncs, and syncs no commit. What every store must do stands in
`tests/contract/test_queue.py`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import pickle
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diskcache
import msgspec
import pytest
from support.queues import buried, chunk_of, chunks, counts, delivered, names, pending
from support.user import NOBODY, unprivileged

from agent import lock
from agent.chunk import DamagedChunkError, NewerChunkError
from agent.errors import QueueError, QueueLockedError, UsageError
from agent.lock import QueueLock, holder
from agent.queue import Books, Change, Chunk
from agent.queue.disk import FORMAT, DiskQueue
from agent.queue.reader import DiskReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DATABASE_FILES = {"cache.db", "cache.db-wal", "cache.db-shm"}
PATIENCE = 20.0


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "queue"


@pytest.fixture
def queue(directory: Path) -> Iterator[DiskQueue]:
    queue = DiskQueue(directory)
    yield queue
    queue.close()


def sql(directory: Path, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Run one statement on the database, past diskcache."""
    with contextlib.closing(sqlite3.connect(directory / "cache.db", isolation_level=None)) as db:
        return db.execute(statement, values).fetchall()


def incompressible(size: int) -> Chunk:
    return Chunk(os.urandom(size).replace(b"\n", b" "), 1)


# -- no pickle ---------------------------------------------------------------------------


class Bomb:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self._path),)


@pytest.fixture
def crater(tmp_path: Path) -> Path:
    return tmp_path / "unpickled"


def plant(directory: Path, key: object, value: bytes, *, raw: int = 1, mode: int = 4) -> None:
    """Put a row in, or in the place of another, as plain diskcache would write it."""
    sql(directory, "DELETE FROM Cache WHERE key = ?", key)
    sql(
        directory,
        "INSERT INTO Cache (key, raw, store_time, access_time, mode, value) VALUES (?, ?, 0, 0, ?, ?)",
        *(key, raw, mode, value),
    )


def test_plain_diskcache_would_run_what_is_planted_here(directory: Path, crater: Path) -> None:
    """So that the tests below prove something."""
    with diskcache.Cache(str(directory)) as cache:
        plant(directory, 1, pickle.dumps(Bomb(crater)))
        cache.get(1)
    assert crater.exists()


def test_a_pickle_in_the_place_of_a_chunk_is_never_run(
    queue: DiskQueue, directory: Path, crater: Path
) -> None:
    plant(directory, 1, pickle.dumps(Bomb(crater)))

    with contextlib.suppress(QueueError):
        assert queue.get(1) is None

    assert not crater.exists()


@pytest.mark.parametrize("key", ["books", "meta"])
def test_a_pickle_in_the_place_of_what_opening_reads_is_never_run(
    directory: Path, crater: Path, key: str
) -> None:
    DiskQueue(directory).close()
    plant(directory, key, pickle.dumps(Bomb(crater)))

    with contextlib.suppress(QueueError), contextlib.closing(DiskQueue(directory)) as queue:
        assert queue.books() == Books()

    assert not crater.exists()


def test_a_pickle_in_the_place_of_a_dead_letter_is_never_run(
    queue: DiskQueue, directory: Path, crater: Path
) -> None:
    plant(directory, "dead-0000000000000001", pickle.dumps(Bomb(crater)))

    with contextlib.suppress(QueueError):
        assert list(queue.dead_letters()) == []

    assert not crater.exists()


def test_a_pickled_key_is_never_run(queue: DiskQueue, directory: Path, crater: Path) -> None:
    plant(directory, pickle.dumps(Bomb(crater)), b"", raw=0, mode=1)

    with contextlib.suppress(QueueError):
        assert list(queue.dead_letters()) == []

    assert not crater.exists()


def test_a_row_that_names_a_file_is_refused_unread(
    queue: DiskQueue, directory: Path, tmp_path: Path, crater: Path
) -> None:
    (tmp_path / "elsewhere").write_bytes(pickle.dumps(Bomb(crater)))
    for mode in (1, 2, 3, 4):
        plant(directory, 1, b"", mode=mode)
        sql(directory, "UPDATE Cache SET filename = '../elsewhere', value = NULL WHERE key = 1")

        with contextlib.suppress(QueueError):
            assert queue.get(1) is None

    assert not crater.exists()


def test_the_file_that_a_row_names_is_not_removed_with_it(
    queue: DiskQueue, directory: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").write_text("somebody's")
    queue.commit(Change(appends=[chunk_of("a")]))
    sql(directory, "UPDATE Cache SET filename = '../elsewhere' WHERE key = 1")

    queue._cache.delete(1)

    assert (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("value", ["text", 1, 1.5, None, {"a": 1}, bytearray(b"a"), memoryview(b"a")])
def test_only_bytes_can_be_stored(queue: DiskQueue, value: object) -> None:
    with pytest.raises(TypeError, match="must be bytes"):
        queue._cache.set(1, value)
    assert queue.get(1) is None


@pytest.mark.parametrize("key", [b"bytes", 1.5, (1, 2), None])
def test_a_key_that_would_be_pickled_or_changed_is_refused(queue: DiskQueue, key: object) -> None:
    with pytest.raises(TypeError, match="must be int or str"):
        queue._cache.set(key, b"value")


# -- no files beside the database --------------------------------------------------------


@pytest.mark.parametrize("size", [32 << 10, 100 << 10, 1 << 20, 5 << 20])
def test_a_large_row_stays_in_the_database(queue: DiskQueue, directory: Path, size: int) -> None:
    chunk = incompressible(size)

    (key,) = queue.commit(Change(appends=[chunk]))

    assert {path.name for path in directory.iterdir()} <= DATABASE_FILES
    assert sql(
        directory, "SELECT mode, filename, length(value) >= ? FROM Cache WHERE key = ?", size, key
    ) == [(1, None, 1)]
    assert queue.get(key) == chunk


def test_files_that_are_not_ours_are_left_alone(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    (directory / "notes").write_text("mine")

    queue = DiskQueue(directory)
    queue.commit(Change(appends=[chunk_of("a")]))
    queue.close()

    assert (directory / "notes").read_text() == "mine"


# -- no eviction, no expiry --------------------------------------------------------------

SETTINGS_IN_FORCE = {
    "eviction_policy": "none",
    "cull_limit": 0,
    "size_limit": 2**62,
    "statistics": 0,
    "sqlite_synchronous": 2,
    "sqlite_journal_mode": "wal",
    "disk_min_file_size": 2**31,
}


def settings_in_force(queue: DiskQueue) -> dict[str, object]:
    stored = dict(sql(queue.directory, "SELECT key, value FROM Settings"))
    in_memory = {
        name: getattr(queue._cache, name) for name in ("eviction_policy", "cull_limit", "size_limit")
    }
    assert {name: stored[name] for name in in_memory} == in_memory
    return {name: stored[name] for name in SETTINGS_IN_FORCE}


def test_the_settings_that_keep_everything_are_in_force(queue: DiskQueue) -> None:
    assert settings_in_force(queue) == SETTINGS_IN_FORCE


def test_settings_that_another_program_left_behind_are_overruled(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    diskcache.Cache(
        str(directory), size_limit=1, cull_limit=10, statistics=1, eviction_policy="least-recently-used"
    ).close()

    queue = DiskQueue(directory)

    assert settings_in_force(queue) == SETTINGS_IN_FORCE
    queue.close()


def test_nothing_is_evicted_however_large_the_queue_is(
    queue: DiskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diskcache.Cache, "volume", lambda _: 2**50)

    for number in range(40):
        queue.commit(Change(appends=[chunk_of(number)]))

    assert pending(queue) == [str(number) for number in range(40)]


def test_nothing_expires(queue: DiskQueue, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue.commit(Change(appends=[chunk_of("a"), chunk_of("b")]))
    queue.commit(Change(settlements=[buried(1, "a")]))
    assert sql(directory, "SELECT count(*) FROM Cache WHERE expire_time IS NOT NULL") == [(0,)]

    century = 100 * 365 * 86_400
    monkeypatch.setattr(diskcache.core.time, "time", lambda: 1.8e9 + century)
    queue.commit(Change(appends=[chunk_of("c")]))

    assert pending(queue) == ["b", "c"]
    assert len(list(queue.dead_letters())) == 1


# -- every commit is synced --------------------------------------------------------------


def pragmas(queue: DiskQueue) -> tuple[int, str, int]:
    """Return what this thread's connection does: synchronous, journal_mode, mmap_size."""
    execute = queue._cache._sql
    ((synchronous,),) = execute("PRAGMA synchronous").fetchall()
    ((journal,),) = execute("PRAGMA journal_mode").fetchall()
    ((mmap,),) = execute("PRAGMA mmap_size").fetchall()
    return synchronous, journal, mmap


FULL = (2, "wal", 0)


def in_thread(queue: DiskQueue, action: Callable[[], Any]) -> Any:
    """Run something in a thread of its own, which then lets go of the queue; return what it returned."""
    results: list[Any] = []

    def run() -> None:
        results.append(action())
        queue.close()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE)
    return results[0]


def test_commits_are_fully_synced(queue: DiskQueue) -> None:
    assert pragmas(queue) == FULL


def test_commits_of_another_thread_are_fully_synced(queue: DiskQueue) -> None:
    assert in_thread(queue, lambda: pragmas(queue)) == FULL


def test_commits_after_an_error_are_fully_synced(queue: DiskQueue) -> None:
    with pytest.raises(QueueError):
        queue.commit(Change(settlements=[delivered(777)]))

    assert pragmas(queue) == FULL


def test_commits_to_a_directory_that_was_synced_less_are_fully_synced(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    diskcache.Cache(str(directory), sqlite_synchronous=1).close()

    queue = DiskQueue(directory)

    assert pragmas(queue) == FULL
    assert in_thread(queue, lambda: pragmas(queue)) == FULL
    queue.close()


@pytest.mark.parametrize("there", [False, True], ids=["new", "made by who was killed before it synced"])
def test_the_names_of_new_files_are_synced(
    directory: Path, monkeypatch: pytest.MonkeyPatch, *, there: bool
) -> None:
    if there:
        directory.mkdir(mode=0o700)
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_ino), fsync(file)))

    DiskQueue(directory).close()

    assert {directory.stat().st_ino, directory.parent.stat().st_ino} <= set(synced)


def test_the_names_of_all_directories_that_were_made_are_synced(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_ino), fsync(file)))

    DiskQueue(directory / "deep" / "deeper").close()

    made = (directory.parent, directory, directory / "deep", directory / "deep" / "deeper")
    assert {place.stat().st_ino for place in made} <= set(synced)


# -- keys --------------------------------------------------------------------------------


def test_keys_grow_on_after_the_queue_was_drained_and_opened_again(directory: Path) -> None:
    given: list[int] = []
    for number in range(5):
        queue = DiskQueue(directory)
        (key,) = queue.commit(Change(appends=[chunk_of(number)]))
        queue.commit(Change(settlements=[delivered(key)]))
        queue.close()
        given.append(key)

    assert given == sorted(set(given))


def test_numbers_of_dead_letters_grow_on_after_all_were_purged_and_the_queue_was_opened_again(
    directory: Path,
) -> None:
    given: list[int] = []
    for number in range(5):
        queue = DiskQueue(directory)
        (key,) = queue.commit(Change(appends=[chunk_of(number)]))
        queue.commit(Change(settlements=[buried(key, number)]))
        (dead,) = queue.dead_letters()
        queue.commit(Change(purged=[dead.id]))
        queue.close()
        given.append(dead.id)

    assert given == sorted(set(given))


# -- whose directory it is ---------------------------------------------------------------


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_directory_and_files_are_for_their_owner_only_whatever_the_umask(directory: Path, umask: int) -> None:
    queue = DiskQueue(directory)
    held = QueueLock(directory)
    in_thread(queue, lambda: queue.commit(Change(appends=[incompressible(1 << 20)])))

    assert mode(directory) == 0o700
    modes = {path.name: mode(path) for path in directory.iterdir()}
    assert modes.keys() >= {*DATABASE_FILES, "lock"}
    assert set(modes.values()) == {0o600}
    assert os.umask(umask) == umask, "the process's umask was changed"
    held.release()
    queue.close()


def test_a_directory_of_somebody_else_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.mkdir(mode=0o700)
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)

    with pytest.raises(QueueError, match=f"belongs to user {me}") as caught:
        DiskQueue(directory)

    assert f"run this as user {me}" in caught.value.hint
    assert f"chown -R {me + 1} {directory}" in caught.value.hint
    assert list(directory.iterdir()) == []


def test_a_file_of_somebody_else_in_the_directory_is_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    DiskQueue(directory).close()
    me, lstat = os.geteuid(), type(directory).lstat

    def owned(path: Path) -> os.stat_result:
        status = list(lstat(path))
        status[stat.ST_UID] = me + (path.name == "cache.db")
        return os.stat_result(status)

    monkeypatch.setattr(type(directory), "lstat", owned)

    with pytest.raises(QueueError, match=f"belongs to user {me + 1}") as caught:
        DiskQueue(directory)

    assert caught.value.subject == str(directory / "cache.db")


def test_what_others_own_beside_the_queue_is_their_affair(directory: Path) -> None:
    """A volume that is mounted here has its `lost+found`, which is root's."""
    directory.mkdir(mode=0o700)
    (directory / "lost+found").mkdir()
    if os.geteuid() == 0:
        os.chown(directory / "lost+found", 12345, 12345)

    DiskQueue(directory).close()


def linked(directory: Path, tmp_path: Path, how: str) -> Path:
    """Put a link in the place of the directory, as systemd does with `DynamicUser=`; return its target."""
    target = tmp_path / "private" / "queue"
    target.mkdir(mode=0o700, parents=True)
    if how == "over another link":
        (tmp_path / "way").symlink_to("private")
        directory.symlink_to("way/../way/queue")
    else:
        directory.symlink_to(target if how == "absolute" else "private/queue")
    return target


@pytest.mark.parametrize("how", ["relative", "absolute", "over another link"])
def test_a_symbolic_link_that_nobody_else_can_change_is_followed(
    directory: Path, tmp_path: Path, how: str
) -> None:
    target = linked(directory, tmp_path, how)

    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))

    assert (target / "cache.db").exists()
    with closing(DiskQueue(directory)) as queue:
        assert queue.books().pending == 1


@pytest.mark.parametrize("place", ["private", "private/queue"])
def test_a_symbolic_link_by_a_place_where_others_may_write_is_refused(
    directory: Path, tmp_path: Path, place: str
) -> None:
    target = linked(directory, tmp_path, "relative")
    (tmp_path / place).chmod(0o777)

    with pytest.raises(QueueError) as caught:
        DiskQueue(directory)

    assert "others may" in caught.value.reason
    assert not list(target.iterdir())


def test_a_sticky_directory_on_the_way_of_a_symbolic_link_is_safe(directory: Path, tmp_path: Path) -> None:
    linked(directory, tmp_path, "relative")
    (tmp_path / "private").chmod(0o1777)

    DiskQueue(directory).close()


@pytest.mark.parametrize("name", ["queue", "private", "private/queue"])
def test_a_symbolic_link_over_what_belongs_to_another_user_is_refused(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    linked(directory, tmp_path, "relative")
    if os.geteuid() == 0:
        os.chown(tmp_path / name if name != "queue" else directory, 12345, 12345, follow_symlinks=False)
    else:  # only root gives things away
        monkeypatch.setattr(os, "geteuid", lambda: 12345)

    with pytest.raises(QueueError) as caught:
        DiskQueue(directory)

    assert "belongs to user" in caught.value.reason


@pytest.mark.timeout(20)  # a link to itself could be followed for ever
@pytest.mark.parametrize("target", ["queue", "nowhere"], ids=["itself", "nothing"])
def test_a_symbolic_link_that_leads_nowhere_is_refused(directory: Path, target: str) -> None:
    directory.symlink_to(directory.with_name(target if target == "nowhere" else directory.name))

    with pytest.raises(QueueError) as caught:
        DiskQueue(directory)

    assert caught.value.subject == str(directory)


def test_a_directory_that_may_not_be_written_is_refused() -> None:
    place = Path(tempfile.mkdtemp())  # where nobody may come, too
    try:
        place.chmod(0o500)
        if os.geteuid() == 0:
            os.chown(place, NOBODY, NOBODY)
        with unprivileged(), pytest.raises(QueueError, match="may not be written") as caught:
            DiskQueue(place)
    finally:
        place.rmdir()

    assert caught.value.hint == f"chmod 700 {place}"


@pytest.mark.parametrize("open_for", [0o750, 0o705, 0o710, 0o777])
def test_a_directory_that_others_may_enter_is_refused(directory: Path, open_for: int) -> None:
    directory.mkdir()
    directory.chmod(open_for)

    with pytest.raises(QueueError, match="others may") as caught:
        DiskQueue(directory)

    assert caught.value.hint == f"chmod 700 {directory}"
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("name", ["relative", "~/queue", "$HOME/queue", "/tmp/$USER/queue", "/tmp/${X}"])  # noqa: S108
def test_a_path_that_would_be_expanded_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(QueueError, match="absolute"):
        DiskQueue(type(tmp_path)(name))

    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_directory_is_refused(directory: Path) -> None:
    directory.write_text("a file")

    with pytest.raises(QueueError, match="not a directory"):
        DiskQueue(directory)


def test_a_directory_that_cannot_be_made_is_told_with_the_setting(directory: Path) -> None:
    directory.write_text("a file")

    with pytest.raises(QueueError) as caught:
        DiskQueue(directory / "below")

    assert "queue_dir" in caught.value.hint


# -- one daemon for each directory -------------------------------------------------------

HOLD = """
import pathlib, sys
from agent.lock import QueueLock
held = QueueLock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def process(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run a script in another process, to its end or until killed."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


@pytest.fixture
def elsewhere(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the directory."""
    directory.mkdir(mode=0o700)
    with process(HOLD, directory) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "held\n"
        yield running


def test_a_directory_that_another_process_uses_is_refused_with_its_number(
    directory: Path, elsewhere: subprocess.Popen[str]
) -> None:
    with pytest.raises(QueueLockedError, match=f"process {elsewhere.pid} uses it"):
        QueueLock(directory)
    assert holder(directory) == elsewhere.pid


def test_the_one_that_was_refused_does_no_harm(directory: Path, elsewhere: subprocess.Popen[str]) -> None:
    for _ in range(2):
        with pytest.raises(QueueLockedError, match=f"process {elsewhere.pid} uses it"):
            QueueLock(directory)


def test_a_killed_process_holds_nothing(directory: Path, elsewhere: subprocess.Popen[str]) -> None:
    elsewhere.kill()
    elsewhere.wait(PATIENCE)

    assert holder(directory) is None
    held = QueueLock(directory)
    assert holder(directory) == os.getpid()
    held.release()


def test_a_process_that_ended_holds_nothing(directory: Path, elsewhere: subprocess.Popen[str]) -> None:
    elsewhere.communicate(timeout=PATIENCE)

    QueueLock(directory).release()


def test_a_released_directory_is_free(directory: Path) -> None:
    directory.mkdir(mode=0o700)

    QueueLock(directory).release()

    assert holder(directory) is None
    QueueLock(directory).release()


def test_a_directory_without_a_lock_is_held_by_nobody(directory: Path) -> None:
    assert holder(directory) is None


def test_a_lock_that_cannot_be_made_is_told(directory: Path) -> None:
    with pytest.raises(QueueError, match="cannot lock the queue"):
        QueueLock(directory)


@pytest.mark.parametrize("lost", ["the kernel's table", "what the file says"])
def test_the_holder_is_known_in_two_ways(directory: Path, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    directory.mkdir(mode=0o700)
    held = QueueLock(directory)
    if lost == "what the file says":
        os.truncate(directory / "lock", 0)
    else:  # as where it numbers files otherwise than they say themselves
        monkeypatch.setattr(lock, "open", lambda *_, **__: io.StringIO(""), raising=False)

    assert holder(directory) == os.getpid()

    held.release()


def test_a_lock_that_could_not_be_had_keeps_nobody_out(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.mkdir(mode=0o700)
    flock = fcntl.flock

    def refuse_files(file: int, operation: int) -> None:
        if not stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        flock(file, operation)

    with monkeypatch.context() as refusing:
        refusing.setattr(fcntl, "flock", refuse_files)
        with pytest.raises(QueueError, match="Input/output error") as told:
            QueueLock(directory)

    assert told.tb, "all that it came through is there still"
    QueueLock(directory).release()


def test_who_only_looks_at_the_lock_keeps_no_daemon_from_starting(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.mkdir(mode=0o700)
    QueueLock(directory).release()
    looker = os.open(directory / "lock", os.O_RDONLY)
    fcntl.flock(looker, fcntl.LOCK_SH)  # as `holder` does, for a moment
    monkeypatch.setattr(lock, "_pause", lambda: os.close(looker))

    held = QueueLock(directory)

    assert holder(directory) == os.getpid()
    held.release()


# -- what the directory is for -----------------------------------------------------------


def test_a_newer_format_is_refused(directory: Path) -> None:
    DiskQueue(directory).close()
    plant(directory, "meta", msgspec.json.encode({"format": FORMAT + 1, "server": ""}), mode=1)

    with pytest.raises(QueueError, match="newer version") as caught:
        DiskQueue(directory)

    assert "queue_dir" in caught.value.hint


def test_a_refused_directory_is_left_as_it_was(directory: Path) -> None:
    queue = DiskQueue(directory, server="https://one")
    queue.commit(Change(appends=[chunk_of("a")]))
    queue.close()

    with pytest.raises(UsageError) as told:
        DiskQueue(directory, server="https://two")

    assert told.tb, "what it opened is closed while the error, and all that it came through, is there still"
    assert not (directory / "cache.db-wal").exists()
    queue = DiskQueue(directory, server="https://one")
    assert pending(queue) == ["a"]
    queue.close()


def test_another_server_is_refused_while_events_are_pending(directory: Path) -> None:
    queue = DiskQueue(directory, server="https://one")
    queue.commit(Change(appends=[chunk_of("a")]))
    queue.close()

    with pytest.raises(UsageError, match="meant for https://one, but the settings say https://two"):
        DiskQueue(directory, server="https://two")


def test_another_server_is_taken_once_the_queue_is_empty_and_remembered(directory: Path) -> None:
    queue = DiskQueue(directory, server="https://one")
    (key,) = queue.commit(Change(appends=[chunk_of("a")]))
    queue.commit(Change(settlements=[delivered(key)]))
    queue.close()

    queue = DiskQueue(directory, server="https://two")
    queue.commit(Change(appends=[chunk_of("b")]))
    queue.close()

    with pytest.raises(UsageError, match="meant for https://two"):
        DiskQueue(directory, server="https://one")


def test_who_names_no_server_may_look_and_changes_nothing(directory: Path) -> None:
    queue = DiskQueue(directory, server="https://one")
    queue.commit(Change(appends=[chunk_of("a")]))
    queue.close()

    DiskQueue(directory).close()

    with pytest.raises(UsageError, match="meant for https://one"):
        DiskQueue(directory, server="https://two")


def test_events_of_a_queue_without_a_server_are_meant_for_the_first_one_named(directory: Path) -> None:
    queue = DiskQueue(directory)
    queue.commit(Change(appends=[chunk_of("a")]))
    queue.close()

    DiskQueue(directory, server="https://one").close()

    with pytest.raises(UsageError, match="meant for https://one"):
        DiskQueue(directory, server="https://two")


# -- when writing fails ------------------------------------------------------------------


def state(queue: DiskQueue) -> tuple[Books, list[tuple[int, Chunk]], list[object]]:
    return queue.books(), list(chunks(queue)), list(queue.dead_letters())


def everything_at_once(size: int = 0) -> Change:
    return Change(
        appends=[chunk_of("new"), incompressible(size or 1)],
        refused=1,
        settlements=[delivered(1), buried(2, "b")],
    )


def commit_fails(queue: DiskQueue) -> Iterator[None]:
    """Let the next COMMIT of this thread's connection fail, and its transaction stay open."""
    execute = queue._cache._sql
    execute("CREATE TABLE Parent (id INTEGER PRIMARY KEY)")
    execute("CREATE TABLE Child (parent REFERENCES Parent (id) DEFERRABLE INITIALLY DEFERRED)")
    execute("CREATE TRIGGER spoil AFTER INSERT ON Cache BEGIN INSERT INTO Child VALUES (1); END")
    execute("PRAGMA foreign_keys = ON")
    yield


def database_is_full(queue: DiskQueue) -> Iterator[None]:
    """Let the database grow no more through this thread's connection."""
    execute = queue._cache._sql
    ((pages,),) = execute("PRAGMA page_count").fetchall()
    execute(f"PRAGMA max_page_count = {pages + 1}")
    yield


def files_may_not_grow(queue: DiskQueue) -> Iterator[None]:
    """Let the system refuse to write beyond the size that the files have."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(path.stat().st_size for path in queue.directory.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def database_is_locked(queue: DiskQueue) -> Iterator[None]:
    """Let another connection hold the write lock for longer than ours waits."""
    queue._cache.close()
    queue._cache._timeout = 0.01
    other = sqlite3.connect(queue.directory / "cache.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield
    other.close()


FAILURES = [commit_fails, database_is_full, files_may_not_grow, database_is_locked]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_commit_that_fails_leaves_nothing_half_done(
    queue: DiskQueue, directory: Path, failure: Callable[[DiskQueue], Iterator[None]]
) -> None:
    queue.commit(Change(appends=[chunk_of("a"), chunk_of("b")]))
    before = state(queue)

    with contextlib.contextmanager(failure)(queue), pytest.raises(QueueError, match="cannot write the queue"):
        queue.commit(everything_at_once(2 << 20))

    assert state(queue) == before
    queue.close()
    again = DiskQueue(directory)
    assert state(again) == before
    again.close()


@pytest.mark.parametrize("failure", FAILURES)
def test_the_commit_after_one_that_failed_works(
    queue: DiskQueue, directory: Path, failure: Callable[[DiskQueue], Iterator[None]]
) -> None:
    queue.commit(Change(appends=[chunk_of("a"), chunk_of("b")]))
    with contextlib.contextmanager(failure)(queue), pytest.raises(QueueError):
        queue.commit(everything_at_once(2 << 20))

    queue.commit(everything_at_once())

    assert counts(queue.books()) == {"accepted": 4, "refused": 1, "delivered": 1, "dead": 1, "pending": 2}
    after = state(queue)
    queue.close()
    again = DiskQueue(directory)
    assert state(again) == after
    again.close()


def test_reading_needs_no_write_lock(queue: DiskQueue, directory: Path) -> None:
    queue.commit(Change(appends=[chunk_of("a"), chunk_of("b")]))
    queue.commit(Change(settlements=[buried(1, "a")]))
    with contextlib.closing(sqlite3.connect(directory / "cache.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        queue._cache.close()
        queue._cache._timeout = 0.01

        assert pending(queue) == ["b"]
        assert [dead.external_id for dead in queue.dead_letters()] == ["a"]


@contextlib.contextmanager
def held_for_a_moment(directory: Path, *statements: str) -> Iterator[None]:
    """Have another connection hold the database, and let go of it while it is waited for."""
    other = sqlite3.connect(directory / "cache.db", isolation_level=None, check_same_thread=False)
    for statement in statements:
        other.execute(statement)
    leaving = threading.Timer(0.1, other.close)
    leaving.start()
    yield
    leaving.join()


def test_a_commit_waits_for_who_holds_the_write_lock(queue: DiskQueue, directory: Path) -> None:
    queue.commit(Change(appends=[chunk_of("a")]))
    with held_for_a_moment(directory, "BEGIN IMMEDIATE"):
        queue.commit(Change(appends=[chunk_of("b")]))

    assert pending(queue) == ["a", "b"]


# -- the size that the books know --------------------------------------------------------


def rows(queue: DiskQueue) -> int:
    return sum(len(chunk.encode(key)) for key, chunk in chunks(queue))


def test_the_size_stays_right_when_a_chunk_shrinks_while_it_is_read(
    queue: DiskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.commit(Change(appends=[chunk_of("a", "b", "c"), chunk_of("d")]))
    get = queue._cache.get

    def get_and_shrink(key: int) -> bytes:
        row = get(key)
        monkeypatch.undo()
        queue.commit(Change(settlements=[delivered(1, 2, chunk_of("c"))]))
        return row

    monkeypatch.setattr(queue._cache, "get", get_and_shrink)
    queue.get(1)

    queue.commit(Change(settlements=[delivered(1)]))

    assert queue.books().bytes == rows(queue)


def test_the_size_stays_right_after_a_commit_that_was_refused(queue: DiskQueue) -> None:
    queue.commit(Change(appends=[chunk_of("a"), chunk_of("b", "c")]))
    shrink = delivered(2, 1, chunk_of("c"))
    with pytest.raises(QueueError):
        queue.commit(Change(appends=[chunk_of("x" * 99)], settlements=[shrink, delivered(777)]))

    queue.commit(Change(settlements=[shrink]))

    assert queue.books().bytes == rows(queue)


# -- damage ------------------------------------------------------------------------------


def test_a_damaged_row_is_told_and_the_others_are_read(queue: DiskQueue, directory: Path) -> None:
    queue.commit(Change(appends=[chunk_of("a"), chunk_of("b"), chunk_of("c")]))
    ((row,),) = sql(directory, "SELECT value FROM Cache WHERE key = 2")
    sql(directory, "UPDATE Cache SET value = ? WHERE key = 2", row[:-1] + bytes([row[-1] ^ 1]))

    with pytest.raises(DamagedChunkError, match="checksum"):
        queue.get(2)

    assert names(queue.get(1).lines) == ["a"]
    assert names(queue.get(3).lines) == ["c"]


@pytest.mark.parametrize("row", [b"", b"PA", b"x" * 1000])
def test_a_row_that_is_no_chunk_is_told(queue: DiskQueue, directory: Path, row: bytes) -> None:
    plant(directory, 1, row, mode=1)

    with pytest.raises(DamagedChunkError):
        queue.get(1)


def test_a_chunk_of_a_newer_version_is_told_as_such(
    queue: DiskQueue, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as newer:
        newer.setattr("agent.chunk.VERSION", 99)
        plant(directory, 1, chunk_of("a").encode(1), mode=1)

    with pytest.raises(NewerChunkError, match="version 99"):
        queue.get(1)


# -- looking at a queue ------------------------------------------------------------------


@pytest.fixture
def filled(queue: DiskQueue) -> DiskQueue:
    queue.commit(Change(appends=[chunk_of("a", "b", arrived=12.5), chunk_of("c", arrived=13.0)], refused=2))
    queue.commit(Change(settlements=[buried(1, "b", rest=chunk_of("a", arrived=12.5))]))
    return queue


def contents(directory: Path, *, but: set[str] = frozenset()) -> dict[str, tuple[int, bytes]]:
    """Return times and bytes of a directory and its files."""
    files = {
        path.name: (path.stat().st_mtime_ns, path.read_bytes())
        for path in directory.iterdir()
        if path.name not in but
    }
    return {".": (directory.stat().st_mtime_ns, b""), **files}


def look(directory: Path) -> tuple[Books, float | None, list[str], list[str]]:
    """Look at everything that there is to see."""
    with contextlib.closing(DiskReader(directory)) as reader:
        return (
            reader.books(),
            reader.oldest_arrival(),
            [dead.external_id for dead in reader.dead_letters()],
            [dead.external_id for dead in reader.dead_letters([1, 777])],
        )


def test_a_reader_sees_what_a_live_queue_holds(filled: DiskQueue, directory: Path) -> None:
    assert look(directory) == (filled.books(), 12.5, ["b"], ["b"])


def test_a_reader_sees_what_a_closed_queue_holds(filled: DiskQueue, directory: Path) -> None:
    filled.close()

    assert look(directory) == (filled.books(), 12.5, ["b"], ["b"])


def test_a_reader_writes_nothing_to_a_live_queue(filled: DiskQueue, directory: Path) -> None:
    # The index of the log (-shm) is where SQLite notes who reads.
    before = contents(directory, but={"cache.db-shm"})

    look(directory)

    assert contents(directory, but={"cache.db-shm"}) == before
    assert filled.books().pending == 2


def test_a_reader_writes_nothing_to_a_closed_queue(filled: DiskQueue, directory: Path) -> None:
    filled.close()
    before = contents(directory)

    look(directory)

    assert contents(directory) == before


def test_a_reader_sees_what_is_committed_after_it_came(filled: DiskQueue, directory: Path) -> None:
    with contextlib.closing(DiskReader(directory)) as reader:
        reader.books()
        filled.commit(Change(appends=[chunk_of("d")]))

        assert reader.books() == filled.books()


def test_a_reader_of_a_closed_queue_sees_that_a_daemon_began(filled: DiskQueue, directory: Path) -> None:
    filled.close()
    with contextlib.closing(DiskReader(directory)) as reader:
        reader.books()
        daemon = DiskQueue(directory)
        daemon.commit(Change(appends=[chunk_of("d")]))

        assert reader.books() == daemon.books()
        daemon.close()


def test_a_reader_waits_for_no_writer(filled: DiskQueue, directory: Path) -> None:
    with contextlib.closing(sqlite3.connect(directory / "cache.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("DELETE FROM Cache")

        assert look(directory) == (filled.books(), 12.5, ["b"], ["b"])


def test_a_reader_waits_for_who_has_the_database_to_himself(queue: DiskQueue, directory: Path) -> None:
    """As a daemon has it that ends, while it moves its log."""
    queue.commit(Change(appends=[chunk_of("a")]))
    queue.close()
    alone = ["PRAGMA locking_mode = EXCLUSIVE", "BEGIN IMMEDIATE", "DELETE FROM Settings", "COMMIT"]
    with held_for_a_moment(directory, *alone):
        assert look(directory)[0].pending == 1


def test_a_reader_holds_no_writer_up(filled: DiskQueue, directory: Path) -> None:
    with contextlib.closing(DiskReader(directory)) as reader:
        letters = reader.dead_letters()
        next(letters)
        filled._cache.close()
        filled._cache._timeout = 0.01

        filled.commit(Change(appends=[chunk_of("d")]))


def test_a_reader_sees_the_queue_that_a_killed_daemon_left_and_leaves_it_so(directory: Path) -> None:
    with process(COMMIT, directory, "x") as running:
        assert running.stdout is not None
        key = int(running.stdout.readline().split()[-1])
        running.send_signal(signal.SIGKILL)
        running.wait(PATIENCE)

    before = contents(directory, but={"cache.db-shm"})

    books, *_ = look(directory)

    assert books.next_key > key
    assert contents(directory, but={"cache.db-shm"}) == before


def test_a_reader_goes_through_many_dead_letters_in_order(queue: DiskQueue, directory: Path) -> None:
    many = [f"e{number}" for number in range(1203)]
    queue.commit(Change(appends=[chunk_of(*many)]))
    queue.commit(Change(settlements=[buried(1, *many)]))

    with contextlib.closing(DiskReader(directory)) as reader:
        assert [dead.external_id for dead in reader.dead_letters()] == many


def test_a_reader_of_an_empty_queue_sees_nothing(queue: DiskQueue, directory: Path) -> None:
    del queue
    assert look(directory) == (Books(), None, [], [])


def test_a_reader_tells_that_there_is_no_queue(directory: Path) -> None:
    with pytest.raises(QueueError, match="there is none"):
        DiskReader(directory)


@pytest.mark.parametrize("content", [b"", b"not a database" * 1000])
def test_a_reader_tells_that_a_file_is_no_queue(
    directory: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.queue.reader._pause", lambda: None)
    directory.mkdir(mode=0o700)
    (directory / "cache.db").write_bytes(content)

    with pytest.raises(QueueError, match="cannot read the queue") as told:
        look(directory)

    assert told.value.hint.startswith("`agent queue verify` tells more")


def test_a_reader_waits_for_a_queue_that_is_being_made(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[DiskQueue] = []
    monkeypatch.setattr("agent.queue.reader._pause", lambda: made.append(DiskQueue(directory)))
    directory.mkdir(mode=0o700)
    (directory / "cache.db").touch()

    assert look(directory) == (Books(), None, [], [])
    made[0].close()


def test_a_reader_looks_again_when_a_daemon_that_ends_takes_its_log_away(
    queue: DiskQueue, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.commit(Change(appends=[chunk_of("a")]))
    exists = Path.exists

    def ends(path: Path) -> bool:
        there = exists(path)
        if path.name == "cache.db-shm":
            monkeypatch.undo()
            queue.close()
        return there

    monkeypatch.setattr(Path, "exists", ends)

    assert look(directory)[0].pending == 1
    assert not (directory / "cache.db-shm").exists()


def test_a_reader_tells_of_damaged_books(directory: Path) -> None:
    DiskQueue(directory).close()
    plant(directory, "books", b'{"accepted":', mode=1)

    with pytest.raises(QueueError, match="damaged"):
        look(directory)


def test_a_reader_that_meets_a_damaged_chunk_knows_no_oldest_one(queue: DiskQueue, directory: Path) -> None:
    queue.commit(Change(appends=[chunk_of("a")]))
    plant(directory, 1, b"damaged", mode=1)

    with contextlib.closing(DiskReader(directory)) as reader:
        assert reader.oldest() is None
        assert reader.books().pending == 1


def test_a_reader_takes_odd_names_of_directories(tmp_path: Path) -> None:
    directory = tmp_path / "a ?b#c%20&mode=rwc"
    queue = DiskQueue(directory)
    queue.commit(Change(appends=[chunk_of("a")]))

    assert look(directory)[0] == queue.books()
    queue.close()


# -- kill -9 -----------------------------------------------------------------------------

COMMIT = """
import pathlib, sys
from agent.queue import Change, Chunk, Settlement
from agent.queue.disk import DiskQueue
queue = DiskQueue(pathlib.Path(sys.argv[1]))
number = 0
before = []
while True:
    some = [Chunk(b"%d %s" % (number + more, sys.argv[2].encode() * 20_000), 1) for more in range(3)]
    # The first of each three goes in the commit of the next three.
    ended = [Settlement(key, None, 1) for key in before[:1]]
    before = list(queue.commit(Change(appends=some, settlements=ended)))
    number += 3
    print(*before, flush=True)
"""


def test_what_a_killed_writer_committed_is_there(directory: Path) -> None:
    expected: dict[int, str] = {}
    settled: set[int] = set()
    for kill in range(6):
        text = "abcdef"[kill]
        with process(COMMIT, directory, text) as running:
            assert running.stdout is not None
            told = [[int(key) for key in running.stdout.readline().split()] for _ in range(3 + 5 * kill)]
            running.send_signal(signal.SIGKILL)
            # It may have told of more before the signal came.
            rest = [[int(key) for key in line.split()] for line in running.stdout if line.endswith("\n")]
            told += rest
            running.wait(PATIENCE)
        settled |= {keys[0] for keys in told[:-1]}
        expected |= {
            key: f"{number} {text}" for number, key in enumerate(key for keys in told for key in keys)
        }

        queue = DiskQueue(directory)
        found = {key: chunk.lines[: chunk.lines.index(b" ") + 2].decode() for key, chunk in chunks(queue)}
        books = queue.books()
        queue.close()

        # The commit that the signal met may be whole or not there, and nothing between.
        met = max(told[-1])
        beyond = [key for key in found if key > met]
        assert len(beyond) in (0, 3)
        ended = settled | ({told[-1][0]} if beyond else set())
        assert {key: start for key, start in found.items() if key not in beyond} == {
            key: start for key, start in expected.items() if key not in ended
        }
        assert books.accepted == books.next_key - 1
        assert books.pending == len(found)
        settled = ended
        expected |= {key: found[key] for key in beyond}
