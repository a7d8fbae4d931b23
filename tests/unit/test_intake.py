"""What the flusher's intake does with a chunk that is not what was written."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from support.clock import FakeClock
from support.queues import chunk_of, names

from agent.chunk import DamagedChunkError, NewerChunkError
from agent.errors import QueueError
from agent.flusher.held import Held
from agent.flusher.intake import Intake, Lack, Options, Room
from agent.queue import Change, Settlement
from agent.queue.memory import MemoryQueue
from agent.server_clock import ServerClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.batch import Batch


def intake_of(get: Callable[[int], Any], settled: list[Settlement]) -> Intake:
    """Return an intake of a store that gives chunks by `get`."""
    parts: list[Any] = [SimpleNamespace(get=get), SimpleNamespace(settle=settled.extend), SimpleNamespace()]
    options = Options(0.0, 500, 1 << 20, 1, 500, 60.0)
    clock: Any = FakeClock()
    return Intake(*parts, clock=clock, server_clock=parts[2], options=options)


@pytest.mark.parametrize(
    ("error", "settled"),
    [
        (DamagedChunkError("the checksum does not match"), [Settlement(7, None, damaged=True)]),
        (NewerChunkError("chunk version 9"), []),
    ],
    ids=["damaged", "newer"],
)
def test_a_damaged_chunk_is_given_up_and_a_newer_one_left_alone(
    error: Exception, settled: list[Settlement]
) -> None:
    def get(_: int) -> None:
        raise error

    found: list[Settlement] = []

    assert intake_of(get, found).read_chunk(7)

    assert found == settled


ROOM = Room(500, 1 << 20)


def reading(queue: MemoryQueue) -> Intake:
    """Return an intake of a queue."""
    clock: Any = FakeClock()
    writer: Any = None
    options = Options(0.0, 500, 1 << 20, 1, 500, 60.0)
    return Intake(queue, writer, Held(), clock=clock, server_clock=ServerClock(clock), options=options)


def taken(intake: Intake) -> Batch | Lack:
    """Take a batch of all that is there."""
    return intake.take(ROOM, 0, urgent=True, fill=True)


def test_what_was_in_the_queue_before_is_not_taken_for_checked_by_this_process() -> None:
    """It may have been taken for the other kind of token, and Polar would refuse it for good."""
    queue = MemoryQueue()
    queue.commit(Change(appends=[chunk_of("old")]))
    intake, new = reading(queue), [chunk_of("new")]
    intake.offer(queue.commit(Change(appends=new)), new)

    batch = taken(intake)

    assert not isinstance(batch, Lack)
    assert [(names(part.lines()), part.lease.fresh) for part in batch.parts] == [
        (["old"], False),
        (["new"], True),
    ]


def test_a_queue_that_cannot_be_read_at_first_is_told_and_read_later(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = MemoryQueue()
    queue.commit(Change(appends=[chunk_of("a")]))
    intake = reading(queue)

    def refuse() -> int:
        raise QueueError("read the queue", "memory", "Input/output error", "see the disk")

    with monkeypatch.context() as refusing:
        refusing.setattr(queue, "first_key", refuse)
        assert taken(intake) == Lack(1, 1.0)
        assert intake.trouble == "the queue cannot be read: Input/output error; see the disk"

    batch = taken(intake)

    assert not isinstance(batch, Lack)
    assert batch.events == 1
    assert intake.trouble is None


def test_what_is_offered_is_kept_up_to_a_bound_and_again_when_it_was_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is not kept is read from the disk."""
    queue, reads = MemoryQueue(), []
    get = queue.get
    monkeypatch.setattr(queue, "get", lambda key: (reads.append(key), get(key))[1])
    intake = reading(queue)
    for _ in range(2):
        new = [chunk_of(n, filler=3 << 20) for n in "abc"]
        intake.offer(queue.commit(Change(appends=new)), new)
        while not isinstance(taken(intake), Lack):
            pass

    assert reads == [3, 6]
