"""Queues of every released format, kept as data: each is read, delivered and kept by today's program."""

from __future__ import annotations

import json
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.processes import Product, balanced, wait_until
from support.queues import names, pending

from agent.queue.disk import FORMAT, DiskQueue
from agent.queue.reader import DiskReader
from agent.queue.rows import META, Meta, seal

QUEUES = Path(__file__).parents[1] / "data" / "queues"
VERSIONS = sorted(path.name for path in QUEUES.iterdir())
VERSION = pytest.mark.parametrize("version", VERSIONS)


def unpack(version: str, target: Path) -> dict[str, Any]:
    """Put the queue of a version at `target`; return what is in it."""
    with tarfile.open(QUEUES / version / "queue.tar.gz") as archive:
        archive.extractall(target.parent, filter="data")
    (target.parent / "queue").rename(target)
    target.chmod(0o700)
    return json.loads((QUEUES / version / "expected.json").read_text())


def events(expected: dict[str, Any], *, held: bool = True) -> list[str]:
    """Return the external ids of what is pending, oldest first."""
    ranges = [part for part in expected["pending"] if held or part != expected["held"]]
    return [f"event-{number}" for first, end in ranges for number in range(first, end)]


def test_there_is_a_queue_of_each_format_up_to_todays() -> None:
    assert [f"v{number}" for number in range(1, FORMAT + 1)] == VERSIONS


@VERSION
def test_a_queue_of_that_format_is_read_whole_and_carried_on(tmp_path: Path, version: str) -> None:
    expected = unpack(version, tmp_path / "old")

    for _ in range(2):  # as it was, and as this program left it
        with closing(DiskQueue(tmp_path / "old", server=expected["server"])) as queue:
            books = msgspec.to_builtins(queue.books())
            assert {name: books[name] for name in expected["books"]} == expected["books"]
            assert pending(queue) == events(expected)
            dead = [letter.external_id for letter in queue.dead_letters()]
            assert dead == [f"event-{number}" for number in expected["dead"]]
    assert not list((tmp_path / "old").glob("quarantine-*")), "an older format is no damage"


@VERSION
def test_who_only_looks_reads_that_format_too(tmp_path: Path, version: str) -> None:
    expected = unpack(version, tmp_path / "old")

    with closing(DiskReader(tmp_path / "old")) as reader:
        books = msgspec.to_builtins(reader.books())
        assert {name: books[name] for name in expected["books"]} == expected["books"]
        assert [letter.id for letter in reader.dead_letters()] == [1]


@VERSION
def test_verify_and_export_know_that_format(product: Product, version: str) -> None:
    expected = unpack(version, product.queue)

    verified, exported = product.run("queue", "verify", "--json"), product.run("queue", "export")

    assert (verified.returncode, exported.returncode) == (0, 0), verified.stdout
    assert json.loads(verified.stdout)["format"] == int(version[1:])
    assert names(line.encode() for line in exported.stdout.splitlines()) == events(expected)


@VERSION
def test_what_an_older_version_took_is_delivered_once_or_a_dead_letter(
    product: Product, version: str
) -> None:
    expected = unpack(version, product.queue)
    with closing(DiskQueue(product.queue)) as queue:  # which was meant for another address
        queue._cache.set(META, seal(META, Meta(FORMAT, product.url)))
    product.start_emulator()
    product.start_daemon()

    wait_until(lambda: product.polled()["queue"]["events"] == 2, what="delivery of all but what is not due")

    # Those without a filler have an empty one, which the server refuses.
    stored = [event["external_id"] for event in product.stored()]
    with closing(DiskReader(product.queue)) as reader:
        dead = [letter.external_id for letter in reader.dead_letters()]
    assert stored == [f"event-{number}" for number in range(503, 543)]
    assert sorted(stored + dead) == sorted([*events(expected, held=False), "event-120"])
    assert balanced(product.status())
