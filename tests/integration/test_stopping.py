"""SIGTERM ends in time, `agent flush` keeps its time, and endless answers are bounded, whatever comes."""

from __future__ import annotations

import json
import signal
import socket
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from http_server import Server, answer
from support.processes import Line, Product, wait_until

from agent.daemon import call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EVENT = {"name": "usage", "external_customer_id": "c", "external_id": "e1"}
SHUTDOWN_SECONDS = 0.5
# Far more than a busy machine adds, and less than any wait of the daemon's own that could hold it up: ten
# seconds for a connection, fifteen for another look at a token, a minute for an answer, an hour for a 429.
BOUND = 8.0
MIB = 1 << 20

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


def silence(server: Server, connection: socket.socket) -> None:
    """Take the request and never answer."""
    del connection
    server.stopping.wait()


def drip(server: Server, connection: socket.socket) -> None:
    """Answer a byte a second, beginning with the head."""
    for byte in HEAD + b"content-length: 31\r\n\r\n":
        connection.sendall(bytes([byte]))
        if server.stopping.wait(1):
            return


def drip_body(server: Server, connection: socket.socket) -> None:
    """Send the head at once and the body a byte a second."""
    connection.sendall(HEAD + b"content-length: 3600\r\n\r\n")
    while not server.stopping.wait(1):
        connection.sendall(b" ")


def pour(server: Server, connection: socket.socket) -> None:
    """Send a body without end."""
    connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
    while not server.stopping.is_set():
        connection.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")


TALKS: dict[str, Callable[[Server, socket.socket], None]] = {
    "no answer comes": silence,
    "a byte a second": drip,
    "a byte of the body a second": drip_body,
    "an endless body": pour,
}
ANSWERS = {
    "500 for ever": answer(500, b"Internal Server Error"),
    "429 with a huge Retry-After": answer(429, b"", retry_after="31536000"),
    "401": answer(401, {"error": "invalid_token"}),
    "a redirect": answer(307, b"", location="http://127.0.0.1:1/"),
}


@contextmanager
def nobody() -> Iterator[str]:
    """Yield an address where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextmanager
def hanging() -> Iterator[str]:
    """Yield an address that answers no attempt to connect: its queue of connections is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        try:
            for one in waiting:
                one.setblocking(False)
                one.connect_ex(address)
            yield f"http://127.0.0.1:{address[1]}"
        finally:
            for one in waiting:
                one.close()


PLACES = {"nobody is there": nobody, "the connection hangs": hanging}


@contextmanager
def serving(fault: str) -> Iterator[str]:
    """Yield the address of a server with a fault."""
    server = Server()
    if fault in TALKS:
        server.talk = lambda connection: (connection.recv(65536), TALKS[fault](server, connection))
    else:
        server.respond = lambda _: ANSWERS[fault]
    try:
        yield server.url
    finally:
        server.stop()


@contextmanager
def waiting_agent(directory: Path, url: str, **settings: object) -> Iterator[Product]:
    """Yield an agent with one event that is on its way to a server."""
    settings = {"shutdown_timeout": SHUTDOWN_SECONDS, "flush_interval": 0.01, "backoff_max": 60} | settings
    product = Product(directory, base_url=url, **settings)
    try:
        product.start_daemon()
        line = Line(product.socket)
        line.send(EVENT)
        assert line.acked(1) == []
        line.close()
        yield product
    finally:
        product.close()


def tried(product: Product) -> bool:
    """Tell whether a request is under way, or was in vain."""
    return status(product)["delivery"]["state"] != "idle"


def status(product: Product) -> dict[str, Any]:
    """Ask the daemon how it stands."""
    return call(product.directory / "api.sock", "GET", "/status") or {"delivery": {"state": "idle"}}


@pytest.mark.parametrize("fault", [*PLACES, *TALKS, *ANSWERS])
def test_sigterm_and_flush_keep_their_time_when(fault: str, tmp_path: Path) -> None:
    place = PLACES[fault]() if fault in PLACES else serving(fault)
    with place as url, waiting_agent(tmp_path, url) as product:
        wait_until(lambda: tried(product), what="the first request")
        began = time.monotonic()
        assert product.stop_daemon(signal.SIGTERM) == 0
        assert time.monotonic() - began < SHUTDOWN_SECONDS + BOUND

        began = time.monotonic()
        flushed = product.run("flush", "--timeout", "500ms", "--json")
        assert time.monotonic() - began < 0.5 + BOUND
        assert flushed.returncode == 1, flushed.stderr
        left = json.loads(flushed.stdout)
        assert (left["empty"], left["remaining"]) == (False, 1)
        assert left["reason"]
        assert product.status()["queue"]["events"] == 1


def test_flush_through_the_daemon_keeps_its_time(tmp_path: Path) -> None:
    with serving("no answer comes") as url, waiting_agent(tmp_path, url) as product:
        began = time.monotonic()
        flushed = product.run("flush", "--timeout", "200ms", "--json")
        assert time.monotonic() - began < 0.2 + BOUND
        assert flushed.returncode == 1
        assert json.loads(flushed.stdout)["remaining"] == 1


@pytest.mark.parametrize("fault", ["a byte a second", "a byte of the body a second", "an endless body"])
def test_an_answer_without_end_is_given_up_and_the_events_are_sent_again(fault: str, tmp_path: Path) -> None:
    """In bounded time, and in bounded memory."""
    server = Server()
    poured = 0

    class Counted:
        """A connection that knows how much was sent over it."""

        def __init__(self, connection: socket.socket) -> None:
            self._connection = connection

        def sendall(self, data: bytes) -> None:
            nonlocal poured
            self._connection.sendall(data)
            poured += len(data)

    def talk(connection: socket.socket) -> None:
        server.talk = None  # the next one is answered as it should be
        connection.recv(65536)
        TALKS[fault](server, Counted(connection))

    server.talk = talk
    try:
        with waiting_agent(tmp_path, server.url, request_timeout=1, backoff_max=0.1) as product:
            wait_until(lambda: tried(product), what="the first request")
            wait_until(lambda: status(product)["queue"]["events"] == 0, what="delivery")
            assert status(product)["ledger"]["delivered"] == 1
            assert server.requests[-1].body.count(b'"e1"') == 1
            assert poured < 32 * MIB
            peak = Path(f"/proc/{product.daemon.pid}/status").read_text()
            most = next(int(line.split()[1]) for line in peak.splitlines() if line.startswith("VmHWM"))
            assert most < 128 * 1024, "KiB in memory at most"
    finally:
        server.stop()
