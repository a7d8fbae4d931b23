"""The emulator on a socket."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from agent.emulator.app import create_app
from agent.emulator.connections import Connections
from agent.emulator.options import Options
from agent.emulator.state import Emulator
from agent.errors import AgentError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator
    from types import FrameType

    from agent.clock import Clock

_KEEP_ALIVE = 60  # seconds
_SHUTDOWN = 3  # seconds for requests that are being served
_LOOK_AGAIN = 0.1  # seconds


def run(options: Options, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; call `ready` with the base URL once requests are answered.

    Raises:
        AgentError: the address or the data cannot be used.
    """
    emulator = Emulator(options)
    with contextlib.closing(emulator.store), _listen(host, port) as sock:
        server = _Server(emulator, ready)

        def stop(_signal: int, _frame: FrameType | None) -> None:
            server.should_exit = True

        # uvicorn handles signals itself while it serves, and then raises them again
        # for the handlers from before: for these, so that the exit is a clean one.
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        server.run(sockets=[sock])


@contextlib.contextmanager
def background(options: Options | None = None, clock: Clock | None = None) -> Iterator[str]:
    """Serve in a thread of this process on a free port; yields the base URL."""
    emulator = Emulator(options or Options(), clock)
    started = threading.Event()
    urls: list[str] = []

    def ready(url: str) -> None:
        urls.append(url)
        started.set()

    with contextlib.closing(emulator.store), _listen("127.0.0.1", 0) as sock:
        server = _Server(emulator, ready)
        thread = threading.Thread(target=server.run, args=([sock],), name="emulator")
        thread.start()
        try:
            while not started.wait(_LOOK_AGAIN):
                if not thread.is_alive():
                    raise AgentError("start the emulator", "its thread", "it ended; its log says why")
            yield urls[0]
        finally:
            server.should_exit = True
            thread.join()


class _Server(uvicorn.Server):
    """uvicorn, telling when it is ready, and with connections that can be broken."""

    def __init__(self, emulator: Emulator, ready: Callable[[str], None]) -> None:
        connections = Connections()

        class Protocol(H11Protocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                connections.opened(transport)
                self.opened = transport
                super().connection_made(transport)

            def connection_lost(self, exc: Exception | None) -> None:
                connections.closed(self.opened)
                super().connection_lost(exc)

        super().__init__(
            uvicorn.Config(
                create_app(emulator, connections),
                http=Protocol,
                ws="none",
                lifespan="off",
                proxy_headers=False,
                date_header=False,
                access_log=False,
                log_level="warning",
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=_SHUTDOWN,
            )
        )
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to serve, and say so."""
        await super().startup(sockets)
        assert sockets is not None  # noqa: S101 - both callers give one
        host, port = sockets[0].getsockname()[:2]
        self._ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Only with the protocol named does asyncio set TCP_NODELAY: 40 ms for each answer else.
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise AgentError("listen for requests", f"{host}:{port}", str(error)) from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise AgentError(
            "listen for requests",
            f"{host}:{port}",
            error.strerror or str(error),
            "choose another address with --listen; with port 0 any free port is taken",
        ) from error
    return sock
