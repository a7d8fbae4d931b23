"""What systemd is told and what it hands over, by its documented protocols."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from agent.systemd import Notifier, passed_sockets


@pytest.fixture
def manager(tmp_path):
    """The end that systemd listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(10)
        yield sock


def told(manager):
    return manager.recv(65536).decode().split("\n")


def environ(manager, **more):
    return {"NOTIFY_SOCKET": manager.getsockname(), **more}


def test_ready_and_stopping_are_told(manager):
    notifier = Notifier(environ(manager), 1)

    notifier.ready("2 events pending")
    notifier.stopping(90)

    assert told(manager) == ["READY=1", "STATUS=2 events pending"]
    assert told(manager)[:2] == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=92000000"]


def test_a_reload_carries_the_time_of_systemds_clock(manager):
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000

    Notifier(environ(manager), 1).reloading()

    lines = dict(line.split("=", 1) for line in told(manager))
    assert lines["RELOADING"] == "1"
    assert before <= int(lines["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_the_watchdog_is_fed_only_where_one_watches(manager):
    watched = Notifier(environ(manager, WATCHDOG_USEC="30000000", WATCHDOG_PID="7"), 7)
    another = Notifier(environ(manager, WATCHDOG_USEC="30000000", WATCHDOG_PID="8"), 7)

    watched.alive("fine")
    another.alive("fine")

    assert watched.watchdog_seconds == 30.0
    assert told(manager) == ["WATCHDOG=1", "STATUS=fine"]
    assert another.watchdog_seconds is None
    assert told(manager) == ["STATUS=fine"]


def test_a_status_is_one_line(manager):
    Notifier(environ(manager), 1).ready("two\nlines\nREADY=0")

    assert told(manager) == ["READY=1", "STATUS=two lines READY=0"]


def test_an_abstract_address_is_understood():
    name = f"polar-agent-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        sock.settimeout(10)

        Notifier({"NOTIFY_SOCKET": f"@{name}"}, 1).ready("fine")

        assert told(sock)[0] == "READY=1"


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/at/all"])
def test_nobody_listening_does_no_harm(address):
    notifier = Notifier({"NOTIFY_SOCKET": address}, 1)

    notifier.ready("fine")
    notifier.alive("fine")


def test_passed_sockets_are_taken_once_and_kept_from_children(tmp_path):
    """In a process of its own: the numbers from 3 on are in use here."""
    program = """
import os, socket, sys
from agent.systemd import passed_sockets
environ = {"LISTEN_PID": "5", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}
sockets = passed_sockets(environ, 5)
assert not environ, environ
assert [sock.getsockname() for sock in sockets] == [sys.argv[1]], sockets
assert not sockets[0].get_inheritable()
assert passed_sockets(environ, 5) == []
"""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listening, (tmp_path / "file").open("w") as file:
        listening.bind(path)
        listening.listen()
        # Number 3 and 4 of the child: a socket, and something that is none.
        shell = f'exec "$0" -c "$1" "$2" 3<&{listening.fileno()} 4<&{file.fileno()}'
        done = subprocess.run(
            ["bash", "-c", shell, sys.executable, program, path],
            pass_fds=(listening.fileno(), file.fileno()),
            capture_output=True,
            text=True,
            check=False,
        )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "environ", [{}, {"LISTEN_PID": "4", "LISTEN_FDS": "1"}, {"LISTEN_PID": "5", "LISTEN_FDS": "x"}]
)
def test_what_is_meant_for_another_process_is_left_alone(environ):
    assert passed_sockets(environ, 5) == []
