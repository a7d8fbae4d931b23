"""How commands talk to the running daemon: the client of its local API."""

from __future__ import annotations

import json
import socket
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any

from agent.errors import DaemonError

if TYPE_CHECKING:
    from pathlib import Path

_CONNECT_SECONDS = 5.0


class _UnixConnection(HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_CONNECT_SECONDS)
        self.sock.connect(str(self._path))
        self.sock.settimeout(self.timeout)


def call(
    path: Path, method: str, target: str, body: Any = None, *, timeout: float = 30.0
) -> dict[str, Any] | None:
    """Call the daemon.

    Args:
        path: its API socket.
        method: the HTTP method.
        target: path and query.
        body: a document to send.
        timeout: seconds to wait for the answer.

    Returns:
        The answer; None when no daemon listens.

    Raises:
        DaemonError: it cannot be reached, or it says that the call failed.
    """
    connection = _UnixConnection(path, timeout)
    data = None if body is None else json.dumps(body).encode()
    try:
        connection.request(method, target, body=data, headers={"Content-Type": "application/json"})
        response = connection.getresponse()
        document = json.loads(response.read())
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except PermissionError as error:
        raise DaemonError(
            "talk to the daemon", str(path), "permission denied", "run this as the daemon's user, or as root"
        ) from error
    except (OSError, HTTPException, ValueError) as error:
        raise DaemonError(
            "talk to the daemon", str(path), str(error) or type(error).__name__, "is it stopping? see its log"
        ) from error
    finally:
        connection.close()
    if response.status != 200:
        raise DaemonError(
            "have the daemon do it",
            f"{method} {target}",
            str(document.get("detail", response.status)),
            str(document.get("hint", "")),
        )
    result: dict[str, Any] = document
    return result
