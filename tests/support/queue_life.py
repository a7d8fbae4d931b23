"""Lives of a queue in which the disk refuses some calls: a program for strace, which puts the errors in.

strace counts the calls of each process and lets those of certain numbers fail, the same in
each. So each life is a process of its own (a fork, which takes no time), and begins with as many calls
about nothing as bring the errors to the place where they are wanted.

Who has a queue tries again what failed, as writer, flusher and daemon do. It is told apart what
failed as it should, with an error of ours, and what was promised and is not there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import random
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from agent.errors import QueueError
from agent.lock import QueueLock
from agent.queue import Change, Chunk, Settlement
from agent.queue.disk import DiskQueue
from support.clock import FakeClock
from support.queues import checkpoint_of, chunk_of, letter, line, pending

if TYPE_CHECKING:
    from collections.abc import Callable


_T = TypeVar("_T")

LATEST = 260
"""The errors are put into the calls of this number and the next ones of each process."""
AT_ONCE = 3
_TRIES = 10 * AT_ONCE
_REFUSED = 3
_STAMP = "20010909T014640Z"
_DATABASE = ("cache.db", "cache.db-wal", "cache.db-shm", "cache.db-journal")
_PLACES = ("rescue.tmp", f"rescued-{_STAMP}", f"quarantine-{_STAMP}")
_FILES = (*_DATABASE, "cache.db-shm.kept", "lock", "ballast", "ballast.start", "ballast.name", *_PLACES)


def watched(place: Path) -> list[Path]:
    """Return the files whose calls strace is to look at."""
    queue = place / "queue"
    deep = [queue / inner / name for inner in _PLACES for name in (*_DATABASE, "report.json")]
    return [place, queue, place / "burn", place / "missing", *(queue / name for name in _FILES), *deep]


def prepare(directory: Path) -> None:
    """Make a queue as a daemon leaves it that is killed: its last commits are in the log only."""
    live = directory.with_name("live")
    queue = DiskQueue(live, clock=_clock())
    first, *_ = queue.commit(Change(appends=[chunk_of("gone"), chunk_of("p0", "p1"), chunk_of("p2")]))
    queue.commit(
        Change(
            appends=[chunk_of("p3", filler=9000)],
            settlements=[Settlement(first, None, dead=[letter("gone")])],
            checkpoints=[checkpoint_of("f", offset=7)],
        )
    )
    directory.mkdir(mode=0o700)
    for file in live.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    queue.close()


def open_queue(directory: Path) -> DiskQueue:
    """Open a queue, always at the same time."""
    return DiskQueue(directory, server="https://polar.example.com", clock=_clock())


def contents(queue: DiskQueue) -> dict[str, Any]:
    """Return everything that a queue holds."""
    books = queue.books()
    return {
        "pending": pending(queue),
        "dead": [letter.external_id for letter in queue.dead_letters()],
        "checkpoints": [found.offset for found in queue.checkpoints()],
        "counted": [books.pending, books.dead],
        "lost": books.lost,
    }


def _large(chance: random.Random) -> list[Chunk]:
    """Return an event of half a megabyte that cannot be compressed."""
    return [
        Chunk(
            line(f"large-{chance.random()}")[:-1] + b',"x":"%b"}' % chance.randbytes(250_000).hex().encode(),
            1,
            0,
        )
    ]


def _clock() -> FakeClock:
    return FakeClock(wall=1_000_000_000.0)


# -- one life ------------------------------------------------------------------------------


class Life:
    """One life of the queue in a directory; what went wrong that should not have."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._queue: DiskQueue | None = None
        self.errors: list[str] = []

    @property
    def began(self) -> bool:
        """Whether the queue was opened."""
        return self._queue is not None

    def live(self) -> dict[str, Any]:
        """Take a queue up, use it in every way, and put it down; return what it holds then."""
        lock = QueueLock(self._directory)
        queue = self._queue = open_queue(self._directory)
        key, chance = 0, random.Random(1)
        for number in range(4):
            # So much that the log is moved to the database in between.
            change = Change(appends=[chunk_of(f"e{number}", filler=10), *_large(chance)])
            change.settlements = [Settlement(key, None, delivered=1)] if key else []
            key, _ = self._insist(partial(queue.commit, change))
        bad, good = self._insist(
            lambda: queue.commit(Change(appends=[chunk_of("bad"), chunk_of("good")], refused=1))
        )
        self._insist(
            lambda: queue.commit(
                Change(
                    settlements=[Settlement(bad, None, dead=[letter("bad")])],
                    checkpoints=[checkpoint_of("f", offset=9)],
                )
            )
        )
        self._insist(lambda: queue.get(good))
        self._insist(queue.audit)
        self._insist(queue.recover)
        held = self._insist(partial(contents, queue))
        queue.close()
        lock.release()
        return {"held": held, "errors": self.errors}

    def _insist(self, action: Callable[[], _T]) -> _T:
        """Do it, again and again while the disk refuses; an error that is not ours ends everything."""
        for _ in range(_TRIES):
            try:
                return action()
            except QueueError as error:
                self.errors.append(str(error))
                if self._queue is not None:
                    with contextlib.suppress(QueueError):
                        self._queue.recover()
        raise AssertionError(f"the queue does not recover: {self.errors}")


# -- the program ---------------------------------------------------------------------------


def _burners(file: int, path: Path) -> dict[str, Callable[[], object]]:
    """Return how to make each call about nothing: of `path`, which is open as `file`."""
    missing = path.with_name("missing")
    return {
        "fcntl": lambda: fcntl.fcntl(file, fcntl.F_GETFD),
        "fdatasync": lambda: os.fdatasync(file),
        "flock": lambda: fcntl.flock(file, fcntl.LOCK_UN),
        "fstat": lambda: os.fstat(file),
        "fsync": lambda: os.fsync(file),
        "ftruncate": lambda: os.ftruncate(file, 8192),
        "lseek": lambda: os.lseek(file, 0, os.SEEK_SET),
        "mkdir": path.mkdir,
        "mmap": lambda: mmap.mmap(file, 4096).close(),
        "newfstatat": path.stat,
        "openat": lambda: os.close(os.open(path, os.O_RDONLY)),
        "pread64": lambda: os.pread(file, 1, 0),
        "pwrite64": lambda: os.pwrite(file, b"x", 0),
        "read": lambda: os.read(file, 1),
        "rename": lambda: path.rename(path),
        "rmdir": path.rmdir,
        "statfs": lambda: os.statvfs(path),
        "truncate": lambda: os.truncate(path, 8192),
        "unlink": missing.unlink,
        "write": lambda: os.write(file, b"x"),
    }


def _burn(place: Path, calls: list[str], times: int) -> None:
    """Make so many calls of each of these kinds."""
    path = place / "burn"
    file = os.open(path, os.O_RDWR)
    burners = _burners(file, path)
    for call in calls:
        for _ in range(times):
            with contextlib.suppress(OSError):
                burners[call]()
    os.close(file)


def _lead(place: Path, point: int) -> None:
    """Lead one life, in this process, and write down how it was."""
    queue = place / "queue"
    life = Life(queue)
    try:
        story = life.live()
    except QueueError as error:
        if life.began:
            raise
        with (place / "refused").open("a") as refused:
            refused.write(f"{error}\n")
        os._exit(_REFUSED)
    with (place / "stories").open("a") as stories:
        stories.write(json.dumps({"point": point, **story}) + "\n")


def main() -> None:
    """Lead lives: the directory that is prepared for them, the calls that strace lets fail, and where.

    A process that cannot open its queue ends, as a daemon does, and another one takes its place.
    """
    place, calls = Path(sys.argv[1]), sys.argv[2].split(",")
    for point in map(int, sys.argv[3].split(",")):
        (place / f"queue-{point}").rename(place / "queue")
        status = _REFUSED
        before = LATEST - point
        while status == _REFUSED:
            child = os.fork()
            if child == 0:
                _burn(place, calls, before)
                _lead(place, point)
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            before = 0
        assert status == 0, f"at place {point}"
        (place / "queue").rename(place / f"done-{point}")


if __name__ == "__main__":
    main()
