"""Tailing with the real things: a daemon, logrotate, a writer that never stops, and kill -9."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from support.processes import PATIENCE, Product, balanced, wait_until
from support.tails import append, line

if TYPE_CHECKING:
    from pathlib import Path

WRITER = """
import fcntl, os, sys, time
path, lines, seconds, way = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
started = time.monotonic()
gate = os.open(path + ".gate", os.O_CREAT | os.O_RDWR)
descriptor, count = -1, 0
while count < lines:
    if way != "follow":
        fcntl.flock(gate, fcntl.LOCK_EX)
    if descriptor < 0 or way == "reopen" or (way == "follow" and count % 100 == 0):
        if descriptor >= 0:
            os.close(descriptor)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    some = min(10, lines - count)
    os.write(descriptor, b"".join(
        b'{"name":"n%d","external_customer_id":"c","timestamp":"2026-01-01T00:00:00.%06dZ"}\\n' % (n, n)
        for n in range(count, count + some)
    ))
    fcntl.flock(gate, fcntl.LOCK_UN)
    count += some
    ahead = seconds * count / lines - (time.monotonic() - started)
    if ahead > 0:
        time.sleep(ahead)
"""
"""Writes numbered lines, as fast as is said. Ways: `follow` the name now and then, as programs do;
`reopen` for each write, and `hold` the file for ever: these write nothing while the gate is shut."""


@pytest.fixture
def logs(product: Product, tmp_path: Path) -> Path:
    """A directory whose `app.log` is tailed."""
    directory = tmp_path / "logs"
    directory.mkdir()
    product.set(tail__0__path=str(directory / "app.log"))
    product.start_emulator()
    return directory


def stored(product: Product) -> Counter[str]:
    """Return how often each name is stored."""
    return Counter(event["name"] for event in product.stored())


def wait_for(product: Product, count: int, *, seconds: float = PATIENCE) -> None:
    wait_until(lambda: product.stats()["events_stored"] >= count, seconds=seconds, what=f"{count} events")


def test_lines_of_a_file_arrive_and_survive_a_kill(product: Product, logs: Path) -> None:
    append(logs / "app.log", line("before"))
    product.start_daemon()
    append(logs / "app.log", line("after"))
    wait_for(product, 2)
    product.stop_daemon(signal.SIGKILL)
    append(logs / "app.log", line("while down"))

    product.start_daemon()
    wait_for(product, 3)

    assert stored(product) == {"before": 1, "after": 1, "while down": 1}
    status = product.status()
    assert balanced(status)
    assert status["ledger"]["accepted"] == 3, "a line was read twice"


def test_who_is_ready_has_looked_for_good(product: Product, logs: Path) -> None:
    log = logs / "app.log"
    log.touch()
    product.start_daemon()
    wait_until(lambda: '"message": "ready"' in product.log.read_text())
    product.stop_daemon(signal.SIGKILL)
    append(log, line("a"))
    log.rename(logs / "app.log.1")
    append(log, line("b"))

    product.start_daemon()
    wait_for(product, 2)

    assert stored(product) == {"a": 1, "b": 1}


def test_a_refused_line_is_a_dead_letter_with_its_place_and_can_be_mended(
    product: Product, logs: Path
) -> None:
    append(logs / "app.log", line("fine"), b'{"name":"lame"}\n', b"no json\n")
    product.start_daemon()
    wait_until(lambda: product.polled()["queue"]["dead"] == 2)

    listed = json.loads(product.run("dead", "list", "--json").stdout)["items"]
    lame = next(item for item in listed if item["name"] == "lame")
    assert (lame["path"], lame["line"], lame["offset"]) == (str(logs / "app.log"), 2, len(line("fine")))
    assert json.loads(product.run("dead", "show", str(lame["id"] + 1), "--json").stdout)["event"] == "no json"
    done = product.run("dead", "retry", str(lame["id"]), "--set", "external_customer_id=c")

    assert done.returncode == 0, done.stderr
    wait_for(product, 2)
    assert (
        next(event for event in product.stored() if event["name"] == "lame")["external_id"]
        == lame["external_id"]
    )
    assert balanced(product.status())


def test_another_queue_reads_the_same_lines_under_the_same_ids(product: Product, logs: Path) -> None:
    append(logs / "app.log", *(line(number) for number in range(50)))
    product.start_daemon()
    wait_for(product, 50)
    product.stop_daemon()
    product.set(queue_dir=product.directory / "other")
    shutil.copy(logs / "app.log", logs / "copy.log")
    product.set(tail__0__path=str(logs / "copy.log"))

    product.start_daemon()
    wait_until(lambda: product.polled()["ledger"]["duplicates"] == 50)

    assert product.stats()["events_stored"] == 50


def test_status_tells_why_no_file_is_tailed(product: Product, logs: Path) -> None:
    where = product.environ["POLAR_AGENT_TAIL__0__PATH"]
    assert product.run("tail", "status").stdout == f"no file is tailed: none is there yet of {where}\n"
    product.environ.pop("POLAR_AGENT_TAIL__0__PATH")
    assert product.run("tail", "status").stdout == "no file is tailed: the settings have no [[tail]]\n"
    product.start_daemon()
    product.set(tail__0__path=logs / "*")

    assert "started without [[tail]]" in product.run("tail", "status").stderr


def test_status_and_reset(product: Product, logs: Path) -> None:
    append(logs / "app.log", line(1), line(2))
    product.start_daemon()
    wait_for(product, 2)
    (file,) = json.loads(product.run("tail", "status", "--json").stdout)["files"]
    assert (file["path"], file["offset"], file["line"], file["lag_bytes"]) == (
        str(logs / "app.log"),
        len(line(1) * 2),
        2,
        0,
    )

    done = product.run("tail", "reset", str(logs / "app.log"))

    assert done.returncode == 0, done.stderr
    wait_until(lambda: product.polled()["ledger"]["duplicates"] == 2)
    assert stored(product) == {"1": 1, "2": 1}
    assert product.run("tail", "reset", "/no/such/file").returncode == 1
    product.stop_daemon()
    (file,) = json.loads(product.run("tail", "status", "--json").stdout)["files"]
    assert file["lag_bytes"] == 0


def test_nothing_of_it_is_imported_where_no_file_is_tailed() -> None:
    wanted = "[name for name in sys.modules if 'agent.tail.' in name or 'inotify' in name]"
    code = f"import sys; import agent.service; print({wanted})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


ROTATIONS = {
    "create": ("create", "follow"),
    "create and compress": ("create\ncompress", "reopen"),
    "create and compress later": ("create\ncompress\ndelaycompress", "follow"),
    "copytruncate": ("copytruncate", "hold"),
    "copytruncate and compress": ("copytruncate\ncompress", "hold"),
}


@pytest.mark.needs("logrotate")
@pytest.mark.parametrize("rotation", ROTATIONS)
def test_logrotate_while_the_writer_writes_and_the_daemon_is_killed(
    product: Product, logs: Path, rotation: str
) -> None:
    options, way = ROTATIONS[rotation]
    log = logs / "app.log"
    # Of a file that is rotated away before the agent looked for the first time ever, nobody knows.
    append(log, line("first"))
    config = logs.parent / "rotate.conf"
    user = "su root root\n" if os.geteuid() == 0 else ""
    config.write_text(f"{log} {{\n{user}rotate 100\nmissingok\n{options}\n}}\n")
    config.chmod(0o600)
    lines = 3000
    product.start_daemon()
    wait_for(product, 1)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(log), str(lines), "5", way])
    chance = random.Random(rotation)
    pause = threading.Event()
    try:
        while writer.poll() is None:
            pause.wait(chance.uniform(0.2, 0.6))
            # What is written to a file while it is copied or compressed, logrotate itself loses.
            with (logs / "app.log.gate").open("w") as gate:
                fcntl.flock(gate, fcntl.LOCK_EX)
                rotated = subprocess.run(
                    ["logrotate", "-f", "-s", str(logs.parent / "state"), str(config)],
                    capture_output=True,
                    text=True,
                    check=False,
                )
            assert rotated.returncode == 0, rotated.stderr
            if chance.random() < 0.4:
                product.stop_daemon(signal.SIGKILL)
                product.start_daemon()
    finally:
        writer.kill()
        writer.wait()
    wait_for(product, lines + 1, seconds=60)

    found = stored(product)
    assert [name for name in found if found[name] > 1] == []
    assert len(found) == lines + 1
    assert balanced(product.status())


def test_what_is_left_in_a_compressed_file_is_read_after_a_start(product: Product, logs: Path) -> None:
    log = logs / "app.log"
    append(log, *(line(number) for number in range(20)))
    product.start_daemon()
    wait_for(product, 20)
    product.stop_daemon(signal.SIGKILL)
    append(log, *(line(number) for number in range(20, 40)))
    times = log.stat()
    (logs / "app.log.1.gz").write_bytes(gzip.compress(log.read_bytes()))
    os.utime(logs / "app.log.1.gz", ns=(times.st_atime_ns, times.st_mtime_ns))
    log.unlink()
    append(log, line("new"))

    product.start_daemon()
    wait_for(product, 41)

    assert set(stored(product).values()) == {1}
    assert product.status()["ledger"]["accepted"] == 41, "a line was read twice"
