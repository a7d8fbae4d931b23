"""What `agent.queue.Queue` promises, held against every store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from support.any_sequence import AnySequence
from support.queues import buried, checkpoint_of, chunk_of, chunks, counts, delivered, letter, names, pending

from agent.errors import QueueError
from agent.queue import Books, Change, Checkpoint, DeadLetter, Settlement
from agent.queue.disk import DiskQueue
from agent.queue.memory import MemoryQueue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.queue import Queue


@pytest.fixture(params=["disk", "memory"])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Queue]:
    queue = DiskQueue(tmp_path / "queue") if request.param == "disk" else MemoryQueue()
    yield queue
    queue.close()


def append(queue: Queue, *names: object) -> int:
    """Append one chunk; return its key."""
    return queue.commit(Change(appends=[chunk_of(*names)]))[0]


def everything(queue: Queue) -> tuple[Books, list[object], list[DeadLetter], list[Checkpoint]]:
    return queue.books(), list(chunks(queue)), list(queue.dead_letters()), queue.checkpoints()


# -- appending ---------------------------------------------------------------------------


def test_a_new_queue_is_empty(queue: Queue) -> None:
    assert everything(queue) == (Books(), [], [], [])


def test_an_appended_chunk_is_read_as_it_was_written(queue: Queue) -> None:
    chunk = chunk_of("a", "b", arrived=12.345, due=67.891, filler=3000)

    (key,) = queue.commit(Change(appends=[chunk]))

    assert queue.get(key) == chunk


def test_appended_events_are_accepted_and_pending(queue: Queue) -> None:
    append(queue, "a", "b")

    assert counts(queue.books()) == {"accepted": 2, "pending": 2}


def test_a_commit_returns_the_keys_of_its_chunks_in_order(queue: Queue) -> None:
    keys = queue.commit(Change(appends=[chunk_of("a"), chunk_of("b"), chunk_of("c")]))

    assert [names(queue.get(key).lines) for key in keys] == [["a"], ["b"], ["c"]]
    assert list(keys) == sorted(keys)


def test_the_first_key_is_that_of_the_oldest_chunk(queue: Queue) -> None:
    first, second = append(queue, "a"), append(queue, "b")
    assert queue.first_key() == first

    queue.commit(Change(settlements=[delivered(first)]))

    assert queue.first_key() == second


def test_the_first_key_of_an_empty_queue_is_that_of_the_next_chunk(queue: Queue) -> None:
    assert queue.first_key() == append(queue, "a")


def test_keys_grow_on_after_the_queue_was_drained(queue: Queue) -> None:
    first = append(queue, "a")
    queue.commit(Change(settlements=[delivered(first)]))

    assert queue.first_key() > first
    assert append(queue, "b") > first


def test_a_key_that_was_never_given_has_no_chunk(queue: Queue) -> None:
    assert queue.get(append(queue, "a") + 1) is None


def test_refused_lines_are_counted_outside_of_the_balance(queue: Queue) -> None:
    queue.commit(Change(refused=3))

    assert counts(queue.books()) == {"refused": 3}


def test_events_dropped_at_the_door_are_accepted_and_dropped(queue: Queue) -> None:
    queue.commit(Change(dropped=3))

    assert counts(queue.books()) == {"accepted": 3, "dropped": 3}


def test_the_books_know_the_size_of_what_is_stored(queue: Queue) -> None:
    keys = queue.commit(Change(appends=[chunk_of("a"), chunk_of(*range(20))]))
    full = queue.books().bytes
    assert full > 0

    queue.commit(Change(settlements=[delivered(keys[1], 10, chunk_of(*range(10)))]))
    assert 0 < queue.books().bytes < full

    queue.commit(
        Change(settlements=[delivered(key, count) for key, count in zip(keys, (1, 10), strict=True)])
    )
    assert queue.books().bytes == 0


# -- settling ----------------------------------------------------------------------------


def test_a_settled_chunk_is_gone(queue: Queue) -> None:
    key = append(queue, "a", "b")

    queue.commit(Change(settlements=[Settlement(key, None, delivered=1, duplicates=1)]))

    assert queue.get(key) is None
    assert counts(queue.books()) == {"accepted": 2, "delivered": 1, "duplicates": 1}


def test_a_chunk_that_is_settled_in_part_keeps_its_key_and_the_rest(queue: Queue) -> None:
    key = append(queue, "a", "b", "c")
    rest = chunk_of("b")

    queue.commit(Change(settlements=[delivered(key, 2, rest)]))

    assert queue.get(key) == rest
    assert queue.first_key() == key
    assert counts(queue.books()) == {"accepted": 3, "delivered": 2, "pending": 1}


def test_a_chunk_can_shrink_and_end_in_one_commit(queue: Queue) -> None:
    key = append(queue, "a", "b")

    queue.commit(Change(settlements=[delivered(key, 1, chunk_of("b")), delivered(key, 1)]))

    assert queue.get(key) is None
    assert counts(queue.books()) == {"accepted": 2, "delivered": 2}


def test_appends_and_settlements_go_into_one_commit(queue: Queue) -> None:
    first = append(queue, "a")

    queue.commit(Change(appends=[chunk_of("b")], refused=1, settlements=[delivered(first)]))

    assert pending(queue) == ["b"]
    assert counts(queue.books()) == {"accepted": 2, "refused": 1, "delivered": 1, "pending": 1}


# -- dead letters ------------------------------------------------------------------------


def test_a_dead_letter_gets_a_number_and_keeps_all_that_is_known_of_it(queue: Queue) -> None:
    key = append(queue, "bad")
    dead = letter("bad", reason='with "quotes" and ü', attempts=3)

    queue.commit(Change(settlements=[Settlement(key, None, dead=[dead])]))

    (kept,) = queue.dead_letters()
    assert kept.id > 0
    assert kept == msgspec.structs.replace(dead, id=kept.id)
    assert counts(queue.books()) == {"accepted": 1, "dead": 1}


def test_dead_letters_come_oldest_first(queue: Queue) -> None:
    key = append(queue, *range(12))

    queue.commit(Change(settlements=[buried(key, *range(12))]))

    numbers = [dead.id for dead in queue.dead_letters()]
    assert numbers == sorted(set(numbers))
    assert [dead.external_id for dead in queue.dead_letters()] == [str(number) for number in range(12)]


def test_dead_letters_can_be_asked_for_by_number(queue: Queue) -> None:
    key = append(queue, "a", "b", "c")
    queue.commit(Change(settlements=[buried(key, "a", "b", "c")]))
    first, _, third = (dead.id for dead in queue.dead_letters())

    some = queue.dead_letters([third, first, 999, first])

    assert [dead.external_id for dead in some] == ["a", "c"]


def test_a_dead_letter_can_go_while_they_are_read(queue: Queue) -> None:
    key = append(queue, "a", "b")
    queue.commit(Change(settlements=[buried(key, "a", "b")]))

    for dead in queue.dead_letters():
        queue.commit(Change(purged=[dead.id]))

    assert list(queue.dead_letters()) == []


def test_a_revived_dead_letter_is_pending_again_in_a_new_chunk(queue: Queue) -> None:
    key = append(queue, "a", "b")
    queue.commit(Change(settlements=[buried(key, "a", "b")]))
    first = next(queue.dead_letters())

    (new,) = queue.commit(Change(revived=[first.id], requeued=[chunk_of("a")]))

    assert new > key
    assert pending(queue) == ["a"]
    assert [dead.external_id for dead in queue.dead_letters()] == ["b"]
    assert counts(queue.books()) == {"accepted": 2, "dead": 1, "pending": 1}


def test_a_purged_dead_letter_counts_as_dropped(queue: Queue) -> None:
    key = append(queue, "a", "b")
    queue.commit(Change(settlements=[buried(key, "a", "b")]))

    queue.commit(Change(purged=[next(queue.dead_letters()).id]))

    assert [dead.external_id for dead in queue.dead_letters()] == ["b"]
    assert counts(queue.books()) == {"accepted": 2, "dead": 1, "dropped": 1}


def test_the_number_of_a_dead_letter_is_never_given_again(queue: Queue) -> None:
    queue.commit(Change(settlements=[buried(append(queue, "a"), "a")]))
    (old,) = queue.dead_letters()
    queue.commit(Change(purged=[old.id]))

    queue.commit(Change(settlements=[buried(append(queue, "b"), "b")]))

    (new,) = queue.dead_letters()
    assert new.id > old.id


def test_a_line_that_dies_on_arrival_is_accepted_and_dead(queue: Queue) -> None:
    dead = letter("bad", status=0, batch="", path="/var/log/app.log", line=7, offset=123)

    queue.commit(Change(appends=[chunk_of("a")], letters=[dead]))

    (kept,) = queue.dead_letters()
    assert kept == msgspec.structs.replace(dead, id=kept.id)
    assert counts(queue.books()) == {"accepted": 2, "dead": 1, "pending": 1}


def test_letters_of_a_settlement_and_of_a_source_get_different_numbers(queue: Queue) -> None:
    key = append(queue, "a")

    queue.commit(Change(settlements=[buried(key, "a")], letters=[letter("b"), letter("c")]))

    assert [dead.external_id for dead in queue.dead_letters()] == ["a", "b", "c"]
    assert len({dead.id for dead in queue.dead_letters()}) == 3


# -- checkpoints -------------------------------------------------------------------------


def test_a_checkpoint_is_read_as_it_was_written(queue: Queue) -> None:
    values = {"offset": 2**45, "line": None, "last_line_at": 1.5, "path": "/ü\\xff", "skipping": True}
    checkpoint = checkpoint_of("f-0", **values)

    queue.commit(Change(checkpoints=[checkpoint]))

    assert queue.checkpoints() == [checkpoint]
    assert queue.books() == Books()


def test_a_checkpoint_replaces_the_one_of_its_id(queue: Queue) -> None:
    queue.commit(Change(checkpoints=[checkpoint_of("f-0", offset=1), checkpoint_of("g-0", offset=2)]))

    queue.commit(Change(appends=[chunk_of("a")], checkpoints=[checkpoint_of("f-0", offset=3)]))

    assert [(some.id, some.offset) for some in queue.checkpoints()] == [("f-0", 3), ("g-0", 2)]


def test_a_forgotten_checkpoint_is_gone(queue: Queue) -> None:
    queue.commit(Change(checkpoints=[checkpoint_of("f-0"), checkpoint_of("g-0")]))

    queue.commit(Change(forgotten=["f-0", "nobody"]))

    assert [some.id for some in queue.checkpoints()] == ["g-0"]


def test_checkpoints_are_no_dead_letters_nor_the_other_way_round(queue: Queue) -> None:
    queue.commit(Change(letters=[letter("b")], checkpoints=[checkpoint_of("f-0")]))

    assert [dead.external_id for dead in queue.dead_letters()] == ["b"]
    assert [some.id for some in queue.checkpoints()] == ["f-0"]


# -- all or nothing ----------------------------------------------------------------------

IMPOSSIBLE = {
    "an unknown chunk is settled": Change(settlements=[delivered(1), delivered(777)]),
    "an unknown chunk shrinks": Change(settlements=[delivered(1), delivered(777, 1, chunk_of("x"))]),
    "a chunk is settled twice": Change(settlements=[delivered(1), delivered(1)]),
    "a chunk shrinks after its end": Change(settlements=[delivered(1), delivered(1, 0, chunk_of("x"))]),
    "an unknown dead letter is revived": Change(revived=[1, 777], requeued=[chunk_of("x"), chunk_of("y")]),
    "an unknown dead letter is purged": Change(purged=[1, 777]),
    "a dead letter is purged twice": Change(purged=[1, 1]),
    "a dead letter is revived and purged": Change(revived=[1], requeued=[chunk_of("x")], purged=[1]),
}


@pytest.fixture
def full(queue: Queue) -> Queue:
    """One chunk of key 1, one of key 2 with an event less than it had, one dead letter of number 1."""
    queue.commit(Change(appends=[chunk_of("a"), chunk_of("b", "bad")]))
    queue.commit(Change(settlements=[buried(2, "bad", rest=chunk_of("b"))]))
    queue.commit(Change(checkpoints=[checkpoint_of("f-0", offset=1)]))
    assert [key for key, _ in chunks(queue)] == [1, 2]
    assert [dead.id for dead in queue.dead_letters()] == [1]
    return queue


@pytest.mark.parametrize("impossible", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_an_impossible_change_is_refused_and_changes_nothing(full: Queue, impossible: Change) -> None:
    before = everything(full)
    impossible.appends = [chunk_of("new")]
    impossible.refused = impossible.dropped = 1
    impossible.letters = [letter("new")]
    impossible.checkpoints = [checkpoint_of("f-0", offset=2), checkpoint_of("g-0")]

    with pytest.raises(QueueError):
        full.commit(impossible)

    assert everything(full) == before


@pytest.mark.parametrize("impossible", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_the_next_commit_after_a_refused_one_works(full: Queue, impossible: Change) -> None:
    with pytest.raises(QueueError):
        full.commit(impossible)

    full.commit(Change(appends=[chunk_of("c")], settlements=[delivered(1)]))

    assert pending(full) == ["b", "c"]


# -- any sequence (on disk: tests/model) ---------------------------------------------------


TestAnySequenceInMemory = AnySequence.TestCase
TestAnySequenceInMemory.settings = settings(
    max_examples=200, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
