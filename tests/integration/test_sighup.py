"""SIGHUP, on a daemon that runs."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys

import pytest
from support.processes import TOKEN, Line, wait_until

EVENT = {"name": "a", "external_customer_id": "c"}


@pytest.fixture
def config(product, tmp_path):
    """The daemon's settings file; it has what the tests change."""
    file = tmp_path / "agent.toml"
    for name in ("FLUSH_INTERVAL", "LOG_LEVEL"):
        del product.environ[f"POLAR_AGENT_{name}"]
    del product.environ["POLAR_ACCESS_TOKEN"]
    product.set(config=file)
    file.write_text(f'access_token = "{TOKEN}"\nflush_interval = "1h"\n')
    product.start_emulator("--token", TOKEN)
    return file


def log(product):
    return [json.loads(line) for line in product.log.read_text().splitlines()]


def said(product, message):
    return [line for line in log(product) if line["message"] == message]


def reload(product, message):
    """Send SIGHUP; return the line that says how it went."""
    before = len(said(product, message))
    product.daemon.send_signal(signal.SIGHUP)
    wait_until(lambda: len(said(product, message)) > before, what=f"{message!r} in the log")
    return said(product, message)[-1]


def test_new_settings_come_into_force_without_a_break(product, config):
    product.start_daemon()
    line = Line(product.socket)
    line.send(EVENT)
    line.acked(1)
    config.write_text(f'access_token = "{TOKEN}"\nflush_interval = "10ms"\nlog_level = "debug"\n')

    told = reload(product, "the settings were reloaded")

    assert told["changed"] == ["flush_interval", "log_level"]
    line.send(EVENT)
    line.acked(2)
    wait_until(lambda: len(list(product.stored())) == 2, what="delivery of both events")
    line.close()
    assert product.stop_daemon() == 0


def test_a_bad_file_leaves_the_old_settings_in_force_and_says_so(product, config):
    product.start_daemon()
    config.write_text('flush_intervall = "1s"\n')

    told = reload(product, "the settings were not reloaded: the old ones stay in force")

    assert "flush_intervall" in told["subject"]
    assert "did you mean flush_interval?" in told["hint"]
    config.write_text(f'access_token = "{TOKEN}"\nflush_interval = "1h"\n')
    assert reload(product, "the settings were reloaded")["changed"] == []


def test_a_user_that_does_not_exist_is_a_bad_file(product, config):
    product.start_daemon()
    config.write_text(f'access_token = "{TOKEN}"\nallowed_users = ["no-such-user"]\n')

    assert (
        "no-such-user"
        in reload(product, "the settings were not reloaded: the old ones stay in force")["reason"]
    )
    Line(product.socket).close()


def test_what_needs_a_restart_is_told_and_stays(product, config):
    product.start_daemon()
    config.write_text(f'access_token = "{TOKEN}"\nmax_line_bytes = 2048\n[[tail]]\npath = "/var/log/a.log"\n')

    told = reload(product, "some settings need a restart: their old values are in force")

    assert told["settings"] == ["max_line_bytes", "tail"]


def test_a_mended_token_is_used_at_once(product, config):
    config.write_text('access_token = "polar_oat_wrong"\nflush_interval = "10ms"\n')
    product.start_daemon()
    line = Line(product.socket)
    line.send(EVENT)
    line.acked(1)
    line.close()
    wait_until(lambda: product.polled()["delivery"]["state"] == "blocked", what="the block")
    config.write_text(f'access_token = "{TOKEN}"\nflush_interval = "10ms"\n')

    reload(product, "the settings were reloaded")

    wait_until(lambda: list(product.stored()), what="delivery")


def test_a_new_allow_list_counts_for_the_next_connection(product, config):
    product.start_daemon()
    other = "nobody" if os.getuid() == 0 else "root"
    config.write_text(f'access_token = "{TOKEN}"\nallowed_users = ["{other}"]\n')

    reload(product, "the settings were reloaded")

    line = Line(product.socket)
    assert line.answers() == []
    line.close()


EARLY = """
import os, signal, sys
from agent.clock import SystemClock
from agent.service import Service
from agent.settings import load

service = Service(load(), SystemClock())
os.kill(os.getpid(), getattr(signal, sys.argv[1]))
if sys.argv[1] == "SIGHUP":
    os.kill(os.getpid(), signal.SIGTERM)
sys.exit(service.run())
"""


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM"])
def test_a_signal_counts_as_soon_as_the_socket_is_there(product, name):
    product.start_emulator("--token", TOKEN)

    done = subprocess.run(
        [sys.executable, "-c", EARLY, name], env=product.environ, capture_output=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr
    assert not product.socket.exists()


NO_THREADS = """
import sys
from agent.clock import SystemClock
from agent.service import Service
from agent.settings import load

def no_thread():
    raise RuntimeError("can't start new thread")

service = Service(load(), SystemClock())
service._collector.start = no_thread
sys.exit(service.run())
"""
NO_API = """
import sys
from agent.clock import SystemClock
from agent.service import Service
from agent.settings import load

sys.modules["agent.api.server"] = None  # as where an upgrade was broken off
sys.exit(Service(load(), SystemClock()).run())
"""


@pytest.mark.parametrize(
    ("program", "told"), [(NO_THREADS, "TasksMax"), (NO_API, "agent.api.server")], ids=["threads", "API"]
)
def test_a_daemon_that_cannot_start_a_part_says_so_and_ends(product, program, told):
    """The threads that it did start would keep the process, which serves nobody."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=product.environ,
        capture_output=True,
        timeout=30,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "the daemon cannot start" in done.stderr
    assert told in done.stderr


@pytest.mark.parametrize("files", [10, 12, 14])
def test_a_daemon_that_may_open_too_few_files_says_which_limit_to_raise(product, files):
    product.prefix = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh"]

    done = product.run("run")

    assert done.returncode == 1
    assert "Too many open files" in done.stderr
    assert "LimitNOFILE" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("config")
def test_systemd_is_told_of_ready_reload_and_stop(product, tmp_path):

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        product.environ |= {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000"}
        product.start_daemon()

        def next_of(word):
            while True:
                lines = manager.recv(65536).decode().split("\n")
                if lines[0] == word:
                    return lines

        assert next_of("READY=1")[1] == "STATUS=0 events pending; delivery idle"
        next_of("WATCHDOG=1")
        next_of("WATCHDOG=1")
        product.daemon.send_signal(signal.SIGHUP)
        assert next_of("RELOADING=1")[1].startswith("MONOTONIC_USEC=")
        next_of("READY=1")
        product.daemon.send_signal(signal.SIGTERM)
        next_of("STOPPING=1")
        assert product.daemon.wait(30) == 0


@pytest.mark.usefixtures("config")
def test_a_terminal_that_is_closed_ends_the_daemon(product):
    """A hang-up of the terminal that it runs in is no wish for new settings."""
    master, slave = pty.openpty()
    product.daemon = product.spawn("run", stderr=slave)
    os.close(slave)
    wait_until(product.socket.exists, what="the socket")
    wait_until(lambda: product.polled()["daemon"]["running"], what="the daemon")
    os.close(master)

    product.daemon.send_signal(signal.SIGHUP)

    assert product.daemon.wait(30) == 0
