"""The sockets of the API, bound when the daemon starts, long before the server is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.collector.sockets import BoundSocket, adopt, listen, listen_tcp

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from agent.settings import Settings


@dataclass(frozen=True, slots=True)
class ApiSockets:
    """What the API is served on: a Unix socket, and TCP if somebody chose it."""

    unix: BoundSocket
    tcp: socket.socket | None

    @classmethod
    def bind(cls, settings: Settings, passed: Sequence[socket.socket] = ()) -> ApiSockets:
        """Listen where the settings say; raises AgentError, and leaves nothing behind then.

        Args:
            settings: all of them.
            passed: sockets that the agent was started with; one of the right path is used.
        """
        unix = adopt(passed, settings.api_socket_path) or listen(
            settings.api_socket_path,
            mode=settings.api_socket_mode,
            owner=settings.socket_owner,
            group=settings.socket_group,
        )
        try:
            tcp = None if settings.api_listen is None else listen_tcp(settings.api_listen)
        except BaseException:
            unix.close()
            raise
        return cls(unix, tcp)

    def close(self) -> None:
        """Listen no more."""
        self.unix.close()
        if self.tcp is not None:
            self.tcp.close()
