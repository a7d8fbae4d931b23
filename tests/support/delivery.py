"""A flusher that is stepped by hand, with a server that answers when the test says so.

There are no threads in it, unless a test asks for them: `ByHand` stands in for the threads
that carry requests, and a request is answered by a call.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from agent.answer import Answer, NoAnswer, Outcome
from agent.capacity import Limits
from agent.flusher import Flusher, Options
from agent.flusher.senders import Result, Senders
from agent.pace import Pace
from agent.queue import Change
from agent.queue.memory import MemoryQueue
from agent.server_clock import ServerClock
from agent.writer import Writer
from support.clock import FakeClock
from support.queues import chunk_of, pending

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from agent.batch import Batch, Body
    from agent.clock import Clock
    from agent.queue import Chunk

PATIENCE = 20.0


class Request:
    """One request that reached the server."""

    def __init__(self, body: Body) -> None:
        self.unmade = body
        """As it was handed over: its bytes are made when it is sent."""
        self.body = bytes(body)
        self._answered = threading.Event()
        self._outcome: Outcome | None = None

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """The events that it carries."""
        return json.loads(self.body)["events"]

    @cached_property
    def names(self) -> list[str]:
        """Their external ids."""
        return [event["external_id"] for event in self.events]

    def wait(self) -> Outcome:
        """Wait for the answer; the sender's thread."""
        assert self._answered.wait(PATIENCE), "the test did not answer a request"
        assert self._outcome is not None
        return self._outcome

    def answer(self, outcome: Outcome) -> None:
        """Give the answer; the test's thread."""
        self._outcome = outcome
        self._answered.set()

    @property
    def answered(self) -> bool:
        return self._answered.is_set()


class ByHand(Senders):
    """In place of the threads that carry requests: each waits until the test answers it.

    Args:
        clock: for the time that requests take.
        wake: set when a result is there.
    """

    def __init__(self, clock: Clock, wake: threading.Event) -> None:
        super().__init__(ScriptedSender, clock, wake)
        self._under_way: dict[Request, tuple[int, Batch | None, float]] = {}
        self._new: list[Request] = []
        self.requests: list[Request] = []

    def send(self, number: int, batch: Batch | None, body: Body) -> None:
        request = Request(body)
        self._under_way[request] = (number, batch, self._clock.monotonic())
        self.in_flight += 1
        self._new.append(request)
        self.requests.append(request)

    def taken(self) -> list[Request]:
        """Return the requests that were sent since the last time."""
        new, self._new = self._new, []
        return new

    def answer(self, request: Request, outcome: Outcome) -> None:
        """Have a request answered."""
        number, batch, sent_at = self._under_way.pop(request)
        self._results.append(Result(number, batch, outcome, sent_at, self._clock.monotonic()))
        self._wake.set()


class ScriptedSender:
    """Keeps each request until the test answers it; for the real threads."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.arrived = threading.Condition()
        self.closed = False

    def ingest(self, body: Body) -> Outcome:
        request = Request(body)
        with self.arrived:
            if self.closed:
                return BROKEN
            self.requests.append(request)
            self.arrived.notify_all()
        return request.wait()

    def close(self) -> None:
        """Break off what runs, as the real one does."""
        with self.arrived:
            self.closed = True
            for request in self.requests:
                if not request.answered:
                    request.answer(BROKEN)


class CountingQueue(MemoryQueue):
    """Knows how many chunks were read and are not settled yet."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[int] = []

    def get(self, key: int) -> Chunk | None:
        self.read.append(key)
        return super().get(key)

    def read_ahead(self) -> int:
        """Return how many chunks were read that are still there."""
        return len(set(self.read) & set(self._chunks))


@dataclass
class Settings:
    """What a test may choose."""

    flush_interval: float = 2.0
    max_batch_events: int = 4
    max_batch_bytes: int = 1 << 20
    max_in_flight: int = 1
    batch_ceiling: int | None = None  # the same as `max_batch_events`
    request_timeout: float = 60.0
    requests_per_minute: float = 600_000
    backoff_max: float = 60.0
    max_dead_letters: int = 100_000
    chance: Callable[[], float] = lambda: 0.5


class Desk:
    """Queue, writer and flusher in one thread, with the fake clock.

    Args:
        directory: whose free space counts.
        clock: another clock.
        threads: real threads carry the requests, to `sender`.
        choices: settings.
    """

    def __init__(
        self, directory: Path, clock: FakeClock | None = None, *, threads: bool = False, **choices: Any
    ) -> None:
        settings = Settings(**choices)
        self.clock = FakeClock() if clock is None else clock
        self.queue = CountingQueue()
        self.sender = ScriptedSender()
        self.server_clock = ServerClock(self.clock)
        self.token = "polar_oat_one"
        self.pace = Pace(settings.requests_per_minute, settings.backoff_max, settings.chance)
        limits = Limits(1 << 50, 0, directory)
        self.writer = Writer(self.queue, limits, self.clock, on_commit=self._committed, on_room=_nothing)
        self.flusher = Flusher(
            self.queue,
            self.writer,
            lambda: self.sender,
            clock=self.clock,
            server_clock=self.server_clock,
            pace=self.pace,
            options=Options(
                settings.flush_interval,
                settings.max_batch_events,
                settings.max_batch_bytes,
                settings.max_in_flight,
                settings.batch_ceiling or settings.max_batch_events,
                settings.request_timeout,
                settings.max_dead_letters,
            ),
            token=lambda: self.token,
        )
        self.requests = ByHand(self.clock, self.flusher._wake)
        self._threads = threads
        if not threads:
            self.flusher._senders = self.requests
        self._unanswered: list[Request] = []

    def _committed(self, events: int) -> None:
        if events:
            self.flusher.notify(events)

    def close(self) -> None:
        """End all threads."""
        if self._threads:
            self.sender.close()
            if self.writer.alive:
                self.writer.stop()
            self.flusher.stop()

    # -- the queue -----------------------------------------------------------------------

    def put(self, *names: object, due: float = 0.0, filler: int = 0, age: float = 0.0) -> int:
        """Put one chunk of events into the queue; return its key."""
        return self.add(chunk_of(*names, arrived=self.clock.wall() - age, due=due, filler=filler))

    def add(self, *chunks: Chunk) -> int:
        """Put chunks into the queue; return the key of the last one."""
        change = Change(appends=list(chunks))
        keys = self.queue.commit(change)
        self._committed(sum(chunk.count for chunk in chunks))
        return keys[-1]

    @property
    def pending(self) -> list[str]:
        """The external ids of what the queue holds; the books must agree."""
        names = pending(self.queue)
        assert self.queue.books().pending == len(names)
        return names

    @property
    def dead(self) -> list[str]:
        """The external ids of the dead letters."""
        return [letter.external_id for letter in self.queue.dead_letters()]

    # -- one step at a time --------------------------------------------------------------

    def step(self) -> float | None:
        """Let the flusher do what it can, and the writer write it."""
        wait = self.flusher.step()
        self.writer.step()
        return wait

    def sent(self) -> list[Request]:
        """Step; return the requests that this brought, in the order of their events."""
        self.step()
        return self.taken()

    def taken(self) -> list[Request]:
        """Return the requests that were sent since the last time."""
        return sorted(self.requests.taken(), key=lambda request: _place(request.names))

    def request(self) -> Request:
        """Step; return the one request that this brought."""
        (request,) = self.sent()
        return request

    def answer(self, request: Request, outcome: Outcome) -> None:
        """Answer a request; the flusher acts on it in its next step."""
        self.requests.answer(request, outcome)

    # -- many steps ----------------------------------------------------------------------

    def run(
        self,
        server: Callable[[Request], Outcome],
        *,
        seconds: float = 86_400.0,
        until: Callable[[], bool] | None = None,
        requests: int = 100_000,
    ) -> list[Request]:
        """Let a server answer everything at once, and time pass, until the queue is empty.

        Args:
            server: gives the answers.
            seconds: ends after so much time of the fake clock, too.
            until: ends when this is true, instead of when the queue is empty.
            requests: how many may be made at most.

        Returns:
            The requests that were made.
        """
        made: list[Request] = []
        end = self.clock.monotonic() + seconds
        while True:
            wait = self.step()
            self._unanswered += self.taken()
            if until is not None and until():
                return made
            if self._unanswered:
                now, self._unanswered = self._unanswered, []
                for request in now:
                    self.answer(request, server(request))
                made += now
                assert len(made) <= requests, "too many requests"
                continue
            if until is None and not self.queue.books().pending:
                return made
            left = end - self.clock.monotonic()
            if left <= 0:
                return made
            assert wait is not None, "it would sleep for ever"
            self.clock.advance(min(max(wait, 0.001), left))


@dataclass
class Polar:
    """A server that stores what it is sent, but for what the test says.

    Attributes:
        poison: events that break it, by external id.
        status: what it answers to a batch with one of these in it.
        outage: what it answers to everything, while set.
    """

    poison: Collection[str] = ()
    status: int = 500
    outage: Outcome | None = None
    stored: list[str] = field(default_factory=list)

    def __call__(self, request: Request) -> Outcome:
        if self.outage is not None:
            return self.outage
        if not set(self.poison).isdisjoint(request.names):
            return Answer(self.status, b"Internal Server Error")
        new = [name for name in request.names if name not in self.stored]
        self.stored += new
        return ok(len(new), len(request.names) - len(new))


BROKEN = NoAnswer("broken", "the connection broke")


def ok(inserted: int, duplicates: int = 0) -> Answer:
    """Return the answer to a batch that the server took."""
    return Answer(200, json.dumps({"inserted": inserted, "duplicates": duplicates}).encode())


def named(*places: int, message: str = "Input should be a valid string") -> Answer:
    """Return the answer that names events of a batch, as Polar does: with both branches and the input."""
    detail = [
        {
            "type": "string_type",
            "loc": ["body", "events", place, "EventCreateExternalCustomer", "name"],
            "msg": message,
            "input": {"secret": "of the customer"},
        }
        for place in places
    ]
    return Answer(422, json.dumps({"error": "RequestValidationError", "detail": detail}).encode())


def too_early(*places: int) -> Answer:
    """Return the answer to events whose timestamps are ahead of the server's clock."""
    detail = [
        {
            "type": "value_error",
            "loc": ["body", "events", place, branch, "timestamp"],
            "msg": "Value error, Timestamp must be in the past.",
        }
        for place in places
        for branch in ("EventCreateCustomer", "EventCreateExternalCustomer")
    ]
    return Answer(422, json.dumps({"error": "RequestValidationError", "detail": detail}).encode())


def _place(names: Sequence[str]) -> tuple[int, str]:
    first = names[0] if names else "~"
    return (int(first), "") if first.isdigit() else (1 << 60, first)


def _nothing() -> None:
    pass
