"""How commands talk to the running daemon: the client of its local API."""

from __future__ import annotations

import json
import socket
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any

from agent.answer import Answer
from agent.asking import MARK_HEADER
from agent.errors import DaemonError
from agent.readback import http_date

if TYPE_CHECKING:
    from pathlib import Path

_CONNECT_SECONDS = 5.0
# What Polar says of the token is a 502 of the daemon's: these are its own words to us.
_NOT_FOR_US = (401, 403, 421)


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


def ask_polar(path: Path, target: str, mark: str, *, timeout: float) -> Answer | None:
    """Have the daemon ask Polar.

    Args:
        path: its API socket.
        target: path and query.
        mark: of the server and the token that are meant, see `agent.asking`.
        timeout: seconds to wait for the answer.

    Returns:
        The answer; None when no daemon gives one: none listens, it is stopping, it does not let us
        in, or it has another server or token.
    """
    connection = _UnixConnection(path, timeout)
    try:
        connection.request("GET", target, headers={MARK_HEADER: mark})
        response = connection.getresponse()
        body = response.read()
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()
    if response.status in _NOT_FOR_US:
        return None
    retry_after, date = response.getheader("retry-after"), http_date(response.getheader("date"))
    return Answer(response.status, body, retry_after, date)


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
