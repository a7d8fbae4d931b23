"""The collector: takes events from producers on a Unix stream socket.

One thread waits for all connections at once, reads what is there, gathers the lines
of all that were ready, and checks them in one call. What is accepted goes to the
writer; the writer's thread answers the producers once it is durable (`Connection`).

A producer that writes little and often without waiting for its acks would wake this
thread for each event. So after a small read such a connection rests for some
milliseconds, and the next read finds more; one that waits for its acks never rests. All
that rest are read together, so that their lines are checked in one call.

Everything is bounded. A bad line costs twenty times what a good one does: a producer that writes
little else is careless, and of all such only one is read at a time, and little of it, so that the
others need not wait. What is kept of lines that have no end yet has a bound for all connections
together: beyond, the one that waits longest for its end goes. So have the answers that wait.

The protocol: one JSON object a line; `{"ack":N}` once the first N non-blank lines of
the connection are settled with us; `{"line":N,"error":{…}}` for each refused one, sent
before the ack that covers it; the same without `line` when the queue is full and the
producer has to wait.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import threading
from collections import deque
from operator import attrgetter
from typing import TYPE_CHECKING

from agent import refusal
from agent.collector.connection import READ_BYTES, Connection
from agent.collector.entrance import BREATH_SECONDS, Entrance
from agent.collector.taking import Gathered, Taking
from agent.meters import Meters

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.clock import Clock
    from agent.collector.peers import AllowList, Door
    from agent.collector.sockets import BoundSocket
    from agent.event import Checker
    from agent.framing import Segment
    from agent.seen import Seen
    from agent.writer import Writer

_GATHER_BYTES = 256 * 1024
_REST_SECONDS = 0.04
_REST_BELOW_BYTES = 16 * 1024
_STREAMING_READS = 8
_HELD_BYTES = 64 << 20  # of lines that have no end yet, of all connections
_DRAIN_BYTES = 1 << 20  # what the kernel may hold for a connection, and some more
_DRAIN_SECONDS = 2.0
_since, _careless = attrgetter("since"), attrgetter("careless")
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Collector:
    """Serves one listening socket.

    Args:
        bound: the socket.
        checker: what is taken and what is refused.
        seen: what came lately.
        writer: where accepted lines go.
        clock: for waiting.
        server_now: Unix time in seconds by the server's clock.
        max_line_bytes: the longest line that is taken.
        max_connections: how many are served at once; more wait in the kernel's queue.
        allowed: who may connect.
        meters: where refusals are noted.
    """

    def __init__(
        self,
        bound: BoundSocket,
        checker: Checker,
        seen: Seen,
        writer: Writer,
        clock: Clock,
        *,
        server_now: Callable[[], float],
        max_line_bytes: int,
        max_connections: int,
        allowed: AllowList,
        meters: Meters | None = None,
    ) -> None:
        self._writer = writer
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._entrance = Entrance(
            bound,
            self._selector,
            max_line_bytes=max_line_bytes,
            max_connections=max_connections,
            allowed=allowed,
        )
        self._connections = self._entrance.connections
        self._taking = Taking(
            checker, seen, writer, meters or Meters(), clock, server_now=server_now, wake=self._answered
        )
        self._buffer = bytearray(READ_BYTES)
        self._resting: list[Connection] = []
        self._careless: deque[Connection] = deque()  # each waits for its turn
        self._held = 0  # bytes of lines that have no end yet
        self._rest_until = 0.0
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._stopping = False
        self.beat = clock.monotonic()
        self._thread = threading.Thread(target=self._run, name="collector")
        self._selector.register(self._wake_read, _READ)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop listening and hand what was received to the writer; connections stay open for answers."""
        self._stopping = True
        self.wake()
        self._thread.join()

    def configure(self, *, max_connections: int) -> None:
        """Go by other settings from now on; from any thread."""
        self._entrance.configure(max_connections=max_connections)
        self.wake()

    def close(self) -> None:
        """Close all connections; call it when the writer has stopped."""
        for connection in list(self._connections.values()):
            connection.flush()
            connection.close()
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    @property
    def door(self) -> Door:
        """Who was refused."""
        return self._entrance.door

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    @property
    def connections(self) -> int:
        """How many producers are connected."""
        return len(self._connections)

    def poke(self) -> None:
        """Make the thread move, though there may be nothing to do."""
        self.wake()

    def wake(self) -> None:
        """Make the thread look around; from any thread."""
        with contextlib.suppress(BlockingIOError):  # then it is about to wake anyway
            os.write(self._wake_write, b"\0")

    def _run(self) -> None:
        """Serve until told to stop; then read what has arrived, and end."""
        while not self._stopping:
            self.step(None)
        self._entrance.close()
        until = self._clock.monotonic() + _DRAIN_SECONDS
        # Bad lines cost most, and nobody waits for them: they must not make a stop take long.
        for connection in sorted(self._connections.values(), key=_careless):
            self._drain(connection, until)

    def step(self, seconds: float | None) -> None:
        """Wait until something happens (at most `seconds`), and deal with it."""
        gathered = Gathered([], [])
        ready = self._selector.select(self._at_most(seconds))
        self.beat = self._clock.monotonic()
        if self._resting and self._rest_until <= self.beat:
            gathered = self._read_rested(gathered)
        for key, events in ready:
            if key.fd == self._wake_read:
                self._woken()
            elif key.data is None:
                self._entrance.accept(self.beat)
            elif not key.data.closed:
                gathered = self._serve(key.data, events, gathered)
        if gathered.segments:
            self._submit(gathered)
        if self._careless:
            self._serve_careless()
        while not self._stopping and not self._writer.wait_for_room(1.0):
            if self._writer.full:
                break

    def _at_most(self, seconds: float | None) -> float | None:
        """Return how long to wait at most, if not longer than `seconds`."""
        if self._careless:
            return 0.0
        if (again_at := self._entrance.again_at) is not None:
            seconds = BREATH_SECONDS if seconds is None else min(seconds, BREATH_SECONDS)
            if again_at <= self.beat:
                self._entrance.listen(True)
        if self._resting:
            left = max(0.0, self._rest_until - self._clock.monotonic())
            seconds = left if seconds is None else min(seconds, left)
        return seconds

    def _serve(self, connection: Connection, events: int, gathered: Gathered) -> Gathered:
        """Write to and read from a connection; return what is gathered so far."""
        if events & _WRITE and connection.flush():
            self._after_write(connection)
        if not events & _READ or connection.closed:
            return gathered
        if connection.careless:
            connection.resting = True
            self._watch(connection)
            self._careless.append(connection)
            return gathered
        return self._read(connection, gathered)

    def _serve_careless(self) -> None:
        """Read from the careless connection whose turn it is, by itself."""
        connection = self._careless.popleft()
        if connection.closed:
            return
        connection.resting = False
        gathered = self._read(connection, Gathered([], []))
        if gathered.segments:
            self._submit(gathered)
        if not connection.closed:
            self._watch(connection)

    def _read(self, connection: Connection, gathered: Gathered) -> Gathered:
        """Read once from a connection; return what is gathered so far."""
        self._readable(connection, gathered)
        if gathered.size >= _GATHER_BYTES and gathered.segments:
            self._submit(gathered)
            return Gathered([], [])
        return gathered

    # -- connections -----------------------------------------------------------------

    def _readable(self, connection: Connection, gathered: Gathered) -> None:
        """Read once from a connection."""
        if self._writer.full and not self._writer.drops:
            self._pause(connection)
            return
        received = None if connection.no_more else self._receive(connection)
        if received is None:
            return
        segments, size = received
        for segment in segments:
            gathered.segments.append(segment)
            gathered.owners.append(connection)
        gathered.size += size
        if self._is_streaming(connection):
            if size < _REST_BELOW_BYTES and not connection.no_more and not connection.careless:
                self._rest(connection)
        elif segments:
            gathered.patient = False
        if connection.no_more:
            gathered.patient = False
            self._watch(connection)
            if not segments:
                if not connection.lines:
                    connection.tell(b'{"ack":0}\n')
                self._finish(connection)

    def _receive(self, connection: Connection) -> tuple[list[Segment], int] | None:
        """Read once; return the segments and how many bytes there are to check. None when nothing came."""
        try:
            size = connection.sock.recv_into(self._buffer, connection.appetite)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            size = 0  # reset by the producer: what it wrote completely is taken
        framer = connection.framer
        held = framer.held
        if size:
            segments = framer.feed(self._buffer, size)
            if not segments:
                connection.grow()  # the beginning of a long line costs nothing
        else:
            connection.no_more = True
            segments, size = framer.finish(), held
        if framer.held != held or held:
            self._keep_account(connection, framer.held - held, begun=bool(segments) or not held)
        return segments, size

    def _keep_account(self, connection: Connection, more: int, *, begun: bool) -> None:
        """Note how much is held of a connection's last line; see that it is not too much for all.

        Args:
            connection: whose.
            more: bytes beyond what was held before; negative when there are fewer.
            begun: it is another line than before.
        """
        if begun:
            connection.since = self.beat
        self._held += more
        while self._held > _HELD_BYTES:
            # Those that hold no less than the average; there is always one.
            average = self._held / len(self._connections)
            large = [one for one in self._connections.values() if one.framer.held >= average]
            self._give_up(min(large, key=_since))

    def _give_up(self, connection: Connection) -> None:
        """End a connection whose last line takes too long to come; what came before it is taken."""
        self._held -= connection.framer.held
        connection.framer.forget()
        told = {"error": {"type": "too_slow", "loc": [], "msg": "too many lines without an end at once"}}
        connection.tell(json.dumps(told, separators=(",", ":")).encode() + b"\n")
        connection.no_more = True
        self._taking.attention.append(connection)
        self.wake()

    def _is_streaming(self, connection: Connection) -> bool:
        """Tell whether a producer writes on without waiting for its acks.

        The proof is a read while earlier lines are not settled; it holds for some more reads.
        """
        if connection.unsettled:
            connection.streaming = _STREAMING_READS
        elif connection.streaming:
            connection.streaming -= 1
        return connection.streaming > 0

    def _rest(self, connection: Connection) -> None:
        """Leave a connection alone for a moment."""
        if not self._resting:
            self._rest_until = self._clock.monotonic() + _REST_SECONDS
        self._resting.append(connection)
        if not connection.resting:
            connection.resting = True
            self._watch(connection)

    def _read_rested(self, gathered: Gathered) -> Gathered:
        """Read from the connections that have rested; return what is gathered so far.

        Most of them go on resting, so nobody needs to be told to watch them in between.
        """
        rested, self._resting = self._resting, []
        for connection in rested:
            if not connection.closed:
                gathered = self._read(connection, gathered)
        for connection in set(rested).difference(self._resting):
            connection.resting = False
            if not connection.closed:
                self._watch(connection)
        return gathered

    def _drain(self, connection: Connection, until: float) -> None:
        """Take what a producer has written so far, if it is done by then; the agent is stopping."""
        taken = 0
        while not connection.no_more and not connection.closed and taken < _DRAIN_BYTES:
            if self._clock.monotonic() >= until:
                return  # what is not read is not acknowledged
            received = self._receive(connection)
            if received is None:
                return
            segments, size = received
            gathered = Gathered(segments, [connection] * len(segments), size, patient=False)
            taken += size
            if segments:
                self._submit(gathered)
                self._writer.wait_for_room(1.0)

    def _watch(self, connection: Connection) -> None:
        """Watch for what a connection now needs."""
        wanted = 0 if connection.no_more or connection.paused or connection.resting else _READ
        if not connection.flush():
            wanted |= _WRITE
        registered = connection.fd in self._selector.get_map()
        if wanted and registered:
            self._selector.modify(connection.sock, wanted, connection)
        elif wanted:
            self._selector.register(connection.sock, wanted, connection)
        elif registered:
            self._selector.unregister(connection.sock)

    def _after_write(self, connection: Connection) -> None:
        """All answers that waited are out."""
        self._watch(connection)
        if connection.no_more:
            self._finish(connection)

    def _finish(self, connection: Connection) -> None:
        """Close a connection if everything is said."""
        if connection.no_more and not connection.closed and not connection.unsettled:
            if connection.fd in self._selector.get_map() and connection.flush():
                self._selector.unregister(connection.sock)
            if connection.try_close():
                self._entrance.left(connection)
                if not self._stopping:
                    self._entrance.listen(True)

    # -- a full queue ----------------------------------------------------------------

    def _pause(self, connection: Connection) -> None:
        """Stop reading from a connection, and tell its producer why."""
        if not connection.notified:
            connection.notified = True
            error = refusal.queue_full(f"{self._writer.full}; waiting for room")
            told = {"error": {"type": error.type, "loc": [], "msg": error.msg}}
            connection.tell(json.dumps(told, separators=(",", ":")).encode() + b"\n")
        connection.paused = True
        self._watch(connection)

    def room_changed(self) -> None:
        """Look at the paused connections again; from any thread."""
        self.wake()

    def _look_at_room(self) -> None:
        """Read again from those who had to wait; or tell those who wait for an ack that it takes longer."""
        full = self._writer.full and not self._writer.drops
        for connection in list(self._connections.values()):
            if full and connection.unsettled and not connection.closed:
                self._pause(connection)
            elif not full and connection.paused:
                connection.paused = connection.notified = False
                self._watch(connection)

    def _woken(self) -> None:
        """Deal with what other threads left."""
        while True:
            try:
                if len(os.read(self._wake_read, 4096)) < 4096:
                    break
            except BlockingIOError:
                break
        if not self._stopping:
            self._entrance.look()
        while self._taking.attention:
            connection = self._taking.attention.popleft()
            if not connection.closed:
                self._watch(connection)
                self._finish(connection)
        self._look_at_room()

    def _answered(self) -> None:
        """Look at connections that were answered; runs in the writer's thread."""
        if not self._stopping:
            self.wake()

    def _submit(self, gathered: Gathered) -> None:
        """Check gathered lines and hand them to the writer."""
        self._taking.submit(gathered)
        self.beat = self._clock.monotonic()
