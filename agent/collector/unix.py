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
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING

from agent import refusal
from agent.collector.connection import MAX_WAITING_ANSWERS, Connection, Share
from agent.collector.peers import AllowList, Door, peer_of
from agent.errors import hint_of
from agent.event import Checked, Checker, Fate
from agent.logs import get
from agent.meters import Meters
from agent.notice import Notice
from agent.seen import identity_of
from agent.writer import Append, Writer

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from agent.clock import Clock
    from agent.collector.sockets import BoundSocket
    from agent.framing import Segment
    from agent.seen import Seen

_READ_BYTES = 256 * 1024
_GATHER_BYTES = 256 * 1024
_REST_SECONDS = 0.04
_REST_BELOW_BYTES = 16 * 1024
_STREAMING_READS = 8
_BREATH_SECONDS = 1.0
_CARELESS_REFUSALS = 64
_CARELESS_BYTES = 8 * 1024
_HELD_BYTES = 64 << 20  # of lines that have no end yet, of all connections
_DRAIN_BYTES = 1 << 20  # what the kernel may hold for a connection, and some more
_since = attrgetter("since")
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


@dataclass(slots=True)
class _Gathered:
    """Lines of many connections, in order of reading."""

    segments: list[Segment]
    owners: list[Connection]
    size: int = 0
    patient: bool = True


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
        self._bound = bound
        self._checker = checker
        self._seen = seen
        self._writer = writer
        self._clock = clock
        self._server_now = server_now
        self._max_line_bytes = max_line_bytes
        self._max_connections = max_connections
        self._allowed = allowed
        self._meters = meters or Meters()
        self._log = get("collector")
        self._selector = selectors.DefaultSelector()
        self._connections: dict[int, Connection] = {}
        self._buffer = bytearray(_READ_BYTES)
        self._attention: deque[Connection] = deque()
        self._resting: list[Connection] = []
        self._careless: deque[Connection] = deque()  # each waits for its turn
        self._held = 0  # bytes of lines that have no end yet
        self._share = Share()
        self._rest_until = 0.0
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._listening = False
        self._listen_again = False  # there may be room for new connections now
        self._listen_at: float | None = None  # no connection could be taken: try again then
        self._no_files = Notice()
        self._stopping = False
        self.beat = clock.monotonic()
        self.door = Door(allowed.allows, "events")
        self._thread = threading.Thread(target=self._run, name="collector")
        self._selector.register(self._wake_read, _READ)
        self._listen(True)

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
        self._max_connections = max_connections
        self._listen_again = True
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
        self._bound.close()
        for connection in list(self._connections.values()):
            self._drain(connection)

    def step(self, seconds: float | None) -> None:
        """Wait until something happens (at most `seconds`), and deal with it."""
        gathered = _Gathered([], [])
        ready = self._selector.select(self._at_most(seconds))
        self.beat = self._clock.monotonic()
        if self._resting and self._rest_until <= self.beat:
            gathered = self._read_rested(gathered)
        for key, events in ready:
            if key.fd == self._wake_read:
                self._woken()
            elif key.data is None:
                self._accept()
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
        if self._listen_at is not None:
            seconds = _BREATH_SECONDS if seconds is None else min(seconds, _BREATH_SECONDS)
            if self._listen_at <= self.beat:
                self._listen(True)
        if self._resting:
            left = max(0.0, self._rest_until - self._clock.monotonic())
            seconds = left if seconds is None else min(seconds, left)
        return seconds

    def _serve(self, connection: Connection, events: int, gathered: _Gathered) -> _Gathered:
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
        gathered = self._read(connection, _Gathered([], []))
        if gathered.segments:
            self._submit(gathered)
        if not connection.closed:
            self._watch(connection)

    def _read(self, connection: Connection, gathered: _Gathered) -> _Gathered:
        """Read once from a connection; return what is gathered so far."""
        self._readable(connection, gathered)
        if gathered.size >= _GATHER_BYTES and gathered.segments:
            self._submit(gathered)
            return _Gathered([], [])
        return gathered

    # -- connections -----------------------------------------------------------------

    def _listen(self, wanted: bool) -> None:
        """Take new connections, or leave them in the kernel's queue."""
        if wanted and not self._listening:
            self._selector.register(self._bound.sock, _READ)
        elif self._listening and not wanted:
            self._selector.unregister(self._bound.sock)
        self._listening = wanted
        self._listen_at = None

    def _accept(self) -> None:
        """Take the connections that wait."""
        for _ in range(64):
            if len(self._connections) >= self._max_connections:
                self._log.warning(
                    "too many connections: new ones wait", max_connections=self._max_connections
                )
                self._listen(False)
                return
            try:
                sock, _ = self._bound.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # No descriptors left: not at once again, since the connection would be there still.
                if self._no_files.wrong():
                    self._log.error(
                        "cannot take connections: new ones wait", reason=error.strerror, hint=hint_of(error)
                    )
                self._listen(False)
                self._listen_at = self.beat + _BREATH_SECONDS
                return
            if self._no_files.well(self.beat):
                self._log.info("connections can be taken again")
            if not self._may_enter(sock):
                sock.close()
                continue
            sock.setblocking(False)
            connection = Connection(sock, self._max_line_bytes, self._share)
            self._connections[connection.fd] = connection
            self._share.divide(len(self._connections))
            self._selector.register(sock, _READ, connection)

    def _may_enter(self, sock: socket.socket) -> bool:
        """Tell whether a producer is on the list."""
        return self._allowed.everyone or self.door.admits(peer_of(sock))

    def _readable(self, connection: Connection, gathered: _Gathered) -> None:
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
            if not segments and connection.appetite < _READ_BYTES:
                connection.appetite *= 2  # the beginning of a long line costs nothing
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
        self._attention.append(connection)
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

    def _read_rested(self, gathered: _Gathered) -> _Gathered:
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

    def _drain(self, connection: Connection) -> None:
        """Take what a producer has written so far; the agent is stopping."""
        taken = 0
        while not connection.no_more and not connection.closed and taken < _DRAIN_BYTES:
            received = self._receive(connection)
            if received is None:
                return
            segments, size = received
            gathered = _Gathered(segments, [connection] * len(segments), size, patient=False)
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
                self._connections.pop(connection.fd, None)
                self._share.divide(len(self._connections))
                if not self._stopping:
                    self._listen(True)

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
        if self._listen_again and not self._stopping:
            self._listen_again = False
            self._listen(True)
        while self._attention:
            connection = self._attention.popleft()
            if not connection.closed:
                self._watch(connection)
                self._finish(connection)
        self._look_at_room()

    # -- lines -----------------------------------------------------------------------

    def _submit(self, gathered: _Gathered) -> None:
        """Check gathered lines and hand them to the writer."""
        with self._writer.order:
            self._submit_in_order(gathered)
        self.beat = self._clock.monotonic()

    def _submit_in_order(self, gathered: _Gathered) -> None:
        """Do the work of `_submit`, alone among all sources."""
        drops = self._writer.drops
        full = self._writer.full if drops else None
        seen = None if full else self._seen  # what is dropped may come again
        checked = self._checker.check(gathered.segments, self._server_now(), seen)
        refused, dropped = checked.refused, 0
        if full:
            dropped = checked.accepted
            checked = _refuse_all(checked, full)
        if refused:
            reasons = (why for fate in checked.fates for _, why in fate.refused)
            self._meters.refuse("socket", reasons, self._clock.wall())
        for owner, fate in zip(gathered.owners, checked.fates, strict=True):
            owner.careless = len(fate.refused) > max(_CARELESS_REFUSALS, fate.lines // 2)
            if owner.careless:
                owner.appetite = _CARELESS_BYTES
            elif owner.appetite < _READ_BYTES:
                owner.appetite *= 2
        first = {owner: owner.lines for owner in gathered.owners}
        settled = _answers(gathered.owners, checked, first)
        for owner, acked, _ in settled:
            owner.lines = acked
            owner.begin()
        append = Append(
            checked.groups,
            checked.held,
            refused=refused,
            dropped=dropped,
            done=lambda durable: self._settled(settled, durable),
            patient=gathered.patient,
            repeated=checked.repeated,
        )
        if drops:
            append.overflow = partial(self._overflow, settled, gathered.owners, checked, first)
        self._writer.append(append)

    def _overflow(
        self,
        settled: list[tuple[Connection, int, bytes]],
        owners: list[Connection],
        checked: Checked,
        first: dict[Connection, int],
        reason: str,
    ) -> None:
        """Refuse what was taken and finds no room after all; runs in the writer's thread."""
        settled[:] = _answers(owners, _refuse_all(checked, reason), first)
        lines = [line for group, _ in checked.groups for line in group.split(b"\n")]
        self._seen.forget(identity_of(line) for line in (*lines, *(line for _, line in checked.held)))

    def _settled(self, settled: list[tuple[Connection, int, bytes]], durable: bool) -> None:
        """Answer the producers of one group of lines; runs in the writer's thread."""
        look = False
        for connection, acked, answers in settled:
            if not durable:
                connection.abandon()
            elif connection.end(acked, answers):
                self._attention.append(connection)
                look = True
        if look and not self._stopping:
            self.wake()


def _answers(
    owners: list[Connection], checked: Checked, first: dict[Connection, int]
) -> list[tuple[Connection, int, bytes]]:
    """Return what to answer to whom: its last line, and the refusals.

    Args:
        owners: of each segment.
        checked: the outcome, a fate for each segment.
        first: how many lines each owner had sent before.
    """
    answers: dict[Connection, tuple[int, bytearray]] = {}
    for owner, fate in zip(owners, checked.fates, strict=True):
        lines, known = answers.get(owner) or (first[owner], bytearray())
        for number, why in fate.refused:
            if len(known) > MAX_WAITING_ANSWERS:
                break  # the connection would drop them
            known += why.answer(lines + number)
        answers[owner] = (lines + fate.lines, known)
    return [(owner, lines, bytes(known)) for owner, (lines, known) in answers.items()]


def _refuse_all(checked: Checked, reason: str) -> Checked:
    """Return the outcome with every fine line refused: there is no room, and the operator chose to drop."""
    full = refusal.queue_full(f"{reason}; dropped, as when_full says")
    fates = []
    for fate in checked.fates:
        refused = dict(fate.refused)
        fates.append(Fate(fate.lines, [(n, refused.get(n, full)) for n in range(1, fate.lines + 1)]))
    return Checked([], [], fates)
