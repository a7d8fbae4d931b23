"""Several processes around one queue, and clocks that jump under one of them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from http_server import Server, answer, read_request
from support import reader, shifted_clock
from support.processes import PATIENCE, Line, Product, balanced, wait_until

from agent.queue.disk import DiskQueue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EVENTS = 50_000
AT_ONCE = 500
READERS = 4
STRANGER = "5b0a9f0e-3d3e-4a36-9e4c-1d1f5f6a7b8c"  # a customer that the server does not know
NOWHERE = "/nonexistent/api.sock"  # no daemon answers here: who asks reads the disk


def event(number: int) -> dict[str, Any]:
    return {"name": "usage", "external_customer_id": "c", "metadata": {"n": number}}


def send(product: Product, *events: dict[str, Any]) -> None:
    """Send events and wait until they are durable."""
    line = Line(product.socket)
    line.send(*events)
    line.acked(len(events))
    line.close()


def numbers(product: Product) -> list[int]:
    """Return the numbers of the events that the server stored, in its order."""
    return [event["metadata"]["n"] for event in product.stored()]


def contents(directory: Path) -> dict[str, tuple[int, int, int, int, str]]:
    """Return everything that reading must not change about the files of a directory, and about itself."""
    found = {}
    for path in (directory, *directory.iterdir()):
        status = path.stat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[path.name] = (status.st_uid, status.st_gid, status.st_mode, status.st_mtime_ns, digest)
    return found


# -- two daemons -----------------------------------------------------------------------


def test_a_second_daemon_on_the_same_queue_is_refused_with_the_first_ones_process(product: Product) -> None:
    product.start_daemon()
    assert product.daemon is not None
    product.set(socket_path=product.directory / "other.sock")

    second = product.run("run")

    assert second.returncode == 1
    assert f"process {product.daemon.pid} uses it" in second.stderr
    send(product, event(1))


def test_a_second_daemon_on_the_same_socket_is_refused_and_the_first_goes_on(product: Product) -> None:
    product.start_daemon()
    product.set(queue_dir=product.directory / "other")

    second = product.run("run")

    assert second.returncode == 1
    assert "another process listens there" in second.stderr
    send(product, event(1))


# -- readers ---------------------------------------------------------------------------


def start_readers(product: Product) -> list[subprocess.Popen[str]]:
    """Start processes that look at the queue, half of them through the daemon's API."""
    readers = []
    for number in range(READERS):
        environ = dict(product.environ)
        if number % 2:
            environ["POLAR_AGENT_API_SOCKET_PATH"] = NOWHERE
        readers.append(
            subprocess.Popen(
                [sys.executable, "-P", reader.__file__],
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    return readers


@pytest.fixture
def readers(product: Product) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that look at the queue over and over; they end when their standard input does."""
    product.start_emulator()
    product.start_daemon()
    send(product, event(0), event(1) | {"external_customer_id": None, "customer_id": STRANGER})
    wait_until(lambda: product.polled()["queue"]["dead"] == 1, what="a dead letter")
    readers = start_readers(product)
    yield readers
    for process in readers:
        process.kill()
        process.communicate()


def test_four_readers_and_fifty_thousand_events_do_not_hinder_each_other(
    product: Product, readers: list[subprocess.Popen[str]]
) -> None:
    line = Line(product.socket)
    waits = []
    for start in range(0, EVENTS, AT_ONCE):
        line.send(*map(event, range(start, start + AT_ONCE)))
        began = time.monotonic()
        line.acked(start + AT_ONCE)
        waits.append(time.monotonic() - began)
    line.close()
    flushed = product.run("flush")

    ended = [process.communicate(timeout=PATIENCE) for process in readers]

    assert [process.returncode for process in readers] == [0] * READERS
    looks = [json.loads(output) for output, _ in ended]
    assert all(look["looks"] > 1 for look in looks)
    assert {look["accepted"] for look in looks} == {EVENTS + 2}
    # A reader that held a lock would hold it for seconds: that long the daemon waits for one.
    assert max(waits) < 5
    assert flushed.returncode == 0, flushed.stdout
    assert product.status()["ledger"]["delivered"] == EVENTS + 1


def test_readers_leave_no_file_behind_and_none_that_is_theirs(
    product: Product, readers: list[subprocess.Popen[str]]
) -> None:
    send(product, *map(event, range(AT_ONCE)))
    names = {path.name for path in product.queue.iterdir()}
    for process in readers:
        output, _ = process.communicate(timeout=PATIENCE)
        assert json.loads(output)["accepted"] == AT_ONCE + 2

    assert {path.name for path in product.queue.iterdir()} == names
    assert product.stop_daemon() == 0
    assert {path.name for path in product.queue.iterdir()} <= names


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
@pytest.mark.parametrize("command", [("status",), ("dead", "list")], ids=" ".join)
def test_reading_a_queue_without_a_daemon_changes_nothing_of_it(
    product: Product, command: tuple[str, ...], ending: signal.Signals
) -> None:
    product.set(shutdown_timeout="0.1")
    product.start_daemon()
    send(product, *map(event, range(10)))
    product.stop_daemon(ending)
    if ending == signal.SIGTERM:
        DiskQueue(product.queue).close()  # whoever is the last one leaves no log behind
        assert not (product.queue / "cache.db-wal").exists()
    before = contents(product.queue)

    read = product.run(*command, "--json")

    assert read.returncode == 0, read.stderr
    after = contents(product.queue)
    # The index of SQLite's log is no part of the queue: whoever comes makes it anew.
    assert {name: after[name] for name in after if name != "cache.db-shm"} == {
        name: before[name] for name in before if name != "cache.db-shm"
    }


@pytest.mark.parametrize("command", [("status",), ("dead", "list")], ids=" ".join)
def test_a_reader_does_not_wait_for_an_open_write_transaction(
    product: Product, command: tuple[str, ...]
) -> None:
    product.start_daemon()
    send(product, event(0))
    product.set(api_socket_path=NOWHERE)
    with closing(sqlite3.connect(product.queue / "cache.db", isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("DELETE FROM Cache")
        began = time.monotonic()

        read = product.run(*command, "--json")

        took = time.monotonic() - began
        writer.execute("ROLLBACK")
    assert read.returncode == 0, read.stderr
    assert took < 5, "it waited for the lock until its time was up"
    if command == ("status",):
        assert json.loads(read.stdout)["queue"]["events"] == 1


# -- flush -----------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


def holds_connection(pid: int, port: int) -> bool:
    """Tell whether a process has the connection from a local port."""
    with open("/proc/net/tcp", encoding="ascii") as table:  # noqa: PTH123  # no file of ours
        rows = [line.split() for line in table]
    inodes = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}")}
    open_files = [f"/proc/{pid}/fd/{number}" for number in os.listdir(f"/proc/{pid}/fd")]  # noqa: PTH208
    return any(os.readlink(file) in inodes for file in open_files if os.path.islink(file))  # noqa: PTH114, PTH115


def test_flush_beside_a_running_daemon_has_the_daemon_send(product: Product, server: Server) -> None:
    product.set(base_url=server.url, flush_interval="3600")
    product.start_daemon()
    assert product.daemon is not None
    daemon = product.daemon.pid
    by_daemon = []

    def talk(connection: Any) -> None:
        stream = connection.makefile("rb")
        while (request := read_request(stream)) is not None:
            by_daemon.append(holds_connection(daemon, connection.getpeername()[1]))
            count = len(json.loads(request.body)["events"])
            connection.sendall(answer(200, {"inserted": count, "duplicates": 0}))

    server.talk = talk
    send(product, *map(event, range(10)))
    assert by_daemon == []

    flushed = product.run("flush", "--json")

    assert flushed.returncode == 0, flushed.stdout
    assert json.loads(flushed.stdout)["empty"] is True
    assert by_daemon == [True]


def test_flush_beside_a_daemon_whose_api_it_does_not_find_says_so_and_sends_nothing(product: Product) -> None:
    product.start_daemon()
    assert product.daemon is not None
    send(product, event(1))
    product.set(api_socket_path=NOWHERE)

    flushed = product.run("flush")

    assert flushed.returncode == 1
    assert f"process {product.daemon.pid} holds it, but does not answer" in flushed.stderr
    assert f"is its api_socket_path {NOWHERE}?" in flushed.stderr


# -- clocks that jump ------------------------------------------------------------------


class ShiftedProduct(Product):
    """A product whose daemon's wall clock can be set."""

    def __init__(self, directory: Path, **settings: object) -> None:
        super().__init__(directory, **settings)
        self._offset = directory / "offset"
        self.environ[shifted_clock.VARIABLE] = str(self._offset)
        self.shift(0)

    def shift(self, seconds: float) -> None:
        """Set the daemon's clock ahead of the true time."""
        new = self._offset.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self._offset)

    def spawn(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command of the product, the daemon with the clock."""
        if words != ("run",):
            return super().spawn(*words, **options)
        command = [sys.executable, "-P", shifted_clock.__file__, *words]
        process = subprocess.Popen(command, env=self.environ, text=True, **options)
        self._processes = [*getattr(self, "_processes", []), process]
        return process


@pytest.fixture
def shifted(tmp_path: Path) -> Iterator[ShiftedProduct]:
    """A daemon that has delivered something, so that it knows what the time is at the server."""
    product = ShiftedProduct(tmp_path, max_in_flight="1")
    product.start_emulator()
    product.start_daemon()
    send(product, *map(event, range(5)))
    wait_until(lambda: product.polled()["ledger"]["delivered"] == 5, what="the server's first answers")
    yield product
    product.close()


JUMPS = pytest.mark.parametrize("jump", [-3600, 86_400], ids=["back an hour", "forward a day"])


@JUMPS
def test_events_from_before_and_after_a_jump_of_the_clock_arrive_once_and_in_order(
    shifted: ShiftedProduct, jump: float
) -> None:
    shifted.faults(status=503)
    send(shifted, *map(event, range(5, 10)))
    shifted.shift(jump)
    send(shifted, *map(event, range(10, 15)))
    shifted.shift(0)
    send(shifted, *map(event, range(15, 20)))
    shifted.shift(jump)
    shifted.faults()

    wait_until(lambda: len(numbers(shifted)) >= 20, what="all events at the server")

    status = shifted.status()
    assert numbers(shifted) == list(range(20))
    assert balanced(status)
    assert status["queue"]["events"] == status["queue"]["dead"] == 0


@JUMPS
def test_delivery_goes_on_at_once_after_a_jump_of_the_clock(shifted: ShiftedProduct, jump: float) -> None:
    shifted.shift(jump)

    send(shifted, event(5))

    # flush_interval is 0.1 s; with the clock's hour it would be an hour.
    wait_until(lambda: numbers(shifted)[5:] == [5], what="delivery")


@JUMPS
def test_an_event_that_waits_for_its_own_time_is_not_kept_longer_by_a_jump_of_the_clock(
    shifted: ShiftedProduct, jump: float
) -> None:
    for number, seconds in ((5, 1.5), (6, 6.0), (7, 24.0)):  # a busy machine needs longer than the first
        due = datetime.now(UTC) + timedelta(seconds=seconds)
        send(shifted, event(number) | {"timestamp": due.isoformat()})
        waiting = shifted.status()["queue"]["events"]
        if waiting and datetime.now(UTC) < due - timedelta(seconds=0.5):
            break
        assert waiting or datetime.now(UTC) >= due, "sent before its time"
        wait_until(
            lambda sent=number: numbers(shifted)[-1] == sent, what="delivery of one that nobody jumped over"
        )
    assert waiting == 1

    shifted.shift(jump)

    wait_until(lambda: numbers(shifted)[-1] == number, what="delivery")
    assert shifted.status()["queue"]["dead"] == 0


@JUMPS
def test_events_are_stamped_with_the_servers_time_whatever_the_clock_says(
    shifted: ShiftedProduct, jump: float
) -> None:
    shifted.shift(jump)
    before = datetime.now(UTC)

    send(shifted, event(5))

    stored = wait_until(lambda: list(shifted.stored())[5:], what="delivery")
    stamped = datetime.fromisoformat(stored[0]["timestamp"])
    assert abs(stamped - before) < timedelta(seconds=5)


def test_a_clock_that_is_ahead_makes_no_stamps_that_the_server_would_refuse(
    shifted: ShiftedProduct,
) -> None:
    shifted.shift(86_400)

    for number in range(5, 15):
        send(shifted, event(number))
        assert shifted.run("flush").returncode == 0

    assert numbers(shifted) == list(range(15))
    assert "422" not in shifted.stats()["by_status"]


@JUMPS
def test_a_daemon_that_starts_with_another_time_delivers_what_the_last_one_took(
    shifted: ShiftedProduct, jump: float
) -> None:
    shifted.faults(status=503)
    send(shifted, *map(event, range(5, 10)))
    shifted.stop_daemon(signal.SIGKILL)
    shifted.shift(jump)
    shifted.faults()

    shifted.start_daemon()

    wait_until(lambda: len(numbers(shifted)) >= 10, what="delivery")
    assert numbers(shifted) == list(range(10))


def test_what_was_stamped_by_a_clock_a_day_ahead_before_a_kill_and_after_it_is_right_at_the_first_answer(
    tmp_path: Path,
) -> None:
    product = ShiftedProduct(tmp_path, max_in_flight="1")
    try:
        product.start_emulator()
        product.faults(reset_share=1.0)
        product.shift(86_400)
        began = datetime.now(UTC)
        product.start_daemon()
        send(product, *map(event, range(5)))
        product.stop_daemon(signal.SIGKILL)
        product.start_daemon()
        send(product, *map(event, range(5, 10)))
        product.faults()

        wait_until(lambda: len(numbers(product)) >= 10, what="delivery")

        stamps = [datetime.fromisoformat(one["timestamp"]) for one in product.stored()]
        assert numbers(product) == list(range(10))
        assert stamps == sorted(stamps)
        assert began - timedelta(seconds=2) <= stamps[0] <= stamps[-1] <= datetime.now(UTC)
        assert balanced(product.status())
    finally:
        product.close()
