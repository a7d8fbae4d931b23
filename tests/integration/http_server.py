"""A small HTTP server on loopback whose every answer, and every bad habit, is up to the test."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

DATE = "Mon, 23 Nov 2026 10:00:00 GMT"
DATE_UNIX = 1_795_428_000.0


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def path(self):
        return urlsplit(self.target).path

    @property
    def parameters(self):
        return parse_qsl(urlsplit(self.target).query, keep_blank_values=True)


def answer(status=200, body=b'{"inserted":1,"duplicates":0}', /, **headers):
    """Return an answer as bytes; header names are written with underscores."""
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", f"date: {DATE}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Server:
    """Answers each request by `respond(request)`: bytes to send; None ends the connection.

    With `talk` set, that function gets the bare socket instead.
    """

    def __init__(self, tls=None):
        self.requests = []
        self.respond = lambda _: answer()
        self.talk = None
        self.stopping = threading.Event()
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._open = set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def stop(self):
        self.stopping.set()
        # Shutting a listening socket down wakes accept() on Linux alone; connecting does it everywhere.
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            pass
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _accept(self):
        number = 0
        while True:
            connection, _ = self._listener.accept()
            if self.stopping.is_set():
                connection.close()
                return
            number += 1
            self._open.add(connection)
            thread = threading.Thread(target=self._serve, args=(connection, number))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection, number):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(connection)
            if self._tls is not None:
                connection = stack.enter_context(self._tls.wrap_socket(connection, server_side=True))
                self._open.add(connection)
            if self.talk is not None:
                self.talk(connection)
                return
            stream = stack.enter_context(connection.makefile("rb"))
            while (request := read_request(stream, number)) is not None:
                self.requests.append(request)
                reply = self.respond(request)
                if reply is None:
                    return
                connection.sendall(reply)


def read_request(stream, number=0):
    """Read one request; None when the connection has ended."""
    first = stream.readline()
    if not first:
        return None
    method, target, _ = first.decode().split(" ", 2)
    headers = {}
    while (line := stream.readline().decode().strip()) != "":
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = stream.read(int(headers.get("content-length", 0)))
    return Request(method, target, headers, body, number)
