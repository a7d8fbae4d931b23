"""A daemon whose standard error is closed, full, or read by nobody: it serves on, and ends well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.load import Load, assert_all_accounted
from support.processes import PATIENCE, Product, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable


def closed(product: Product) -> subprocess.Popen[str]:
    """No standard error, nor the other two: what is opened first could take their places."""
    command = 'exec "$0" -m agent run <&- >&- 2>&-'
    return subprocess.Popen(["sh", "-c", command, sys.executable], env=product.environ, text=True)


def full(product: Product) -> subprocess.Popen[str]:
    with Path("/dev/full").open("w") as stream:
        return product.spawn("run", stderr=stream)


def broken(product: Product) -> subprocess.Popen[str]:
    read, write = os.pipe()
    os.close(read)
    try:
        return product.spawn("run", stderr=write)
    finally:
        os.close(write)


def stuck(product: Product) -> subprocess.Popen[str]:
    """A pipe that is full, and that its reader has open and forgotten."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, b"x" * 4096)
    except BlockingIOError:
        pass
    os.set_blocking(write, True)
    try:
        process = product.spawn("run", stderr=write)
    finally:
        os.close(write)
    product.forgotten = read
    return process


@pytest.mark.parametrize("start", [closed, full, broken, stuck])
def test_a_log_that_nobody_takes_stops_nothing(
    product: Product, start: Callable[[Product], subprocess.Popen[str]]
) -> None:
    product.log.touch()
    product.daemon = start(product)
    try:
        wait_until(product._takes_connections, what="the daemon's socket")
        if start is closed:
            streams = [Path(f"/proc/{product.daemon.pid}/fd/{number}").readlink() for number in range(3)]
            assert streams == [Path(os.devnull)] * 3, "stray output could go into a file of the queue"
        load = Load(product.socket, "a")
        load.go_on()  # nothing is delivered, and that is logged
        product.start_emulator()
        load.go_on()
        load.finish()

        assert product.run("flush").returncode == 0
        assert_all_accounted([load], list(product.stored()), product.status())
        assert product.stop_daemon(signal.SIGTERM) == 0
        assert product.run("queue", "verify").returncode == 0
    finally:
        product.daemon.kill()
        product.daemon.wait(PATIENCE)
        if hasattr(product, "forgotten"):
            os.close(product.forgotten)
