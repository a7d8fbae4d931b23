"""What a daemon does about damage, as the settings say: at the start, and while it runs."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.clock import FakeClock
from support.damage import DATABASE, INDEX, LOCK, LOG, copy, reports, write
from support.processes import PATIENCE, Line, Product, balanced, wait_until
from support.queues import buried, checkpoint_of, chunk_of, letter, pending

from agent.errors import QueueError
from agent.queue import Change, mend
from agent.queue.disk import DiskQueue

if TYPE_CHECKING:
    from collections.abc import Callable


def event(name: str) -> dict[str, str]:
    return {"name": "u", "external_customer_id": "c", "external_id": name}


def send(product: Product, *names: str) -> None:
    """Send events and wait until they are durable."""
    with closing(Line(product.socket)) as line:
        line.send(*map(event, names))
        line.acked(len(names))


def spoil(directory: Path) -> None:
    """Write zeros over the middle of a database."""
    write(directory / DATABASE, 4096, bytes(8192))


def files(directory: Path) -> dict[str, bytes]:
    """Return what is in the files of the database."""
    found = {path.name: path.read_bytes() for path in directory.iterdir() if path.name in (DATABASE, LOG)}
    return {name: data for name, data in found.items() if data}


@pytest.fixture
def spoilt(product: Product) -> Product:
    """A queue at rest that is damaged."""
    with closing(DiskQueue(product.queue)) as queue:
        queue.commit(Change(appends=[chunk_of("a", "b")]))
    spoil(product.queue)
    return product


@pytest.mark.parametrize("command", ["run", "flush"])
def test_with_exit_a_damaged_queue_is_told_and_left_as_it_is(spoilt: Product, command: str) -> None:
    spoilt.set(when_damaged="exit")
    before = files(spoilt.queue)

    done = spoilt.run(command)

    assert done.returncode == 1
    assert "it is damaged" in done.stderr
    assert "as when_damaged says" in done.stderr
    assert files(spoilt.queue) == before
    assert not reports(spoilt.queue)


def test_what_exit_left_alone_is_rescued_when_rescue_is_wanted(spoilt: Product) -> None:
    spoilt.set(when_damaged="exit")
    assert spoilt.run("run").returncode == 1
    spoilt.set(when_damaged="rescue")
    spoilt.start_emulator()

    assert spoilt.run("flush").returncode == 0

    assert [event["external_id"] for event in spoilt.stored()] == ["a", "b"]
    assert len(reports(spoilt.queue)) == 1


def test_with_exit_a_daemon_that_comes_upon_a_damaged_chunk_ends_and_changes_nothing_of_it(
    product: Product,
) -> None:
    product.set(when_damaged="exit", shutdown_timeout="300")  # it is not to deliver for so long
    with closing(DiskQueue(product.queue)) as queue:
        queue.commit(Change(appends=[chunk_of("a", filler=30_000), chunk_of("b")]))
        row = queue._cache.get(1)
        queue._cache.set(1, row[:-1] + bytes([row[-1] ^ 1]))
    product.start_emulator()
    product.start_daemon(wait=False)
    assert product.daemon is not None

    assert product.daemon.wait(PATIENCE) == 1

    log = product.log.read_text()
    assert "the queue is damaged: stopping, as when_damaged says" in log
    assert "stopping takes too long" not in log
    assert not reports(product.queue)
    assert product.run("queue", "verify").returncode == 1


def hurt(path: Path, how: str, chance: random.Random) -> None:
    """Do something to a file that is in use."""
    size = path.stat().st_size
    if how == "removed":
        path.unlink()
    elif how == "cut":
        with path.open("r+b") as file:
            file.truncate(size // 3)
    elif how == "zeros":
        write(path, size // 2 // 4096 * 4096, bytes(min(4096, size)))
    else:
        for _ in range(20):
            place = chance.randrange(size)
            write(path, place, bytes([path.read_bytes()[place] ^ 1 << chance.randrange(8)]))


@pytest.mark.parametrize(
    ("how", "name"),
    [
        *((how, name) for how in ("zeros", "cut", "bits") for name in (DATABASE, LOG, INDEX)),
        *(("removed", name) for name in (DATABASE, LOG, INDEX)),
    ],
)
def test_damage_to_any_file_of_a_running_daemon_costs_no_event_that_can_be_read_and_sends_nothing_else(
    product: Product, name: str, how: str
) -> None:
    """It mends what it comes upon, or dies of it, as of an index that is cut while it is mapped."""
    chance = random.Random(f"{name} {how}")
    product.start_daemon()
    assert product.daemon is not None
    accepted: set[str] = set()
    for number in range(40):
        some = [f"{number}-{part}" for part in range(chance.choice([1, 30]))]
        send(product, *some)
        accepted.update(some)
    path = product.queue / name
    hurt(path, how, chance)
    product.start_emulator()
    taken = 0
    for number in range(3):
        if product.daemon.poll() is not None:
            assert product.daemon.returncode in (-signal.SIGBUS, -signal.SIGSEGV), product.log.read_text()
            product.start_daemon()
        try:
            send(product, f"later-{number}")
            taken += 1
        except (OSError, AssertionError):
            wait_until(product.daemon.poll, what="the daemon's death")
    if product.daemon.poll() is not None:
        product.start_daemon()

    flushed = product.run("flush", "--timeout", "30")

    assert flushed.returncode == 0, flushed.stdout + product.log.read_text()
    status = product.status()
    assert balanced(status)
    stored = [event["external_id"] for event in product.stored()]
    assert len(set(stored)) == len(stored)
    assert set(stored) <= accepted | {f"later-{number}" for number in range(3)}
    assert len([name for name in stored if name.startswith("later")]) >= taken
    assert how != "removed" or accepted <= set(stored), "who has a file open has it still"
    assert product.stop_daemon() == 0
    # What it did not come upon, the next start sees.
    assert product.run("flush").returncode == 0
    assert product.run("queue", "verify").returncode == 0


# -- taken away --------------------------------------------------------------------------


def remove(*names: str) -> Callable[[Path], None]:
    """Return what removes these files of a directory."""
    return lambda directory: [(directory / name).unlink() for name in names] and None


def replace(directory: Path) -> None:
    """Put a copy in the place of the database, as who restores a backup does."""
    shutil.copy(directory / DATABASE, directory / "copy")
    (directory / "copy").rename(directory / DATABASE)


@pytest.mark.parametrize(
    "take_away",
    [remove(DATABASE), remove(LOG), remove(DATABASE, LOG), replace],
    ids=["database", "log", "both", "replaced"],
)
@pytest.mark.parametrize("then", ["commit", "look", "read elsewhere", "stop"])
@pytest.mark.parametrize("rescue", [True, False], ids=["rescue", "exit"])
def test_what_was_acknowledged_has_a_name_again_when_the_files_of_an_open_queue_are_taken_away(
    tmp_path: Path, take_away: Callable[[Path], None], then: str, rescue: bool
) -> None:
    """Whoever is killed then leaves nothing else."""
    directory = tmp_path / "queue"
    with closing(DiskQueue(directory, rescue=rescue)) as queue:
        change = Change(appends=[chunk_of("a", "b", filler=3000)], checkpoints=[checkpoint_of("f", offset=5)])
        change.letters = [letter("dead")]
        queue.commit(change)
        queue.recover()
        queue.commit(Change(appends=[chunk_of("c")]))
        before = pending(queue)

        take_away(directory)
        if then == "commit":
            queue.commit(Change(appends=[chunk_of("d")]))
        elif then == "look":
            queue.recover()
        elif then == "read elsewhere":
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(pending, queue).result() == before
            queue.recover()
        else:
            queue.close()

        after = copy(directory, tmp_path / "killed")

    with closing(DiskQueue(after)) as queue:
        assert pending(queue) == before + ["d"] * (then == "commit")
        assert [dead.external_id for dead in queue.dead_letters()] == ["dead"]
        assert [read.offset for read in queue.checkpoints()] == [5]
        assert queue.books().lost == 0


def test_nothing_is_acknowledged_while_the_directory_is_away_and_all_goes_on_when_it_is_back(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "queue"
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        directory.rename(tmp_path / "elsewhere")

        with pytest.raises(QueueError, match="moved away while it is in use") as told:
            queue.commit(Change(appends=[chunk_of("b")]))

        assert "put it back" in told.value.hint
        assert pending(queue) == ["a"]
        (tmp_path / "elsewhere").rename(directory)
        queue.commit(Change(appends=[chunk_of("c")]))
        assert pending(queue) == ["a", "c"]
    assert not reports(directory)


# -- never for ever ----------------------------------------------------------------------


@pytest.mark.parametrize("by", [3600, -86_400], ids=["an hour later", "a clock that is set back a day"])
def test_a_disk_that_spoils_one_database_after_the_other_is_given_up_for_an_hour(
    tmp_path: Path, by: float
) -> None:
    clock, directory = FakeClock(), tmp_path / "queue"
    with closing(DiskQueue(directory, clock=clock)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
    for _ in range(3):
        spoil(directory)
        DiskQueue(directory, clock=clock).close()
        clock.advance(60)
    spoil(directory)

    with pytest.raises(QueueError, match="rescued 3 times within an hour"):
        DiskQueue(directory, clock=clock)

    assert len(reports(directory)) == 3
    clock.set_wall(clock.wall() + by)
    DiskQueue(directory, clock=clock).close()
    assert len(reports(directory)) == 4


# -- damage to a rescue ------------------------------------------------------------------


@pytest.mark.parametrize("moved", range(4))
@pytest.mark.parametrize("spoilt", ["cache.db", "report.json"])
def test_a_rescue_that_was_broken_off_and_damaged_is_done_anew_from_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int, spoilt: str
) -> None:
    directory = tmp_path / "queue"
    queue = DiskQueue(directory)
    queue.commit(Change(appends=[chunk_of("a", filler=9000), chunk_of("b", filler=9000)]))
    copy(directory, tmp_path / "killed")
    queue.close()
    directory = tmp_path / "killed"
    spoil(directory)
    left = [moved]
    real = mend._move

    def move(file: Path, target: Path) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(file, target)

    with monkeypatch.context() as patch:
        patch.setattr(mend, "_move", move)
        with pytest.raises(KeyboardInterrupt):
            DiskQueue(directory)
    (rescued,) = directory.glob("rescued-*")
    write(rescued / spoilt, 0, bytes(200))

    with closing(DiskQueue(directory)) as queue:
        assert queue.books().pending == 2
        assert [queue.get(key) is not None for key in (1, 2)] == [True, True]

    assert not list(directory.glob("rescued-*"))
    assert len(list(directory.glob("quarantine-*"))) == 1


@pytest.mark.parametrize("rescued", [False, True], ids=["here", "by a process that was killed"])
def test_each_step_of_a_rescue_is_on_the_disk_before_the_next_one_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, rescued: bool
) -> None:
    """Whatever a power cut leaves: the old files, or a whole rescue that the next start completes."""
    directory = tmp_path / "queue"
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a", filler=9000)]))
        copy(directory, tmp_path / "killed")
    directory = tmp_path / "killed"
    spoil(directory)
    steps: list[str] = []
    fsync, rename, rmtree = os.fsync, Path.rename, shutil.rmtree

    def noted_fsync(file: int) -> None:
        fsync(file)
        steps.append(f"sync {Path(f'/proc/self/fd/{file}').readlink().name.partition('-2')[0]}")

    def noted_rename(path: Path, target: Path) -> Path:
        moved = rename(path, target)
        steps.append(f"{path.name} to {target.parent.name.partition('-2')[0]}")
        if (
            rescued
            and steps.count("sync rescue.tmp")
            and len(steps) == steps.index("rescue.tmp to killed") + 1
        ):
            raise KeyboardInterrupt
        return moved

    def noted_rmtree(path: Path, **options: bool) -> None:
        steps.extend([f"remove {path.name.partition('-2')[0]}"] if path.exists() else [])
        rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", noted_rmtree)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    if rescued:
        with pytest.raises(KeyboardInterrupt):
            DiskQueue(directory)
    DiskQueue(directory).close()

    steps = [step for step in steps if "ballast" not in step]
    begun = steps.index("rescue.tmp to killed")
    assert set(steps[:begun]) == {"sync cache.db", "sync report.json", "sync rescue.tmp"}
    assert steps[begun - 1] == "sync rescue.tmp"
    away = steps.index(f"{DATABASE} to quarantine")
    moved_in = steps.index(f"{DATABASE} to killed")
    first = next(place for place, step in enumerate(steps) if step.endswith(" to quarantine"))
    assert "sync killed" in steps[begun:first], "the outcome is not certain yet, and files are moved"
    assert steps[moved_in - 2 : moved_in] == ["sync quarantine", "sync killed"]
    assert away < moved_in
    assert steps[moved_in + 1 : moved_in + 3] == ["sync killed", "remove rescued"]


# -- told --------------------------------------------------------------------------------


def test_what_is_gone_is_counted_and_named_in_log_status_and_report(product: Product) -> None:
    product.start_emulator()
    with closing(DiskQueue(product.queue)) as queue:
        queue.commit(Change(appends=[chunk_of(*range(7), filler=900), chunk_of("b")]))
        row = queue._cache.get(1)
    place = (product.queue / DATABASE).read_bytes().index(row[:60])
    write(product.queue / DATABASE, place + 50, bytes(8))
    spoil(product.queue)

    product.start_daemon()
    assert product.run("flush").returncode == 0

    (path,) = reports(product.queue)
    report = json.loads(path.read_text())
    assert (report["damaged_chunks"], report["events_lost"]) == ([1], 7)
    assert '"events_lost": 7' in product.log.read_text()
    assert str(path.parent) in product.log.read_text()
    told = product.run("status").stdout
    assert "7 of the dropped were lost to damage" in told
    assert product.status()["ledger"]["dropped"] == 7


# -- what comes back -----------------------------------------------------------------------


@pytest.mark.parametrize("first", ["the event", "its dead letter"])
def test_a_dead_letter_that_comes_back_beside_its_own_event_is_sent_once(
    product: Product, first: str
) -> None:
    """A rescue may find it on an old page, although it was retried since: both have one external id."""
    with closing(DiskQueue(product.queue, server=product.url)) as queue:
        (key,) = queue.commit(Change(appends=[chunk_of("a")]))
        queue.commit(Change(settlements=[buried(key, "a")]))
        queue.commit(Change(appends=[chunk_of("a")]))
    product.start_emulator()
    if first == "the event":
        assert product.run("flush").returncode == 0

    assert product.run("dead", "retry", "--all").returncode == 0
    assert product.run("flush").returncode == 0

    assert [event["external_id"] for event in product.stored()] == ["a"]
    status = product.status()
    assert balanced(status)
    assert status["ledger"] == {
        "accepted": 2,
        "refused": 0,
        "dead": 0,
        "dropped": 0,
        "delivered": 1,
        "duplicates": 1,
    }
    assert (status["queue"]["events"], status["queue"]["dead"]) == (0, 0)


# -- the lock --------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["removed", "empty", "nonsense", "another process"])
def test_a_lock_file_that_is_damaged_lets_no_second_daemon_in_and_the_first_is_still_named(
    product: Product, damage: str
) -> None:
    product.start_daemon()
    assert product.daemon is not None
    lock = product.queue / LOCK
    lock.unlink()
    if damage != "removed":
        lock.write_bytes({"empty": b"", "nonsense": b"\xff\x00no\n", "another process": b"1\n"}[damage])

    product.set(socket_path=product.directory / "other.sock", api_socket_path=product.directory / "o.api")
    done = product.run("run")

    assert done.returncode == 1
    assert f"process {product.daemon.pid} uses it" in done.stderr
    assert product.stop_daemon() == 0
