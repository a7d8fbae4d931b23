"""Threads that do the work of requests, so that slow requests hold up only their like."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

from agent.httpd.message import refusal
from agent.logs import get

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.httpd.message import Reply, Request

BUSY_SECONDS = 1


class Lane:
    """A few threads for requests of one kind; they are started when they are needed.

    Args:
        name: of the threads.
        threads: how many requests are worked on at once.
        waiting: how many more may wait; beyond, a request is answered with 503 at once.
    """

    def __init__(self, name: str, threads: int, waiting: int) -> None:
        self._name = name
        self._most = threads
        self._bound = threads + waiting
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[tuple[Callable[[Request, Reply], None], Request, Reply]] = (
            queue.SimpleQueue()
        )
        self._threads = 0
        self._unfinished = 0

    def put(self, work: Callable[[Request, Reply], None], request: Request, reply: Reply) -> None:
        """Have a request worked on; returns at once."""
        with self._lock:
            busy = self._unfinished >= self._bound
            if not busy:
                self._unfinished += 1
                more = self._unfinished > self._threads < self._most
                self._threads += more
        if busy:
            detail = "too many requests of this kind at once"
            reply(refusal(503, "Busy", detail, headers={"retry-after": str(BUSY_SECONDS)}))
            return
        self._jobs.put((work, request, reply))
        if more:
            # Daemon threads: a request that takes its time must not hold up the end of the process.
            threading.Thread(target=self._run, name=f"api-{self._name}", daemon=True).start()

    def _run(self) -> None:
        """Work on one request after the other."""
        while True:
            work, request, reply = self._jobs.get()
            try:
                work(request, reply)
            except Exception:  # noqa: BLE001  # a mistake of ours must not end the daemon
                get("api").exception("a request to the local API failed", path=request.raw_path)
                reply(refusal(500, "Failed", "this is a mistake of the agent's", "see the daemon's log"))
            del work, request, reply
            with self._lock:
                self._unfinished -= 1
