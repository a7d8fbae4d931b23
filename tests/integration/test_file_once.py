"""`agent send --file-once`: back-fill of files, with the ids that the tail gives."""

from __future__ import annotations

import gzip
import json
import shutil
import signal

import pytest
from support.processes import Product, balanced, wait_until
from support.tails import append, line

from agent.tail.identity import BOM


@pytest.fixture
def ready(product: Product) -> Product:
    """Emulator and daemon; what is below `logs` with names like app.log is tailed."""
    (product.directory / "logs").mkdir()
    product.set(tail__0__path=str(product.directory / "logs" / "app.log"))
    product.start_emulator()
    product.start_daemon()
    return product


def delivered(product: Product, stored: int, duplicates: int) -> None:
    """Wait until so many events are stored, and so many were known."""

    def arrived() -> bool:
        ledger = product.status()["ledger"]
        return (product.stats()["events_stored"], ledger["duplicates"]) == (stored, duplicates)

    wait_until(arrived, what=f"{stored} stored, {duplicates} duplicates")
    assert balanced(product.status())


ODD = [
    BOM + line("first"),
    b"\n",
    line("second")[:-1] + b" \r\n",
    line("third"),
    line("own", external_id="x"),
]


def test_the_lines_have_the_ids_that_the_tail_gives_compressed_or_not(ready: Product) -> None:
    log = ready.directory / "logs" / "app.log"
    append(log, *ODD, *(line(number) for number in range(100)))
    delivered(ready, 104, 0)
    packed = ready.directory / "elsewhere.gz"
    packed.write_bytes(gzip.compress(log.read_bytes()))

    done = ready.run("send", "--file-once", str(log), str(packed), "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accepted"] == 208
    delivered(ready, 104, 208)


def test_what_was_sent_once_is_known_to_the_tail(ready: Product) -> None:
    old = ready.directory / "old.log"
    append(old, *ODD)
    assert ready.run("send", "--file-once", str(old)).returncode == 0
    assert ready.run("send", "--file-once", str(old)).returncode == 0
    delivered(ready, 4, 4)

    shutil.copy(old, ready.directory / "logs" / "app.log")

    delivered(ready, 4, 8)


def test_files_that_begin_alike_and_are_no_copies_are_told_apart(ready: Product) -> None:
    files = [ready.directory / "one.log", ready.directory / "two.log"]
    for file in files:
        append(file, line("same"), line("same"))

    for _ in range(2):
        assert ready.run("send", "--file-once", *map(str, files)).returncode == 0

    delivered(ready, 4, 4)


def test_bad_lines_and_bad_files_are_told_and_the_rest_is_sent(ready: Product) -> None:
    good, cut = ready.directory / "good.log", ready.directory / "cut.gz"
    append(good, line("a"), b"\n", b"nonsense\n", line("b"))
    packed = gzip.compress(b"".join(line(number) for number in range(10)))
    cut.write_bytes(packed[:-9])

    done = ready.run("send", "--file-once", str(cut), str(good))

    assert done.returncode == 1
    assert f"{good}:3: json_invalid" in done.stderr
    assert f"{cut}: cannot be read to its end" in done.stderr
    wait_until(lambda: {"a", "b"} <= {event["name"] for event in ready.stored()}, what="the good lines")


def test_a_run_that_was_interrupted_is_repeated_and_each_line_is_stored_once(ready: Product) -> None:
    log = ready.directory / "large.log"
    lines = 60_000
    append(log, *(line("n", timestamp=f"2026-01-01T00:00:00.{n:06}Z") for n in range(lines)))
    ready.faults(latency_ms=5)
    first = ready.spawn("send", "--file-once", str(log))
    wait_until(lambda: ready.polled()["ledger"]["accepted"] > 0, what="a part of it")
    ready.stop_daemon(signal.SIGKILL)
    first.kill()
    ready.start_daemon()

    done = ready.run("send", "--file-once", str(log))

    assert done.returncode == 0, done.stderr
    wait_until(lambda: ready.polled()["queue"]["events"] == 0, seconds=60, what="all of it")
    assert ready.stats()["events_stored"] == lines


@pytest.mark.parametrize("words", [[], ["-"], ["/dev/null"]])
def test_only_files_can_be_read_once(product: Product, words: list[str]) -> None:
    done = product.run("send", "--file-once", *words)

    assert done.returncode == 2
    assert "no file" in done.stderr


def test_of_damaged_compressed_data_nothing_is_sent(ready: Product) -> None:
    damaged = ready.directory / "damaged.gz"
    packed = gzip.compress(line("a") + line("was b"), compresslevel=0)
    damaged.write_bytes(packed.replace(b"was b", b"was c"))

    done = ready.run("send", "--file-once", str(damaged))

    assert done.returncode == 1
    assert "damaged gzip data" in done.stderr
    assert "nothing of it was sent" in done.stderr
    assert ready.status()["ledger"]["accepted"] == 0


def test_compressed_files_need_no_name_of_their_own(ready: Product) -> None:
    packed = ready.directory / "app.log.GZ"
    packed.write_bytes(gzip.compress(line("a")))

    assert ready.run("send", "--file-once", str(packed)).returncode == 0

    delivered(ready, 1, 0)
