"""The queue on disk beside a plain model: any order of changes, crashes, power cuts, damage and new starts.

A crash is what SIGKILL leaves: the files as they are, with the locks of nobody. A power cut
takes the end of a commit that was not synced yet. Damage hits one file anywhere; what was not
hit must be there afterwards, and the books must be those of what is.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test
from support.any_sequence import AnySequence
from support.clock import FakeClock
from support.damage import FILES, INDEX, KINDS, LOG, Truth, reports, survey, untouched, write
from support.queues import chunk_of, chunks, names

from agent.chunk import DamagedChunkError
from agent.queue import Change, Settlement, store, wal
from agent.queue.ballast import Ballast
from agent.queue.disk import DiskQueue

PARTS = 8
SEQUENCES = 260  # of each part
RARE = ("reopen", "crash", "crash in a transaction", "power cut", "corrupt", "mended", "lost")
STEPS = 9
MEMORY = Path("/dev/shm")  # noqa: S108  # where it is there, it is quicker than a disk
_FRAME = 24 + 4096


class OnDisk(AnySequence):
    """Does all that on disk, and what befalls a disk."""

    queue: DiskQueue
    happened: ClassVar[Counter[str]] = Counter()

    def open(self) -> None:
        self.happened["sequence"] += 1
        self.home = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.clock = FakeClock()
        self.places = 0
        self.directory = self.home / "0"
        self.start()

    def start(self) -> None:
        self.queue = DiskQueue(self.directory, clock=self.clock)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "home"):
            shutil.rmtree(self.home)

    def copied(self) -> Path:
        """Return a copy of the directory as it is at this moment."""
        self.places += 1
        target = self.home / str(self.places)
        shutil.copytree(self.directory, target)
        target.chmod(0o700)
        return target

    def start_at(self, directory: Path) -> None:
        """Go on with another directory than so far."""
        self.queue.close()
        shutil.rmtree(self.directory)
        self.directory = directory
        self.start()

    # -- new starts --------------------------------------------------------------------

    @rule()
    def reopen(self) -> None:
        self.queue.close()
        self.start()
        self.happened["reopen"] += 1

    @rule()
    def crash(self) -> None:
        self.start_at(self.copied())
        self.happened["crash"] += 1

    def commit_something(self) -> None:
        """Make a change of every kind that the model allows, without telling the model."""
        change = Change([chunk_of("never", "told")], refused=1)
        change.settlements = [
            Settlement(key, None, delivered=len(group)) for key, group in self.chunks.items()
        ]
        change.purged = sorted(self.dead)
        self.queue.commit(change)

    @rule()
    def crash_in_a_transaction(self) -> None:
        apply, copies = self.queue._apply, []

        def apply_and_copy(*args: Any) -> Any:
            result = apply(*args)
            copies.append(self.copied())
            return result

        self.queue._apply = apply_and_copy  # type: ignore[method-assign]
        self.commit_something()
        self.start_at(copies[0])
        self.happened["crash in a transaction"] += 1

    @rule(seed=st.integers(0, 2**32))
    def power_cut_in_a_commit(self, seed: int) -> None:
        """Lose a piece of the last page that the commit wrote; nobody was told that it was safe."""
        index = (self.directory / INDEX).read_bytes()
        self.commit_something()
        target, chance = self.copied(), random.Random(seed)
        end = 32 + wal.takes(target / LOG) * _FRAME
        torn = end - chance.randint(1, 8) * 512
        if chance.random() < 0.5:
            os.truncate(target / LOG, torn)
        else:
            write(target / LOG, torn, bytes(512 - 1) + b"\1")
        (target / INDEX).write_bytes(index)
        before = reports(target)  # of damage that only the commit came upon
        self.start_at(target)
        assert reports(target) == before, "a commit that was never finished is no damage"
        self.happened["power cut"] += 1

    # -- damage ------------------------------------------------------------------------

    @rule(seed=st.integers(0, 2**32))
    def corrupt_at_rest(self, seed: int) -> None:
        self.corrupt(random.Random(seed), closed=True)

    @rule(seed=st.integers(0, 2**32))
    def corrupt_after_a_crash(self, seed: int) -> None:
        self.corrupt(random.Random(seed), closed=False)

    @rule(seed=st.integers(0, 2**32))
    def corrupt_a_row_at_rest(self, seed: int) -> None:
        self.corrupt(random.Random(seed), closed=True, row=True)

    @rule(seed=st.integers(0, 2**32))
    def corrupt_a_row_after_a_crash(self, seed: int) -> None:
        self.corrupt(random.Random(seed), closed=False, row=True)

    def corrupt(self, chance: random.Random, *, closed: bool, row: bool = False) -> None:
        """Damage one file, anywhere or where a row is; start, and look what is left."""
        truth = Truth()
        target = self.copied()
        if closed:
            self.queue.close()
            shutil.rmtree(target)
            target = self.copied()
        survey(target, truth)
        if row and truth.places:
            name, start, end = chance.choice(chance.choice(list(truth.places.values())))
            place = chance.randrange(start, end)
            hit = write(target / name, place, chance.randbytes(chance.choice([1, 4, min(60, end - place)])))
        else:
            there = [target / name for name in FILES if (target / name).is_file()]
            hit = chance.choice(KINDS)(chance.choice([file for file in there if file.stat().st_size]), chance)
        whole = untouched(truth, [hit])
        self.clock.advance(3601)  # no more than a few rescues an hour
        self.start_at(target)
        lost = self.what_is_found(whole)
        self.happened["corrupt"] += 1
        self.happened["mended" if reports(target) else "not mended"] += 1
        self.happened["lost"] += lost
        for place in target.glob("quarantine-*"):
            shutil.rmtree(place)
        self.start_at(self.copied())  # which begins with no memory of the rescue
        assert not reports(self.directory), "what was rescued is damaged"

    def what_is_found(self, whole: set[int | str]) -> bool:
        """Look through everything, as the flusher does; hold it against the model, and take it for true."""
        queue = self.queue
        for _ in range(4):
            for key in range(queue.first_key(), queue.books().next_key):
                try:
                    queue.get(key)
                except DamagedChunkError:
                    queue.commit(Change(settlements=[Settlement(key, None, damaged=True)]))
            if not queue.audit():
                break
        found = {key: names(chunk.lines) for key, chunk in chunks(queue)}
        dead = {letter.id: letter.external_id for letter in queue.dead_letters()}
        read = {some.id: some.offset for some in queue.checkpoints()}
        books = queue.books()
        ever = {f"e{number}" for number in range(self.made)}
        assert {name for group in found.values() for name in group} <= ever
        assert set(dead.values()) <= ever
        for key, group in self.chunks.items():
            assert key not in whole or set(group) <= set(found.get(key, ())), f"chunk {key} was not hit"
        for number in self.dead:
            assert f"dead-{number:016d}" not in whole or number in dead, f"letter {number} was not hit"
        if not reports(self.directory) and not books.lost:
            assert (found, dead, read) == (self.chunks, self.dead, self.read), "nobody noticed"
        lost = books.lost > 0
        self.chunks, self.dead, self.read = found, dead, read
        self.counts = {name: getattr(books, name) for name in self.counts}
        self.keys, self.numbers = set(found), set(dead)
        return lost

    # -- what always holds -------------------------------------------------------------

    @invariant()
    def the_size_is_that_of_the_rows(self) -> None:
        if hasattr(self, "queue"):
            rows = sum(len(chunk.encode(key)) for key, chunk in chunks(self.queue))
            assert self.queue.books().bytes == rows


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out syncing and the ballast, which other tests hold: a crash of this kind needs neither."""
    monkeypatch.setitem(store.SETTINGS, "sqlite_synchronous", 0)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(Ballast, "keep", lambda _: True)


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("part", range(PARTS))
def test_any_sequence_leaves_what_the_model_has(part: int) -> None:
    happened: Counter[str] = Counter()
    machine = type(f"OnDisk{part}", (OnDisk,), {"happened": happened})

    for _ in range(4):  # what seldom happens may need more sequences
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=SEQUENCES,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                phases=[Phase.generate],  # seeds do not shrink to anything that tells more
                suppress_health_check=list(HealthCheck),
            ),
        )
        if all(happened[what] for what in RARE):
            break

    assert happened["sequence"] >= SEQUENCES
    assert PARTS * SEQUENCES >= 2000
    for what in RARE:
        assert happened[what] > 0, f"{what} never happened: {happened}"
