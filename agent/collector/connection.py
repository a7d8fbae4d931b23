"""One producer's connection: its lines in, its answers out.

Theory of operation. The collector's thread reads; the writer's thread answers, once
the lines are durable. Answers go out at once when the kernel takes them. What it does
not take waits here, within a bound: acknowledgements are cumulative, so only the last
one waits; refusals beyond the bound are dropped, since a producer that never reads
must neither block us nor grow our memory.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from agent.framing import Framer

if TYPE_CHECKING:
    import socket

MAX_WAITING_ANSWERS = 256 * 1024
"""Bytes of answers that wait for a producer to read, beside what the kernel holds."""

READ_BYTES = 256 * 1024
"""The most that is read of a connection at once."""

_CARELESS_BYTES = 8 * 1024
_CARELESS_REFUSALS = 64

_FIRST_BYTES = 1024
_ALL_WAITING_ANSWERS = 64 << 20
_LEAST_WAITING_ANSWERS = 4 * 1024


class Share:
    """How many bytes of answers may wait for each producer.

    Attributes:
        answers: the bytes; fewer when there are many connections.
    """

    __slots__ = ("answers",)

    def __init__(self) -> None:
        self.answers = MAX_WAITING_ANSWERS

    def divide(self, connections: int) -> None:
        """Go by so many connections from now on."""
        fair = _ALL_WAITING_ANSWERS // max(1, connections)
        self.answers = max(_LEAST_WAITING_ANSWERS, min(fair, MAX_WAITING_ANSWERS))


class Connection:
    """The state of one connection.

    Args:
        sock: non-blocking.
        max_line_bytes: the longest line that is taken.
        share: what it may keep waiting; all connections have the same.
    """

    __slots__ = (
        "_ack_waits",
        "_acked",
        "_lock",
        "_share",
        "_waiting",
        "appetite",
        "careless",
        "closed",
        "fd",
        "framer",
        "lines",
        "no_more",
        "notified",
        "paused",
        "resting",
        "since",
        "sock",
        "streaming",
        "unsettled",
    )

    def __init__(self, sock: socket.socket, max_line_bytes: int, share: Share | None = None) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.framer = Framer(max_line_bytes)
        self.lines = 0
        """Non-blank lines seen so far; the collector's."""
        self.no_more = False
        """The producer will send no more; the collector's."""
        self.paused = False
        """Not read, since the queue is full; the collector's."""
        self.resting = False
        """Not read for a moment, so that more gathers, or before its turn; the collector's."""
        self.careless = False
        """Most of its lines are refused; the collector's."""
        self.appetite = _FIRST_BYTES
        """How many bytes are read of it at once: more and more while its lines are fine; the collector's."""
        self.since = 0.0
        """When the line began that has no end yet: monotonic; the collector's."""
        self.notified = False
        """Was told that the queue is full; the collector's."""
        self.streaming = 0
        """Above 0 while the producer writes on without waiting for acks; the collector's."""
        self.unsettled = 0
        """Groups of lines that are on their way to the disk; changed under the lock."""
        self.closed = False
        self._share = share or Share()
        self._lock = threading.Lock()
        self._waiting = bytearray()
        self._acked = 0
        self._ack_waits = False

    def learn(self, lines: int, refused: int) -> None:
        """Go by what became of its last lines: how many there were, and how many were refused."""
        self.careless = refused > max(_CARELESS_REFUSALS, lines // 2)
        if self.careless:
            self.appetite = _CARELESS_BYTES
        else:
            self.grow()

    def grow(self) -> None:
        """Have more read at once from now on."""
        if self.appetite < READ_BYTES:
            self.appetite *= 2

    def begin(self) -> None:
        """Note that a group of lines goes to the writer."""
        with self._lock:
            self.unsettled += 1

    def end(self, acked: int, answers: bytes) -> bool:
        """Answer for a group of lines that is settled.

        Args:
            acked: the number of the group's last line.
            answers: its refusals.

        Returns:
            True when the collector must look at the connection again: answers wait for the
            producer to read, or all is answered and it can be closed.
        """
        with self._lock:
            self.unsettled -= 1
            self._acked = acked
            self._ack_waits = True
            if self.closed:
                return False
            self._send(answers)
            return not self._said() or (self.no_more and not self.unsettled)

    def abandon(self) -> None:
        """Note that a group of lines will not be settled: no answer."""
        with self._lock:
            self.unsettled -= 1

    def tell(self, answer: bytes) -> None:
        """Send something that acknowledges nothing."""
        with self._lock:
            if not self.closed:
                self._send(answer)

    def flush(self) -> bool:
        """Send what waits; True when nothing waits any more."""
        with self._lock:
            if not self.closed:
                self._send(b"")
            return self._said()

    def try_close(self) -> bool:
        """Close if everything is said, or can be said no more; True when it is closed."""
        with self._lock:
            if self.no_more and not self.unsettled and self._said():
                self._close()
            return self.closed

    def close(self) -> None:
        """Close at once."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if not self.closed:
            self.closed = True
            with contextlib.suppress(OSError):
                self.sock.close()

    def _send(self, answers: bytes) -> None:
        """Send what waits, then `answers`, then the last acknowledgement, as far as the kernel takes it."""
        waiting = self._waiting
        most = self._share.answers
        room = most - len(waiting)
        if len(answers) <= room:
            waiting += answers
        else:
            waiting += answers[: answers.rfind(b"\n", 0, max(room, 0)) + 1]
        try:
            while True:
                # Refusals that wait go first: an ack must not overtake them.
                if self._ack_waits and len(waiting) <= most:
                    waiting += b'{"ack":%d}\n' % self._acked
                    self._ack_waits = False
                if not waiting:
                    return
                sent = self.sock.send(waiting)
                if sent == len(waiting):
                    waiting.clear()
                else:
                    del waiting[:sent]
        except BlockingIOError:
            pass
        except OSError:
            # The producer is gone: it wants no answers, but what it wrote is taken all the same.
            waiting.clear()
            self._ack_waits = False

    def _said(self) -> bool:
        """Tell that nothing waits to be sent."""
        return not self._waiting and not self._ack_waits
