"""The client for Python programs: hands usage events to the agent without waiting for it.

    from agent.client import Client

    events = Client()  # one for the whole program
    events.send("ai_usage", external_customer_id="cus_1", metadata={"tokens": 77})

This file needs nothing but the standard library, and may be copied into a program that
cannot install the package. It promises:

- `send` does not wait and does not fail for anything that the agent or the machine does:
  events go to a buffer, from which one thread writes them to the agent's socket. The buffer
  is bounded; what happens when it is full is the caller's choice, and is counted.
- Each event has its `external_id` before it is written for the first time. Whatever was not
  acknowledged when a connection broke is written again with the same id, which bills nothing
  twice.
- All methods may be called by any thread. After a fork, the child has an empty buffer and a
  connection of its own; what the parent had buffered, the parent sends.
- When the interpreter ends, what is buffered is sent, for at most `exit_timeout` seconds. A
  process that is killed loses its buffer: who cannot lose an event waits for its ack (`wait`).
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import select
import socket
import sys
import threading
import time
import weakref
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Self

__all__ = ["BufferFullError", "Client", "Counts", "NotSafeError", "RefusedError", "recorded"]

_BLOCK_BYTES = 1 << 16
_ANSWER_BYTES = 1 << 16
_CONNECT_SECONDS = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_TELL_SECONDS = 60.0
_FOR_EVER = float("inf")

_log = logging.getLogger("polar_agent")


class NotSafeError(Exception):
    """The agent did not acknowledge the event in time; it is still buffered, and will be sent."""


class RefusedError(Exception):
    """The agent refused the event, as Polar would have; sending it again is of no use.

    Attributes:
        error: what the agent says: `type`, `loc`, `msg`.
    """

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(_in_words(error))
        self.error = error


class BufferFullError(Exception):
    """The buffer is full, and `when_full` is `raise`."""


class Counts(NamedTuple):
    """What became of the events that were given to one client in this process."""

    waiting: int
    safe: int
    refused: int
    dropped: int


class _Event:
    """One event on its way."""

    __slots__ = ("error", "line", "settled")

    def __init__(self, line: bytes, settled: threading.Event | None) -> None:
        self.line = line
        self.settled = settled
        self.error: Mapping[str, Any] | None = None


class _Bell:
    """Wakes a thread that waits in poll(). Not select(): it knows no descriptor above 1023."""

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)

    def ring(self) -> None:
        """Wake it; a bell that is closed makes no sound."""
        with contextlib.suppress(OSError):
            self._far.send(b"\0")

    def wait(self, seconds: float | None, sock: socket.socket | None = None, events: int = 0) -> int:
        """Wait for the bell, for `events` of a socket, or for so long; return the socket's events."""
        poll = select.poll()
        poll.register(self._near, select.POLLIN)
        if sock is not None:
            poll.register(sock, events)
        ready = dict(poll.poll(None if seconds is None else seconds * 1000))
        if self._near.fileno() in ready:
            with contextlib.suppress(OSError):
                self._near.recv(4096)
        return 0 if sock is None else ready.get(sock.fileno(), 0)

    def close(self) -> None:
        """Let go of its sockets."""
        self._near.close()
        self._far.close()


class Client:
    """Sends events to the agent on this machine.

    Args:
        path: the agent's socket; if not given, `$POLAR_AGENT_SOCKET_PATH`, else the usual places.
        buffer_events: how many events may wait.
        when_full: what `send` does when they are so many: ``drop`` the event (it is counted and
            logged), ``block`` until there is room, or ``raise`` BufferFullError.
        exit_timeout: how many seconds the end of the program may be put off.
        on_refused: called with the event's external id and the error of each refused event, in the
            client's thread; if not given, refusals are logged to the logger `polar_agent`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        buffer_events: int = 10_000,
        when_full: str = "drop",
        exit_timeout: float = 2.0,
        on_refused: Callable[[str, Mapping[str, Any]], object] | None = None,
    ) -> None:
        if when_full not in {"drop", "block", "raise"}:
            raise ValueError(f"when_full is drop, block or raise, not {when_full!r}")
        self._path = None if path is None else os.fspath(path)
        self._most = buffer_events
        self._when_full = when_full
        self._exit_timeout = exit_timeout
        self._on_refused = on_refused
        self._begin()
        _clients.add(self)

    def send(
        self,
        name: str,
        *,
        external_customer_id: str | None = None,
        customer_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        external_id: str | None = None,
        wait: float | None = None,
        **fields: Any,
    ) -> str:
        """Send one event; returns its external id.

        Args:
            name: the event's name.
            external_customer_id: whose it is, by your own id, or …
            customer_id: … by Polar's.
            metadata: what a meter counts, and more.
            external_id: what makes it unique for ever; if not given, it gets one.
            wait: wait for room and for the ack for at most so many seconds: it is on disk then.
            fields: others of Polar's, such as `timestamp`, an RFC 3339 text. Without it, the agent
                takes the time of receipt, by Polar's clock.

        Raises:
            TypeError, ValueError: it cannot be written as JSON.
            BufferFullError: with `when_full="raise"`.
            NotSafeError, RefusedError: with `wait`.
        """
        event: dict[str, Any] = {"name": name}
        if external_customer_id is not None:
            event["external_customer_id"] = external_customer_id
        if customer_id is not None:
            event["customer_id"] = customer_id
        event["external_id"] = identity = external_id or _uuid7()
        event |= fields
        if metadata is not None:
            event["metadata"] = dict(metadata)
        line = json.dumps(event, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        if _recorders:
            _recorders[-1].append(json.loads(line))
            return identity
        entry = _Event(line, threading.Event() if wait is not None else None)
        until = None if wait is None else time.monotonic() + wait
        if self._put(entry, until) and entry.settled is not None and until is not None:
            if not entry.settled.wait(max(0.0, until - time.monotonic())):
                raise NotSafeError(f"the agent did not acknowledge the event {identity} within {wait} s")
            if entry.error is not None:
                raise RefusedError(entry.error)
        return identity

    def flush(self, timeout: float = _FOR_EVER) -> bool:
        """Wait until the buffer is empty: everything safe or refused; False after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while self._events:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(None if left == _FOR_EVER else left)
        return True

    def close(self, timeout: float | None = None) -> bool:
        """Flush for at most `timeout` seconds (`exit_timeout` if not given), then end; False: some is left.

        What is left is lost with the process. An event that is sent later starts the client again.
        """
        done = self.flush(self._exit_timeout if timeout is None else timeout)
        thread = self._thread
        if thread is not None:
            self._stop.set()
            self._wake()
            thread.join(_CONNECT_SECONDS)
        if not done:
            _log.warning("events that the agent did not acknowledge are lost: %d", len(self._events))
        return done

    @property
    def counts(self) -> Counts:
        """What became of the events so far."""
        with self._changed:
            return Counts(len(self._events), self._safe, self._refused, self._dropped)

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    # -- the buffer --------------------------------------------------------------------

    def _begin(self) -> None:
        """Start with nothing: when made, and in the child of a fork, where no thread but one lives."""
        self._changed = threading.Condition()
        self._events: deque[_Event] = deque()  # not settled, oldest first
        self._safe = self._refused = self._dropped = 0
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._told: dict[str, float] = {}
        self._bell: _Bell | None = None
        # of the present connection
        self._socket: socket.socket | None = None
        self._written = 0  # how many of the events were written
        self._acked = 0
        self._rest = b""  # of what was begun to be written
        self._answer = b""  # the beginning of one

    def _put(self, event: _Event, until: float | None) -> bool:
        """Put an event into the buffer; False when it was dropped.

        Somebody who waits for its ack until a moment, monotonic, waits for room as well.
        """
        with self._changed:
            while len(self._events) >= self._most:
                if self._when_full == "raise":
                    raise BufferFullError(f"{self._most} events wait for the agent")
                if until is not None and until <= time.monotonic():
                    raise NotSafeError(f"the buffer is full ({self._most} events): the event was not taken")
                if self._when_full == "block" or until is not None:
                    self._start()
                    self._changed.wait(None if until is None else until - time.monotonic())
                    continue
                self._dropped += 1
                self._tell("dropped", "the buffer is full (%d events): events are dropped", self._most)
                return False
            self._events.append(event)
            self._start()
            idle = len(self._events) == self._written + 1
        if idle:
            self._wake()
        return True

    def _start(self) -> None:
        """Start the thread if there is none, or one that was told to end."""
        if self._thread is None or self._stop.is_set():
            self._stop, self._bell = threading.Event(), _Bell()
            self._thread = threading.Thread(
                target=self._run,
                args=(self._stop, self._bell, self._thread),
                name="polar-agent-client",
                daemon=True,
            )
            self._thread.start()
            _at_end_of_child(self)

    def _wake(self) -> None:
        if self._bell is not None:
            self._bell.ring()

    # -- the thread --------------------------------------------------------------------

    def _run(self, stop: threading.Event, bell: _Bell, before: threading.Thread | None) -> None:
        """Write events and read answers until told to stop; the thread before this one ends first."""
        if before is not None:
            before.join()
        pause = _FIRST_PAUSE
        while not stop.is_set():
            if self._socket is None and not self._connect():
                _pause(pause, stop, bell)
                pause = min(pause * 2, _LONGEST_PAUSE)
                continue
            try:
                if self._turn(bell):
                    pause = _FIRST_PAUSE
            except (OSError, ValueError, LookupError, TypeError) as error:
                self._lost(error)
                _pause(pause, stop, bell)
                pause = min(pause * 2, _LONGEST_PAUSE)
        self._disconnect()
        bell.close()

    def _turn(self, bell: _Bell) -> bool:
        """Wait for something to do and do it; True when the agent acknowledged something."""
        assert self._socket is not None  # noqa: S101 - the thread connected it
        if not self._rest:
            self._rest = self._next_lines()
        events = bell.wait(None, self._socket, select.POLLIN | (select.POLLOUT if self._rest else 0))
        if events & select.POLLOUT:
            self._rest = self._rest[self._socket.send(self._rest) :]
        return bool(events & ~select.POLLOUT) and self._read(self._socket.recv(_ANSWER_BYTES))

    def _next_lines(self) -> bytes:
        """Return what is to be written next."""
        lines, size = [], 0
        with self._changed:
            place = self._written
            while place < len(self._events) and size < _BLOCK_BYTES:
                lines.append(self._events[place].line)
                size += len(lines[-1])
                place += 1
            self._written = place
        return b"".join(lines)

    def _read(self, data: bytes) -> bool:
        """Take what the agent answers; raises OSError when the connection is at its end."""
        if not data:
            raise ConnectionResetError("the agent closed the connection")
        *answers, self._answer = (self._answer + data).split(b"\n")
        progress = False
        for answer in map(json.loads, answers):
            if not isinstance(answer, dict):
                raise TypeError("what answers is not the agent")
            if "ack" in answer:
                progress = self._settle(answer["ack"] - self._acked) or progress
            elif "line" in answer:
                place = answer["line"] - self._acked - 1
                if not 0 <= place < self._written:
                    raise ValueError("it refused what was not sent")
                self._events[place].error = answer["error"]
            else:
                error = answer.get("error", {})
                self._tell(str(error.get("type")), "the agent says: %s", _in_words(error))
        return progress

    def _settle(self, number: int) -> bool:
        """Let go of the oldest events: they are durable, or refused."""
        if not 0 <= number <= self._written:
            raise ValueError("it acknowledged what was not sent")
        with self._changed:
            settled = [self._events.popleft() for _ in range(number)]
            self._acked += number
            self._written -= number
            refused = [event for event in settled if event.error is not None]
            self._refused += len(refused)
            self._safe += number - len(refused)
            self._changed.notify_all()
        for event in settled:
            if event.settled is not None:
                event.settled.set()
        for event in refused:
            self._tell_refusal(event)
        return number > 0

    def _tell_refusal(self, event: _Event) -> None:
        error = event.error or {}
        if self._on_refused is None:
            _log.warning("the agent refused an event: %s", _in_words(error))
            return
        try:
            self._on_refused(json.loads(event.line)["external_id"], error)
        except Exception:  # noqa: BLE001 - the caller's mistake must not end the thread
            _log.exception("on_refused failed")

    def _connect(self) -> bool:
        """Try to connect; False when no agent is there."""
        path = self._path or default_path()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(_CONNECT_SECONDS)
            sock.connect(path)
        except OSError as error:
            sock.close()
            self._tell("away", "the agent cannot be reached at %s: %s; events wait", path, error)
            return False
        sock.setblocking(False)
        self._socket = sock
        return True

    def _lost(self, error: Exception) -> None:
        """The connection is of no use any more: what was not acknowledged is written again on the next."""
        self._tell("away", "the connection to the agent broke: %s; events wait", error)
        self._disconnect()

    def _disconnect(self) -> None:
        with self._changed:
            self._written = self._acked = 0
            self._rest = self._answer = b""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tell(self, what: str, message: str, *values: object) -> None:
        """Log a trouble, but not again and again."""
        now = time.monotonic()
        if now - self._told.get(what, -_FOR_EVER) >= _TELL_SECONDS:
            self._told[what] = now
            _log.warning(message, *values)

    def _forget(self) -> None:
        """In the child of a fork: leave everything to the parent."""
        if self._socket is not None:
            self._socket.close()
        if self._bell is not None:
            self._bell.close()
        self._begin()


def _pause(seconds: float, stop: threading.Event, bell: _Bell) -> None:
    """Wait for so long, unless the client is being closed."""
    until = time.monotonic() + seconds
    while not stop.is_set() and (left := until - time.monotonic()) > 0:
        bell.wait(left)


def default_path() -> str:
    """Return where the agent's socket is, or would be."""
    given = os.environ.get("POLAR_AGENT_SOCKET_PATH")
    if given:
        return given
    runtime, state = os.environ.get("XDG_RUNTIME_DIR"), os.environ.get("XDG_STATE_HOME")
    places = [Path("/run/polar-agent")]
    if runtime:
        places.append(Path(runtime) / "polar-agent")
    places.append((Path(state) if state else Path.home() / ".local/state") / "polar-agent")
    paths = [str(place / "agent.sock") for place in places]
    return next((path for path in paths if os.path.exists(path)), paths[0])  # noqa: PTH110 - never raises


@contextlib.contextmanager
def recorded() -> Iterator[list[dict[str, Any]]]:
    """For tests: within the block, events of all clients go to the list that it gives, and nowhere else."""
    events: list[dict[str, Any]] = []
    _recorders.append(events)
    try:
        yield events
    finally:
        _recorders.remove(events)


_recorders: list[list[dict[str, Any]]] = []
_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def _close_all() -> None:
    for client in list(_clients):
        if client.counts.waiting:
            client.close()


def _forget_all() -> None:
    for client in list(_clients):
        client._forget()  # noqa: SLF001 - this module's own


def _at_end_of_child(client: Client) -> None:
    """Children of `multiprocessing` end without `atexit`, but with this."""
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    if util is not None and process is not None and process.parent_process() is not None:
        util.Finalize(client, _close_all, exitpriority=10)


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)


def _in_words(error: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in error.get("loc") or ())
    return f"{error.get('type')}: {where + ': ' if where else ''}{error.get('msg')}"


def _uuid7() -> str:
    """Return a new UUID of version 7 (RFC 9562): the time, then random bits."""
    milliseconds = time.time_ns() // 1_000_000
    bits = int.from_bytes(os.urandom(10))
    value = (
        (milliseconds & (1 << 48) - 1) << 80
        | 7 << 76
        | (bits >> 62 & 0xFFF) << 64
        | 2 << 62
        | bits & (1 << 62) - 1
    )
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
