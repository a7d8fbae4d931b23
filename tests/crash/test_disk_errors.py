"""Errors from the disk at every call that the queue makes, put into the system calls of a real daemon.

The errors begin at some call while producers write and the server takes, and end some calls
later. Nobody does anything about them. What was acknowledged meanwhile must be safe, the
daemon must live, say once what is wrong, and go on by itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from support.load import Load, assert_all_accounted
from support.processes import PATIENCE, Product, wait_until

from agent.queue.disk import DiskQueue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOG, DATABASE, INDEX, DIRECTORY = "cache.db-wal", "cache.db", "cache.db-shm", ""


@dataclass(frozen=True)
class Fault:
    """Calls of one kind on one file that fail: from the `first` to the `last` of each thread."""

    calls: str
    file: str
    error: str
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.calls} of {self.file or 'the directory'}: {self.error}"


class FaultyProduct(Product):
    """A product whose daemon gets errors from its disk."""

    def start_faulty(self, fault: Fault, *, watch: str = "") -> None:
        """Start the daemon under strace, which puts in the errors, and records other calls as well."""
        inject = f"inject={fault.calls}:error={fault.error}:when={fault.first}..{fault.last}"
        how = ["-f", "--seccomp-bpf", "-qq", "-e", f"trace={fault.calls}{watch}", "-e", inject]
        where = ["-P", str(self.queue / fault.file), "-o", str(self.directory / "strace")]
        command = ["strace", *how, *where, "--"]
        with self.log.open("a") as log:
            self.daemon = subprocess.Popen(
                [*command, sys.executable, "-m", "agent", "run"], env=self.environ, text=True, stderr=log
            )
        self._processes = [*getattr(self, "_processes", []), self.daemon]
        wait_until(self._takes_connections, what="the daemon's socket")

    def injected(self) -> int:
        """Return how many calls have failed so far."""
        return (self.directory / "strace").read_text().count("(INJECTED)")

    def end(self) -> int:
        """Stop the daemon below strace."""
        os.kill(self.status()["daemon"]["pid"], signal.SIGTERM)
        assert self.daemon is not None
        return self.daemon.wait(PATIENCE)

    def logged(self, message: str) -> list[dict[str, str]]:
        """Return the lines of the log with this message."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if line["message"].startswith(message)]


@pytest.fixture
def product(tmp_path: Path) -> Iterator[FaultyProduct]:
    product = FaultyProduct(tmp_path, log_format="json", max_batch_events="50", flush_interval="0.05")
    yield product
    product.close()


WRITING = [
    Fault("pwrite64", LOG, "EIO", 200, 203),
    Fault("pwrite64", LOG, "ENOSPC", 200, 202),
    Fault("pwrite64", LOG, "EROFS", 200, 202),
    Fault("fdatasync,fsync", LOG, "EIO", 60, 62),
    Fault("fdatasync,fsync", LOG, "ENOSPC", 60, 62),
    Fault("pwrite64", DATABASE, "EIO", 3, 5),
    Fault("pwrite64", DATABASE, "ENOSPC", 3, 5),
    Fault("fdatasync,fsync", DATABASE, "EIO", 1, 3),
    Fault("ftruncate", LOG, "EIO", 1, 3),
    Fault("ftruncate", DATABASE, "EIO", 1, 2),
    Fault("pread64", DATABASE, "EIO", 20, 24),
    Fault("pread64", LOG, "EIO", 20, 24),
]


@pytest.mark.needs("strace")
@pytest.mark.parametrize("fault", WRITING, ids=str)
def test_errors_that_come_and_go_cost_nothing_that_was_acknowledged(
    product: FaultyProduct, fault: Fault
) -> None:
    DiskQueue(product.queue, server=product.url).close()
    product.start_emulator()
    product.start_faulty(fault)
    loads = [Load(product.socket, name, filler=2000) for name in ("a", "b")]

    wait_until(lambda: product.injected() > fault.last - fault.first, what="all the errors")
    for load in loads:
        load.go_on()
        load.finish()

    assert product.run("flush").returncode == 0
    assert_all_accounted(loads, list(product.stored()), product.status())
    assert product.end() == 0
    told = product.logged("queue cannot be written") + product.logged("queue is full")
    assert len(told) <= 2, "the log is filled with the same"


@pytest.mark.needs("strace")
def test_after_a_sync_that_failed_the_whole_log_is_moved_before_anything_is_written_behind_it(
    product: FaultyProduct,
) -> None:
    """The kernel may have dropped what it could not write: who reads after a power cut would stop there."""
    DiskQueue(product.queue, server=product.url).close()
    product.start_faulty(Fault("fdatasync,fsync", LOG, "EIO", 20, 22), watch=",pwrite64,ftruncate")
    load = Load(product.socket, "a")
    wait_until(lambda: product.injected() >= 3, what="all the errors")
    load.go_on()
    load.finish()

    lines = (product.directory / "strace").read_text().splitlines()
    calls = [line.split(None, 1)[1] for line in lines if "resumed" not in line]
    failed = [number for number, call in enumerate(calls) if "(INJECTED)" in call]
    for number in failed:
        following = next(call for call in calls[number + 1 :] if not call.startswith(("fdatasync", "fsync")))
        assert following.startswith("ftruncate"), "the log is written behind a hole"
    assert product.end() == 0
