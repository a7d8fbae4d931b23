"""The thread that reads tailed files.

A step notices what happened, looks for files that came or went, reads for a tenth of a second at
most, and waits. Files take turns, a block each: all that have little to read come first, so that
a file with a large backlog keeps no other waiting.

Its hold on what it reads is in `agent.tail.shelf`; here is when to look, and when to read.
"""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from agent.logs import get
from agent.tail.shelf import Shelf
from agent.tail.turn import Turn
from agent.tail.watch import Watch
from agent.writer import Append

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.clock import Clock
    from agent.event import Checker
    from agent.queue import Queue
    from agent.seen import Lasting
    from agent.tail import Table
    from agent.tail.tailed import Key
    from agent.writer import Writer

_READ_SECONDS = 0.1  # of one step
_HOT_SECONDS = 0.25  # between two looks at a file that nobody watches and that changed lately
_HOT_FOR = 10.0
_TICK = 1.0
_POLLED_ROUND = 10.0  # seconds in which each quiet file is looked at once
_WATCHED_ROUND = 60.0
_WATCHED_LOOKS = 20.0  # a second at most, at quiet files of which inotify tells when they change
_SCAN_POLL = 1.0  # between two looks at directories that nobody watches
_SCAN_ANYHOW = 60.0
_SCAN_PAUSE = 0.1
_RACY_SECONDS = 1.0
_SCAN_SHARE = 50  # a scan that takes long is not repeated before so many times as long ...
_SCAN_PAUSE_AT_MOST = 10.0  # ... but names that change are not left alone for longer than this
_ANYHOW_SHARE = 1000  # nor, when nothing tells of a change, before so many times as long
_GATHER = 0.05
_GATHER_BELOW = 64 * 1024
_SHARE_OF_QUEUE = 0.5
_FLOWS_AGAIN_SECONDS = 10.0
_PATIENCE = 30.0


class Tail:
    """Reads the files of all `[[tail]]` tables.

    Args:
        tables: of the settings.
        checker: what Polar takes and what it refuses.
        writer: where lines and checkpoints go.
        queue: for the checkpoints at the start, and for its size.
        clock: for time and waiting.
        seen: what came lately, from whatever source.
        server_now: Unix time in seconds by the server's clock.
        queue_max_bytes: half of it is left to others: what is in files is safe there.
        room_for_letters: tells how many more dead letters may be kept; lines that are more wait.
        watch: tells of changes; one is made if not given.
        block_bytes: so much is read of a file in one turn, unless one line may be longer.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        checker: Checker,
        writer: Writer,
        queue: Queue,
        clock: Clock,
        *,
        seen: Lasting,
        server_now: Callable[[], float],
        queue_max_bytes: int,
        room_for_letters: Callable[[], int] = lambda: sys.maxsize,
        watch: Watch | None = None,
        block_bytes: int = 1 << 20,
    ) -> None:
        self._writer = writer
        self._queue = queue
        self._clock = clock
        self._most_bytes = int(queue_max_bytes * _SHARE_OF_QUEUE)
        self._log = get("tail")
        self._watch = watch or Watch()
        self._shelf = Shelf(
            tables,
            checker,
            writer,
            queue,
            clock,
            seen=seen,
            server_now=server_now,
            room_for_letters=room_for_letters,
            block_bytes=block_bytes,
        )
        self._ready: dict[Key, None] = {}
        self._backlog: dict[Key, None] = {}
        self._quiet: deque[Key] = deque()
        self._watched: set[str] = set()
        self._directories: dict[str, tuple[int, int, int] | None] = {}
        self._dirty = True
        self._next_hot = self._next_tick = self._next_scan = self._next_poll = 0.0
        self._scan_anyhow = 0.0
        self._read = 0
        self._paused = ""
        self._paused_at = 0.0
        self._told_paused = False
        self._looked = threading.Event()
        self._is_first_look = self._shelf.is_new
        if not self._is_first_look:
            self._looked.set()
        self._requests: deque[Callable[[], None]] = deque()
        self._stopped = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        if self._watch.descriptor is not None:
            self._selector.register(self._watch.descriptor, selectors.EVENT_READ)
        self.beat = clock.monotonic()
        self._thread = threading.Thread(target=self._run, name="tail")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wait_for_first_look(self, seconds: float) -> bool:
        """Wait until it is known for good which files are there; at once where that was so before.

        What is at a path from then on is read, wherever it is rotated to, and whenever we are killed.
        """
        return self._clock.wait(self._looked, seconds)

    def stop(self) -> None:
        """Stop reading; what was read is with the writer, the rest stays in the files."""
        self._stopped.set()
        self.wake()
        if self._thread.ident is not None:
            self._thread.join()
        self.close()

    def close(self) -> None:
        """Let go of all files."""
        self._shelf.close()
        self._selector.close()
        self._watch.close()
        for descriptor in (self._wake_read, self._wake_write):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    def poke(self) -> None:
        """See `agent.watch`."""
        self.wake()

    def wake(self) -> None:
        """Make the thread look around; from any thread."""
        with contextlib.suppress(BlockingIOError):  # then it is about to wake anyway
            os.write(self._wake_write, b"\0")

    def status(self) -> dict[str, Any]:
        """Return how everything stands, for `agent tail status`; from any thread."""
        return {
            "paused": self._paused or None,
            "files": self._shelf.documents(),
            "problems": self._shelf.problem_documents(),
        }

    def reset(self, path: str, *, to_end: bool = False) -> list[str]:
        """Have a file read again, from its beginning; or go to its end. From any thread.

        Returns:
            The paths of the files that this was about; none when the path is not known.
        """
        paths: list[str] = self._ask(lambda: self._reset(path, to_end=to_end))
        return paths

    def catch_up(self, seconds: float) -> None:
        """Wait until all that is in the files now was handed to the writer; from any thread."""
        deadline = self._clock.monotonic() + seconds
        self._ask(self._look_at_all)
        while self._clock.monotonic() < deadline and self.alive:
            if self._ask(lambda: not self._ready and not self._backlog) or self._paused:
                return
            self._clock.wait(self._stopped, _GATHER)

    def step(self, seconds: float | None) -> None:
        """Do what is to be done, and wait for more to happen, at most so many seconds."""
        while self._requests:
            self._requests.popleft()()
        now = self.beat = self._clock.monotonic()
        self._notice()
        self._poll_directories(now)
        if self._scan_is_due(now):
            self._scan(now)
        self._look_around(now)
        if self._read_some(now):
            return
        self._rest(now, seconds)

    # -- noticing ----------------------------------------------------------------------

    def _run(self) -> None:
        """Step until told to stop."""
        while not self._stopped.is_set():
            self.step(None)

    def _ask(self, action: Callable[[], Any]) -> Any:
        """Have the thread do something, and wait for what comes of it."""
        answer: list[Any] = []
        done = threading.Event()

        def act() -> None:
            try:
                answer.append(action())
            finally:
                done.set()

        self._requests.append(act)
        self.wake()
        if not self._clock.wait(done, _PATIENCE):
            raise ValueError("the files are not looked at now; try again")
        return answer[0] if answer else None

    def _notice(self) -> None:
        """Take what the watch tells."""
        events, overflow = self._watch.events()
        if overflow:
            self._dirty = True
            self._look_at_all()
        for event in events:
            if event.renamed:
                self._dirty = True
            keys = self._shelf.files.at(f"{event.directory}/{event.name}")
            for key in keys or self._shelf.files.away():
                self._ready[key] = None

    def _look_at_all(self) -> None:
        """Look at every file, and for others."""
        self._dirty = True
        self._next_scan = 0.0
        for key in self._shelf.files.by_key:
            self._ready[key] = None

    def _poll_directories(self, now: float) -> None:
        """See whether names changed in directories that nobody watches, and now and then in all."""
        if now < self._next_poll:
            return
        self._next_poll = now + _SCAN_POLL
        for directory, seen in self._directories.items():
            if directory not in self._watched and _state_of(directory) != seen:
                self._dirty = True

    def _scan_is_due(self, now: float) -> bool:
        return now >= self._scan_anyhow or (self._dirty and now >= self._next_scan)

    def _scan(self, now: float) -> None:
        """Look for files that came or went."""
        self._dirty = False
        states = {directory: _state_of(directory) for directory in self._directories}
        for key in self._shelf.scan(now):
            self._ready[key] = None
        self._directories = {
            # Of a directory that was not known, what was before the scan is unknown, too.
            directory: states.get(directory)
            for directory in self._shelf.directories
        }
        self._watched = self._watch.follow(self._shelf.directories)
        # A name that changed in the same moment may have left the directory's time as it was.
        recent = self._clock.wall() - _RACY_SECONDS
        self._dirty = any(
            state is not None and state[2] > recent * 1e9
            for directory, state in self._directories.items()
            if directory not in self._watched
        )
        self._shelf.files.set_watched(self._watched)
        self._quiet = deque(self._shelf.files.by_key)
        if self._is_first_look:
            self._is_first_look = False
            # Behind the notes of what was found.
            self._writer.append(Append([], [], 0, 0, lambda _: self._looked.set(), source="tail"))
        took = self._clock.monotonic() - now
        self._next_scan = now + max(_SCAN_PAUSE, min(took * _SCAN_SHARE, took + _SCAN_PAUSE_AT_MOST))
        self._scan_anyhow = now + max(_SCAN_ANYHOW, took * _ANYHOW_SHARE)

    def _look_around(self, now: float) -> None:
        """Look at files that nobody watches: often at those that changed lately, at others now and then."""
        if now >= self._next_hot:
            self._next_hot = now + _HOT_SECONDS
            for key in self._shelf.files.hot(now - _HOT_FOR):
                self._ready[key] = None
        if now >= self._next_tick:
            self._next_tick = now + _TICK
            self._tell_end_of_pause(now)
            self._ready.update(dict.fromkeys(self._shelf.reading.uncrowded()))
            self._shelf.reading.rest()
            for _ in range(self._looks_due()):
                self._ready[self._quiet[0]] = None
                self._quiet.rotate(-1)

    def _looks_due(self) -> int:
        """Return at how many quiet files to look in this tick."""
        files = len(self._quiet)
        if self._watched and not self._shelf.files.polled:
            return math.ceil(min(files * _TICK / _WATCHED_ROUND, _WATCHED_LOOKS * _TICK))
        return math.ceil(files * _TICK / _POLLED_ROUND)

    # -- reading -----------------------------------------------------------------------

    def _read_some(self, now: float) -> bool:
        """Let files have their turns for a while; tell whether more is there to be read at once."""
        self._read = 0
        while (self._ready or self._backlog) and not self._stopped.is_set():
            if not self._has_room():
                return False
            room = self._writer.wait_for_room(_READ_SECONDS)
            if not (room and self._shelf.reading.wait_for_room(_READ_SECONDS)):
                return True
            turn_of = self._ready or self._backlog
            key = next(iter(turn_of))
            del turn_of[key]
            before = self._shelf.reading.taken
            turn = self._shelf.turn(key)
            self._read += self._shelf.reading.taken - before
            if turn is Turn.MORE:
                self._ready[key] = None
            elif turn is Turn.MUCH_MORE:
                self._backlog[key] = None
            if self._clock.monotonic() - now >= _READ_SECONDS:
                return bool(self._ready or self._backlog)
        return False

    def _has_room(self) -> bool:
        """Tell whether the queue takes more from files."""
        paused = self._writer.full or ""
        if not paused and self._queue.books().bytes > self._most_bytes:
            paused = f"half of the queue ({self._most_bytes} bytes) is used: the rest is left to others"
        self._paused = paused
        if paused:
            self._paused_at = self._clock.monotonic()
            if not self._told_paused:
                self._told_paused = True
                self._log.warning("files are not read for now; nothing is lost", reason=paused)
        return not paused

    def _tell_end_of_pause(self, now: float) -> None:
        """Log that files are read again, once it lasts: a slow server makes room for a moment at a time."""
        if self._told_paused and not self._paused and now - self._paused_at >= _FLOWS_AGAIN_SECONDS:
            self._told_paused = False
            self._log.info("files are read again")

    def _rest(self, now: float, seconds: float | None) -> None:
        """Wait until something happens or is due."""
        if seconds is None and 0 < self._read < _GATHER_BELOW:
            # Somebody writes little and often: a moment later there will be more.
            self._clock.wait(self._stopped, _GATHER)
        due = [self._next_tick, self._scan_anyhow]
        if self._shelf.files.hot(now - _HOT_FOR):
            due.append(self._next_hot)
        if any(directory not in self._watched for directory in self._directories):
            due.append(self._next_poll)
        if self._dirty:
            due.append(self._next_scan)
        left = max(0.0, min(due) - now)
        for key, _ in self._selector.select(left if seconds is None else min(seconds, left)):
            if key.fd == self._wake_read:
                with contextlib.suppress(BlockingIOError):
                    while len(os.read(self._wake_read, 4096)) == 4096:
                        pass

    def _reset(self, path: str, *, to_end: bool) -> list[str]:
        """Do what `reset` says."""
        keys, paths = self._shelf.reset(path, to_end=to_end)
        for key in keys:
            self._ready[key] = None
        return paths


def _state_of(directory: str) -> tuple[int, int, int] | None:
    """Return what changes when names change in a directory; None when it is not there."""
    try:
        status = os.stat(directory)  # noqa: PTH116 - as everywhere here
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns
