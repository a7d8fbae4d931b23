"""Sockets that keep a deadline, and that can all be ended at once.

This is the network backend of the HTTP connections in `agent.polar`. What HTTP libraries
call a timeout is a bound on the wait for the *next bytes*, so a server that sends one byte
a second never runs into it; and closing them from another thread leaves a thread that
waits for bytes waiting. Hence two promises here:

- **Every timeout is a moment** of the monotonic clock, not a number of seconds: httpcore
  passes the value through untouched, so each wait ends at the end of the whole request.
- **`close` ends every wait** of every thread within milliseconds, those for a connection
  and for a TLS handshake too. It shuts sockets down and closes none: a closed descriptor
  can be another file's a moment later, while its old reader still holds the number.

One wait is out of reach: looking up a name in the DNS, which the system bounds itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any

import httpcore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# How often a thread that waits for a connection looks whether it was closed, in milliseconds.
_LOOK_MS = 200


class DnsError(httpcore.ConnectError):
    """The name of the server has no address."""


class TlsError(httpcore.ConnectError):
    """The server could not prove who it is, or speaks no TLS."""


class EndedError(httpcore.ReadError):
    """`Network.close` ended the wait."""


class Network(httpcore.NetworkBackend):
    """Opens connections, and knows all that are open.

    Args:
        monotonic: the clock that the deadlines are moments of.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closed = False

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address that answers; each gets its share of the time left.

        Raises:
            httpcore.ConnectError: none answered; `DnsError` when there is none to try.
            httpcore.ConnectTimeout: the moment `timeout` has come.
        """
        del local_address, socket_options  # this client never sets them
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise DnsError(f"{host}: {getattr(error, 'strerror', None) or 'no valid name'}") from error
        failure: Exception = httpcore.ConnectError(f"{host}: no address")
        for tried, (family, kind, protocol, _, address) in enumerate(found):
            sock = socket.socket(family, kind, protocol)
            self._take(sock)
            try:
                left = self._left(timeout)
                self._connect(sock, address, None if left is None else left / (len(found) - tried))
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                self._drop(sock)
                if self._closed:
                    raise EndedError("the client was closed") from error
                failure = _connect_failure(error, f"{host}:{port}")
            else:
                return _Stream(self, sock)
        raise failure

    def close(self) -> None:
        """End every wait and refuse new connections; may be called from any thread, and again."""
        with self._lock:
            self._closed = True
            for sock in self._open:
                # The plain method: SSLSocket's own one drops the encryption first, and what
                # another thread is just sending would go out in the clear.
                with contextlib.suppress(OSError):  # not connected, or no more
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def _connect(self, sock: socket.socket, address: Any, seconds: float | None) -> None:
        """Connect a socket; raises OSError, TimeoutError among them.

        Not by a blocking `connect`: a socket that is shut down just before it would
        connect all the same.
        """
        sock.setblocking(False)
        code = sock.connect_ex(address)
        if code == errno.EINPROGRESS:
            poll = select.poll()
            poll.register(sock, select.POLLOUT)
            until = None if seconds is None else self._monotonic() + seconds
            # Linux wakes the wait when the socket is shut down, other systems do not: look now and then.
            while not self._closed:
                left = self._left(until)
                if poll.poll(_LOOK_MS if left is None else min(_LOOK_MS, left * 1000 + 1)):
                    break
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if self._closed:
            raise ConnectionAbortedError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED))
        if code:
            raise OSError(code, os.strerror(code))

    def _take(self, sock: socket.socket) -> None:
        """Note an open socket."""
        with self._lock:
            if not self._closed:
                self._open.add(sock)
                return
        sock.close()
        raise EndedError("the client was closed")

    def _forget(self, sock: socket.socket) -> None:
        with self._lock:
            self._open.discard(sock)

    def _drop(self, sock: socket.socket) -> None:
        """Close a socket; only the thread that uses it may do that."""
        self._forget(sock)
        sock.close()

    def _left(self, moment: float | None) -> float | None:
        """Return the seconds until a moment; raises TimeoutError when it has come."""
        if moment is None:
            return None
        left = moment - self._monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left


class _Stream(httpcore.NetworkStream):
    """One connection."""

    def __init__(self, network: Network, sock: socket.socket) -> None:
        self._network = network
        self._socket = sock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            self._socket.settimeout(self._network._left(timeout))  # noqa: SLF001 - one unit with Network
            data = self._socket.recv(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout(str(error)) from error
        except OSError as error:
            raise self._ended() or httpcore.ReadError(_words(error)) from error
        # The end of the stream looks the same whether the server or `close` made it.
        ended = None if data else self._ended()
        if ended is not None:
            raise ended
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        rest = memoryview(buffer)
        try:
            while rest:
                self._socket.settimeout(self._network._left(timeout))  # noqa: SLF001
                rest = rest[self._socket.send(rest) :]
        except TimeoutError as error:
            raise httpcore.WriteTimeout(str(error)) from error
        except OSError as error:
            # httpcore then still reads what the server said before it hung up.
            raise self._ended() or httpcore.WriteError(_words(error)) from error

    def close(self) -> None:
        self._network._drop(self._socket)  # noqa: SLF001

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        network = self._network
        network._forget(self._socket)  # noqa: SLF001 - wrapping makes another object of it
        try:
            wrapped = ssl_context.wrap_socket(
                self._socket, server_hostname=server_hostname, do_handshake_on_connect=False
            )
        except (OSError, ValueError) as error:
            self._socket.close()
            raise TlsError(_words(error)) from error
        network._take(wrapped)  # noqa: SLF001
        try:
            wrapped.settimeout(network._left(timeout))  # noqa: SLF001
            wrapped.do_handshake()
        except (OSError, ValueError) as error:
            network._drop(wrapped)  # noqa: SLF001
            raise self._ended() or _connect_failure(error, server_hostname or "the server") from error
        return _Stream(network, wrapped)

    def get_extra_info(self, info: str) -> Any:
        if info == "ssl_object" and isinstance(self._socket, ssl.SSLSocket):
            return self._socket
        if info == "is_readable":
            return _is_readable(self._socket)
        return None

    def _ended(self) -> EndedError | None:
        return EndedError("the client was closed") if self._network.closed else None


def _connect_failure(error: Exception, where: str) -> Exception:
    """Return the error of a connection that did not come about."""
    if isinstance(error, TimeoutError):
        return httpcore.ConnectTimeout(f"{where}: no connection in time")
    if isinstance(error, (ssl.SSLError, ValueError)):
        return TlsError(f"{where}: {_words(error)}")
    return httpcore.ConnectError(f"{where}: {_words(error)}")


def _is_readable(sock: socket.socket) -> bool:
    """Tell whether an idle connection has something to read, which can only be its end."""
    if sock.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _words(error: Exception) -> str:
    """Return what an error of the system says, without its number."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate cannot be trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
