"""The local HTTP API of a running daemon, on a Unix socket of its own; for its owner only.

`GET /status`; `POST /flush?timeout=SECONDS`; `POST /dead/retry` and `POST /dead/purge`
with `{"ids": [...]}` (null: all) and, for a retry, `{"edits": {"ID": "line"}}`.
"""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from agent import __version__
from agent.errors import AgentError
from agent.logs import get

if TYPE_CHECKING:
    from agent.collector.sockets import BoundSocket

MAX_BODY = 64 << 20
_TIMEOUT_SECONDS = 10
_MAX_AT_ONCE = 16

Action = Callable[[dict[str, str], Any], dict[str, Any]]
"""Takes the query and the body; returns the document to answer with."""


class Api:
    """Serves actions on one listening socket.

    Args:
        bound: the socket.
        actions: by method and path, such as `"GET /status"`.
    """

    def __init__(self, bound: BoundSocket, actions: dict[str, Action]) -> None:
        self._bound = bound
        bound.sock.setblocking(True)
        self._server = _Server(bound, actions)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="api", daemon=True)

    def start(self) -> None:
        """Start serving."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving; requests that run may end on their own."""
        self._stopping = True
        # A thread that waits in accept() sees nothing else.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as last:
            last.connect(str(self._bound.path))
        self._thread.join(_TIMEOUT_SECONDS)
        self._bound.close()

    def _run(self) -> None:
        """Take one connection after the other; the library's own loop would look twice a second."""
        while not self._stopping:
            try:
                request, address = self._server.get_request()
            except OSError:
                get("api").exception("cannot take a call on the local API")
                return
            self._server.process_request(request, address)


class _Server(socketserver.ThreadingMixIn, socketserver.BaseServer):
    """One short-lived thread for each connection, not more than a few at once."""

    daemon_threads = True

    def __init__(self, bound: BoundSocket, actions: dict[str, Action]) -> None:
        super().__init__("", _Handler)
        self.actions = actions
        self._bound = bound
        self._places = threading.BoundedSemaphore(_MAX_AT_ONCE)

    def fileno(self) -> int:
        """Return what to wait on."""
        return self._bound.sock.fileno()

    def get_request(self) -> tuple[Any, Any]:
        """Take a connection."""
        self._places.acquire()
        try:
            sock, _ = self._bound.sock.accept()
        except OSError:
            self._places.release()
            raise
        sock.settimeout(_TIMEOUT_SECONDS)
        return sock, ("local", 0)

    def shutdown_request(self, request: Any) -> None:
        """End a connection."""
        request.close()
        self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that went away in mid-request is no news."""


class _Handler(BaseHTTPRequestHandler):
    """One request a connection."""

    server: _Server
    server_version = f"polar-agent/{__version__}"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer a GET."""
        self._answer()

    def do_POST(self) -> None:
        """Answer a POST."""
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        action = self.server.actions.get(f"{self.command} {url.path}")
        if action is None:
            self._send(404, {"error": "not_found", "detail": f"no {self.command} {url.path}"})
            return
        try:
            length = int(self.headers.get("Content-Length") or 0)
            if not 0 <= length <= MAX_BODY:
                self._send(413, {"error": "too_large", "detail": f"at most {MAX_BODY} bytes"})
                return
            body = json.loads(self.rfile.read(length)) if length else None
            query = {name: values[-1] for name, values in parse_qs(url.query).items()}
            self._send(200, action(query, body))
        except ValueError as error:
            self._send(400, {"error": "bad_request", "detail": str(error)})
        except AgentError as error:
            self._send(500, {"error": "failed", "detail": error.reason, "hint": error.hint})
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001  # a mistake of ours must not end the daemon
            get("api").exception("a request to the local API failed", path=url.path)
            self._send(
                500, {"error": "failed", "detail": type(error).__name__, "hint": "see the daemon's log"}
            )

    def _send(self, status: int, document: dict[str, Any]) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the library's name
        """Local calls are not logged."""
