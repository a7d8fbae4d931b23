"""SIGTERM ends in time, `agent flush` keeps its time, and endless answers are bounded, whatever comes."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from http_server import Server, answer
from support.processes import PATIENCE, Line, Product, wait_until

from agent.daemon import call
from agent.errors import DaemonError

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


def lose(server: Server, connection: socket.socket) -> None:
    """Take the request, and break the connection in the answer's place."""
    del server, connection


def cut(server: Server, connection: socket.socket) -> None:
    """Break the connection in the middle of the answer."""
    del server
    connection.sendall(HEAD + b'content-length: 29\r\n\r\n{"inserted":1')


TALKS: dict[str, Callable[[Server, socket.socket], None]] = {
    "no answer comes": silence,
    "a byte a second": drip,
    "a byte of the body a second": drip_body,
    "an endless body": pour,
    "answers get lost": lose,
    "answers are cut off": cut,
}
ANSWERS = {
    "500 for ever": answer(500, b"Internal Server Error"),
    "429 with a huge Retry-After": answer(429, b"", retry_after="31536000"),
    "503 with Retry-After": answer(503, b"", retry_after="3600"),
    "401": answer(401, {"error": "invalid_token"}),
    "403": answer(403, {"error": "insufficient_scope"}),
    "a redirect": answer(307, b"", location="http://127.0.0.1:1/"),
    "a proxy's page": answer(200, b"<html>Welcome</html>"),
    "400 for ever": answer(400, {"detail": "There was an error parsing the body"}),
}
UNANSWERED = "has not answered yet"
REASONS = {
    "nobody is there": "Connection refused",
    "the connection hangs": "",  # first it has not answered, then there is no connection in time
    "no answer comes": UNANSWERED,
    "a byte a second": UNANSWERED,
    "a byte of the body a second": UNANSWERED,
    "an endless body": "larger than 8 MiB",
    "answers get lost": "connection broke",
    "answers are cut off": "connection broke",
    "500 for ever": "500: the server failed",
    "429 with a huge Retry-After": "429: the server's rate limit",
    "503 with Retry-After": "503: the server is not available",
    "401": "POLAR_ACCESS_TOKEN",
    "403": "events:write",
    "a redirect": "redirects to http://127.0.0.1:1/",
    "a proxy's page": "not Polar's",
    "400 for ever": "could not read the request",
}
"""What `agent flush` says is wrong."""


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
    with server_with(fault) as server:
        yield server.url


@contextmanager
def server_with(fault: str) -> Iterator[Server]:
    """Yield a server with a fault."""
    server = Server()
    if fault in TALKS:
        server.talk = lambda connection: (connection.recv(65536), TALKS[fault](server, connection))
    else:
        server.respond = lambda _: ANSWERS[fault]
    try:
        yield server
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


def tried(product: Product, fault: str = "") -> bool:
    """Tell whether a request is under way, or was in vain because of a fault."""
    delivery, reason = status(product)["delivery"], REASONS.get(fault, "")
    if reason in ("", UNANSWERED):
        return delivery["state"] != "idle"
    return reason in (delivery["last_error"] or "")


def status(product: Product) -> dict[str, Any]:
    """Ask the daemon how it stands."""
    nothing = {"delivery": {"state": "idle", "last_error": None}}
    return call(product.directory / "api.sock", "GET", "/status") or nothing


def flush_in_vain(product: Product) -> str:
    """Flush; return why the event is still in the queue.

    On a machine that is busy enough the mere start of the command takes longer: the quickest of three counts.
    """
    for _ in range(3):
        began = time.monotonic()
        flushed = product.run("flush", "--timeout", "400ms", "--json")
        took = time.monotonic() - began
        if took < 0.4 + BOUND:
            break
    assert took < 0.4 + BOUND
    assert flushed.returncode == 1, flushed.stderr
    left = json.loads(flushed.stdout)
    assert (left["empty"], left["remaining"]) == (False, 1)
    return left["reason"]


@pytest.mark.parametrize("fault", [*PLACES, *TALKS, *ANSWERS])
def test_sigterm_and_flush_keep_their_time_when(fault: str, tmp_path: Path) -> None:
    """With a daemon and without; both say what is wrong, and lose nothing."""
    place = PLACES[fault]() if fault in PLACES else serving(fault)
    with place as url, waiting_agent(tmp_path, url) as product:
        wait_until(lambda: tried(product, fault), what="the first request")
        assert REASONS[fault] in flush_in_vain(product)

        began = time.monotonic()
        assert product.stop_daemon(signal.SIGTERM) == 0
        assert time.monotonic() - began < SHUTDOWN_SECONDS + BOUND

        assert flush_in_vain(product)
        assert product.status()["queue"]["events"] == 1


@pytest.mark.parametrize("fault", ["401", "a redirect", "500 for ever", "answers get lost"])
def test_flush_tries_at_once_what_was_mended_meanwhile(fault: str, tmp_path: Path) -> None:
    """The daemon itself would look later: it is blocked, or waits for up to an hour."""
    with server_with(fault) as server, waiting_agent(tmp_path, server.url, backoff_max=3600) as product:
        wait_until(lambda: tried(product, fault), what="the first request")
        server.talk, server.respond = None, lambda _: answer()

        flushed = product.run("flush", "--timeout", "10s")

        assert (flushed.returncode, flushed.stderr) == (0, "")
        assert server.requests[-1].body.count(b'"e1"') == 1


def test_flush_says_that_the_daemon_stops_and_a_second_signal_ends_what_it_delivers(tmp_path: Path) -> None:
    with (
        server_with("no answer comes") as server,
        waiting_agent(tmp_path, server.url, flush_interval=3600, shutdown_timeout=3600) as product,
    ):
        came = threading.Event()
        server.talk = lambda connection: (came.set(), silence(server, connection))
        flush = product.spawn("flush", "--timeout", "60s", stdout=subprocess.PIPE)
        assert came.wait(PATIENCE), "the flush sends what the daemon would still gather"

        assert product.daemon is not None
        product.daemon.send_signal(signal.SIGTERM)

        assert (
            flush.communicate(timeout=PATIENCE)[0] == "1 event remains in the queue: the agent is stopping\n"
        )
        assert flush.returncode == 1
        assert product.stop_daemon(signal.SIGTERM) == 0


@pytest.mark.parametrize("timeout", ["nan", "-1", "soon"])
def test_the_api_flushes_for_a_number_of_seconds(timeout: str, tmp_path: Path) -> None:
    with nobody() as url, waiting_agent(tmp_path, url) as product:
        wait_until(lambda: tried(product), what="the API")

        with pytest.raises(DaemonError):
            call(product.directory / "api.sock", "POST", f"/flush?timeout={timeout}", timeout=PATIENCE)


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
