"""The threads that carry one request each, started when they are needed.

They decide nothing: a batch goes in, and comes back with what became of it, whatever
that was.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from agent.answer import NoAnswer, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.batch import Batch, Body
    from agent.clock import Clock


class Sender(Protocol):
    """What the flusher needs of Polar."""

    def ingest(self, body: Body) -> Outcome:
        """Send one request and return what came back; never raises for what networks do."""
        ...

    def close(self) -> None:
        """End running requests and let go."""
        ...


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one request.

    Attributes:
        number: its number, in order of sending.
        batch: what it carried; None for an empty batch, sent to see whether the server is up.
        outcome: what came back.
        sent_at: when it went out, monotonic seconds.
        answered_at: when its outcome was there.
    """

    number: int
    batch: Batch | None
    outcome: Outcome
    sent_at: float
    answered_at: float


class Senders:
    """All sender threads; used by the flusher's thread alone.

    Args:
        connect: makes the sender; called once, before the first request.
        clock: for the time that requests take.
        wake: set when a result is there.
    """

    def __init__(self, connect: Callable[[], Sender], clock: Clock, wake: threading.Event) -> None:
        self._connect = connect
        self._clock = clock
        self._wake = wake
        self._sender: Sender | None = None
        self._jobs: queue.SimpleQueue[tuple[int, Batch | None, Body] | None] = queue.SimpleQueue()
        self._results: deque[Result] = deque()
        self._threads: list[threading.Thread] = []
        self.in_flight = 0

    def send(self, number: int, batch: Batch | None, body: Body) -> None:
        """Hand a request to a thread that is free."""
        self.in_flight += 1
        if self.in_flight > len(self._threads):
            self._add_thread()
        self._jobs.put((number, batch, body))

    def results(self) -> Iterator[Result]:
        """Yield the results that are there."""
        while self._results:
            self.in_flight -= 1
            yield self._results.popleft()

    def close(self) -> None:
        """Break off running requests and end the threads; the results can be taken afterwards."""
        if self._sender is not None:
            self._sender.close()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _add_thread(self) -> None:
        """Start one more thread; the first one brings the HTTP library in."""
        if self._sender is None:
            self._sender = self._connect()
        thread = threading.Thread(
            target=self._serve, args=(self._sender,), name=f"sender-{len(self._threads)}"
        )
        thread.start()
        self._threads.append(thread)

    def _serve(self, sender: Sender) -> None:
        """Send one request after the other."""
        while True:
            job = self._jobs.get()
            if job is None:
                return
            number, batch, body = job
            sent_at = self._clock.monotonic()
            try:
                outcome = sender.ingest(body)
            except Exception as error:  # noqa: BLE001  # whatever it was, the batch must come back
                outcome = NoAnswer("broken", f"{type(error).__name__} in the HTTP client")
            del body, job
            self._results.append(Result(number, batch, outcome, sent_at, self._clock.monotonic()))
            self._wake.set()
