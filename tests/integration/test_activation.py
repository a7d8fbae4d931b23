"""Sockets that systemd listens on for the daemon."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest
from support.processes import Line, wait_until

EVENT = {"name": "a", "external_customer_id": "c"}


@pytest.fixture
def listening(product):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(product.socket))
        sock.listen()
        yield sock


def start(product, listening):
    """Start the daemon as systemd does: the socket is number 3, and LISTEN_PID is its own process."""
    shell = f'LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" -m agent run 3<&{listening.fileno()}'
    with product.log.open("a") as log:
        product.daemon = subprocess.Popen(
            ["bash", "-c", shell, sys.executable],
            env=product.environ,
            pass_fds=(listening.fileno(),),
            stderr=log,
            text=True,
        )
    wait_until(lambda: "ready" in product.log.read_text(), what="the daemon")


def test_events_that_were_sent_before_the_daemon_ran_are_taken(product, listening):
    line = Line(product.socket)
    line.send(EVENT)
    product.start_emulator()

    start(product, listening)

    line.acked(1)
    line.close()
    assert product.stop_daemon() == 0


def test_the_socket_outlives_the_daemon_so_that_a_restart_refuses_nobody(product, listening):
    product.start_emulator()
    start(product, listening)
    assert product.stop_daemon() == 0
    assert product.socket.is_socket()

    line = Line(product.socket)
    line.send(EVENT)
    product.log.unlink()
    start(product, listening)

    line.acked(1)
    line.close()
    assert product.stop_daemon() == 0
    assert json.loads(product.run("status", "--json").stdout)["ledger"]["accepted"] == 1


def test_a_socket_elsewhere_is_not_taken_for_ours(product, tmp_path):
    product.start_emulator()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "other.sock"))
        other.listen()
        start(product, other)

        line = Line(product.socket)
        line.send(EVENT)
        line.acked(1)
        line.close()
        assert product.stop_daemon() == 0
    assert not product.socket.exists()
