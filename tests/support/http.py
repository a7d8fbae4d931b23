"""Calls to the daemon's local API, by hand."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

from support.processes import PATIENCE, wait_until

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the document."""
        return json.loads(self.body)


class _Unix(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(str(self._path))


class Caller:
    """Calls one API.

    Args:
        where: the path of its socket, or its port on 127.0.0.1.
    """

    def __init__(self, where: Path | int) -> None:
        self._where = where

    def __call__(
        self, method: str, target: str, body: object = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """Send one request; a body that is no bytes goes as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = (
            HTTPConnection("127.0.0.1", self._where, timeout=PATIENCE)
            if isinstance(self._where, int)
            else _Unix(self._where)
        )
        try:
            connection.request(
                method, target, body=data, headers={"Content-Type": "application/json", **(headers or {})}
            )
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())
        finally:
            connection.close()

    def wait(self) -> Caller:
        """Wait until it answers."""

        def answers() -> bool:
            try:
                return self("GET", "/healthz").status == 200
            except OSError:
                return False

        wait_until(answers, what="the local API")
        return self
