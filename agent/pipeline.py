"""Queue, writer and flusher, wired: what both the daemon and a lone `agent flush` run."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.capacity import Limits
from agent.chunk import DamagedChunkError, NewerChunkError
from agent.errors import QueueError
from agent.event import Checker
from agent.flusher import Flusher, Options
from agent.guard import Guard
from agent.lock import QueueLock
from agent.meters import Meters
from agent.pace import Pace
from agent.queue import Change
from agent.queue.destination import refuse_other_token
from agent.queue.directory import prepare_directory
from agent.queue.disk import DiskQueue
from agent.seen import Seen, identity_of
from agent.server_clock import ServerClock
from agent.token import TokenSource
from agent.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from agent.chunk import Chunk
    from agent.clock import Clock
    from agent.polar import PolarClient
    from agent.queue import DeadLetter
    from agent.settings import Settings

_LOOK_SECONDS = 0.2
_MOST_RECALLED = 1000
"""Rows: of small ones, so many are looked at in some 20 ms."""


@dataclass(frozen=True, slots=True)
class Drained:
    """How a flush ended.

    Attributes:
        remaining: events that are still pending.
        reason: why they are; None when none is.
    """

    remaining: int
    reason: str | None


class Pipeline:
    """Everything behind the collector, for one queue directory.

    Args:
        settings: all of them.
        clock: for time and waiting.
        on_room: called when the queue becomes full, or has room again.
        on_damage: called with what is wrong when damage is found that is not to be mended.

    Raises:
        AgentError: the queue cannot be used, and why.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        on_room: Callable[[], None] = lambda: None,
        on_damage: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self.clock = clock
        self._changed = threading.Event()
        self._client: PolarClient | None = None
        self.meters = Meters()
        self._client_lock = threading.Lock()
        prepare_directory(settings.queue_dir)
        self._lock = QueueLock(settings.queue_dir)
        self.token = TokenSource.from_settings(settings)
        try:
            self.queue = DiskQueue(
                settings.queue_dir,
                server=settings.server_url,
                rescue=settings.when_damaged == "rescue",
                on_damage=on_damage,
            )
            try:
                self._refuse_other_token()
            except BaseException:
                self.queue.close()
                raise
        except BaseException:
            self._lock.release()
            raise
        self.server_clock = ServerClock(clock)
        self.checker = Checker(
            settings.future_tolerance,
            personal_token=self.token.kind == "personal",
            max_line_bytes=settings.max_line_bytes,
            lead=lambda: self.server_clock.lead,
        )
        self._first_key = self.queue.books().next_key  # what is before it is from before the start
        self.seen = Seen(recall=self._left)
        self._pace = Pace(settings.requests_per_minute, settings.backoff_max)
        self.writer = Writer(
            self.queue,
            _limits(settings),
            clock,
            on_commit=self._committed,
            on_room=on_room,
            on_append=self._appended,
            meters=self.meters,
            on_buried=self._buried,
        )
        self.flusher = Flusher(
            self.queue,
            self.writer,
            self._sender,
            clock=clock,
            server_clock=self.server_clock,
            pace=self._pace,
            options=_options(settings),
            token=self.token.current,
            meters=self.meters,
        )

    def _refuse_other_token(self) -> None:
        """See that what is pending can be sent with the token, if there is one; raises UsageError."""
        if self.token.current():
            refuse_other_token(
                self._settings.queue_dir, self._oldest(), personal=self.token.kind == "personal"
            )

    def configure(self, settings: Settings) -> None:
        """Go by other settings from now on, those of `agent.reload.RELOADABLE` that concern us."""
        self.token.become(TokenSource.from_settings(settings))
        self._pace.requests_per_minute = settings.requests_per_minute
        self._pace.backoff_max = settings.backoff_max
        self.writer.configure(_limits(settings))
        self.flusher.configure(_options(settings))

    @property
    def server_url(self) -> str:
        """The address of the server that the queue's events go to."""
        return self._settings.server_url

    def start(self) -> None:
        """Start the threads."""
        self.writer.start()
        self.flusher.start()

    def stop(self) -> None:
        """End the threads that run and let go of the queue; what is not delivered stays in it."""
        if self.flusher.alive:
            self.flusher.stop()
        if self.writer.alive:
            self.writer.stop()
        self.queue.close()
        self._lock.release()

    def drain(self, seconds: float, give_up: Callable[[], bool] = lambda: False) -> Drained:
        """Deliver what is pending, for at most `seconds`; ends early when only an operator can help.

        What stood in the way until now is tried once more before it is believed.

        Args:
            seconds: how long at most.
            give_up: asked now and then; True ends it.
        """
        deadline = self.clock.monotonic() + seconds
        last_success = self.flusher.delivery.last_success
        demand = self.flusher.hurry()
        try:
            while True:
                self._changed.clear()
                pending = self.queue.books().pending
                delivery = self.flusher.delivery
                left = deadline - self.clock.monotonic()
                if not pending:
                    return Drained(0, None)
                if give_up():
                    return Drained(pending, "the agent is stopping")
                if left <= 0 or (delivery.state == "blocked" and delivery.tried >= demand):
                    return Drained(pending, self._why(pending, last_success))
                self.clock.wait(self._changed, min(left, _LOOK_SECONDS))
        finally:
            self.flusher.relax()

    def _why(self, pending: int, last_success: float | None) -> str:
        """Say why events are still pending; with the last success before they were to be delivered."""
        delivery = self.flusher.delivery
        if delivery.last_error is not None:
            return delivery.last_error
        if delivery.held and delivery.state == "idle":
            if pending == 1:
                return "1 event waits until its own timestamp has passed"
            return f"{pending} events wait until their own timestamps have passed"
        if delivery.state == "sending" and delivery.last_success == last_success:
            return "the server has not answered yet"
        return "there was not enough time"

    def oldest_age(self) -> float | None:
        """Return how long the oldest pending event has waited, seconds; None when none does."""
        oldest = self._oldest()
        if oldest is None:
            return None
        return max(0.0, self.clock.wall() - oldest.arrived_ms / 1000)

    def _oldest(self) -> Chunk | None:
        """Return the oldest pending events; None when there are none, or they cannot be read now."""
        try:
            return self.queue.get(self.queue.first_key())
        except (QueueError, DamagedChunkError, NewerChunkError):
            return None

    def _left(self) -> Iterator[bytes]:
        """Yield events that a run before left in the queue, the newest first, as far as it is quick."""
        try:
            first = max(self.queue.first_key(), self._first_key - _MOST_RECALLED)
            for key in range(self._first_key - 1, first - 1, -1):
                chunk = self.queue.get(key)
                if chunk is not None:
                    yield chunk.lines
        except (QueueError, DamagedChunkError, NewerChunkError):
            return  # who delivers tells of it

    def _committed(self, events: int) -> None:
        """Tell those who wait for a commit; runs in the writer's thread."""
        if events:
            self.flusher.notify(events)
        self._changed.set()

    def _appended(self, keys: Sequence[int], chunks: Sequence[Chunk]) -> None:
        """Hand new chunks on, so that they need not be read; runs in the writer's thread."""
        self.flusher.offer(keys, chunks)

    def _buried(self, letters: Sequence[DeadLetter]) -> None:
        """Let events come again that Polar does not have; runs in the writer's thread."""
        self.seen.forget(identity_of(letter.event.encode()) for letter in letters)

    def _sender(self) -> Guard:
        """Return the way to Polar for the queue's events."""
        return Guard(
            self.client(),
            known=lambda: self.queue.organization,
            remember=lambda organization: self.writer.apply(Change(organization=organization)),
            token=self.token.current,
            clock=self.clock,
            checks_personal=self.checker.personal_token,
        )

    def client(self) -> PolarClient:
        """Return the way to Polar; the first call brings the HTTP library in."""
        with self._client_lock:
            if self._client is None:
                from agent.polar import PolarClient  # noqa: PLC0415  # see above

                self._client = PolarClient(
                    self._settings.server_url,
                    self.token.current,
                    timeout=self._settings.request_timeout,
                    problem=lambda: self.token.problem,
                )
            return self._client


def _limits(settings: Settings) -> Limits:
    """Return what concerns the writer."""
    return Limits(
        settings.queue_max_bytes,
        settings.disk_reserve_bytes,
        settings.queue_dir,
        settings.when_full,
        small_disk="disk_reserve_bytes" not in settings.sources,
    )


def _options(settings: Settings) -> Options:
    """Return what concerns the flusher."""
    return Options(
        settings.flush_interval,
        settings.max_batch_events,
        settings.max_batch_bytes,
        settings.max_in_flight,
        settings.batch_ceiling,
        settings.request_timeout,
        settings.max_dead_letters,
    )
