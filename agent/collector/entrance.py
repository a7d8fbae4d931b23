"""Takes the connections of producers, as far as there may be more and these may enter."""

from __future__ import annotations

import selectors
from typing import TYPE_CHECKING

from agent.collector.connection import Connection, Share
from agent.collector.peers import AllowList, Door, peer_of
from agent.errors import hint_of
from agent.logs import get
from agent.notice import Notice

if TYPE_CHECKING:
    import socket

    from agent.collector.sockets import BoundSocket

BREATH_SECONDS = 1.0
_AT_ONCE = 64


class Entrance:
    """The listening socket, and the connections that came in.

    Args:
        bound: the socket.
        selector: where it, and each connection, is watched; a connection is its own data there.
        max_line_bytes: the longest line that is taken.
        max_connections: how many are served at once; more wait in the kernel's queue.
        allowed: who may connect.

    Attributes:
        connections: by descriptor.
        door: counts those who were refused.
        again_at: no connection could be taken: try again then; monotonic seconds.
    """

    def __init__(
        self,
        bound: BoundSocket,
        selector: selectors.BaseSelector,
        *,
        max_line_bytes: int,
        max_connections: int,
        allowed: AllowList,
    ) -> None:
        self._bound = bound
        self._selector = selector
        self._max_line_bytes = max_line_bytes
        self._max_connections = max_connections
        self._allowed = allowed
        self._log = get("collector")
        self._share = Share()
        self._listening = False
        self._wanted = False  # there may be room for new connections now
        self._no_files = Notice()
        self.connections: dict[int, Connection] = {}
        self.door = Door(allowed.allows, "events")
        self.again_at: float | None = None
        self.listen(True)

    def configure(self, *, max_connections: int) -> None:
        """Go by another bound once `look` is called; from any thread."""
        self._max_connections = max_connections
        self._wanted = True

    def look(self) -> None:
        """Listen again if the bound was changed."""
        if self._wanted:
            self._wanted = False
            self.listen(True)

    def listen(self, wanted: bool) -> None:
        """Take new connections, or leave them in the kernel's queue."""
        if wanted and not self._listening:
            self._selector.register(self._bound.sock, selectors.EVENT_READ)
        elif self._listening and not wanted:
            self._selector.unregister(self._bound.sock)
        self._listening = wanted
        self.again_at = None

    def accept(self, now: float) -> None:
        """Take the connections that wait; `now` is monotonic."""
        for _ in range(_AT_ONCE):
            if len(self.connections) >= self._max_connections:
                self._log.warning(
                    "too many connections: new ones wait", max_connections=self._max_connections
                )
                self.listen(False)
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
                self.listen(False)
                self.again_at = now + BREATH_SECONDS
                return
            if self._no_files.well(now):
                self._log.info("connections can be taken again")
            if not self._may_enter(sock):
                sock.close()
                continue
            sock.setblocking(False)
            connection = Connection(sock, self._max_line_bytes, self._share)
            self.connections[connection.fd] = connection
            self._share.divide(len(self.connections))
            self._selector.register(sock, selectors.EVENT_READ, connection)

    def left(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        self.connections.pop(connection.fd, None)
        self._share.divide(len(self.connections))

    def close(self) -> None:
        """Listen no more; who is connected stays so."""
        self._bound.close()

    def _may_enter(self, sock: socket.socket) -> bool:
        """Tell whether a producer is on the list."""
        return self._allowed.everyone or self.door.admits(peer_of(sock))
