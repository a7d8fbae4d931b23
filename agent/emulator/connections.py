"""Open connections, to break them on purpose."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

_LINGER_NOT = struct.pack("ii", 1, 0)


class Connections:
    """The open connections by their client's address, as requests name it."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], asyncio.Transport] = {}

    def opened(self, transport: asyncio.Transport) -> None:
        """Remember a connection."""
        self._open[_client(transport)] = transport

    def closed(self, transport: asyncio.Transport) -> None:
        """Forget a connection."""
        self._open.pop(_client(transport), None)

    def reset(self, client: tuple[str, int]) -> None:
        """Break a client's connection, so that it sees a reset and no orderly end."""
        transport = self._open.get((client[0], client[1]))
        if transport is None:
            return  # the client was faster
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        transport.abort()


def _client(transport: asyncio.Transport) -> tuple[str, int]:
    address = transport.get_extra_info("peername")
    return str(address[0]), int(address[1])
