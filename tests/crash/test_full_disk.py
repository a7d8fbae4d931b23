"""A disk without room: producers wait and are told, what was acknowledged is safe, the queue drains.

On a real file system of a few MiB, filled by the queue itself, by somebody else in one
go, or with so many files that no other can be made. Nobody does anything about it but
make room at last; the daemon is not started again, where a test does not say so.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.load import Load, assert_all_accounted
from support.processes import Line, Product, balanced, wait_until
from support.small_disk import FailingDisk, SmallDisk
from support.trials import STRANGER

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20


class Confined(Product):
    """A product whose queue is on a small disk."""

    def __init__(self, directory: Path, disk: SmallDisk, **settings: object) -> None:
        super().__init__(directory, **settings)
        self.disk = disk
        self.prefix = disk.prefix
        self.set(queue_dir=directory / "disk" / "queue")
        self.queue = disk.seen / "queue"

    def pending(self) -> int:
        return self.status()["queue"]["events"]

    def start_settled(self) -> None:
        """Start the daemon and wait until it has on the disk what it wants to have there."""
        self.start_daemon()
        wait_until((self.queue / "ballast.start").exists, what="what is kept for a start")

    def assert_alive(self) -> None:
        assert self.daemon is not None
        assert self.daemon.poll() is None, self.log.read_text()

    def wait_until_drained(self) -> None:
        wait_until(lambda: not self.polled()["queue"]["events"], what="an empty queue")

    def assert_all_accounted(self, loads: list[Load], *, dropped: int = 0) -> None:
        """Deliver what is left, and compare."""
        flushed = self.run("flush")
        assert flushed.returncode == 0, flushed.stdout
        assert_all_accounted(loads, list(self.stored()), self.status(), dropped=dropped)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    disk = SmallDisk(tmp_path / "disk", size=8 * MIB)
    yield disk
    disk.close()


@pytest.fixture
def product(tmp_path: Path, disk: SmallDisk) -> Iterator[Confined]:
    product = Confined(tmp_path, disk)
    yield product
    product.close()


needs_small_disk = pytest.mark.needs("unshare")


@needs_small_disk
@pytest.mark.parametrize("reserve", ["0", "2MiB", None], ids=["no reserve", "a reserve", "the default"])
def test_a_queue_that_fills_its_disk_takes_no_more_and_goes_on_when_it_has_drained(
    product: Confined, reserve: str | None
) -> None:
    if reserve is None:
        del product.environ["POLAR_AGENT_DISK_RESERVE_BYTES"]
    else:
        product.set(disk_reserve_bytes=reserve)
    product.start_daemon()
    loads = [Load(product.socket, name) for name in ("a", "b")]

    for load in loads:
        assert load.wait_until_told()["type"] == "queue_full"
    pending = product.pending()
    assert pending > 1000
    assert pending >= sum(len(load.acked) for load in loads)
    product.disk.fill()
    product.start_emulator()
    for load in loads:
        load.go_on()
        load.finish()

    product.wait_until_drained()  # and nobody has made room
    product.assert_alive()
    product.assert_all_accounted(loads)


@needs_small_disk
def test_a_disk_that_others_fill_in_an_instant_drains_and_goes_on_when_they_make_room(
    product: Confined,
) -> None:
    product.set(disk_reserve_bytes="1MiB")
    product.start_daemon()
    loads = [Load(product.socket, name) for name in ("a", "b", "c")]
    for load in loads:
        load.go_on(500)

    product.disk.fill()

    for load in loads:
        assert load.wait_until_told()["type"] == "queue_full"
    acked = sum(len(load.acked) for load in loads)
    assert product.pending() >= acked
    product.start_emulator()
    product.wait_until_drained()
    product.assert_alive()
    product.disk.relieve()
    for load in loads:
        load.go_on()
        load.finish()
    product.assert_all_accounted(loads)


@needs_small_disk
def test_a_queue_drains_on_a_disk_without_a_free_byte(product: Confined) -> None:
    product.set(shutdown_timeout="0.1")
    product.start_daemon()
    load = Load(product.socket, "a")
    load.go_on(3000)
    load.finish()
    product.stop_daemon()
    product.start_settled()
    wait_until(lambda: not (product.queue / "cache.db-wal").stat().st_size, what="an empty log")

    product.disk.fill()
    product.start_emulator()
    product.wait_until_drained()

    product.assert_alive()
    product.assert_all_accounted([load])


@needs_small_disk
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_daemon_starts_on_a_full_disk_and_drains(product: Confined, number: signal.Signals) -> None:
    product.set(shutdown_timeout="0.1")
    product.start_daemon()
    load = Load(product.socket, "a")
    load.wait_until_told()
    product.disk.fill()
    product.start_emulator()
    product.faults(status=503, share=1.0)
    product.stop_daemon(number)
    load.give_up()
    product.disk.fill()  # what the daemon left is taken by others
    product.faults()

    product.start_daemon()

    product.wait_until_drained()
    stored = [event["external_id"] for event in product.stored()]
    assert len(stored) == len(set(stored))
    assert load.acked <= set(stored) <= set(load.written)
    assert balanced(product.status())


@needs_small_disk
def test_a_daemon_that_was_killed_while_it_had_given_its_room_back_starts_all_the_same(
    product: Confined,
) -> None:
    product.start_daemon()
    load = Load(product.socket, "a")
    load.wait_until_told()
    product.disk.fill()
    product.stop_daemon(signal.SIGKILL)
    load.give_up()
    os.truncate(product.queue / "ballast", 0)
    product.disk.fill()
    product.start_emulator()

    product.start_daemon()

    product.wait_until_drained()
    assert load.acked <= {event["external_id"] for event in product.stored()}


@needs_small_disk
def test_what_is_kept_for_a_start_lets_a_daemon_start_when_nothing_else_is_left(product: Confined) -> None:
    """SQLite's log and its index went with the daemon before, and its ballast to others."""
    product.set(shutdown_timeout="0.1")
    product.start_settled()
    load = Load(product.socket, "a")
    load.go_on(200)
    load.finish()
    product.stop_daemon()
    os.truncate(product.queue / "ballast", 0)
    product.disk.fill()

    product.start_daemon()

    assert not (product.queue / "ballast.start").exists()
    product.start_emulator()
    product.wait_until_drained()
    product.disk.relieve()
    product.assert_all_accounted([load])


@needs_small_disk
def test_commands_work_on_a_full_disk(product: Confined) -> None:
    product.start_emulator()
    product.start_daemon()
    line = Line(product.socket)
    line.send(*({"name": "usage", "customer_id": STRANGER, "external_id": name} for name in "xy"))
    line.acked(2)
    line.close()
    load = Load(product.socket, "a")
    wait_until(lambda: product.polled()["queue"]["dead"] == 2, what="two dead letters")
    product.faults(status=503, share=1.0)
    load.wait_until_told()
    product.disk.fill()
    product.stop_daemon(signal.SIGKILL)
    load.give_up()
    product.disk.fill()

    assert len(json.loads(product.run("dead", "list", "--json").stdout)["items"]) == 2
    assert product.run("queue", "verify").returncode == 0
    exported = product.run("queue", "export").stdout.splitlines()
    assert len(exported) == product.pending()
    product.faults()
    retried = product.run("dead", "retry", "--all")
    assert retried.returncode == 0, retried.stderr
    flushed = product.run("flush")
    assert flushed.returncode == 0, flushed.stdout + flushed.stderr

    stored = [event["external_id"] for event in product.stored()]
    assert len(stored) == len(set(stored))
    assert load.acked <= set(stored)
    status = product.status()
    assert balanced(status)
    assert status["queue"]["events"] == 0
    assert status["ledger"]["dead"] == 2


@needs_small_disk
def test_a_first_start_on_a_full_disk_says_so(product: Confined) -> None:
    product.disk.fill()

    done = product.run("run")

    assert done.returncode == 1
    assert "no space left" in done.stderr.lower() or "the disk is full" in done.stderr
    assert "make room" in done.stderr


@needs_small_disk
def test_a_disk_on_which_no_file_can_be_made_stops_nothing(tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path / "disk", size=8 * MIB, inodes=40)
    product = Confined(tmp_path, disk, shutdown_timeout="0.1")
    try:
        product.start_settled()
        disk.take_names()
        first = Load(product.socket, "first")
        first.go_on(500)
        first.finish()
        product.stop_daemon(signal.SIGTERM)
        disk.take_names()

        product.start_daemon()

        second = Load(product.socket, "second")
        second.go_on(500)
        second.finish()
        product.start_emulator()
        product.assert_alive()
        product.assert_all_accounted([first, second])
        disk.relieve()
        third = Load(product.socket, "third")
        third.go_on()
        third.finish()
        product.assert_all_accounted([first, second, third])
    finally:
        product.close()
        disk.close()


# -- the queue's own bound -----------------------------------------------------------------


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[Product]:
    product = Product(tmp_path)
    yield product
    product.close()


def test_a_queue_of_max_bytes_takes_no_more_and_goes_on_when_it_has_drained(roomy: Product) -> None:
    roomy.set(queue_max_bytes="512KiB")
    roomy.start_daemon()
    loads = [Load(roomy.socket, name) for name in ("a", "b")]

    for load in loads:
        told = load.wait_until_told()
        assert told["type"] == "queue_full"
        assert "512 KiB (queue_max_bytes)" in told["msg"]
    status = roomy.status()
    assert 524288 <= status["queue"]["bytes"] < 2 * 524288
    roomy.start_emulator()
    for load in loads:
        load.go_on()
        load.finish()

    assert roomy.run("flush").returncode == 0
    assert_all_accounted(loads, list(roomy.stored()), roomy.status())


def refused(load: Load) -> int:
    assert set(load.refused.values()) <= {"queue_full"}
    return len(load.refused)


def test_what_a_queue_of_max_bytes_has_no_room_for_is_dropped_and_counted_if_the_operator_says_so(
    roomy: Product,
) -> None:
    roomy.set(queue_max_bytes="512KiB", when_full="drop_newest")
    roomy.start_daemon()
    load = Load(roomy.socket, "a")

    wait_until(lambda: refused(load) > 500, what="refusals")
    roomy.start_emulator()
    kept = len(load.acked) - refused(load)
    wait_until(lambda: len(load.acked) - refused(load) > kept + 100, what="events that are taken again")
    load.finish()

    assert roomy.run("flush").returncode == 0
    assert_all_accounted([load], list(roomy.stored()), roomy.status(), dropped=refused(load))


@needs_small_disk
@pytest.mark.parametrize("filled_by", ["the queue", "others"])
def test_what_the_disk_has_no_room_for_is_dropped_and_counted_if_the_operator_says_so(
    product: Confined, filled_by: str
) -> None:
    product.set(when_full="drop_newest")
    product.start_daemon()
    load = Load(product.socket, "a")
    load.go_on(500)

    if filled_by == "others":
        product.disk.fill()
    wait_until(lambda: refused(load) > 500, what="refusals")
    product.start_emulator()
    product.disk.relieve()
    kept = len(load.acked) - refused(load)
    wait_until(lambda: len(load.acked) - refused(load) > kept + 100, what="events that are taken again")
    load.finish()

    product.assert_alive()
    product.assert_all_accounted([load], dropped=refused(load))


@needs_small_disk
def test_a_producer_that_waits_for_its_ack_is_told_why_it_takes_so_long(product: Confined) -> None:
    """It wrote before the disk was full, and writes nothing more that could be answered."""
    product.start_settled()
    product.disk.fill()
    line = Line(product.socket)
    events = [{"name": "usage", "external_customer_id": "c"}] * 10

    sent = 0
    told: dict[str, Any] = {}
    while "error" not in told:  # what the log has room for already is still taken
        if told.get("ack", 0) == sent:
            line.send(*events)
            sent += len(events)
        told = line.answer()

    assert told["error"]["type"] == "queue_full"
    product.disk.relieve()
    line.acked(sent)
    line.close()


# -- a disk that is mounted read-only ------------------------------------------------------


@needs_small_disk
def test_a_read_only_disk_is_refused_and_works_again_when_it_can_be_written(product: Confined) -> None:
    product.set(shutdown_timeout="0.1")
    product.start_daemon()
    load = Load(product.socket, "a")
    load.go_on()
    load.finish()
    product.stop_daemon()
    product.start_emulator()
    product.disk.remount("ro")

    for command in ("run", "flush"):
        done = product.run(command)
        assert done.returncode == 1
        assert "read-only" in done.stderr
        assert "mount it for writing again" in done.stderr
    assert product.pending() == len(load.acked)
    assert product.run("queue", "verify").returncode == 0
    product.disk.remount("rw")

    product.assert_all_accounted([load])


@contextlib.contextmanager
def _suspended(pid: int) -> Iterator[None]:
    """Suspend a process, each sync that it waits for completed.

    ext4 itself loses about one in twenty of the syncs that run while it gives up, and says that they
    are done: a loop of `pwrite` and `fdatasync` shows it.
    """
    os.kill(pid, signal.SIGSTOP)
    try:
        tasks = [task / "stat" for task in Path(f"/proc/{pid}/task").iterdir()]
        wait_until(
            lambda: all(task.read_text().rpartition(")")[2].split()[0] == "T" for task in tasks),
            what="the threads to stand still",
        )
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.needs("mkfs.ext4")
def test_a_file_system_that_makes_itself_read_only_under_a_daemon_costs_nothing_that_was_acknowledged(
    tmp_path: Path,
) -> None:
    """The kernel lets nobody mount it for writing again: it is to be taken away, checked and mounted anew."""
    disk = FailingDisk(tmp_path / "disk", size=32 * MIB)
    product = Confined(tmp_path, disk, shutdown_timeout="0.1")
    try:
        product.start_daemon()
        load = Load(product.socket, "a")
        load.go_on()

        assert product.daemon is not None
        with _suspended(product.daemon.pid):
            disk.fail()

        wait_until(lambda: "the file system is read-only" in product.log.read_text(), what="a message")
        assert "mount it for writing again" in product.log.read_text()
        product.assert_alive()
        assert product.stop_daemon() == 0
        load.give_up()
        disk.mend()
        product.prefix, product.queue = disk.prefix, disk.seen / "queue"
        product.start_emulator()
        product.start_daemon()
        product.wait_until_drained()
        stored = [event["external_id"] for event in product.stored()]
        assert len(stored) == len(set(stored))
        assert load.acked <= set(stored) <= set(load.written)
        assert balanced(product.status())
    finally:
        product.close()
        disk.close()
