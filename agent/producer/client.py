"""A connection to the daemon that outlives the daemon.

Promises: one loop writes and reads, without threads; all waiting can be interrupted by a
signal and ends at a given time; after any break, sending goes on at the first line that
was not acknowledged. What is never tried again: a socket that we may not use.
"""

from __future__ import annotations

import contextlib
import grp
import os
import select
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from agent.clock import Clock, SystemClock
from agent.errors import DaemonError, UsageError
from agent.producer.stamp import stamp
from agent.producer.window import ProtocolError, Refusal, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WINDOW_BYTES = 4 << 20
"""The lines kept for sending again: enough to keep a daemon busy while it syncs."""

BLOCK_BYTES = 1 << 18
"""Lines are stamped and written in blocks of about this size; only a longer line makes a larger one."""

_CONNECT_SECONDS = 5.0
_STEADY_SECONDS = 5.0
"""A connection that lasted this long shows that the daemon was there, even if it acknowledged nothing."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_RECEIVE_BYTES = 1 << 16
_LONGEST_ANSWER = 1 << 20


class _Answer(msgspec.Struct, gc=False):
    """Any answer of the daemon."""

    ack: int | None = None
    line: int | None = None
    error: dict[str, Any] | None = None


_ANSWER = msgspec.json.Decoder(_Answer)


def _ignore(_: object) -> None:
    """Take a message that nobody asked for."""


class Producer:
    """Sends lines to the daemon and keeps each one until it is acknowledged.

    Feed lines while `wait` says so, then call `finish` until it is done.

    Args:
        path: the daemon's socket.
        retry_for: how many seconds to wait for a daemon that is away; 0 fails at once.
        window_bytes: the most bytes that may wait for their acknowledgement.
        on_refused: called once for each line that was refused.
        on_notice: called with each error that is about no line: we are being slowed down.
        on_outage: called with the reason, once each time the daemon is away.
        clock: where time comes from.

    Attributes:
        window: the lines on their way, and the counts.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        retry_for: float = 30.0,
        window_bytes: int = WINDOW_BYTES,
        on_refused: Callable[[Refusal], object] = _ignore,
        on_notice: Callable[[dict[str, Any]], object] = _ignore,
        on_outage: Callable[[str], object] = _ignore,
        clock: Clock | None = None,
    ) -> None:
        self.window = Window()
        self._path = os.fspath(path)
        self._retry_for = retry_for
        self._window_bytes = window_bytes
        self._on_refused = on_refused
        self._on_notice = on_notice
        self._on_outage = on_outage
        self._clock = clock or SystemClock()
        self._never = threading.Event()
        self._finishing = False
        # of the present connection
        self._socket: socket.socket | None = None
        self._half_closed = False
        self._partial = b""  # the beginning of an answer whose newline has not come
        self._connected_at = 0.0
        # since the last acknowledgement
        self._away_since: float | None = None
        self._attempts = 0
        self._next_attempt = 0.0
        self._last_notice = ""

    def connect(self) -> None:
        """Connect now, so that a missing daemon shows before any input is read.

        Raises:
            DaemonError: it is away for longer than `retry_for`, or will not have us.
        """
        while self._socket is None:
            self._connect(None)

    def feed(self, lines: bytes, source: str, first_line: int, ids: Sequence[bytes] | None = None) -> int:
        """Take whole lines for sending; `wait` tells when there is room for more.

        Args:
            lines: any number of lines, each ending with a newline.
            source: the name to report them under.
            first_line: the number there of the first of them.
            ids: for each line that it is given if it has none of its own; new ones are made if not given.

        Returns:
            The number there of the line that comes next.
        """
        now = self._clock.wall()
        start = 0
        while start < len(lines):
            end = lines.rfind(b"\n", start, start + BLOCK_BYTES) + 1 or lines.index(b"\n", start) + 1
            piece = lines[start:end]
            if ids is None:
                data, places, count = stamp(piece, now)
            else:
                data, places, count = stamp(piece, now, ids[: piece.count(b"\n")])
                ids = ids[piece.count(b"\n") :]
            if count:
                self.window.add(data, count, source, first_line, places)
            first_line += count if places is None else piece.count(b"\n")
            start = end
        return first_line

    def wait(self, readable: int | None = None, timeout: float | None = None) -> bool:
        """Write and read until the caller should feed more.

        Args:
            readable: a file descriptor; wait until it has input, too.
            timeout: seconds to wait at most; None for no limit.

        Returns:
            True when there is room in the window and input to read, False after `timeout`.

        Raises:
            DaemonError: the daemon is away for longer than `retry_for`, or will not have us.
        """
        until = None if timeout is None else self._clock.monotonic() + timeout
        while True:
            room = self.window.held_bytes < self._window_bytes
            ready = self._turn(readable if room else None, until, wait=not room or readable is not None)
            if (ready or readable is None) and self.window.held_bytes < self._window_bytes:
                return True
            if until is not None and self._clock.monotonic() >= until:
                return False

    def finish(self, timeout: float | None = None) -> bool:
        """Write what is left, end the stream, take the last answers, close.

        Returns:
            True when every line is acknowledged, False after `timeout`: call again.

        Raises:
            DaemonError: the daemon is away for longer than `retry_for`, or will not have us.
        """
        self._finishing = True
        until = None if timeout is None else self._clock.monotonic() + timeout
        while self.window:
            self._turn(None, until, wait=True)
            if self.window and until is not None and self._clock.monotonic() >= until:
                return False
        self.close()
        return True

    def close(self) -> None:
        """Drop the connection; what is not acknowledged stays so."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _turn(self, readable: int | None, until: float | None, *, wait: bool) -> bool:
        """Wait for something to do, and do it; True when `readable` has input."""
        if self._socket is None and self.window:
            self._connect(until)
            if self._socket is None:
                return False
        poll = select.poll()
        connection = self._socket
        if connection is not None:
            poll.register(connection, self._wanted(connection))
        if readable is not None:
            poll.register(readable, select.POLLIN)
        seconds = None if until is None else max(0.0, until - self._clock.monotonic())
        milliseconds = None if seconds is None else seconds * 1000
        ready = False
        for descriptor, events in poll.poll(milliseconds if wait else 0):
            if descriptor == readable:
                ready = True
            elif connection is not None:
                if events & ~select.POLLOUT:
                    self._read(connection)
                if events & select.POLLOUT and self._socket is connection:
                    self._write(connection)
        return ready

    def _wanted(self, connection: socket.socket) -> int:
        """Return what to wait for; end the stream when all is written and no more will come."""
        if self.window.to_write() is not None:
            return select.POLLIN | select.POLLOUT
        if self._finishing and not self._half_closed:
            self._half_closed = True
            with contextlib.suppress(OSError):  # a broken connection shows when it is read
                connection.shutdown(socket.SHUT_WR)
        return select.POLLIN

    def _write(self, connection: socket.socket) -> None:
        """Write what the socket takes."""
        while (data := self.window.to_write()) is not None:
            try:
                self.window.wrote(connection.send(data))
            except BlockingIOError:
                return
            except OSError as error:
                while self._read(connection):  # what was answered before it broke counts
                    pass
                if self._socket is connection:
                    self._lost(error.strerror or str(error))
                return

    def _read(self, connection: socket.socket) -> bool:
        """Take answers that have come; False when there are no more."""
        try:
            data = connection.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return False
        except OSError as error:
            self._lost(error.strerror or str(error))
            return False
        if not data:
            self._lost("it closed the connection")
            return False
        *lines, self._partial = (self._partial + data).split(b"\n")
        try:
            for line in lines:
                self._settle(_ANSWER.decode(line))
        except ProtocolError as error:
            self._give_up(str(error))
        except msgspec.MsgspecError:
            self._give_up("what answers there is not the agent")
        if len(self._partial) > _LONGEST_ANSWER:
            self._give_up("what answers there is not the agent")
        return True

    def _settle(self, answer: _Answer) -> None:
        """Act on one answer."""
        if answer.ack is not None:
            if self.window.acknowledge(answer.ack):
                self._away_since = None
                self._attempts = 0
                self._last_notice = ""
        elif answer.error is not None and answer.line is not None:
            refusal = self.window.refuse(answer.line, answer.error)
            if refusal is not None:
                self._on_refused(refusal)
        elif answer.error is not None:
            self._last_notice = str(answer.error.get("msg") or answer.error.get("type"))
            if answer.error.get("type") == "not_allowed":
                self._give_up(self._last_notice)
            self._on_notice(answer.error)

    def _lost(self, reason: str) -> None:
        """Forget the connection; what is not acknowledged is to be sent again."""
        self.close()
        if self._clock.monotonic() - self._connected_at >= _STEADY_SECONDS:
            self._away_since = None
            self._attempts = 0
        if self.window:
            self._away(self._last_notice or reason)

    def _away(self, reason: str) -> None:
        """Note that the daemon is away; give up when it has been for too long."""
        now = self._clock.monotonic()
        if self._away_since is None:
            self._away_since = now
            if self._retry_for > 0:
                self._on_outage(reason)
        if now - self._away_since >= self._retry_for:
            hint = "is the daemon running? start it with: agent run; another socket: --socket PATH"
            raise DaemonError("send to the daemon", self._path, reason, hint)

    def _connect(self, until: float | None) -> None:
        """Try to connect, once the pause since the last attempt is over; give up at `until`."""
        now = self._clock.monotonic()
        if self._attempts and now < self._next_attempt:
            end = self._next_attempt if until is None else min(until, self._next_attempt)
            self._clock.wait(self._never, max(0.0, end - now))
            now = self._clock.monotonic()
            if now < self._next_attempt:
                return
        self._next_attempt = now + min(_FIRST_PAUSE * 2**self._attempts, _LONGEST_PAUSE)
        self._attempts = min(self._attempts + 1, 10)
        try:
            self._socket = _open(self._path)
        except _AwayError as error:
            self._away(str(error))
            return
        self.window.rewind()
        self._connected_at = now
        self._half_closed = False
        self._partial = b""

    def _give_up(self, reason: str) -> NoReturn:
        """Raise: going on would help nobody."""
        self.close()
        raise DaemonError(
            "send to the daemon", self._path, reason, "what runs there is shown by: agent status"
        )


class _AwayError(Exception):
    """No daemon is there, but one may come."""


def _open(path: str) -> socket.socket:
    """Return a connection that does not block.

    Raises:
        _AwayError: waiting can help.
        DaemonError: only a person can help.
        UsageError: this can be no socket.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_CONNECT_SECONDS)
        connection.connect(path)
        connection.setblocking(False)
    except OSError as error:
        connection.close()
        if isinstance(error, FileNotFoundError):
            raise _AwayError("there is no such socket") from error
        if isinstance(error, ConnectionError | BlockingIOError | TimeoutError):
            raise _AwayError("no daemon answers there") from error
        if isinstance(error, PermissionError):
            raise DaemonError("send to the daemon", path, "permission denied", _group_hint(path)) from error
        raise UsageError("send to the daemon", path, error.strerror or str(error)) from error
    return connection


def _group_hint(path: str) -> str:
    """Return what gives access to the socket."""
    try:
        group = grp.getgrgid(Path(path).stat().st_gid).gr_name
    except (OSError, KeyError):
        return "your user may not enter its directory; the directory's group may"
    return f"users of the group {group} may: usermod -aG {group} USER, then log in again"
