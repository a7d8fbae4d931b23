"""The one thread that changes the queue: group commit.

It takes everything that waits, from all sources and from the flusher, makes one
transaction of it, and only then tells those who wait. While one transaction syncs,
the next one gathers.

When the disk refuses, appends wait here and are tried again; nobody was told that
they are safe. Settlements are tried without them, so that a full disk can drain: all
at once, else in halves, down to one that fits into the room that the queue keeps.

A producer that waits for its ack is served at once. One that writes on without waiting
is patient: its lines gather for some milliseconds, which saves most of the commits.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent import chunk
from agent.capacity import LOOK_SECONDS, Capacity
from agent.errors import QueueError, QueueFullError
from agent.logs import get
from agent.meters import Meters
from agent.notice import Notice
from agent.queue import Change, Checkpoint, Chunk, DeadLetter, Queue, Settlement

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.capacity import Limits
    from agent.clock import Clock
    from agent.queue import DeadLetter

_MAX_WAITING_BYTES = 8 << 20
_RETRY_SECONDS = 0.5
_GATHER_SECONDS = 0.05
_GATHER_BYTES = 1 << 20


@dataclass(slots=True)
class Append:
    """Checked lines of one source, to be made durable.

    Attributes:
        groups: accepted lines that are due, joined by newlines, with their count.
        held: accepted lines that are not due yet, with their moments in Unix milliseconds.
        refused: how many lines were refused beside them.
        dropped: how many fine lines were dropped, since the queue is full.
        repeated: how many lines repeat events that were appended before, or are among these.
        done: called in the writer's thread once all this is durable; False when the agent
            stopped before it was.
        patient: nobody waits for the ack, so it may be gathered with more.
        letters: refused lines of a source that has nobody to tell.
        checkpoint: how far the source is read with all this.
        keep: try again for as long as the disk refuses; if not, `done` gets False at once.
        source: what gave them, a word.
        overflow: called with the reason before the lines are dropped, since there is no room for
            them and the operator chose that; None: they wait.
        at: when the writer got it, monotonic seconds; the writer's.
        forgotten: checkpoints that are not needed any more, by id.
    """

    groups: list[tuple[bytes, int]]
    held: list[tuple[int, bytes]]
    refused: int
    dropped: int
    done: Callable[[bool], None]
    patient: bool = False
    letters: Sequence[DeadLetter] = ()
    checkpoint: Checkpoint | None = None
    repeated: int = 0
    keep: bool = True
    source: str = "socket"
    overflow: Callable[[str], None] | None = None
    forgotten: Sequence[str] = ()
    at: float = 0.0

    @property
    def events(self) -> int:
        """How many lines were accepted."""
        return sum(count for _, count in self.groups) + len(self.held)

    @property
    def size(self) -> int:
        """Bytes of the lines."""
        return (
            sum(len(lines) for lines, _ in self.groups)
            + sum(len(line) for _, line in self.held)
            + sum(len(letter.event) for letter in self.letters)
        )

    def drop(self, reason: str) -> None:
        """Drop what was accepted."""
        if self.overflow is not None and (self.groups or self.held or self.repeated):
            self.overflow(reason)
            self.dropped += sum(count for _, count in self.groups) + len(self.held) + self.repeated
            self.groups, self.held, self.repeated = [], [], 0


@dataclass(slots=True)
class _Request:
    """A change that its maker waits for."""

    change: Change
    finished: threading.Event = field(default_factory=threading.Event)
    error: QueueError | None = None


class Writer:
    """Commits what it is given, in order.

    Args:
        queue: the store; no one else commits to it.
        limits: what makes the queue full.
        clock: for the time of arrival and for waiting.
        on_commit: called in the writer's thread after each commit with the number of events
            that were added.
        on_room: called in the writer's thread when `full` changes.
        on_append: called in the writer's thread with each commit's new keys and their chunks.
        meters: where it counts.
        on_buried: called in the writer's thread with the dead letters that were committed.

    Attributes:
        order: to be held by a source from asking `agent.seen` to `append`, so that what repeats an
            event comes behind it.
    """

    def __init__(
        self,
        queue: Queue,
        limits: Limits,
        clock: Clock,
        *,
        on_commit: Callable[[int], None],
        on_room: Callable[[], None],
        on_append: Callable[[Sequence[int], Sequence[Chunk]], None] = lambda _keys, _chunks: None,
        meters: Meters | None = None,
        on_buried: Callable[[Sequence[DeadLetter]], None] = lambda _letters: None,
    ) -> None:
        self._queue = queue
        self._drop = limits.when_full == "drop_newest"
        self._capacity = Capacity(limits)
        self._clock = clock
        self._on_commit = on_commit
        self._on_room = on_room
        self._on_append = on_append
        self._meters = meters or Meters()
        self._on_buried = on_buried
        self.order = threading.Lock()
        self._log = get("writer")
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._hurry = threading.Event()
        self._room = threading.Event()
        self._room.set()
        self._appends: list[Append] = []
        self._settlements: list[Settlement] = []
        self._requests: list[_Request] = []
        self._settling = 0
        self._waiting_bytes = 0
        self._stopping = False
        self._trouble: str | None = None
        self._short = False  # the disk had no room for what waits
        self._most_bytes = _MAX_WAITING_BYTES  # of one commit; less after the disk had no room
        self._trouble_notice, self._full_notice = Notice(), Notice()
        self.full: str | None = None
        self.beat = clock.monotonic()
        self._thread = threading.Thread(target=self._run, name="writer")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def configure(self, limits: Limits) -> None:
        """Go by other limits from now on."""
        self._drop = limits.when_full == "drop_newest"
        self._capacity.limits = limits
        self._work.set()

    def stop(self) -> None:
        """Commit what waits, then end; appends that the disk refuses are given up unacknowledged."""
        self._stopping = True
        self._wake()
        self._thread.join()

    @property
    def drops(self) -> bool:
        """True when what there is no room for is dropped; never while the disk cannot keep count of it."""
        return self._drop and self._trouble is None

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    def append(self, append: Append) -> None:
        """Queue lines for the next commit; returns at once."""
        append.at = self._clock.monotonic()
        with self._lock:
            self._appends.append(append)
            self._waiting_bytes += append.size
            if self._waiting_bytes > _MAX_WAITING_BYTES:
                self._room.clear()
        if append.patient and self._waiting_bytes < _GATHER_BYTES:
            self._work.set()
        else:
            self._wake()

    def wait_for_room(self, seconds: float) -> bool:
        """Wait until not too much waits for the disk."""
        return self._room.is_set() or self._clock.wait(self._room, seconds)

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Queue ends of events for the next commit; returns at once."""
        with self._lock:
            self._settlements.extend(settlements)
            self._settling += len(settlements)
        self._work.set()

    @property
    def settling(self) -> bool:
        """True while there are ends of events that are not committed yet."""
        return self._settling > 0

    def apply(self, change: Change) -> None:
        """Commit `change` and wait for it.

        Raises:
            QueueError: it was not applied.
        """
        request = _Request(change)
        with self._lock:
            if self._stopping:
                raise QueueError("change the queue", "daemon", "it is stopping", "try again when it runs")
            self._requests.append(request)
        self._wake()
        request.finished.wait()
        if request.error is not None:
            raise request.error

    def poke(self) -> None:
        """Make the thread move, though there may be nothing to do."""
        self._wake()

    def _wake(self) -> None:
        """Have everything committed without waiting for more."""
        self._hurry.set()
        self._work.set()

    def _run(self) -> None:
        """Step until told to stop and all is written."""
        self._check_room()
        while True:
            watched = self.full or self._full_notice.told or self._trouble_notice.told
            self._clock.wait(self._work, LOOK_SECONDS if watched else None)
            self._clock.wait(self._hurry, _GATHER_SECONDS)
            self._work.clear()
            self._hurry.clear()
            stopping = self._stopping
            self.step()
            if stopping and (self._trouble or self._short or not self._anything_waits()):
                break
            if self._trouble and not self._stopping:
                self._clock.wait(self._work, _RETRY_SECONDS)
        for append in self._appends:
            append.done(False)
        self._queue.close()

    def _anything_waits(self) -> bool:
        """Tell whether there is something to commit."""
        with self._lock:
            return bool(self._appends or self._settlements or self._requests)

    def step(self) -> None:
        """Commit what waits: all but appends that are too much for one commit, or for the disk."""
        self.beat = self._clock.monotonic()
        with self._lock:
            appends = [] if self._short else self._portion()
            hasty = [append for append in self._appends if not append.keep] if self._short else []
            if hasty:
                self._appends = [append for append in self._appends if append.keep]
            settlements, self._settlements = self._settlements, []
            requests, self._requests = self._requests, []
        self._turn_away(hasty)
        for request in requests:
            self._answer(request)
        change = self._change(appends)
        change.settlements = settlements
        if change:
            try:
                keys = self._queue.commit(change)
            except QueueError as error:
                self._refused_by_disk(error, appends, settlements)
                return
            self._settled(settlements)
            self._on_append(keys, change.appends)
            self._trouble = None
        self._release(appends)
        if change:
            self._on_commit(sum(new.count for new in change.appends))
        self._check_room()
        now = self._clock.monotonic()
        for append in appends:
            self._meters.took(append.source, append.events, append.refused, now - append.at)
            append.done(True)

    def _portion(self) -> list[Append]:
        """Take the appends of one commit; call it under the lock."""
        most = min(self._most_bytes, self._capacity.portion)
        taken, size = 0, 0
        if self._waiting_bytes <= most:
            taken = len(self._appends)
        while taken < len(self._appends) and (not taken or size < most):
            size += self._appends[taken].size
            taken += 1
        appends, self._appends = self._appends[:taken], self._appends[taken:]
        if self._appends:
            self._wake()
        return appends

    def _change(self, appends: list[Append]) -> Change:
        """Make one change of what the sources gave."""
        now_ms = int(self._clock.wall() * 1000)
        change = Change(
            refused=sum(append.refused for append in appends),
            repeated=sum(append.repeated for append in appends),
            dropped=sum(append.dropped for append in appends),
            letters=[letter for append in appends for letter in append.letters],
            # Of one file only the last is written: the others are behind it.
            checkpoints=list(
                {append.checkpoint.id: append.checkpoint for append in appends if append.checkpoint}.values()
            ),
            forgotten=[name for append in appends for name in append.forgotten],
        )
        groups = [group for append in appends for group in append.groups]
        held = [item for append in appends for item in append.held]
        change.appends = chunk.pack(groups, now_ms)
        if held:
            held.sort(key=lambda item: item[0])
            # One chunk for each second of due time: an event waits for its chunk's last one.
            seconds: dict[int, list[tuple[int, bytes]]] = {}
            for item in held:
                seconds.setdefault(item[0] // 1000, []).append(item)
            for items in seconds.values():
                for start in range(0, len(items), chunk.MAX_EVENTS):
                    some = items[start : start + chunk.MAX_EVENTS]
                    lines = b"\n".join(line for _, line in some)
                    change.appends.append(Chunk(lines, len(some), now_ms, some[-1][0]))
        return change

    def _release(self, appends: list[Append]) -> None:
        """Give the room of committed lines back."""
        size = sum(append.size for append in appends)
        self._capacity.wrote(size)
        if size:
            self._most_bytes = min(2 * self._most_bytes, _MAX_WAITING_BYTES)
        with self._lock:
            self._waiting_bytes -= size
            if self._waiting_bytes <= _MAX_WAITING_BYTES:
                self._room.set()

    def _refused_by_disk(
        self, error: QueueError, appends: list[Append], settlements: list[Settlement]
    ) -> None:
        """Keep what could not be written; write the settlements alone if that is possible."""
        full = isinstance(error, QueueFullError)
        if appends or full:
            settlements = self._settle(settlements)
        kept = [append for append in appends if append.keep]
        with self._lock:
            self._appends[:0] = kept
            self._settlements[:0] = settlements
        if full:
            self._short = True
            self._most_bytes = max(1, sum(append.size for append in appends) // 2)
            self._set_full(error.reason)
            self._overflow(error.reason)
            self._turn_away([append for append in appends if not append.keep])
            return
        self._trouble = error.reason
        if self._trouble_notice.wrong():
            self._log.error("queue cannot be written: producers wait", reason=error.reason, hint=error.hint)
        self._set_full(f"the queue cannot be written: {error.reason}", tell=False)
        self._turn_away([append for append in appends if not append.keep])

    def _turn_away(self, appends: list[Append]) -> None:
        """Tell those who cannot be kept waiting that nothing was taken: the transaction was undone."""
        with self._lock:
            self._waiting_bytes -= sum(append.size for append in appends)
        for append in appends:
            append.done(False)

    def _settle(self, settlements: list[Settlement]) -> list[Settlement]:
        """Commit ends of events without anything else; return those that the disk refuses."""
        if not settlements:
            return []
        try:
            self._queue.commit(Change(settlements=settlements))
        except QueueFullError:
            if len(settlements) == 1:
                return settlements
        except QueueError:
            return settlements
        else:
            self._settled(settlements)
            return []
        middle = len(settlements) // 2
        refused = self._settle(settlements[:middle])
        # What is to become of a chunk is in order.
        waiting = {settlement.key for settlement in refused}
        others = settlements[middle:]
        refused += [other for other in others if other.key in waiting]
        return refused + self._settle([other for other in others if other.key not in waiting])

    def _overflow(self, reason: str) -> None:
        """Drop what the disk has no room for, if an operator chose that."""
        if not self._drop:
            return
        with self.order, self._lock:
            # Those of them that repeat events which are dropped now must not come behind nothing.
            hasty = [append for append in self._appends if not append.keep]
            self._appends = [append for append in self._appends if append.keep]
            before = sum(append.size for append in self._appends)
            for append in self._appends:
                append.drop(reason)
            self._waiting_bytes -= before - sum(append.size for append in self._appends)
        self._turn_away(hasty)
        self._short = bool(self._waiting_bytes)
        self._wake()

    def _settled(self, settlements: Sequence[Settlement]) -> None:
        """Note that ends of events are committed."""
        with self._lock:
            self._settling -= len(settlements)
        for settlement in settlements:
            if settlement.dead:
                self._on_buried(settlement.dead)

    def _answer(self, request: _Request) -> None:
        """Apply a change that somebody waits for."""
        try:
            self._queue.commit(request.change)
        except QueueError as error:
            request.error = error
        request.finished.set()
        if request.error is None:
            self._on_commit(sum(new.count for new in request.change.requeued))

    def _check_room(self) -> None:
        """See whether the queue is full, and whether it is so no more."""
        now = self._clock.monotonic()
        if self._trouble_notice.well(now):
            self._log.info("queue can be written again")
        lack = self._capacity.lack(self._queue.books().bytes, now)
        try:
            self._queue.recover(short=lack is not None)
        except QueueError as error:
            lack = error.reason
        self._set_full(lack)
        if self._short and lack is None:
            self._short = False
            self._wake()

    def _set_full(self, reason: str | None, *, tell: bool = True) -> None:
        """Change `full`; tell those who wait for it when it changes between full and not."""
        changed = (reason is None) != (self.full is None)
        self.full = reason
        if reason is None:
            if self._full_notice.well(self._clock.monotonic()):
                self._log.info("queue has room again")
        elif tell and self._full_notice.wrong():
            self._log.warning("queue is full: producers wait", reason=reason)
        if changed:
            self._on_room()
