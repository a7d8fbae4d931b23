"""What one producer may cost the others: the collector, step by step, with a writer that only notes."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import TYPE_CHECKING

import pytest
from support.clock import FakeClock
from support.processes import PATIENCE

from agent.collector.connection import MAX_WAITING_ANSWERS, Connection, Share
from agent.collector.peers import AllowList
from agent.collector.sockets import listen
from agent.collector.unix import Collector
from agent.event import Checker
from agent.seen import Seen

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.writer import Append

GOOD = b'{"name":"usage","external_customer_id":"c"}\n'
BAD = b'{"name":"usage"}\n'
LONGEST = 256 * 1024


class Writer:
    """Takes everything at once."""

    full = None
    drops = False

    def __init__(self) -> None:
        self.order = threading.RLock()
        self.appends: list[Append] = []
        self.beats: list[float] = []
        self.collector: Collector

    def wait_for_room(self, seconds: float) -> bool:
        return seconds > 0

    def append(self, append: Append) -> None:
        self.appends.append(append)
        self.beats.append(self.collector.beat)
        append.done(True)


class TickingClock(FakeClock):
    """Time passes whenever somebody looks."""

    def monotonic(self) -> float:
        self.advance(0.001)
        return super().monotonic()


class World:
    """A collector that moves only when told, and its producers."""

    def __init__(self, path: Path) -> None:
        self._bound = listen(path, mode=0o600)
        self.writer = Writer()
        self.collector = self.writer.collector = Collector(
            self._bound,
            Checker(),
            Seen(),
            self.writer,
            TickingClock(),
            server_now=lambda: 1_795_435_200.0,
            max_line_bytes=LONGEST,
            max_connections=4096,
            allowed=AllowList((), ()),
        )
        self._producers: list[socket.socket] = []

    def connect(self, data: bytes = b"") -> socket.socket:
        """Connect a producer, which has written something."""
        sock = socket.socket(socket.AF_UNIX)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        sock.settimeout(PATIENCE)
        sock.connect(str(self._bound.path))
        self._producers.append(sock)
        sock.sendall(data)
        return sock

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.collector.step(0)

    def settle(self) -> None:
        """Step until all that was written is read."""
        self.step(100)

    def close(self) -> None:
        for sock in self._producers:
            sock.close()
        self.step(3)
        self.collector.close()
        self._bound.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    one = World(tmp_path / "agent.sock")
    yield one
    one.close()


def answers(sock: socket.socket) -> list[dict[str, object]]:
    """Return what the agent has said so far."""
    return [json.loads(line) for line in sock.recv(1 << 20).splitlines()]


def test_a_stop_reads_on_for_a_bounded_time_and_bad_lines_last(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.collector.unix._DRAIN_SECONDS", 0.02)
    bad = [world.connect(BAD * 1000) for _ in range(3)]
    world.settle()
    for sock in bad:
        sock.sendall(BAD * 5000)
    good = world.connect()
    world.collector._entrance.accept(world.collector.beat)
    good.sendall(GOOD)
    world.writer.appends.clear()

    world.collector._stopping = True
    world.collector._run()

    fates = [(len(append.groups), append.refused) for append in world.writer.appends]
    assert fates[0] == (1, 0)
    assert 0 < sum(refused for _, refused in fates) < 15_000


def test_producers_of_bad_lines_are_read_one_at_a_time_and_little_behind_the_others(world: World) -> None:
    bad = [world.connect(GOOD * 3000) for _ in range(3)]  # which were read in large pieces until now
    world.settle()
    for sock in bad:
        sock.sendall(BAD * 1000)
    world.settle()
    for sock in bad:
        sock.sendall(BAD * 2000)
    good = world.connect()
    world.writer.appends.clear()
    world.collector._entrance.accept(world.collector.beat)
    good.sendall(GOOD)

    world.step(3)

    fates = [(len(append.groups), append.refused) for append in world.writer.appends]
    assert fates[0] == (1, 0)
    assert [groups for groups, _ in fates[1:]] == [0] * 3
    assert all(0 < refused < 500 for _, refused in fates[1:])


def taken(world: World) -> list[int]:
    """Return how many events each call of the checker took."""
    return [sum(count for _, count in append.groups) for append in world.writer.appends]


def test_a_producer_is_read_in_larger_and_larger_pieces_while_its_lines_are_fine(world: World) -> None:
    sock = world.connect(GOOD * 3000)
    world.settle()
    first = taken(world)
    world.writer.appends.clear()

    sock.sendall(GOOD * 1000)
    world.settle()

    assert first[0] < 100
    assert first == sorted(first[:-1]) + first[-1:]
    assert taken(world) == [1000]


def test_a_careless_producer_that_takes_care_is_read_as_all_are(world: World) -> None:
    sock = world.connect(BAD * 1000)
    world.settle()
    sock.sendall(GOOD * 3000)
    world.settle()
    world.writer.appends.clear()

    sock.sendall(GOOD * 1000)
    world.settle()

    assert taken(world) == [1000]


def test_some_bad_lines_among_good_ones_make_nobody_careless(world: World) -> None:
    sock = world.connect((GOOD * 5 + BAD) * 600)
    world.settle()
    world.writer.appends.clear()

    sock.sendall((GOOD * 5 + BAD) * 150)
    world.settle()

    assert taken(world) == [750]


def test_no_more_answers_are_made_than_may_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sock = world.connect(GOOD * 3000)
    world.settle()
    made: list[int] = []
    monkeypatch.setattr(Connection, "_send", lambda _self, answers: made.append(len(answers)))

    sock.sendall(b"x\n" * 10_000)
    world.settle()

    assert MAX_WAITING_ANSWERS < made[0] < MAX_WAITING_ANSWERS + 1000


def test_work_on_many_producers_is_no_sign_of_being_stuck(world: World) -> None:
    producers = [world.connect(GOOD * 3000) for _ in range(5)]
    world.settle()
    for sock in producers:
        sock.sendall(GOOD * 3000)
    world.writer.beats.clear()

    world.step()

    first, second, *_ = world.writer.beats
    assert first < second


def test_last_lines_without_an_end_are_not_checked_all_at_once(world: World) -> None:
    producers = [world.connect(b"x" * 200_000) for _ in range(4)]
    world.settle()
    for sock in producers:
        sock.shutdown(socket.SHUT_WR)

    world.step()

    assert [append.refused for append in world.writer.appends] == [2, 2]


def test_lines_without_an_end_have_a_bound_and_who_waits_longest_goes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.collector.unix._HELD_BYTES", 500_000)
    small = world.connect(b"x")
    world.settle()
    first = world.connect(GOOD + b"x" * 200_000)
    world.settle()
    second = world.connect(GOOD[:-1] + b" " * 200_000)
    world.settle()
    assert world.collector._held == 200_001 + 200_000 + len(GOOD) - 1

    third = world.connect(GOOD[:-1] + b" " * 200_000)
    world.settle()

    said = answers(first)
    assert {"ack": 1} in said
    assert [answer["error"]["type"] for answer in said if "error" in answer] == ["too_slow"]
    assert first.recv(1) == b""
    for sock in (second, third):
        sock.sendall(b"\n")
    small.sendall(b"\n")
    world.settle()
    assert [answers(sock) for sock in (second, third)] == [[{"ack": 1}]] * 2
    assert answers(small)[-1] == {"ack": 1}
    assert world.collector._held == 0


def test_what_a_producer_writes_after_it_was_given_up_is_not_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.collector.unix._HELD_BYTES", 100_000)
    sock = world.connect(b"x" * 200_000)
    world.settle()

    with contextlib.suppress(OSError):
        sock.sendall(b"\n" + GOOD)
    world.settle()

    assert not world.writer.appends
    assert not world.collector.connections


def test_nor_when_it_was_resting_and_answers_are_due(world: World) -> None:
    sock = world.connect()
    world.settle()
    (connection,) = world.collector._connections.values()
    connection.begin()
    world.collector._rest(connection)
    world.collector._give_up(connection)

    sock.sendall(GOOD)
    world.settle()

    assert not world.writer.appends
    connection.abandon()


def test_all_producers_share_the_room_for_answers(world: World) -> None:
    for _ in range(300):
        world.connect()
        world.step()

    (share,) = {connection._share for connection in world.collector._connections.values()}
    assert share.answers < MAX_WAITING_ANSWERS


def test_the_more_producers_the_fewer_answers_wait_for_each() -> None:
    share = Share()
    share.divide(4096)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    connection = Connection(ours, LONGEST, share)
    for _ in range(10):
        connection.begin()
        connection.end(1, b"x" * 99_999 + b"\n")

    for _ in range(200):
        connection.begin()
        connection.end(2, b"y" * 999 + b"\n")

    assert 0 < len(connection._waiting) < 17 * 1024
    share.divide(2)
    assert share.answers == MAX_WAITING_ANSWERS
    ours.close()
    theirs.close()
