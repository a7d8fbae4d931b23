"""From the queue to the next batch: chunks are read once, in order of arrival.

What is in memory is what is on its way and one batch more, however long the queue is.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.batch import Backlog, Batch, Lease
from agent.chunk import DamagedChunkError, NewerChunkError
from agent.errors import QueueError
from agent.logs import get
from agent.notice import Notice
from agent.queue import Settlement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.chunk import Chunk
    from agent.clock import Clock
    from agent.flusher.held import Held
    from agent.queue import Queue
    from agent.server_clock import ServerClock
    from agent.writer import Writer

_READ_AGAIN_SECONDS = 1.0  # when the disk refused
_OFFERED_BYTES = 8 << 20  # of chunks that are kept until they are sent, to save reading them


@dataclass(frozen=True, slots=True)
class Options:
    """The settings that concern the flusher; see the README's table.

    Attributes:
        flush_interval: seconds that an event may wait for others.
        max_batch_events: so many events are worth a request.
        max_batch_bytes: the largest body.
        max_in_flight: requests at once.
        batch_ceiling: the most events in one request, when many wait and answers are quick.
        request_timeout: seconds that one request may take.
        max_dead_letters: so many are kept at most.
    """

    flush_interval: float
    max_batch_events: int
    max_batch_bytes: int
    max_in_flight: int
    batch_ceiling: int
    request_timeout: float
    max_dead_letters: int = 100_000


@dataclass(frozen=True, slots=True)
class Room:
    """What the next batch may have."""

    events: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Lack:
    """Why there is no batch yet.

    Attributes:
        events: how many more would make one worth while.
        seconds: when the events that are there are old enough; None when none is there.
    """

    events: int
    seconds: float | None = None


class Intake:
    """Reads the queue and cuts batches; `offer` is for the writer's thread, the rest for the flusher's.

    Args:
        store: where chunks are read.
        writer: is told of rows that are not what was written.
        held: gets the chunks that are not due.
        clock: for the age of events.
        server_clock: for whether they are due.
        options: the settings.
    """

    def __init__(
        self,
        store: Queue,
        writer: Writer,
        held: Held,
        *,
        clock: Clock,
        server_clock: ServerClock,
        options: Options,
    ) -> None:
        self._store = store
        self._writer = writer
        self._held = held
        self._clock = clock
        self._server_clock = server_clock
        self._options = options
        self._log = get("flusher")
        self._numbers = itertools.count(1)
        self._cursor = 0
        self._backlog = Backlog()
        self._offered: dict[int, Chunk] = {}
        self._offered_bytes = 0
        self._offer_lock = threading.Lock()
        self._notice = Notice()
        self.trouble: str | None = None
        """Why the queue cannot be read now; None when it can."""

    def configure(self, options: Options) -> None:
        """Go by other settings from now on."""
        self._options = options

    def offer(self, keys: Sequence[int], chunks: Sequence[Chunk]) -> None:
        """Get chunks that were just written; they are kept as far as there is room for them."""
        with self._offer_lock:
            for key, chunk in zip(keys, chunks, strict=True):
                if key < self._cursor:
                    continue  # it was read already
                if self._offered_bytes + len(chunk.lines) > _OFFERED_BYTES:
                    return
                self._offered[key] = chunk
                self._offered_bytes += len(chunk.lines)

    @property
    def waits(self) -> bool:
        """True when there are events that no batch has carried yet."""
        return bool(self._backlog.parts) or self._cursor < self._store.books().next_key

    def fills(self, room: Room) -> bool:
        """Tell whether what was read makes a full batch."""
        return self._backlog.full(room.events, room.bytes)

    def rewind(self) -> None:
        """Read the queue from its beginning again."""
        self._cursor = 0

    def take(self, room: Room, in_flight: int, *, urgent: bool, fill: bool) -> Batch | Lack:
        """Make a batch of what is next in the queue, if it is enough or old enough.

        Args:
            room: what it may have.
            in_flight: how many requests are under way: the more there are, the fuller is the next one.
            urgent: whatever is there is enough.
            fill: cut chunks to make it full.
        """
        options, backlog = self._options, self._backlog
        self._read(room)
        if not backlog.parts:
            return Lack(1, _READ_AGAIN_SECONDS if self.trouble else None)
        enough = min(room.events, options.max_batch_events << 2 * in_flight)
        if not backlog.full(enough, room.bytes) and not urgent:
            arrived = backlog.parts[0].lease.chunk.arrived_ms / 1000
            age = self._clock.wall() - arrived
            if 0 <= age < options.flush_interval:
                return Lack(enough - backlog.events, options.flush_interval - age)
        parts = backlog.take(room.events, room.bytes, fill=fill)
        return Batch(f"b{next(self._numbers)}", parts)

    def read_chunk(self, key: int) -> bool:
        """Put one chunk where it belongs; False when the disk refuses it now."""
        try:
            offered = self._take_offered(key)
            chunk = offered or self._store.get(key)
        except QueueError as error:
            self._refused(error)
            return False
        except DamagedChunkError as error:
            self._log.error("a chunk of the queue is not what was written", chunk=key, reason=str(error))
            self._writer.settle([Settlement(key, None, damaged=True)])
            return True
        except NewerChunkError as error:
            self._log.error(
                "a chunk of the queue cannot be read: its events stay where they are",
                chunk=key,
                reason=str(error),
            )
            return True
        self._readable()
        if chunk is None:
            return True
        if chunk.due_ms > self._server_clock.now() * 1000:
            self._held.add(chunk.due_ms / 1000, key)
        else:
            self._backlog.add(Lease(key, chunk, fresh=offered is not None).part())
        return True

    def _refused(self, error: QueueError) -> None:
        """Note that the disk refuses."""
        self.trouble = f"the queue cannot be read: {error.reason}; {error.hint}"
        if self._notice.wrong():
            self._log.error(
                "the queue cannot be read: events stay in it", reason=error.reason, hint=error.hint
            )

    def _readable(self) -> None:
        """Note that the disk gives what it has."""
        self.trouble = None
        if self._notice.told and self._notice.well(self._clock.monotonic()):
            self._log.info("the queue can be read again")

    def _read(self, room: Room) -> None:
        """Read chunks until there is enough for one batch."""
        end = self._store.books().next_key
        if self._cursor == 0:
            try:
                self._cursor = self._store.first_key()
            except QueueError as error:
                self._refused(error)
                return
        while self._cursor < end and not self.fills(room):
            key = self._cursor
            self._cursor += 1  # before it is read, so that `offer` does not keep it any more
            if not self.read_chunk(key):
                self._cursor = key
                return

    def _take_offered(self, key: int) -> Chunk | None:
        """Return a chunk that need not be read."""
        with self._offer_lock:
            chunk = self._offered.pop(key, None)
            if chunk is not None:
                self._offered_bytes -= len(chunk.lines)
            return chunk
