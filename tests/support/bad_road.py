"""A way to the server on which a share of the requests meets trouble, of every kind that one can meet.

It stands between the product and the emulator. Some troubles come in the server's place, before
anything is stored; the others spoil its answer, after it has stored what it was sent.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import Counter
from email.utils import formatdate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

HTML = b"<html><body>Bad gateway</body></html>"
_SUMS = b'{"inserted":0,"duplicates":1}'


def reply(status: int, body: bytes = b"", **headers: str) -> bytes:
    """Return an answer; header names are written with underscores."""
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _later(seconds: float) -> str:
    """Return a date as HTTP writes it."""
    return formatdate(time.time() + seconds, usegmt=True)


INSTEAD: dict[str, Callable[[], bytes]] = {
    **{
        str(status): (lambda status=status: reply(status, HTML))
        for status in (408, 425, 500, 502, 503, 504, 507)
    },
    "429": lambda: reply(429),
    "429, seconds": lambda: reply(429, retry_after="1"),
    "429, a date": lambda: reply(429, retry_after=_later(1)),
    "503, seconds": lambda: reply(503, retry_after="1"),
    "503, garbage": lambda: reply(503, retry_after="soon"),
    "400": lambda: reply(400, b'{"detail":"There was an error parsing the body"}'),
    "422 that names nothing": lambda: reply(
        422, b'{"detail":[{"loc":["body"],"type":"missing","msg":"no"}]}'
    ),
    "200 in HTML": lambda: reply(200, HTML),
    "200 without a body": lambda: reply(200),
    "204": lambda: reply(204),
    "reset": lambda: b"",
    "half a head": lambda: b"HTTP/1.1 200 OK\r\ncontent-le",
    "no HTTP": lambda: b"SSH-2.0-OpenSSH_9.2\r\n",
}
"""What comes in place of an answer; where nothing more can follow, the connection breaks."""

HOLDING: dict[str, Callable[[], bytes]] = {
    "401": lambda: reply(401, b'{"error":"invalid_token"}'),
    "404": lambda: reply(404, HTML),
    "a redirect": lambda: reply(307, location="https://elsewhere.example/"),
}
"""The same, each held for a quarter of a minute."""


def _broken_body(answer: bytes) -> bytes:
    return answer[:-10]


def _short_json(answer: bytes) -> bytes:
    head, _, body = answer.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n" + body[:-10] + b" " * 10


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "lost answer": lambda _: b"",
    "reset in mid-body": _broken_body,
    "JSON cut short": _short_json,
    "stored, 502": lambda _: reply(502, HTML),
    "stored, 504": lambda _: reply(504, HTML),
    "stored, 200 in HTML": lambda _: reply(200, HTML),
    "stored, other sums": lambda _: reply(200, _SUMS),
    "slow answer": lambda answer: answer,
    "interim answers first": lambda answer: b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 X\r\n\r\n" + answer,
}
"""What becomes of the server's answer."""

KINDS = (*INSTEAD, *SPOILED)


class BadRoad:
    """Listens on loopback and forwards to a server.

    Args:
        port: the server's.
        share: of the requests that carry events: so many meet trouble.
        kinds: the troubles; each is as frequent as the others.
        seed: of what happens to which.
    """

    def __init__(self, port: int, share: float, kinds: tuple[str, ...] = KINDS, seed: int = 0) -> None:
        self._port = port
        self._share = share
        self._kinds = kinds
        self._chance = random.Random(seed)
        self._deck: list[str] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._open: set[socket.socket] = set()
        self.met: Counter[str] = Counter()
        """How often each trouble was met; "" for none."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Break all connections, and take no more."""
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with (
            contextlib.suppress(OSError, ValueError),
            client,
            socket.create_connection(("127.0.0.1", self._port)) as server,
        ):
            self._open |= {client, server}
            try:
                with client.makefile("rb") as asked, server.makefile("rb") as answered:
                    while self._exchange(client, server, asked, answered):
                        pass
            finally:
                self._open -= {client, server}

    def _exchange(
        self, client: socket.socket, server: socket.socket, asked: BinaryIO, answered: BinaryIO
    ) -> bool:
        """Serve one request; False when the connection is at its end."""
        request = _message(asked)
        if not request:
            return False
        kind = self._trouble() if request.startswith(b"POST /v1/events/ingest ") else ""
        if kind in INSTEAD or kind in HOLDING:
            what = (INSTEAD | HOLDING)[kind]()
        else:
            server.sendall(request)
            what = _message(answered)
            if kind:
                what = SPOILED[kind](what)
        if kind == "slow answer":
            for place in range(0, len(what), len(what) // 10):
                client.sendall(what[place : place + len(what) // 10])
                self._stopping.wait(0.1)
        else:
            client.sendall(what)
        return b"\r\n\r\n" in what and kind != "reset in mid-body"

    def _trouble(self) -> str:
        with self._lock:
            kind = ""
            if self._chance.random() < self._share:
                if not self._deck:
                    self._deck = list(self._kinds)
                    self._chance.shuffle(self._deck)
                kind = self._deck.pop()
            self.met[kind] += 1
            return kind


def _message(stream: BinaryIO) -> bytes:
    """Read one request or answer, with its body; empty at the end of the connection."""
    lines, length = [], 0
    while (line := stream.readline()).strip():
        lines.append(line)
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return b"".join(lines) + line + stream.read(length) if lines else b""
