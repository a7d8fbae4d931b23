"""Whatever happens to the files of a queue: it starts, sends nothing damaged, and tells what is gone.

Most cases run in this process, with files that are damaged at random places; a dozen with
a real daemon and the emulator. What must be rescued is told by the bytes that were hit.
"""

from __future__ import annotations

import json
import os
import random
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from support.damage import (
    DATABASE,
    FILES,
    KINDS,
    LOG,
    Hit,
    Truth,
    copy,
    drain,
    fill,
    reports,
    survey,
    untouched,
    write,
)
from support.failpoints import MEND_STEPS, Nursery
from support.processes import Product, balanced
from support.trials import Victim

from agent.queue import check, store
from agent.queue.disk import DiskQueue
from agent.queue.reader import DiskReader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CASES = 220
DAEMON_CASES = 14


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Truth]]:
    """Queues as daemons leave them, in different ages.

    `closed` was closed; `killed` has all but its tables in the log, which never was begun
    anew; `worn` has both, and a log that holds older states of its pages.
    """
    place = tmp_path_factory.mktemp("states")
    states = {}
    with pytest.MonkeyPatch.context() as patch:
        _unsynced(patch)
        for seed, (name, commits) in enumerate({"closed": 40, "killed": 25, "worn": 110}.items()):
            queue, truth = fill(place / "live", random.Random(seed), commits=commits)
            (place / "live" / "lock").write_bytes(b"123\n")
            if name == "closed":
                queue.close()
            directory = copy(place / "live", place / name)
            if name == "worn":
                check.keep_index(directory)  # as a start that was broken off leaves it
            queue.close()
            (place / "live").rename(place / f"{name}-live")
            survey(directory, truth)
            states[name] = (directory, truth)
    return states


def _unsynced(patch: pytest.MonkeyPatch) -> None:
    """Leave syncing out, which takes most of the time and is held by other tests."""
    patch.setitem(store.SETTINGS, "sqlite_synchronous", 0)
    patch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    _unsynced(monkeypatch)


def damaged(
    states: dict[str, tuple[Path, Truth]], target: Path, chance: random.Random, hits: int = 1
) -> tuple[Truth, list[Hit]]:
    """Make a copy of one of the queues at `target` and damage it."""
    source, truth = states[chance.choice(sorted(states))]
    copy(source, target)
    files = [name for name in FILES if (target / name).exists()]
    # Lock and ballast hold nothing, and the index is made anew at each start: fewer cases for them.
    weights = [4 if name in (DATABASE, LOG) else 1 for name in files]
    found = []
    for _ in range(hits):
        file = target / chance.choices(files, weights)[0]
        if file.stat().st_size:
            found.append(chance.choice(KINDS)(file, chance))
    return truth, found


def test_no_file_of_a_queue_is_left_out(states: dict[str, tuple[Path, Truth]]) -> None:
    found = {file.name for directory, _ in states.values() for file in directory.iterdir()}

    assert found == set(FILES)


# -- at random places ----------------------------------------------------------------------


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize("case", range(CASES))
def test_what_was_not_hit_is_rescued_and_what_was_is_counted(
    states: dict[str, tuple[Path, Truth]], tmp_path: Path, case: int
) -> None:
    truth, hits = damaged(states, tmp_path / "queue", random.Random(case))
    whole = untouched(truth, hits)

    with closing(DiskQueue(tmp_path / "queue")) as queue:
        sent = drain(queue)
        letters = {letter.id: letter.event.encode() for letter in queue.dead_letters()}
        books = queue.books()
        read = {checkpoint.id: checkpoint.offset for checkpoint in queue.checkpoints()}

    told = [json.loads(report.read_text()) for report in reports(tmp_path / "queue")]
    assert set(sent) <= truth.ever, "something was sent that nobody wrote"
    assert len(set(sent)) == len(sent), "something was sent twice"
    assert set(letters.items()) <= set(truth.dead.items())
    for key, lines in truth.chunks.items():
        assert key not in whole or set(lines) <= set(sent), f"chunk {key} was not hit, and is gone"
    for number in truth.dead:
        assert f"dead-{number:016d}" not in whole or number in letters, f"letter {number} is gone"
    for name, offsets in truth.read.items():
        # To read a line again is harmless, since it gets the id that it had; to pass one over is not.
        assert read.get(name, 0) in offsets
        assert f"checkpoint-{name}" not in whole or name in read, f"checkpoint {name} is gone"
    assert books.pending == 0
    assert books.dead == len(letters)
    accounted = len(sent) + len(letters) + books.lost
    again = sum(report["events_again"] for report in told)
    known = all(report["books"] == "read" and not report["log_pages_missing"] for report in told)
    if any(LOG in report["found"] for report in told):
        # The newest books may be gone with the end of the log; older ones know of less.
        assert not known or accounted >= truth.pending + len(truth.dead)
    elif known:
        assert accounted == truth.pending + len(truth.dead) + again


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize("case", range(CASES, CASES + 30))
def test_much_damage_in_many_files_is_overcome_like_a_little(
    states: dict[str, tuple[Path, Truth]], tmp_path: Path, case: int
) -> None:
    chance = random.Random(case)
    truth, _ = damaged(states, tmp_path / "queue", chance, hits=chance.randint(2, 12))

    with closing(DiskQueue(tmp_path / "queue")) as queue:
        sent = drain(queue)
        letters = list(queue.dead_letters())
        books = queue.books()

    assert set(sent) <= truth.ever
    assert len(set(sent)) == len(sent)
    assert {letter.event.encode() for letter in letters} <= set(truth.dead.values())
    assert (books.pending, books.dead) == (0, len(letters))


# -- with a daemon -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    product = Product(tmp_path_factory.mktemp("server"))
    product.start_emulator()
    yield product
    product.close()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def victim(tmp_path: Path, server: Product, nursery: Nursery) -> Iterator[Victim]:
    victim = Victim(tmp_path, server.url, nursery, flush_interval="0.02")
    yield victim
    victim.close()


@pytest.fixture
def sick(victim: Victim, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Truth:
    """What the victim's queue holds that a daemon left behind when it was killed; to be damaged."""
    name = f"{request.node.name} "
    with monkeypatch.context() as patch:
        _unsynced(patch)
        queue, truth = fill(victim.directory / "live", random.Random(name), commits=12, name=name)
        copy(victim.directory / "live", victim.queue)
        queue.close()
    survey(victim.queue, truth)
    return truth


def recover(victim: Victim, server: Product, truth: Truth) -> set[bytes]:
    """Have the daemon deliver what it has, and one event that comes now; return the events that arrived."""
    known = {json.loads(line)["external_id"]: line for line in truth.ever}
    victim.start_daemon()
    sent = victim.run("send", stdin=json.dumps({"name": "usage", "external_customer_id": "c"}) + "\n")
    assert sent.returncode == 0, sent.stderr
    flushed = victim.ask("POST", "/flush?timeout=30")
    assert flushed["remaining"] == 0, flushed
    status = victim.ask("GET", "/status")
    assert balanced(status)
    assert victim.stop_daemon() == 0
    arrived = [event for event in server.stored() if event["external_id"] in known]
    for event in arrived:
        written = json.loads(known[event["external_id"]])
        assert {field: event[field] for field in written} == written, "something damaged was sent"
    ids = [event["external_id"] for event in arrived]
    assert len(set(ids)) == len(ids)
    return {known[name] for name in ids}


@pytest.mark.parametrize("case", range(DAEMON_CASES))
def test_a_daemon_delivers_all_that_was_not_hit_once_and_serves_on(
    victim: Victim, server: Product, sick: Truth, case: int
) -> None:
    chance = random.Random(case)
    file = victim.queue / [DATABASE, LOG][case % 2]
    hits = [KINDS[case // 2 % len(KINDS)](file, chance)]
    whole = untouched(sick, hits)

    arrived = recover(victim, server, sick)

    for key, lines in sick.chunks.items():
        assert key not in whole or set(lines) <= arrived, f"chunk {key} was not hit, and did not arrive"
    log = victim.log.read_text()
    for report in reports(victim.queue):
        assert str(report.parent) in log
    with closing(DiskReader(victim.queue)) as reader:
        assert (f'"events_lost": {reader.books().lost}' in log) or not reader.books().lost


@pytest.mark.parametrize(
    ("step", "call"),
    [
        *((step, 1) for step in MEND_STEPS),
        *(("before a file is moved", call) for call in range(2, 8)),
        *(("after a file was moved", call) for call in range(2, 8)),
    ],
)
def test_a_rescue_that_is_killed_is_completed_by_the_next_start_and_nothing_is_doubled(
    victim: Victim, server: Product, sick: Truth, step: str, call: int
) -> None:
    zeros = bytes(3 * 4096)
    (name, start, _), *_ = sick.places["books"]
    hits = [write(victim.queue / name, start // 4096 * 4096, zeros)]
    whole = untouched(sick, hits)
    victim.failpoint.arm(step, call)
    victim.start_daemon(wait=False)
    victim.daemon.wait(30)
    victim.failpoint.disarm()

    arrived = recover(victim, server, sick)

    for key, lines in sick.chunks.items():
        assert key not in whole or set(lines) <= arrived, f"chunk {key} was not hit, and did not arrive"
    assert len(reports(victim.queue)) == 1
    left = {path.name for path in victim.queue.iterdir() if not path.name.startswith("quarantine-")}
    assert left <= set(FILES)
