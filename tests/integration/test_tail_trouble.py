"""What goes wrong with tailed files: it is shown, told once in the log, and mends by itself."""

from __future__ import annotations

import json
import os
import random
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.processes import Product, wait_until
from support.tails import append, line

from agent.tail.helper import is_possible

# Root may read everything, unless it gives that up.
ORDINARY = "-dac_override,-dac_read_search"
AS_OTHERS = ["setpriv", f"--bounding-set={ORDINARY}", f"--inh-caps={ORDINARY}"] if os.geteuid() == 0 else []


@pytest.fixture
def logs(product: Product) -> Path:
    """A directory whose `.log` files are tailed."""
    directory = product.directory / "logs"
    directory.mkdir()
    product.set(tail__0__path=str(directory / "*.log"))
    product.start_emulator()
    return directory


def status(product: Product) -> dict[str, Any]:
    return json.loads(product.run("tail", "status", "--json").stdout)


def names(product: Product) -> list[str]:
    return sorted(event["name"] for event in product.stored())


def told(product: Product, message: str) -> int:
    """Return how often something is in the log."""
    return product.log.read_text().count(f'"message": "{message}"')


def test_a_file_that_may_not_be_read_is_read_once_it_may_be(product: Product, logs: Path) -> None:
    append(logs / "app.log", line("a"))
    (logs / "app.log").chmod(0)
    product.prefix = AS_OTHERS
    product.start_daemon()
    wait_until(lambda: [file["state"] for file in status(product)["files"]] == ["unreadable"])
    (file,) = status(product)["files"]
    assert "ermission denied" in file["problem"]
    assert file["lag_bytes"] is None, "nobody knows which file it is"
    assert product.run("tail", "status").returncode == 1

    (logs / "app.log").chmod(0o644)

    wait_until(lambda: names(product) == ["a"])
    assert product.run("tail", "status").returncode == 0
    assert told(product, "cannot read a file") == 1
    assert told(product, "a file can be read again") == 1
    product.stop_daemon()
    (logs / "app.log").chmod(0)
    product.start_daemon()
    wait_until(lambda: [file["state"] for file in status(product)["files"]] == ["unreadable"])
    (file,) = status(product)["files"]
    assert (file["offset"], file["lag_bytes"]) == (len(line("a")), 0), "known by its inode"
    assert "1 file tailed; 1 problem: see `agent tail status`" in product.run("status").stdout


def test_a_directory_that_is_gone_is_read_when_it_is_back(product: Product, logs: Path) -> None:
    append(logs / "app.log", line("a"))
    product.start_daemon()
    wait_until(lambda: names(product) == ["a"])
    logs.rename(product.directory / "away")
    wait_until(lambda: status(product)["problems"])
    append(product.directory / "away" / "app.log", line("b"))

    (product.directory / "away").rename(logs)
    append(logs / "app.log", line("c"))

    wait_until(lambda: names(product) == ["a", "b", "c"])
    assert status(product)["problems"] == []
    assert told(product, "cannot look for files") == 1
    assert told(product, "can look for files again") == 1
    assert product.status()["ledger"]["accepted"] == 3


def test_from_the_end_only_what_is_added_counts(product: Product, logs: Path) -> None:
    append(logs / "app.log", line("old"))
    product.set(tail__0__start="end")
    product.start_daemon()
    wait_until(lambda: [file["offset"] for file in status(product)["files"]] == [len(line("old"))])

    append(logs / "app.log", line("new"))
    append(logs / "later.log", line("of a file that came later"))

    wait_until(lambda: names(product) == ["new", "of a file that came later"])


def test_a_full_queue_stops_the_reading_and_loses_nothing(product: Product, logs: Path) -> None:
    chance = random.Random(1)
    product.set(queue_max_bytes="2MiB")
    product.faults(status=503, share=1)
    product.start_daemon()
    lines = [line(number, metadata={"x": chance.randbytes(240).hex()}) for number in range(20_000)]
    append(logs / "app.log", *lines)
    wait_until(lambda: status(product)["paused"], what="a pause")
    (file,) = status(product)["files"]
    assert file["lag_bytes"] > 0
    append(logs / "app.log", line("more"))
    (file,) = status(product)["files"]
    assert file["size"] == (logs / "app.log").stat().st_size
    assert told(product, "files are not read for now; nothing is lost") == 1

    product.faults()

    wait_until(lambda: product.stats()["events_stored"] == len(lines) + 1, what="all of it")
    assert len(set(names(product))) == len(lines) + 1
    assert status(product)["paused"] is None


def test_more_changes_than_the_system_can_note_are_found_by_looking(product: Product, logs: Path) -> None:
    for name in ("a.log", "b.log"):
        append(logs / name, line(name))
    product.start_daemon()
    wait_until(lambda: names(product) == ["a.log", "b.log"])
    assert product.daemon is not None
    product.daemon.send_signal(signal.SIGSTOP)
    with (logs / "a.log").open("ab", buffering=0) as a, (logs / "b.log").open("ab", buffering=0) as b:
        for _ in range(20_000):  # fs.inotify.max_queued_events is 16384
            a.write(b"\n")
            b.write(b"\n")
    append(logs / "new.log", line("new"))

    product.daemon.send_signal(signal.SIGCONT)

    wait_until(lambda: names(product) == ["a.log", "b.log", "new"])


BACKLOG = [line(n, metadata={f"k{m}": "x" * 450 for m in range(12)}) for n in range(13_500)]
"""Each third of it is 25 MB, enough for a process that helps reading."""


def helpers(product: Product) -> list[int]:
    """Return the processes that help the daemon to read; another one is gone once its settings are read."""
    assert product.daemon is not None
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = place.joinpath("stat").read_text().rpartition(")")[2].split()[1]
            if parent == str(product.daemon.pid) and b"checking" in place.joinpath("cmdline").read_bytes():
                found.append(int(place.name))
    return found


LOST = "the process that helps reading large files is lost; nothing else is, they are read without it"


def is_running(pid: int) -> bool:
    """Tell whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not is_possible(), reason="needs Linux and two processors")
def test_the_process_that_helps_with_a_backlog_can_die_and_ends_with_the_daemon(
    product: Product, logs: Path
) -> None:
    append(logs / "app.log", *BACKLOG[:4500])
    product.start_daemon()
    (helper,) = wait_until(lambda: helpers(product))
    os.kill(helper, signal.SIGKILL)
    append(logs / "app.log", *BACKLOG[4500:9000])
    wait_until(lambda: product.status()["ledger"]["accepted"] == 9000)
    assert told(product, LOST) == 1
    product.stop_daemon(signal.SIGKILL)

    append(logs / "more.log", *BACKLOG[9000:])
    product.start_daemon()
    (helper,) = wait_until(lambda: helpers(product))
    product.stop_daemon(signal.SIGKILL)
    wait_until(lambda: not is_running(helper))
    product.start_daemon()

    wait_until(lambda: product.status()["ledger"]["accepted"] == len(BACKLOG))
    wait_until(lambda: not product.status()["queue"]["events"])
    assert names(product) == sorted(map(str, range(len(BACKLOG))))
