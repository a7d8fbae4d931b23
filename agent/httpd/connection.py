"""One client's connection: bytes in, requests out; responses in, bytes out.

Theory of operation. Only the server's thread touches a connection, and it alone closes the
socket. It is always in one of these states, and in each of them it has a deadline, or it is
being worked on:

    IDLE ──bytes──► HEAD ──► (WAITING ──►) BODY ──► WORKING ──► WRITING ──► IDLE or closed

WAITING: the head is there, and its body has to wait for room in memory. While it is
worked on, nothing is read: what a client sends ahead stays in the kernel's buffer.
LEAVING: the response is out before the request was in; what still comes is thrown away for
a moment, since closing at once would make the kernel throw the response away.
h11 holds the grammar, so that a request cannot be read in two ways.
"""

from __future__ import annotations

import contextlib
import enum
import socket
from email.utils import formatdate
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import h11

from agent.httpd.message import Request, Response, refusal

if TYPE_CHECKING:
    from agent.collector.peers import Peer
    from agent.httpd.message import Via

MAX_HEAD_BYTES = 32 * 1024
_RECEIVE_BYTES = 64 * 1024
_LEAVING_BYTES = 64 << 20
_NO_BODY = (204, 304)


class State(enum.Enum):
    """Where a connection stands."""

    IDLE = "idle"
    HEAD = "head"
    WAITING = "waiting"
    BODY = "body"
    WORKING = "working"
    WRITING = "writing"
    LEAVING = "leaving"
    CLOSED = "closed"


class Connection:
    """The state of one connection.

    Args:
        sock: non-blocking.
        via: the kind of socket.
        peer: who connected, where the kernel tells.
    """

    def __init__(self, sock: socket.socket, via: Via, peer: Peer | None) -> None:
        self.sock = sock
        self.via = via
        self.peer = peer
        self.state = State.IDLE
        self.deadline = 0.0
        self.since = 0.0
        """When its deadline was set: monotonic; the server's."""
        self.request: Request | None = None
        self.wanted = 0
        """Bytes that the body needs; the server's."""
        self.reserved = 0
        """Bytes of memory that are put aside for it; the server's."""
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._body: list[bytes] = []
        self._out = memoryview(b"")
        self._close_after = False
        self._gone = False
        self._left = 0

    # -- in ------------------------------------------------------------------------------

    def receive(self) -> bool:
        """Read once; False when the client is gone."""
        try:
            data = self.sock.recv(_RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        if not data:
            self._gone = True
        self._h11.receive_data(data)
        return True

    def next(self) -> Request | Response | None:  # noqa: C901  # a table of what may come
        """Go on with what was received.

        Returns:
            A request whose head (`HEAD`) or whose body (`BODY`) has just become complete; a
            response to one that is no HTTP; None when more has to come first.
        """
        while True:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as error:
                self._close_after = True
                return refusal(error.error_status_hint or 400, "BadRequest", str(error))
            if event is h11.NEED_DATA:
                if self._gone:
                    self.close()
                elif self.state is State.IDLE and self._h11.trailing_data[0]:
                    self.state = State.HEAD
                elif self.state is State.BODY and self._h11.they_are_waiting_for_100_continue:
                    self._send(self._h11.send(h11.InformationalResponse(status_code=100, headers=[])))
                return None
            if isinstance(event, h11.Request):
                self.state = State.HEAD
                self.request = self._read(event)
                return self.request
            if isinstance(event, h11.Data):
                self._body.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                assert self.request is not None  # noqa: S101  # a message begins with its head
                self.request = self.request.with_body(b"".join(self._body))
                self._body.clear()
                return self.request
            else:  # the client has closed, or sends ahead
                if event is not h11.PAUSED:
                    self.close()
                return None

    def _read(self, event: h11.Request) -> Request:
        """Return a request of which the head is there."""
        headers: dict[str, str] = {}
        for raw_name, raw_value in event.headers:
            name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]},{value}" if name in headers else value
        target = event.target.decode("ascii")
        if not target.startswith("/"):
            parts = urlsplit(target)  # as a proxy is asked: http://host/path
            target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        return Request(event.method.decode("ascii"), target, headers, self.via, self.peer)

    # -- out -----------------------------------------------------------------------------

    def answer(self, response: Response) -> None:
        """Begin to write a response; the state is WRITING, or CLOSED."""
        if self.state is State.CLOSED:
            return
        self._pass_over_no_body()
        # With a body that is not read, what follows would be taken for the next request.
        if response.close or self._h11.their_state is not h11.DONE:
            self._close_after = True
        headers = [("date", formatdate(usegmt=True)), ("server", "polar-agent")]
        headers += [(name, value) for name, value in response.headers.items()]
        if response.content_type is not None:
            headers.append(("content-type", response.content_type))
        if response.status not in _NO_BODY:
            headers.append(("content-length", str(len(response.body))))
        if self._close_after:
            headers.append(("connection", "close"))
        head = h11.Response(status_code=response.status, headers=headers)
        body = b"" if self.request is not None and self.request.method == "HEAD" else response.body
        try:
            data = self._h11.send(head) or b""
            if body:
                data += self._h11.send(h11.Data(data=body)) or b""
            data += self._h11.send(h11.EndOfMessage()) or b""
        except h11.LocalProtocolError:
            self.close()  # the client's mistake came too early for an answer, or its connection is over
            return
        self._out = memoryview(data)
        self.request = None
        self._body.clear()
        self.state = State.WRITING

    def _pass_over_no_body(self) -> None:
        """Read the end of a request that has no body, and is refused for its head alone."""
        if self.request is not None and self._h11.their_state is h11.SEND_BODY:
            headers = self.request.headers
            if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
                self._h11.next_event()

    def write(self) -> bool:
        """Write what the client takes; True when all of the response is out."""
        while self._out:
            try:
                sent = self.sock.send(self._out)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError:
                self.close()
                return False
            self._out = self._out[sent:]
        return True

    def again(self) -> None:
        """After a response: be ready for the next request (IDLE), or take leave (LEAVING, CLOSED)."""
        if self._close_after and self._h11.their_state is not h11.DONE and not self._gone:
            self.state = State.LEAVING
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)
            return
        if self._close_after or self._gone or self._h11.our_state is not h11.DONE:
            self.close()
            return
        try:
            self._h11.start_next_cycle()
        except h11.LocalProtocolError:
            self.close()
            return
        self.state = State.IDLE

    def leave(self) -> None:
        """Throw away what still comes; close when the client is done."""
        try:
            data = self.sock.recv(_RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        self._left += len(data)
        if not data or self._left > _LEAVING_BYTES:
            self.close()

    def close(self) -> None:
        """Be over: the server sees it, and closes the socket."""
        self.state = State.CLOSED
        self._out = memoryview(b"")
        self._body.clear()

    def _send(self, data: bytes | None) -> None:
        """Write a few bytes that a fresh buffer surely takes."""
        with contextlib.suppress(OSError):
            self.sock.send(data or b"")
