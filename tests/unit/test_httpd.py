"""The HTTP server by itself: its bounds, its deadlines, its grammar; over real sockets."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from typing import TYPE_CHECKING

import pytest
from support.clock import FakeClock
from support.processes import PATIENCE, wait_until

from agent.clock import SystemClock
from agent.collector.sockets import listen
from agent.httpd.lanes import Lane
from agent.httpd.message import Request, Response, as_json, refusal
from agent.httpd.server import Bounds, Listener, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from agent.httpd.message import Reply

MAX_BODY = 4 << 20


class App:
    """Answers with what it was sent; `/later` waits for `release`, `/no` is refused for its head."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.seen: list[Request] = []
        self.replies: list[Reply] = []

    def admit(self, request: Request) -> Response | int:
        return refusal(403, "NotAllowed", "no") if request.path == "/no" else MAX_BODY

    def handle(self, request: Request, reply: Reply) -> None:
        self.seen.append(request)
        if request.path == "/later":
            self.replies.append(reply)
        elif request.path == "/big":
            reply(Response(200, b"x" * (8 << 20), "text/plain"))
        else:
            reply(as_json(200, {"path": request.path, "query": request.query, "bytes": len(request.body)}))


class Served:
    """A server with its app."""

    def __init__(self, path: Path, bounds: Bounds) -> None:
        self.path = path
        self.app = App()
        self.bound = listen(path, mode=0o600)
        self.server = Server([Listener(self.bound.sock, "unix")], self.app, SystemClock(), bounds)
        self.server.start()

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE)
        sock.connect(str(self.path))
        return sock

    def close(self) -> None:
        self.server.stop()
        self.bound.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    servers: list[Served] = []

    def start(**bounds: float) -> Served:
        servers.append(Served(tmp_path / f"{len(servers)}.sock", Bounds(**bounds)))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def answer(sock: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read one response."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        assert piece, f"closed after {data!r}"
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    while len(body) < int(headers.get("content-length", 0)):
        body += sock.recv(1 << 20)
    assert len(body) == int(headers.get("content-length", 0))
    return int(status.split()[1]), headers, body


def rest(sock: socket.socket) -> bytes:
    """Read to the end of the connection."""
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


def ask(served: Served, data: bytes) -> tuple[int, dict[str, str], bytes]:
    with served.connect() as sock:
        sock.sendall(data)
        return answer(sock)


def get(path: str, *headers: str) -> bytes:
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode()


def post(path: str, body: bytes) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


# -- grammar -------------------------------------------------------------------------------


def test_a_request_is_answered_and_the_connection_serves_the_next_one(serve) -> None:
    served = serve()

    with served.connect() as sock:
        for number in range(3):
            sock.sendall(post(f"/a%20b?n={number}", b"x" * number))
            status, _, body = answer(sock)
            assert status == 200
            assert body == b'{"path":"/a b","query":"n=%d","bytes":%d}' % (number, number)


def test_requests_that_are_sent_ahead_are_answered_in_order(serve) -> None:
    served = serve()

    with served.connect() as sock:
        sock.sendall(b"".join(post(f"/{number}", b"x" * number) for number in range(50)))
        sock.shutdown(socket.SHUT_WR)
        data = rest(sock)

    assert re.findall(rb'"path":"/(\d+)"', data) == [b"%d" % number for number in range(50)]


def test_thousands_of_refused_requests_at_once_are_answered(serve) -> None:
    served = serve()

    with served.connect() as sock:
        sock.sendall(get("/no") * 3000)
        assert {answer_from_stream(sock) for _ in range(3000)} == {403}

    assert ask(served, get("/still"))[0] == 200


def answer_from_stream(sock: socket.socket) -> int:
    """Return the status of one response, of a stream of equal ones."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = sock.recv(1)
        assert piece
        head += piece
    length = int(re.search(rb"content-length: (\d+)", head)[1])
    while length:
        length -= len(sock.recv(length))
    return int(head.split()[1])


def test_a_body_that_comes_in_pieces_is_put_together(serve) -> None:
    served = serve()

    with served.connect() as sock:
        for byte in post("/slowly", b"0123456789"):
            sock.sendall(bytes([byte]))
        assert answer(sock)[2].endswith(b'"bytes":10}')

    assert served.app.seen[0].body == b"0123456789"


def test_a_client_that_asks_before_it_sends_its_body_is_told_to_go_on(serve) -> None:
    served = serve()

    with served.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 100")
        sock.sendall(b"abc")
        assert answer(sock)[0] == 200


def test_a_head_request_gets_the_head_alone(serve) -> None:
    served = serve()

    with served.connect() as sock:
        sock.sendall(b"HEAD /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        data = rest(sock)

    assert data.startswith(b"HTTP/1.1 200")
    assert data.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET / HTTP/1.1\r\nHost: x\r\nBad Name: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused_and_the_connection_ends(serve, request_bytes: bytes) -> None:
    served = serve()

    with served.connect() as sock:
        sock.sendall(request_bytes)
        status, headers, _ = answer(sock)
        assert (status, headers["connection"]) == (400, "close")
        assert rest(sock) == b""

    assert not served.app.seen


def test_a_body_without_a_length_is_411(serve) -> None:
    served = serve()

    chunked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    assert ask(served, chunked)[0] == 411
    assert ask(served, b"POST / HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 411


# -- bounds --------------------------------------------------------------------------------


def test_a_head_that_does_not_end_is_431(serve) -> None:
    served = serve()

    with served.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000)
        assert answer(sock)[0] == 431


def test_a_body_beyond_the_bound_is_413_before_it_is_read_and_the_answer_arrives(serve) -> None:
    served = serve()

    with served.connect() as sock:
        sock.sendall(f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_BODY + 1}\r\n\r\n".encode())
        writer = threading.Thread(target=_send_all, args=(sock, b"x" * (MAX_BODY + 1)))
        writer.start()
        assert answer(sock)[0] == 413
        writer.join(PATIENCE)

    assert ask(served, post("/", b"x" * MAX_BODY))[0] == 200


def _send_all(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # the server may hang up on what it does not want
        sock.sendall(data)


def test_large_bodies_wait_for_room_and_those_that_were_let_in_get_through(serve) -> None:
    served = serve(body_bytes=MAX_BODY)
    first, second = served.connect(), served.connect()

    with first, second:
        first.sendall(post("/first", b"x" * MAX_BODY)[:-1])
        wait_until(lambda: served.server._reserved == MAX_BODY)
        second.sendall(post("/second", b"y" * 100))
        wait_until(lambda: served.server._waiting)
        assert not served.app.seen
        first.sendall(b"x")
        assert answer(first)[0] == 200
        assert answer(second)[0] == 200

    assert [request.path for request in served.app.seen] == ["/first", "/second"]
    wait_until(lambda: served.server._reserved == 0)


def test_a_small_body_does_not_wait_behind_large_ones(serve) -> None:
    served = serve(body_bytes=MAX_BODY)

    with served.connect() as first, served.connect() as large:
        first.sendall(post("/first", b"x" * (MAX_BODY - 1000))[:-1])
        wait_until(lambda: served.server._reserved == MAX_BODY - 1000)
        large.sendall(post("/large", b"y" * 2000))
        wait_until(lambda: served.server._waiting)

        assert ask(served, post("/small", b"z" * 100))[0] == 200

        assert [request.path for request in served.app.seen] == ["/small"]
        first.sendall(b"x")
        assert answer(large)[0] == 200


def test_a_body_that_does_not_come_is_given_up_soon_while_others_wait_for_its_room(serve) -> None:
    served = serve(body_bytes=1000, stall=0.1, body=600.0)

    with served.connect() as stalled:
        stalled.sendall(post("/stalled", b"x" * 1000)[:-1])
        wait_until(lambda: served.server._reserved == 1000)

        assert ask(served, post("/waits", b"y" * 100))[0] == 200
        assert answer(stalled)[0] == 408

    assert [request.path for request in served.app.seen] == ["/waits"]


def test_those_who_left_while_they_waited_are_forgotten(serve) -> None:
    served = serve(body_bytes=1000, stall=600.0, body=0.2)

    with served.connect() as large, served.connect() as first:
        first.sendall(post("/later", b"x" * 1000))
        wait_until(lambda: served.app.replies)
        large.sendall(post("/large", b"y" * 1000))
        assert answer(large)[0] == 503

    wait_until(lambda: not served.server._waiting)


class ByHand:
    """A server that moves only when told, by a clock of its own."""

    def __init__(self, path: Path, **bounds: float) -> None:
        self.clock = FakeClock()
        self.app = App()
        self._bound = listen(path, mode=0o600)
        self.sock = Scarce(self._bound.sock)
        self.server = Server([Listener(self.sock, "unix")], self.app, self.clock, Bounds(**bounds))
        self._clients: list[socket.socket] = []

    def connect(self, data: bytes) -> socket.socket:
        """Connect a client, which has sent something."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE)
        sock.connect(str(self._bound.path))
        sock.sendall(data)
        self._clients.append(sock)
        return sock

    def step(self, times: int = 4) -> None:
        for _ in range(times):
            self.server.poke()
            self.server.step()

    def close(self) -> None:
        for sock in self._clients:
            sock.close()
        while self.server.connections:
            self.step()
        self._bound.close()


class Scarce:
    """A listening socket that has no free descriptor while it is told so."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.fileno = sock.fileno
        self.none_left = False

    def accept(self) -> tuple[socket.socket, object]:
        if self.none_left:
            raise OSError(24, "Too many open files")
        return self._sock.accept()


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[Callable[..., ByHand]]:
    servers: list[ByHand] = []

    def make(**bounds: float) -> ByHand:
        servers.append(ByHand(tmp_path / "s", **bounds))
        return servers[-1]

    yield make
    for one in servers:
        one.close()


def test_of_too_many_connections_one_that_came_just_now_does_not_go(by_hand) -> None:
    world = by_hand(connections=3)
    slow = [world.connect(b"GET /slow HTTP/1.1\r\n") for _ in range(3)]
    world.step()
    world.clock.advance(5.0)

    quick = [world.connect(get(f"/{number}")) for number in range(3)]
    world.step()

    assert [answer(sock)[0] for sock in quick] == [200] * 3
    assert [rest(sock) for sock in slow] == [b""] * 3


def test_without_a_free_descriptor_it_listens_again_a_little_later(by_hand) -> None:
    world = by_hand()
    world.sock.none_left = True
    client = world.connect(get("/"))
    world.step()
    assert world.server.connections == 0

    world.sock.none_left = False
    world.step()
    assert world.server.connections == 0
    world.clock.advance(1.1)
    world.step()

    assert answer(client)[0] == 200


def test_a_body_has_its_time_from_when_it_was_let_in(by_hand) -> None:
    world = by_hand(body_bytes=1000, body=30.0)
    world.connect(post("/later", b"x" * 1000))
    world.step()
    second = world.connect(post("/second", b"y" * 1000)[:-1])
    world.step()
    world.clock.advance(25.0)
    world.app.replies[0](as_json(200, {}))
    world.step()

    world.clock.advance(25.0)
    world.step()
    second.sendall(b"y")
    world.step()

    assert answer(second)[0] == 200


def test_a_client_that_leaves_in_the_middle_of_its_body_gives_the_room_back(serve) -> None:
    served = serve()

    with served.connect() as sock:
        sock.sendall(post("/", b"x" * 1000)[:-1])
        wait_until(lambda: served.server._reserved == 1000)

    wait_until(lambda: served.server._reserved == 0)
    assert served.server.connections == 0


def test_of_too_many_connections_the_one_that_waits_longest_goes(serve) -> None:
    served = serve(connections=10)
    idle = [served.connect() for _ in range(10)]
    wait_until(lambda: served.server.connections == 10)

    assert ask(served, get("/"))[0] == 200

    assert rest(idle[0]) == b""
    idle[9].sendall(get("/"))
    assert answer(idle[9])[0] == 200
    for sock in idle:
        sock.close()


def test_many_more_idle_connections_than_there_is_room_for_do_not_keep_a_request_out(serve) -> None:
    served = serve(connections=32)
    idle = [served.connect() for _ in range(600)]

    assert ask(served, get("/"))[0] == 200
    assert served.server.connections <= 32

    for sock in idle:
        sock.close()


def test_requests_that_are_worked_on_are_never_closed_to_make_room(serve) -> None:
    served = serve(connections=2)
    working = [served.connect() for _ in range(2)]
    for sock in working:
        sock.sendall(get("/later"))
    wait_until(lambda: len(served.app.replies) == 2)

    with served.connect() as third, served.connect() as fourth:
        third.sendall(get("/third"))
        fourth.sendall(get("/fourth"))
        for reply in served.app.replies:
            reply(as_json(200, {}))
        assert [answer(sock)[0] for sock in working] == [200, 200]
        for sock in working:
            sock.close()
        assert answer(third)[0] == 200
        assert answer(fourth)[0] == 200


# -- deadlines -----------------------------------------------------------------------------


def test_a_head_that_drips_is_given_up_after_its_time_in_all(serve) -> None:
    served = serve(head=0.3)
    stop = threading.Event()

    with served.connect() as sock:

        def drip() -> None:
            for byte in get("/", "X: " + "x" * 10_000):
                if stop.wait(0.02):
                    return
                _send_all(sock, bytes([byte]))

        dripping = threading.Thread(target=drip)
        dripping.start()
        assert answer(sock)[0] == 408
        stop.set()
        dripping.join(PATIENCE)

    assert not served.app.seen


def test_a_body_that_does_not_come_is_given_up(serve) -> None:
    served = serve(body=0.2)

    assert ask(served, post("/", b"x" * 10)[:-1])[0] == 408


def test_a_connection_that_asks_nothing_is_closed(serve) -> None:
    served = serve(idle=0.2)

    with served.connect() as sock:
        assert rest(sock) == b""


def test_a_client_that_does_not_read_its_answer_is_closed(serve) -> None:
    served = serve(write=0.3)

    with served.connect() as sock:
        sock.sendall(get("/big"))
        wait_until(lambda: served.app.seen)
        wait_until(lambda: served.server.connections == 0)
        assert len(rest(sock)) < 8 << 20


def test_a_large_answer_reaches_a_client_that_reads(serve) -> None:
    served = serve()

    assert len(ask(served, get("/big"))[2]) == 8 << 20


# -- the end -------------------------------------------------------------------------------


def test_at_the_end_requests_that_are_worked_on_get_their_answer(serve) -> None:
    served = serve()

    with served.connect() as sock, served.connect() as idle:
        sock.sendall(get("/later"))
        wait_until(lambda: served.app.replies)
        stopping = threading.Thread(target=served.server.stop)
        stopping.start()
        assert rest(idle) == b""
        served.app.replies[0](as_json(200, {}))
        assert answer(sock)[0] == 200
        stopping.join(PATIENCE)

    assert not served.server.alive


def test_an_answer_for_a_client_that_is_gone_or_was_answered_is_thrown_away(serve) -> None:
    served = serve()

    with served.connect() as sock:
        sock.sendall(get("/later"))
        wait_until(lambda: served.app.replies)
        served.app.replies[0](as_json(200, {"first": True}))
        assert answer(sock)[2] == b'{"first":true}'
        served.app.replies[0](as_json(200, {"second": True}))
        sock.sendall(get("/next"))
        assert b"/next" in answer(sock)[2]


# -- lanes ---------------------------------------------------------------------------------


def request() -> Request:
    return Request("GET", "/", {})


def test_a_lane_works_on_so_many_at_once_lets_some_wait_and_turns_the_others_away() -> None:
    lane = Lane("test", 2, 1)
    release, running = threading.Event(), threading.Semaphore(0)
    answers: list[int] = []

    def work(_request: Request, reply: Reply) -> None:
        running.release()
        release.wait(PATIENCE)
        reply(as_json(200, {}))

    for _ in range(5):
        lane.put(work, request(), lambda response: answers.append(response.status))
    assert running.acquire(timeout=PATIENCE)
    assert running.acquire(timeout=PATIENCE)
    assert answers == [503, 503]
    release.set()
    wait_until(lambda: sorted(answers) == [200, 200, 200, 503, 503])


def test_a_mistake_in_the_work_is_a_500_and_the_lane_goes_on() -> None:
    lane = Lane("test", 1, 4)
    answers: list[int] = []

    def fail(_request: Request, _reply: Reply) -> None:
        raise RuntimeError

    lane.put(fail, request(), lambda response: answers.append(response.status))
    lane.put(
        lambda _, reply: reply(as_json(200, {})), request(), lambda response: answers.append(response.status)
    )
    wait_until(lambda: answers == [500, 200])
