"""The writer: many appends, one commit; nobody is told of safety before it is there."""

from __future__ import annotations

import dataclasses
import os
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from support.clock import NOON, FakeClock
from support.processes import wait_until
from support.queues import buried, chunk_of, counts, delivered, line, names, pending

from agent.capacity import Limits
from agent.clock import SystemClock
from agent.errors import QueueError, QueueFullError
from agent.queue import Change
from agent.queue.memory import MemoryQueue
from agent.writer import Append, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

PATIENCE = 20.0


class UnsteadyQueue(MemoryQueue):
    """Refuses what the test says; keeps what was committed."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses: Callable[[Change], bool] = lambda _: False
        self.commits: list[Change] = []
        self.tries = 0

    def commit(self, change: Change) -> Sequence[int]:
        self.tries += 1
        if self.refuses(change):
            raise QueueError("write the queue", "memory", "no space left", "make room")
        keys = super().commit(change)
        self.commits.append(change)
        return keys


class SmallDisk(UnsteadyQueue):
    """Has room for so many bytes of events, and for so many ends of events, in one commit."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.ends = 1 << 30
        self.kept = True
        self.asked: list[bool] = []

    def commit(self, change: Change) -> Sequence[int]:
        if sum(len(new.lines) for new in change.appends) > self.bytes or len(change.settlements) > self.ends:
            self.tries += 1
            raise QueueFullError("write the queue", "memory", "the disk is full", "make room")
        return super().commit(change)

    def recover(self, *, short: bool = False) -> None:
        self.asked.append(short)
        if not self.kept:
            raise QueueFullError("write the queue", "memory", "the disk is full", "make room")


def any_change(_: Change) -> bool:
    return True


def whatever_adds(change: Change) -> bool:
    return bool(change.appends)


@dataclass
class Desk:
    """A writer, and what it told to whom."""

    writer: Writer
    queue: UnsteadyQueue
    clock: FakeClock
    told: list[object] = field(default_factory=list)

    def append(
        self,
        *ids: object,
        held: Sequence[tuple[float, object]] = (),
        refused: int = 0,
        dropped: int = 0,
        repeated: int = 0,
        filler: int = 0,
    ) -> None:
        """Append lines of these ids; `told` gets the first of them as safe or lost."""
        groups = [(chunk_of(*ids, filler=filler).lines, len(ids))] if ids else []
        later = [(int(moment * 1000), line(name, filler=filler)) for moment, name in held]
        mark = ids[0] if ids else held[0][1] if held else "counts"
        self.writer.append(
            Append(
                groups,
                later,
                refused,
                dropped,
                lambda safe: self.told.append(("safe" if safe else "lost", mark)),
                repeated=repeated,
            )
        )

    def hasty(self, name: str, *, filler: int = 0) -> None:
        """Append a line that is not kept while the disk refuses."""

        def done(safe: bool) -> None:
            self.told.append(("safe" if safe else "lost", name))

        self.writer.append(Append([(line(name, filler=filler), 1)], [], 0, 0, done, keep=False))

    @property
    def safe(self) -> list[object]:
        """The marks of all appends that were told to be safe."""
        return [item[1] for item in self.told if item[0] == "safe"]

    @property
    def lost(self) -> list[object]:
        """The marks of all appends that were told to be lost."""
        return [item[1] for item in self.told if item[0] == "lost"]


@pytest.fixture
def limits(tmp_path: Path) -> Limits:
    return Limits(max_bytes=1 << 20, reserve_bytes=0, directory=tmp_path)


def desk_of(limits: Limits, clock: FakeClock | SystemClock, queue: UnsteadyQueue | None = None) -> Desk:
    queue = queue or UnsteadyQueue()
    events: list[object] = []
    writer = Writer(
        queue,
        limits,
        clock,
        on_commit=lambda events_added: events.append(("commit", events_added)),
        on_room=lambda: events.append("room"),
        on_append=lambda keys, chunks: events.append(("append", list(keys), [c.count for c in chunks])),
        on_buried=lambda letters: events.append(("buried", [letter.external_id for letter in letters])),
    )
    desk = Desk(writer, queue, clock)
    desk.told = events
    return desk


@pytest.fixture
def desk(limits: Limits) -> Desk:
    return desk_of(limits, FakeClock())


class Disk:
    """What `statvfs` says of the disk."""

    def __init__(self) -> None:
        self.free = 1 << 30
        self.looks = 0

    def statvfs(self, path: Path) -> SimpleNamespace:
        del path
        self.looks += 1
        return SimpleNamespace(f_blocks=1 << 30, f_bavail=self.free // 4096, f_frsize=4096, f_bfree=1 << 60)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(os, "statvfs", disk.statvfs)
    return disk


# -- events that came before ---------------------------------------------------------------


def test_a_repeat_is_counted_and_not_stored(desk: Desk) -> None:
    desk.append("a", repeated=2)
    desk.append(repeated=1)
    desk.writer.step()

    assert pending(desk.queue) == ["a"]
    assert counts(desk.queue.books()) == {"accepted": 4, "duplicates": 3, "pending": 1}
    assert desk.queue.books().repeated == 3


def test_repeats_alone_are_counted_too(desk: Desk) -> None:
    desk.append(repeated=2)
    desk.writer.step()

    assert counts(desk.queue.books()) == {"accepted": 2, "duplicates": 2}


def test_a_repeat_is_not_acknowledged_before_its_first_is_durable(desk: Desk) -> None:
    """Whatever the disk refuses meanwhile: what came later stays behind it."""
    desk.append("a")
    desk.queue.refuses = any_change
    desk.writer.step()
    desk.append(repeated=1)
    desk.queue.refuses = whatever_adds
    desk.writer.step()
    desk.writer.step()

    assert desk.safe == []

    desk.queue.refuses = lambda _: False
    desk.writer.step()

    assert desk.safe == ["a", "counts"]


def test_a_repeat_of_what_is_given_up_is_given_up_too(limits: Limits) -> None:
    desk = desk_of(limits, SystemClock())
    desk.queue.refuses = any_change
    desk.writer.start()
    desk.append("a")
    desk.append(repeated=1)
    desk.writer.stop()

    assert [told for told in desk.told if told[0] in ("safe", "lost")] == [("lost", "a"), ("lost", "counts")]


def test_a_hasty_repeat_of_what_is_dropped_is_turned_away(limits: Limits) -> None:
    """A call over HTTP that was told of a duplicate would be told of an event that nobody has."""
    desk = desk_of(dataclasses.replace(limits, when_full="drop_newest"), FakeClock())
    told: list[tuple[str, bool]] = []
    groups = [(chunk_of("a").lines, 1)]
    first = Append(
        groups, [], 0, 0, lambda durable: told.append(("first", durable)), overflow=lambda _reason: None
    )
    hasty = Append([], [], 0, 0, lambda durable: told.append(("repeat", durable)), repeated=1, keep=False)

    def refuses(change: Change) -> bool:
        if change.appends:
            desk.writer.append(hasty)  # it comes while the disk says no
            raise QueueFullError("write the queue", "memory", "no space left", "make room")
        return False

    desk.queue.refuses = refuses
    desk.writer.append(first)
    desk.writer.step()
    desk.writer.step()

    assert told == [("repeat", False), ("first", True)]
    assert counts(desk.queue.books()) == {"accepted": 1, "dropped": 1}


def test_dead_letters_are_told_once_they_are_committed(desk: Desk) -> None:
    desk.append("a", "b", "c")
    desk.writer.step()
    desk.queue.refuses = any_change
    desk.writer.settle([buried(1, "a", rest=chunk_of("b", "c"))])
    desk.writer.step()

    assert not [told for told in desk.told if told[0] == "buried"]

    desk.queue.refuses = lambda _: False
    desk.writer.step()
    desk.writer.settle([delivered(1, 2)])
    desk.writer.step()

    assert [told for told in desk.told if told[0] == "buried"] == [("buried", ["a"])]


# -- group commit ------------------------------------------------------------------------


def test_nothing_is_written_before_the_step(desk: Desk) -> None:
    desk.append("a")

    assert desk.queue.commits == []
    assert desk.told == []


def test_all_that_waits_goes_into_one_commit(desk: Desk) -> None:
    for name in "abc":
        desk.append(name, refused=1, dropped=2)

    desk.writer.step()

    assert len(desk.queue.commits) == 1
    assert counts(desk.queue.books()) == {"accepted": 9, "refused": 3, "dropped": 6, "pending": 3}


def test_all_that_waits_shares_chunks(desk: Desk) -> None:
    for name in "abc":
        desk.append(name)

    desk.writer.step()

    (chunk,) = desk.queue.commits[0].appends
    assert chunk.count == 3


def test_appends_and_settlements_share_a_commit(desk: Desk) -> None:
    desk.append("a", "b")
    desk.writer.step()

    desk.append("c")
    desk.writer.settle([delivered(1, 2)])
    desk.writer.step()

    assert len(desk.queue.commits) == 2
    assert pending(desk.queue) == ["c"]


def test_the_order_of_lines_is_kept(desk: Desk) -> None:
    for number in range(0, 1500, 3):
        desk.append(*range(number, number + 3))

    desk.writer.step()

    assert pending(desk.queue) == [str(number) for number in range(1500)]
    assert [chunk.count for chunk in desk.queue.commits[0].appends] == [1023, 477]


def test_the_order_of_settlements_is_kept(desk: Desk) -> None:
    desk.append("a", "b", "c")
    desk.writer.step()

    desk.writer.settle([delivered(1, 1, chunk_of("b", "c"))])
    desk.writer.settle([buried(1, "b", rest=chunk_of("c"))])
    desk.writer.settle([delivered(1, 1)])
    desk.writer.step()

    assert pending(desk.queue) == []
    assert counts(desk.queue.books()) == {"accepted": 3, "delivered": 2, "dead": 1}


def test_a_chunk_bears_the_time_of_its_arrival(desk: Desk) -> None:
    desk.append("a")

    desk.writer.step()

    assert desk.queue.commits[0].appends[0].arrived_ms == NOON * 1000


def test_a_step_with_nothing_to_do_writes_nothing(desk: Desk) -> None:
    desk.writer.step()

    assert desk.queue.tries == 0
    assert desk.told == []


def test_lines_that_were_only_refused_are_counted_and_told(desk: Desk) -> None:
    desk.append(refused=2)

    desk.writer.step()

    assert counts(desk.queue.books()) == {"refused": 2}
    assert desk.safe == ["counts"]


# -- who is told what, and when ----------------------------------------------------------


def test_appends_are_told_in_order_and_after_the_commit(desk: Desk) -> None:
    desk.append("a")
    desk.append("b")
    desk.queue.refuses = lambda _: desk.told.append("committing") or False

    desk.writer.step()

    assert desk.told == ["committing", ("append", [1], [2]), ("commit", 2), ("safe", "a"), ("safe", "b")]


def test_the_flusher_is_told_how_many_events_were_added(desk: Desk) -> None:
    desk.append("a", "b", held=[(NOON + 5, "c")], refused=3, dropped=4)
    desk.writer.step()
    desk.writer.settle([delivered(1, 2)])
    desk.writer.step()

    assert [told for told in desk.told if told[0] == "commit"] == [("commit", 3), ("commit", 0)]


# -- events that are not due yet ---------------------------------------------------------


def test_held_events_get_chunks_of_their_own_with_their_due_time(desk: Desk) -> None:
    desk.append("now", held=[(NOON + 7.5, "later")])

    desk.writer.step()

    now, later = desk.queue.commits[0].appends
    assert (names(now.lines), now.due_ms) == (["now"], 0)
    assert (names(later.lines), later.due_ms) == (["later"], (NOON + 7.5) * 1000)


def test_held_events_of_the_same_second_share_a_chunk_that_is_due_with_its_last(desk: Desk) -> None:
    desk.append(held=[(NOON + 7.9, "c"), (NOON + 7.1, "a")])
    desk.append(held=[(NOON + 7.5, "b"), (NOON + 8.0, "d")])

    desk.writer.step()

    assert [(names(chunk.lines), chunk.due_ms / 1000) for chunk in desk.queue.commits[0].appends] == [
        (["a", "b", "c"], NOON + 7.9),
        (["d"], NOON + 8.0),
    ]


def test_many_held_events_of_one_second_are_cut_into_chunks(desk: Desk) -> None:
    desk.append(held=[(NOON + 7 + number / 2000, number) for number in range(1200)])

    desk.writer.step()

    chunks = desk.queue.commits[0].appends
    assert [chunk.count for chunk in chunks] == [1024, 176]
    assert pending(desk.queue) == [str(number) for number in range(1200)]
    assert [chunk.due_ms for chunk in chunks] == sorted({chunk.due_ms for chunk in chunks})


# -- a store that refuses ----------------------------------------------------------------


def test_what_the_disk_refuses_is_not_acknowledged(desk: Desk) -> None:
    desk.queue.refuses = any_change
    desk.append("a")

    desk.writer.step()

    assert desk.safe == []
    assert ("commit", 1) not in desk.told


def test_what_the_disk_refuses_is_tried_again_until_it_is_safe(desk: Desk) -> None:
    desk.queue.refuses = any_change
    desk.append("a")
    desk.writer.step()
    desk.append("b")
    desk.writer.step()
    assert desk.safe == []

    desk.queue.refuses = lambda _: False
    desk.append("c")
    desk.writer.step()

    assert desk.safe == ["a", "b", "c"]
    assert pending(desk.queue) == ["a", "b", "c"]


def test_what_came_while_the_disk_refused_stays_behind_what_it_refused(desk: Desk) -> None:
    desk.append("a", "b")
    desk.writer.step()

    def refuse(_: Change) -> bool:
        desk.queue.refuses = any_change
        desk.append("d")
        desk.writer.settle([delivered(1, 1)])
        return True

    desk.queue.refuses = refuse
    desk.append("c")
    desk.writer.settle([delivered(1, 1, chunk_of("b"))])
    desk.writer.step()
    desk.queue.refuses = lambda _: False
    desk.writer.step()

    assert pending(desk.queue) == ["c", "d"]
    assert desk.safe == ["a", "c", "d"]


def test_what_the_disk_refuses_is_told_only_once_it_is_safe(desk: Desk) -> None:
    desk.queue.refuses = any_change
    desk.append("a")
    for _ in range(3):
        desk.writer.step()
    desk.queue.refuses = lambda _: False
    for _ in range(3):
        desk.writer.step()

    assert desk.told.count(("safe", "a")) == 1
    assert pending(desk.queue) == ["a"]


def test_settlements_go_through_where_appends_do_not(desk: Desk) -> None:
    desk.append("a", "b")
    desk.writer.step()
    desk.queue.refuses = whatever_adds

    desk.append("c")
    desk.writer.settle([delivered(1, 2)])
    desk.writer.step()

    assert pending(desk.queue) == []
    assert counts(desk.queue.books()) == {"accepted": 2, "delivered": 2}
    assert desk.safe == ["a"]


def test_settlements_that_went_through_alone_are_not_repeated(desk: Desk) -> None:
    desk.append("a", "b")
    desk.writer.step()
    desk.queue.refuses = whatever_adds
    desk.append("c")
    desk.writer.settle([delivered(1, 1, chunk_of("b"))])
    desk.writer.step()

    desk.queue.refuses = lambda _: False
    desk.writer.settle([delivered(1, 1)])
    desk.writer.step()

    assert pending(desk.queue) == ["c"]
    assert counts(desk.queue.books()) == {"accepted": 3, "delivered": 2, "pending": 1}


def test_settlements_that_the_disk_refuses_are_tried_again_in_order(desk: Desk) -> None:
    desk.append("a", "b")
    desk.writer.step()
    desk.queue.refuses = any_change
    desk.writer.settle([delivered(1, 1, chunk_of("b"))])
    desk.writer.step()
    desk.writer.settle([delivered(1, 1)])
    desk.writer.step()

    desk.queue.refuses = lambda _: False
    desk.writer.step()

    assert pending(desk.queue) == []
    assert counts(desk.queue.books()) == {"accepted": 2, "delivered": 2}


def test_a_queue_that_cannot_be_written_is_full_until_it_can(desk: Desk) -> None:
    desk.queue.refuses = any_change
    desk.append("a")
    desk.writer.step()
    assert desk.writer.full == "the queue cannot be written: no space left"

    desk.queue.refuses = lambda _: False
    desk.writer.step()

    assert desk.writer.full is None
    assert desk.told.count("room") == 2


# -- full, and room again ----------------------------------------------------------------


def test_a_queue_of_max_bytes_is_full(desk: Desk) -> None:
    desk.append("a", filler=1 << 20)

    desk.writer.step()

    assert "1 MiB of at most 1 MiB (queue_max_bytes)" in desk.writer.full
    assert desk.told.count("room") == 1


def test_what_filled_the_queue_is_acknowledged(desk: Desk) -> None:
    desk.append("a", filler=1 << 20)

    desk.writer.step()

    assert desk.safe == ["a"]


def test_a_queue_that_drains_has_room_again(desk: Desk) -> None:
    desk.append("a", filler=1 << 20)
    desk.writer.step()
    desk.writer.settle([delivered(1)])

    desk.writer.step()

    assert desk.writer.full is None
    assert desk.told.count("room") == 2


def test_those_who_wait_are_told_of_changes_only(desk: Desk) -> None:
    desk.append("a", filler=1 << 20)
    for _ in range(5):
        desk.writer.step()

    assert desk.told.count("room") == 1


@pytest.fixture
def limits_with_reserve(tmp_path: Path) -> Limits:
    return Limits(max_bytes=1 << 20, reserve_bytes=1 << 28, directory=tmp_path)


def test_a_disk_without_its_reserve_makes_the_queue_full(limits_with_reserve: Limits, disk: Disk) -> None:
    desk = desk_of(limits_with_reserve, FakeClock())
    disk.free = (1 << 28) - 4096
    desk.append("a")

    desk.writer.step()

    assert "the disk has 256 MiB free" in desk.writer.full
    assert desk.safe == ["a"]


def test_a_disk_that_has_its_reserve_again_makes_room(limits_with_reserve: Limits, disk: Disk) -> None:
    desk = desk_of(limits_with_reserve, FakeClock())
    disk.free = 0
    desk.append("a")
    desk.writer.step()

    disk.free = 1 << 28
    desk.writer.step()

    assert desk.writer.full is None
    assert desk.told.count("room") == 2


def test_the_disk_is_looked_at_now_and_then_while_there_is_room(
    limits_with_reserve: Limits, disk: Disk
) -> None:
    desk = desk_of(limits_with_reserve, FakeClock())
    for number in range(1000):
        desk.append(number)
        desk.writer.step()
        desk.clock.advance(0.001)

    assert disk.looks == 2


def test_a_disk_that_fills_up_is_noticed_within_a_second(limits_with_reserve: Limits, disk: Disk) -> None:
    desk = desk_of(limits_with_reserve, FakeClock())
    desk.append("a")
    desk.writer.step()
    disk.free = 0

    desk.clock.advance(1.0)
    desk.append("b")
    desk.writer.step()

    assert desk.writer.full is not None


# -- how much may wait -------------------------------------------------------------------

MIB = 1 << 20


def test_there_is_room_while_little_waits(desk: Desk) -> None:
    desk.append("a", filler=7 * MIB)

    assert desk.writer.wait_for_room(0.0)


@pytest.mark.parametrize("held", [False, True])
def test_who_brings_more_than_may_wait_has_to_wait(desk: Desk, held: bool) -> None:
    for _ in range(3):
        if held:
            desk.append(held=[(NOON + 1, "a")], filler=3 * MIB)
        else:
            desk.append("a", filler=3 * MIB)

    assert not desk.writer.wait_for_room(1.0)


def test_a_commit_makes_room(desk: Desk) -> None:
    for _ in range(3):
        desk.append("a", held=[(NOON + 1, "a")], filler=3 * MIB)

    for _ in range(3):
        desk.writer.step()

    assert desk.writer.wait_for_room(0.0)


def test_a_commit_that_fails_makes_no_room(desk: Desk) -> None:
    desk.append("a", filler=9 * MIB)
    desk.queue.refuses = any_change

    desk.writer.step()

    assert not desk.writer.wait_for_room(1.0)


def test_room_comes_back_once_the_disk_takes_what_waited(desk: Desk) -> None:
    desk.append("a", filler=9 * MIB)
    desk.queue.refuses = any_change
    desk.writer.step()
    desk.queue.refuses = lambda _: False

    desk.writer.step()

    assert desk.writer.wait_for_room(0.0)


# -- a disk that is full -----------------------------------------------------------------


@pytest.fixture
def full(limits: Limits) -> Desk:
    """A writer on a disk that can be full, with three chunks in its queue."""
    desk = desk_of(limits, FakeClock(), SmallDisk())
    for name in "abc":
        desk.append(name)
        desk.writer.step()
    return desk


@pytest.mark.parametrize("appends", [True, False], ids=["beside events", "alone"])
def test_ends_of_events_that_find_no_room_together_go_one_by_one(full: Desk, *, appends: bool) -> None:
    full.queue.bytes, full.queue.ends, full.queue.kept = 0, 1, False
    if appends:
        full.append("d")
    full.writer.settle([delivered(1), delivered(2), delivered(3)])

    full.writer.step()

    assert counts(full.queue.books()) == {"accepted": 3, "delivered": 3}
    assert not full.writer.settling


def test_what_becomes_of_a_chunk_stays_in_order_where_only_some_of_it_finds_room(full: Desk) -> None:
    """Else the chunk would be gone before its first events are settled, and these for ever."""
    full.append("d", "e")
    full.writer.step()

    def writes_a_row(change: Change) -> bool:
        if any(settlement.rest is not None for settlement in change.settlements):
            raise QueueFullError("write the queue", "memory", "the disk is full", "make room")
        return False

    full.queue.refuses = writes_a_row
    full.writer.settle([delivered(4, 1, chunk_of("e")), delivered(4), delivered(1)])
    full.writer.step()
    assert pending(full.queue) == ["b", "c", "d", "e"]
    assert full.writer.settling

    full.queue.refuses = lambda _: False
    full.writer.step()
    assert not full.writer.settling

    assert counts(full.queue.books()) == {"accepted": 5, "delivered": 3, "pending": 2}


def test_what_found_no_room_is_not_tried_again_before_there_is_some(full: Desk) -> None:
    """Settling goes on meanwhile, and each try would write to the full disk in vain."""
    full.queue.bytes, full.queue.kept = 0, False
    full.append("d")
    full.writer.step()
    tries = full.queue.tries
    for _ in range(3):
        full.writer.step()
    assert full.queue.tries == tries

    full.queue.bytes, full.queue.kept = 1 << 30, True
    full.writer.step()
    full.writer.step()

    assert pending(full.queue) == ["a", "b", "c", "d"]


def test_what_finds_no_room_together_goes_in_portions(full: Desk) -> None:
    full.queue.bytes = 5000
    for name in "defgh":
        full.append(name, filler=2000)

    for _ in range(20):
        full.writer.step()

    assert full.safe == list("abcdefgh")
    assert pending(full.queue) == list("abcdefgh")


def test_once_there_is_room_commits_are_large_again(full: Desk) -> None:
    full.queue.bytes = 5000
    for name in "defgh":
        full.append(name, filler=2000)
    for _ in range(20):
        full.writer.step()
    full.queue.bytes = 1 << 30
    for number in range(20):
        full.append(f"large-{number}", filler=50_000)
        full.writer.step()
    before = len(full.queue.commits)

    for number in range(10):
        full.append(f"more-{number}", filler=2000)
    full.writer.step()

    assert len(full.queue.commits) == before + 1
    assert full.safe[-1] == "more-9"


@pytest.mark.parametrize("disk", ["full", "refuses"])
def test_who_cannot_be_kept_waiting_is_told_at_once_and_nothing_of_it_is_written_later(
    full: Desk, disk: str
) -> None:
    """Over HTTP it was told of a failure, and may be sent again."""
    full.queue.bytes, full.queue.kept = 0, False
    if disk == "refuses":
        full.queue.refuses, full.queue.bytes = any_change, 1 << 30
    full.hasty("d", filler=100)
    full.writer.step()
    assert full.lost == ["d"]
    full.hasty("e", filler=100)
    full.writer.step()
    assert full.lost == ["d", "e"]

    full.queue.refuses, full.queue.bytes, full.queue.kept = lambda _: False, 1 << 30, True
    for _ in range(3):
        full.writer.step()

    assert pending(full.queue) == ["a", "b", "c"]
    assert full.lost == ["d", "e"]


def test_while_the_queue_is_full_what_is_taken_out_is_to_be_given_back_to_the_disk(full: Desk) -> None:
    assert not any(full.queue.asked)

    full.append("d", filler=2 << 20)
    full.writer.step()
    full.writer.step()

    assert full.queue.asked[-1]


def test_a_commit_on_a_small_disk_is_small(limits: Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept for settling must take all that is in the log."""
    monkeypatch.setattr(
        os, "statvfs", lambda _: SimpleNamespace(f_blocks=2048, f_bavail=2000, f_frsize=4096, f_bfree=2000)
    )
    desk = desk_of(dataclasses.replace(limits, max_bytes=1 << 30), FakeClock())
    for name in "abcdef":
        desk.append(name, filler=400_000)

    desk.writer.step()

    assert 0 < len(desk.safe) < 6


def test_while_too_much_waits_one_commit_of_it_makes_no_room(desk: Desk) -> None:
    for name in "abc":
        desk.append(name, filler=9 << 20)

    desk.writer.step()

    assert desk.safe == ["a"]
    assert not desk.writer.wait_for_room(0.0)


def test_what_was_turned_away_takes_no_room(full: Desk) -> None:
    full.queue.refuses = any_change
    full.hasty("d", filler=9 << 20)
    full.writer.step()
    full.queue.refuses = lambda _: False

    full.writer.step()

    assert full.writer.wait_for_room(0.0)


def test_what_was_dropped_takes_no_room(limits: Limits) -> None:
    desk = desk_of(dataclasses.replace(limits, when_full="drop_newest"), FakeClock(), SmallDisk())
    desk.queue.bytes = 0
    reasons: list[str] = []
    for number in range(3):
        groups = [(line(number, filler=4 << 20), 1)]
        desk.writer.append(Append(groups, [], 0, 0, lambda _: None, overflow=reasons.append))

    for _ in range(3):
        desk.writer.step()

    assert reasons == ["the disk is full"] * 3
    assert counts(desk.queue.books()) == {"accepted": 3, "dropped": 3}
    assert desk.writer.wait_for_room(0.0)


def test_nothing_is_dropped_between_a_look_at_what_came_before_and_its_append(limits: Limits) -> None:
    """Else a repeat would be acknowledged behind an event that was dropped meanwhile."""
    desk = desk_of(dataclasses.replace(limits, when_full="drop_newest"), FakeClock(), SmallDisk())
    desk.queue.bytes = 0
    reasons: list[str] = []
    desk.writer.append(Append([(line("a"), 1)], [], 0, 0, lambda _: None, overflow=reasons.append))
    thread = threading.Thread(target=desk.writer.step)

    with desk.writer.order:
        thread.start()
        thread.join(0.3)
        assert not reasons

    thread.join()
    assert reasons == ["the disk is full"]


def test_what_is_dropped_is_counted_again_once_the_disk_can_keep_count(limits: Limits) -> None:
    desk = desk_of(dataclasses.replace(limits, when_full="drop_newest"), FakeClock())
    desk.queue.refuses = any_change
    desk.append("a")
    desk.writer.step()
    assert not desk.writer.drops

    desk.queue.refuses = lambda _: False
    desk.writer.step()

    assert desk.writer.drops


# -- its thread --------------------------------------------------------------------------


class Told:
    """Waits for what an append is told."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.safe: bool | None = None

    def __call__(self, safe: bool) -> None:
        self.safe = safe
        self._event.set()

    def wait(self) -> bool | None:
        assert self._event.wait(PATIENCE), "nothing was told"
        return self.safe


def append_of(name: str, told: Callable[[bool], None], *, patient: bool = False) -> Append:
    return Append([(line(name), 1)], [], 0, 0, told, patient)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the thread try again soon."""
    monkeypatch.setattr("agent.writer._RETRY_SECONDS", 0.01)
    monkeypatch.setattr("agent.writer.LOOK_SECONDS", 0.01)
    monkeypatch.setattr("agent.capacity.LOOK_SECONDS", 0.01)


@pytest.fixture
def running(limits: Limits, quick: None) -> Iterator[Desk]:
    """A writer whose thread runs."""
    del quick
    desk = desk_of(limits, SystemClock())
    desk.writer.start()
    yield desk
    end(desk.writer, desk.queue)


def end(writer: Writer, queue: UnsteadyQueue) -> None:
    """Stop a thread that a failed test may have left running."""
    queue.refuses = lambda _: False
    if writer.alive:
        writer.stop()


def test_its_thread_commits_and_tells(running: Desk) -> None:
    for name in "abc":
        told = Told()
        running.writer.append(append_of(name, told))
        assert told.wait() is True

    running.writer.stop()
    assert pending(running.queue) == ["a", "b", "c"]
    assert not running.writer.alive


def test_its_thread_commits_what_is_patient_too(running: Desk) -> None:
    told = Told()
    running.writer.append(append_of("a", told, patient=True))

    assert told.wait() is True
    running.writer.stop()


def test_its_thread_commits_what_is_too_much_for_one_commit_without_being_called_again(
    limits: Limits,
) -> None:
    desk, told = desk_of(dataclasses.replace(limits, max_bytes=1 << 30), SystemClock()), Told()
    desk.append("a", filler=3 << 20)
    desk.writer.append(append_of("b", told))

    desk.writer.start()

    try:
        assert told.wait() is True
    finally:
        desk.writer.stop()
    assert len(desk.queue.commits) == 2


def test_a_queue_that_is_full_from_the_beginning_is_so_before_anything_comes(limits: Limits) -> None:
    desk = desk_of(limits, SystemClock())
    desk.queue.commit(Change(appends=[chunk_of("a", filler=2 << 20)]))

    desk.writer.start()

    try:
        assert "queue_max_bytes" in wait_until(lambda: desk.writer.full)
    finally:
        desk.writer.stop()


def test_its_thread_settles(running: Desk) -> None:
    told = Told()
    running.writer.append(append_of("a", told))
    told.wait()

    running.writer.settle([delivered(1)])
    running.writer.stop()

    assert counts(running.queue.books()) == {"accepted": 1, "delivered": 1}


def test_stopping_commits_what_waits(limits: Limits) -> None:
    desk = desk_of(limits, SystemClock())
    told = Told()
    desk.writer.append(append_of("a", told, patient=True))
    desk.writer.start()

    desk.writer.stop()

    assert told.safe is True
    assert pending(desk.queue) == ["a"]


def test_stopping_commits_what_comes_while_it_commits(limits: Limits) -> None:
    desk = desk_of(limits, SystemClock())
    last = Told()

    def once_it_stops(_: bool) -> None:
        wait_until(lambda: desk.writer._stopping)
        desk.writer.append(append_of("b", lambda _: desk.writer.append(append_of("c", last))))

    desk.writer.append(append_of("a", once_it_stops))
    desk.writer.start()

    desk.writer.stop()

    assert last.safe is True
    assert pending(desk.queue) == ["a", "b", "c"]


def test_stopping_gives_up_what_the_disk_refuses_without_acknowledging_it(limits: Limits) -> None:
    desk = desk_of(limits, SystemClock())
    desk.queue.refuses = any_change
    told = Told()
    desk.writer.append(append_of("a", told))
    desk.writer.start()

    desk.writer.stop()

    assert told.safe is False
    assert pending(desk.queue) == []


def test_the_thread_tries_again_by_itself(running: Desk) -> None:
    tried = threading.Event()
    running.queue.refuses = lambda _: tried.set() or True
    told = Told()
    running.writer.append(append_of("a", told))
    assert tried.wait(PATIENCE)

    running.queue.refuses = lambda _: False

    assert told.wait() is True
    running.writer.stop()


def test_the_thread_goes_on_by_itself_once_the_disk_has_room(limits: Limits, quick: None) -> None:
    del quick
    desk = desk_of(limits, SystemClock(), SmallDisk())
    desk.queue.bytes, desk.queue.kept = 0, False
    told = Told()
    desk.writer.start()
    desk.writer.append(append_of("a", told))
    wait_until(lambda: desk.queue.asked)

    desk.queue.bytes, desk.queue.kept = 1 << 30, True

    try:
        assert told.wait() is True
    finally:
        end(desk.writer, desk.queue)


def test_stopping_does_not_wait_for_room_on_a_full_disk(limits: Limits) -> None:
    desk = desk_of(limits, SystemClock(), SmallDisk())
    desk.queue.bytes, desk.queue.kept = 0, False
    told = Told()
    desk.writer.append(append_of("a", told))
    desk.writer.start()

    stopping = threading.Thread(target=desk.writer.stop)
    stopping.start()
    stopping.join(PATIENCE)

    stopped = not stopping.is_alive()
    desk.queue.bytes, desk.queue.kept = 1 << 30, True
    stopping.join()
    assert stopped
    assert told.safe is False


@pytest.mark.usefixtures("quick")
def test_the_thread_sees_by_itself_that_there_is_room_again(limits_with_reserve: Limits, disk: Disk) -> None:
    changed = threading.Event()
    queue = UnsteadyQueue()
    writer = Writer(queue, limits_with_reserve, SystemClock(), on_commit=lambda _: None, on_room=changed.set)
    disk.free = 0
    writer.start()
    writer.append(append_of("a", Told()))
    assert changed.wait(PATIENCE)
    changed.clear()

    disk.free = 1 << 30

    room = changed.wait(PATIENCE)
    end(writer, queue)
    assert room
    assert writer.full is None


# -- changes that somebody waits for -----------------------------------------------------


def test_who_applies_a_change_returns_once_it_is_committed(running: Desk) -> None:
    told = Told()
    running.writer.append(append_of("a", told))
    told.wait()
    running.writer.settle([buried(1, "a")])

    running.writer.apply(Change(refused=1))
    running.writer.apply(Change(revived=[1], requeued=[chunk_of("a")]))

    assert pending(running.queue) == ["a"]
    running.writer.stop()


def test_who_applies_a_change_is_told_that_it_failed(running: Desk) -> None:
    with pytest.raises(QueueError, match="no dead letter 777"):
        running.writer.apply(Change(purged=[777]))

    running.writer.stop()


def test_a_change_that_failed_holds_nobody_up(running: Desk) -> None:
    with pytest.raises(QueueError):
        running.writer.apply(Change(purged=[777]))

    told = Told()
    running.writer.append(append_of("a", told))

    assert told.wait() is True
    assert running.writer.full is None
    running.writer.stop()


def test_the_flusher_is_told_of_events_that_came_back(running: Desk) -> None:
    told = Told()
    running.writer.append(append_of("a", told))
    told.wait()
    running.writer.settle([buried(1, "a")])
    running.writer.apply(Change(refused=1))

    running.writer.apply(Change(revived=[1], requeued=[chunk_of("a")]))
    running.writer.stop()

    assert running.told[-1] == ("commit", 1)


@pytest.mark.timeout(20)  # nobody would answer
def test_no_change_can_be_applied_once_the_writer_stops(running: Desk) -> None:
    running.writer.stop()

    with pytest.raises(QueueError, match="it is stopping"):
        running.writer.apply(Change(refused=1))
