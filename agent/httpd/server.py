"""The server's one thread: takes connections, reads requests, writes responses.

Everything is bounded: connections, the bytes of a head, the bytes of all bodies together
(a request is let in when its announced length fits, so that those who were let in can
always finish), and the time for each stage. What takes time is done elsewhere: `App.handle`
returns at once, and the response may come from any thread.

When there are too many connections, the one that has kept us waiting longest goes. Small bodies
are let in before large ones, and while others wait for room, a body must come at a fair rate: so
whoever announces much and sends little keeps nobody out for long.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import selectors
import socket
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from agent.httpd.connection import Connection, State
from agent.httpd.message import Response, refusal
from agent.logs import get

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.clock import Clock
    from agent.collector.peers import Peer
    from agent.httpd.message import Reply, Request, Via

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_WAITING_FOR_CLIENT = (State.IDLE, State.HEAD, State.WAITING, State.BODY, State.LEAVING)
_ACCEPT_AT_ONCE = 64
_FAIR_RATE = 1 << 20  # bytes a second of a body, while others wait for its room
_BREATH_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much of everything, and how long (seconds).

    `stall` is what a body may take beyond its fair time while others wait for its room; a
    connection that is younger than `fresh` makes room for others last.
    """

    connections: int = 512
    body_bytes: int = 64 << 20
    idle: float = 75.0
    head: float = 10.0
    body: float = 30.0
    stall: float = 2.0
    write: float = 30.0
    fresh: float = 1.0
    leave: float = 2.0
    stop: float = 2.0


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket, not blocking.

    Attributes:
        sock: the socket.
        via: its kind.
        identify: tells who connected.
    """

    sock: socket.socket
    via: Via
    identify: Callable[[socket.socket], Peer | None] = lambda _: None


class App(Protocol):
    """What is served."""

    def admit(self, request: Request) -> Response | int:
        """Look at a head: return a refusal, or the longest body that the request may have."""
        ...

    def handle(self, request: Request, reply: Reply) -> None:
        """See that a request is answered; must not block."""
        ...


class Server:
    """Serves one app on several sockets.

    Args:
        listeners: the sockets; closing them is their owner's.
        app: what is served.
        clock: for deadlines.
        bounds: how much, and how long.
    """

    def __init__(
        self, listeners: Sequence[Listener], app: App, clock: Clock, bounds: Bounds | None = None
    ) -> None:
        self._listeners = listeners
        self._app = app
        self._clock = clock
        self._bounds = bounds or Bounds()
        self._log = get("api")
        self._selector = selectors.DefaultSelector()
        self._connections: set[Connection] = set()
        self._waiting: list[tuple[int, int, Connection]] = []  # a heap: bytes, order of arrival
        self._turns = itertools.count()
        self._ready: deque[Connection] = deque()  # to be gone on with, of what they have sent already
        self._reserved = 0
        self._replies: deque[tuple[Connection, Request, Response]] = deque()
        self._sweep_at = float("inf")
        self._listening = False
        self._listen_at = float("inf")
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, _READ)
        self._listen(True)
        self.beat = clock.monotonic()
        self._thread = threading.Thread(target=self._run, name="api", daemon=True)

    # -- from other threads ----------------------------------------------------------------

    def start(self) -> None:
        """Start serving."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more requests; let those that are worked on end, for a moment."""
        self._stopping = True
        self.poke()
        self._thread.join(self._bounds.stop + _BREATH_SECONDS)

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    def poke(self) -> None:
        """Make the thread look around."""
        with contextlib.suppress(BlockingIOError):  # then it is about to wake anyway
            os.write(self._wake_write, b"\0")

    # -- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        """Serve until told to stop; then give running requests a moment."""
        while not self._stopping:
            self.step()
        self._listen(False)
        until = self._clock.monotonic() + self._bounds.stop
        for connection in list(self._connections):
            if connection.state not in (State.WORKING, State.WRITING):
                self._drop(connection)
        while self._connections and self._clock.monotonic() < until:
            self.step(until)
        for connection in list(self._connections):
            self._drop(connection)
        self._selector.close()

    def step(self, until: float = float("inf")) -> None:
        """Wait until something happens, at the longest `until` (monotonic), and deal with it."""
        wake_at = min(until, self._sweep_at, self._listen_at)
        now = self._clock.monotonic()
        ready = self._selector.select(None if wake_at == float("inf") else max(0.0, wake_at - now))
        self.beat = now = self._clock.monotonic()
        for key, events in ready:
            if key.fd == self._wake_read:
                self._woken()
            elif isinstance(key.data, Listener):
                self._accept(key.data)
            elif key.data.state is not State.CLOSED:
                self._serve(key.data, events)
        if now >= self._listen_at:
            self._listen(True)
        if now >= self._sweep_at:
            self._sweep(now)
        while self._ready:
            connection = self._ready.popleft()
            if connection.state is not State.CLOSED:
                self._go_on(connection)

    def _woken(self) -> None:
        """Write the responses that other threads made."""
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._wake_read, 4096)) == 4096:
                pass
        while self._replies:
            connection, request, response = self._replies.popleft()
            # A second answer to the same request, or one for a client that is gone, is none.
            if connection.state is State.WORKING and connection.request is request:
                self._answer(connection, response)

    # -- connections -------------------------------------------------------------------------

    def _listen(self, wanted: bool) -> None:
        """Take new connections, or leave them in the kernel's queue."""
        if wanted is not self._listening:
            for listener in self._listeners:
                if wanted:
                    self._selector.register(listener.sock, _READ, listener)
                else:
                    self._selector.unregister(listener.sock)
        self._listening = wanted
        self._listen_at = float("inf")

    def _accept(self, listener: Listener) -> None:
        """Take the connections that wait."""
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                sock, _ = listener.sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._log.error("cannot take a call on the local API", reason=error.strerror)
                self._listen(False)
                self._listen_at = self._clock.monotonic() + _BREATH_SECONDS
                return
            sock.setblocking(False)
            if listener.via == "tcp":
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(sock, listener.via, listener.identify(sock))
            if len(self._connections) >= self._bounds.connections and not self._make_room():
                self._listen(False)  # until one of those that are worked on ends
            self._connections.add(connection)
            self._selector.register(sock, _READ, connection)
            self._give(connection, self._bounds.idle)
            if not self._listening:
                return

    def _make_room(self) -> bool:
        """Close the connection that has kept us waiting longest; False when none does."""
        idle = [one for one in self._connections if one.state in _WAITING_FOR_CLIENT]
        if not idle:
            return False
        fresh = self._clock.monotonic() - self._bounds.fresh
        # What has come just now may bring its request in a moment; an old one that asks nothing goes first.
        self._drop(min(idle, key=lambda one: (one.since > fresh, one.state is not State.IDLE, one.since)))
        return True

    def _give(self, connection: Connection, seconds: float) -> None:
        """Set a connection's deadline."""
        connection.since = self._clock.monotonic()
        connection.deadline = connection.since + seconds
        self._sweep_at = min(self._sweep_at, connection.deadline)

    def _sweep(self, now: float) -> None:
        """Deal with the connections whose time is over."""
        for connection in list(self._connections):
            if connection.deadline > now:
                continue
            if connection.state in (State.HEAD, State.BODY):
                self._answer(connection, refusal(408, "RequestTimeout", "the request took too long to come"))
            elif connection.state is State.WAITING:
                self._answer(
                    connection,
                    refusal(503, "Busy", "too many large requests at once", headers={"retry-after": "1"}),
                )
            else:
                self._drop(connection)
        self._waiting = [one for one in self._waiting if one[2].state is State.WAITING]
        heapq.heapify(self._waiting)
        self._sweep_at = min((one.deadline for one in self._connections), default=float("inf"))

    def _drop(self, connection: Connection) -> None:
        """Close a connection and forget it."""
        if connection not in self._connections:
            return
        self._watch(connection, 0)
        self._release(connection)
        connection.close()
        connection.sock.close()
        self._connections.discard(connection)
        if not self._stopping and len(self._connections) < self._bounds.connections:
            self._listen(True)

    def _watch(self, connection: Connection, events: int) -> None:
        """Wait for these events of a connection, or for none."""
        registered = connection.sock in self._selector.get_map()
        if events and registered:
            self._selector.modify(connection.sock, events, connection)
        elif events:
            self._selector.register(connection.sock, events, connection)
        elif registered:
            self._selector.unregister(connection.sock)

    # -- requests ----------------------------------------------------------------------------

    def _serve(self, connection: Connection, events: int) -> None:
        """Read from or write to a connection."""
        if connection.state is State.LEAVING:
            connection.leave()
        elif events & _WRITE:
            self._write(connection)
        elif connection.receive():
            self._go_on(connection)
        else:
            connection.close()
        if connection.state is State.CLOSED:
            self._drop(connection)

    def _go_on(self, connection: Connection) -> None:
        """Deal with what was read."""
        before = connection.state
        got = connection.next()
        if isinstance(got, Response):
            self._answer(connection, got)
        elif got is None:
            if before is State.IDLE and connection.state is State.HEAD:
                self._give(connection, self._bounds.head)
            elif connection.state is State.CLOSED:
                self._drop(connection)
        elif before is State.BODY:
            self._work(connection, got)
        else:
            self._admit(connection, got)

    def _admit(self, connection: Connection, request: Request) -> None:
        """A head is there: let its body in, or refuse it."""
        most = self._app.admit(request)
        if isinstance(most, Response):
            self._answer(connection, most)
            return
        length = _length(request)
        if length is None:
            detail = "The header Content-Length is required."
            self._answer(connection, refusal(411, "LengthRequired", detail))
        elif length > most:
            detail = f"Request body exceeded the maximum allowed size of {most} bytes."
            self._answer(connection, refusal(413, "RequestBodyTooLarge", detail))
        else:
            connection.wanted = length
            connection.state = State.WAITING
            self._give(connection, self._bounds.body)
            heapq.heappush(self._waiting, (length, next(self._turns), connection))
            self._watch(connection, 0)
            self._let_in()

    def _let_in(self) -> None:
        """Let bodies in, the smallest first, as far as there is room for them."""
        while self._waiting:
            connection = self._waiting[0][2]
            if connection.state is State.WAITING:
                if self._reserved and self._reserved + connection.wanted > self._bounds.body_bytes:
                    self._hurry()
                    return
                connection.reserved = connection.wanted
                self._reserved += connection.reserved
                connection.state = State.BODY
                self._give(connection, self._bounds.body)
                self._watch(connection, _READ)
                self._ready.append(connection)
            heapq.heappop(self._waiting)

    def _hurry(self) -> None:
        """Others wait: give the bodies that were let in no more than their fair time."""
        for connection in self._connections:
            if connection.state is State.BODY:
                fair = self._bounds.stall + connection.wanted / _FAIR_RATE
                connection.deadline = min(connection.deadline, connection.since + fair)
                self._sweep_at = min(self._sweep_at, connection.deadline)

    def _release(self, connection: Connection) -> None:
        """Give the room of a body back."""
        if connection.reserved:
            self._reserved -= connection.reserved
            connection.reserved = 0
            self._let_in()

    def _work(self, connection: Connection, request: Request) -> None:
        """A request is whole: have it answered."""
        connection.state = State.WORKING
        connection.deadline = float("inf")
        self._watch(connection, 0)
        self._app.handle(request, lambda response: self._reply(connection, request, response))

    def _reply(self, connection: Connection, request: Request, response: Response) -> None:
        """Take a response; from any thread."""
        self._replies.append((connection, request, response))
        self.poke()

    # -- responses ---------------------------------------------------------------------------

    def _answer(self, connection: Connection, response: Response) -> None:
        """Write a response."""
        self._release(connection)
        self._watch(connection, 0)
        connection.answer(response)
        self._give(connection, self._bounds.write)
        self._write(connection)

    def _write(self, connection: Connection) -> None:
        """Write on; when all is out, turn to the next request."""
        if connection.state is State.WRITING:
            if not connection.write():
                if connection.state is State.WRITING:
                    self._watch(connection, _WRITE)
                    return
            else:
                connection.again()
        if connection.state is State.CLOSED or self._stopping:
            self._drop(connection)
            return
        self._watch(connection, _READ)
        if connection.state is State.LEAVING:
            self._give(connection, self._bounds.leave)
        else:
            self._give(connection, self._bounds.idle)
            self._ready.append(connection)  # the client may have sent the next one ahead


def _length(request: Request) -> int | None:
    """Return the length of a request's body; None when it should have told it and did not."""
    length = request.headers.get("content-length")
    if length is not None:
        return int(length)  # h11 has looked at it
    if "transfer-encoding" in request.headers or request.method in ("POST", "PUT", "PATCH"):
        return None
    return 0
