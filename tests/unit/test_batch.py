"""Which events go together, and that every one of them is settled exactly once."""

import json
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.queues import chunk_of

from agent.batch import OVERHEAD, Backlog, Batch, Lease
from agent.chunk import Chunk
from agent.queue import DeadLetter


def lease(key, lines, arrived_ms=0, due_ms=0):
    return Lease(key, Chunk(b"\n".join(lines), len(lines), arrived_ms, due_ms))


@st.composite
def leases(draw, most=6):
    """Chunks of different lines of different lengths, some of them with more than ASCII in them."""
    result, number = [], 0
    for key in range(1, draw(st.integers(1, most)) + 1):
        lines = []
        for size in draw(st.lists(st.integers(0, 60), min_size=1, max_size=9)):
            lines.append(b'{"n":%d,"x":"%b"}' % (number, "é".encode() * (size // 2)))
            number += 1
        result.append(lease(key, lines, arrived_ms=key, due_ms=key * 2))
    return result


def lines_of(leases):
    return [line for one in leases for line in one.chunk.lines.split(b"\n")]


def lines_in(batch):
    return [line for part in batch.parts for line in part.lines()]


def whole(leases):
    return Batch("b1", [one.part() for one in leases])


def dead(line):
    return DeadLetter(
        event=line.decode(),
        external_id="e",
        name="n",
        status=422,
        reason="no",
        errors=[],
        attempts=1,
        first_attempt=1.0,
        died_at=2.0,
        batch="b1",
    )


# -- filling a batch -------------------------------------------------------------------


@st.composite
def fillings(draw):
    bounds = st.tuples(st.integers(1, 12), st.integers(OVERHEAD + 1, 400))
    return draw(leases(8)), draw(st.lists(bounds, min_size=1, max_size=6)), draw(st.booleans())


def take_all(leases, bounds, fill):
    """Empty a backlog by these bounds, in turn; return each batch with its bounds."""
    backlog = Backlog()
    for one in leases:
        backlog.add(one.part())
    batches = []
    while backlog.parts:
        events, size = bounds[len(batches) % len(bounds)]
        parts = backlog.take(events, size, fill=fill)
        assert parts, "what waits must go on"
        batches.append((Batch("b", parts), events, size))
    assert (backlog.events, backlog.size) == (0, 0)
    return batches


@given(fillings())
def test_batches_from_a_backlog_carry_every_event_once_and_in_order(filling):
    batches = take_all(*filling)

    assert [line for batch, _, _ in batches for line in lines_in(batch)] == lines_of(filling[0])


@given(fillings())
def test_a_batch_is_within_its_bounds_but_for_a_single_event_that_is_too_large(filling):
    for batch, events, size in take_all(*filling):
        assert 1 <= batch.events <= events
        assert batch.size <= size or batch.events == 1


@given(leases(8), st.integers(1, 12), st.integers(OVERHEAD + 1, 400))
def test_filling_up_leaves_no_room_for_the_next_event(chunks, events, size):
    batches = [batch for batch, _, _ in take_all(chunks, [(events, size)], fill=True)]

    for batch, next_batch in pairwise(batches):
        next_line = lines_in(next_batch)[0]
        assert batch.events == events or batch.size + 1 + len(next_line) > size


def test_without_filling_up_chunks_stay_whole_where_they_fit():
    """Settling a whole chunk deletes a row; settling a part of one writes a row."""
    chunks = [lease(key, [b"{}"] * 3) for key in (1, 2, 3)]

    batches = [batch for batch, _, _ in take_all(chunks, [(4, 10_000)], fill=False)]

    assert [[part.whole for part in batch.parts] for batch in batches] == [[True], [True], [True]]


@given(leases(8), st.integers(1, 12), st.integers(1, 400))
def test_a_backlog_is_full_exactly_when_it_fills_a_batch(chunks, events, size):
    backlog = Backlog()
    for one in chunks:
        backlog.add(one.part())
    # The separator behind the last event counts: a byte too early is early enough.
    enough = len(lines_of(chunks)) >= events or whole(chunks).size + 1 >= size

    assert backlog.full(events, size) == enough


def test_an_empty_backlog_gives_nothing():
    assert Backlog().take(10, 1000, fill=True) == []
    assert not Backlog().full(1, OVERHEAD + 1)


# -- the body --------------------------------------------------------------------------


@given(leases())
def test_the_body_is_json_with_exactly_the_stored_lines(chunks):
    batch = whole(chunks)
    body = bytes(batch.body())

    assert body == b'{"events":[' + b",".join(lines_of(chunks)) + b"]}"
    assert [event["n"] for event in json.loads(body)["events"]] == list(range(batch.events))


@given(leases(), st.data())
def test_a_batch_knows_its_size_and_count_however_it_was_cut(chunks, data):
    batch = whole(chunks)
    chosen = data.draw(st.sets(st.integers(0, batch.events - 1), min_size=1).map(sorted))
    some = batch.choose(chosen)

    for one in (batch, some):
        assert one.size == len(one.body())
        assert one.events == len(json.loads(bytes(one.body()))["events"])


@given(leases(), st.data())
def test_an_event_is_found_by_its_place_in_the_request(chunks, data):
    batch = whole(chunks)
    batch = batch.choose(data.draw(st.sets(st.integers(0, batch.events - 1), min_size=1).map(sorted)))

    assert [batch.line(index) for index in range(batch.events)] == lines_in(batch)
    with pytest.raises(IndexError):
        batch.line(batch.events)


# -- cutting ---------------------------------------------------------------------------


@given(leases(), st.data())
def test_choosing_takes_the_events_at_these_places_in_order(chunks, data):
    batch = whole(chunks)
    chosen = data.draw(st.sets(st.integers(0, batch.events - 1)).map(sorted))

    assert lines_in(batch.choose(chosen)) == [lines_in(batch)[index] for index in chosen]


@given(leases())
def test_halves_are_the_first_and_the_second_half(chunks):
    batch = whole(chunks)
    if batch.events < 2:
        return

    first, second = batch.halves()

    assert lines_in(first) + lines_in(second) == lines_in(batch)
    assert 0 <= second.events - first.events <= 1


@given(leases())
def test_halving_again_and_again_ends_with_every_event_alone(chunks):
    todo, alone = [whole(chunks)], []
    while todo:
        batch = todo.pop()
        if batch.events == 1:
            alone.append(batch.line(0))
        else:
            todo.extend(reversed(batch.halves()))

    assert alone == lines_of(chunks)


def test_a_piece_of_a_batch_remembers_what_was_tried():
    batch = whole([lease(1, [b"{}"] * 4)])
    batch.attempts, batch.first_attempt, batch.failed_at, batch.failures = 3, 100.0, 7, 2

    first, second = batch.halves()

    for half in (first, second):
        assert (half.attempts, half.first_attempt, half.failed_at, half.failures) == (3, 100.0, 7, 0)
    assert batch.id != first.id != second.id != batch.id
    assert first.id.startswith(batch.id)


# -- settling --------------------------------------------------------------------------


class Store:
    """What the queue's rows are, as settlements change them."""

    def __init__(self, leases):
        self.rows = {one.key: one.chunk for one in leases}
        self.deleted = []
        self.delivered = self.duplicates = 0
        self.dead = []

    def apply(self, settlements):
        for settlement in settlements:
            assert settlement.key in self.rows, "a row that is gone is settled again"
            if settlement.rest is None:
                del self.rows[settlement.key]
                self.deleted.append(settlement.key)
            else:
                self.rows[settlement.key] = settlement.rest
            self.delivered += settlement.delivered
            self.duplicates += settlement.duplicates
            self.dead += settlement.dead

    def lines(self):
        return [line for _, row in sorted(self.rows.items()) for line in row.lines.split(b"\n")]


@st.composite
def cuttings(draw):
    """Batches made of some chunks, each cut at random and again, settled in any order."""
    chunks = draw(leases())
    batches = [
        batch for batch, _, _ in take_all(chunks, [(draw(st.integers(1, 9)), 10_000)], draw(st.booleans()))
    ]
    for _ in range(draw(st.integers(0, 6))):
        batch = batches.pop(draw(st.integers(0, len(batches) - 1)))
        if batch.events > 1 and draw(st.booleans()):
            batches += batch.halves()
        else:
            chosen = draw(st.sets(st.integers(0, batch.events - 1)))
            rest = set(range(batch.events)) - chosen
            batches += [batch.choose(sorted(some)) for some in (chosen, rest) if some]
    return chunks, draw(st.permutations(batches))


@given(cuttings(), st.data())
def test_settling_in_any_order_keeps_in_the_rows_exactly_the_open_events(cutting, data):
    chunks, batches = cutting
    store, still_open = Store(chunks), lines_of(chunks)
    buried = 0
    for batch in batches:
        for line in lines_in(batch):
            still_open.remove(line)
        if data.draw(st.booleans()):
            letters = [dead(line) for line in lines_in(batch)]
            store.apply(batch.settlements(dead=letters))
            buried += len(letters)
        else:
            duplicates = data.draw(st.integers(0, batch.events))
            store.apply(batch.settlements(delivered=batch.events - duplicates, duplicates=duplicates))
        assert store.lines() == still_open

    assert sorted(store.deleted) == [one.key for one in chunks], "each row is deleted exactly once"
    assert len(store.dead) == buried
    assert store.delivered + store.duplicates + buried == len(lines_of(chunks))


@given(cuttings())
def test_what_is_left_of_a_chunk_keeps_its_count_and_its_times(cutting):
    chunks, batches = cutting
    store = Store(chunks)
    for batch in batches:
        store.apply(batch.settlements(delivered=batch.events))
        for key, row in store.rows.items():
            assert row.count == row.lines.count(b"\n") + 1
            assert (row.arrived_ms, row.due_ms) == (key, key * 2)


def test_settling_a_whole_chunk_writes_nothing_back():
    (settlement,) = whole([lease(7, [b"{}"] * 3)]).settlements(delivered=2, duplicates=1)

    assert (settlement.key, settlement.rest) == (7, None)
    assert (settlement.delivered, settlement.duplicates) == (2, 1)


def test_what_a_batch_counts_is_counted_once():
    """Its chunks are settled together, so it does not matter with which of them."""
    batch = whole([lease(key, [b"{}"] * 2) for key in (1, 2, 3)])
    letters = [dead(b"{}")]

    settlements = batch.settlements(delivered=4, duplicates=1, dead=letters)

    assert [settlement.key for settlement in settlements] == [1, 2, 3]
    assert sum(settlement.delivered for settlement in settlements) == 4
    assert sum(settlement.duplicates for settlement in settlements) == 1
    assert [letter for settlement in settlements for letter in settlement.dead] == letters


@given(leases(1), st.data())
def test_a_part_knows_the_size_of_its_lines(chunks, data):
    part = chunks[0].part()
    count = data.draw(st.integers(1, len(part.places)))

    for piece in (part, part.cut(count)[0], part.some(part.places[-count:])):
        sizes = accumulate(len(line) + 1 for line in piece.lines())
        assert piece.size == list(sizes)[-1] - 1


def test_a_backlog_is_full_by_its_bytes_as_well_as_by_its_events():
    backlog = Backlog()
    backlog.add(lease(1, [b"{}", b'{"a":1}']).part())

    assert backlog.full(2, 1000)
    assert not backlog.full(3, 1000)
    assert backlog.full(3, OVERHEAD + len(b'{},{"a":1},'))


# -- what was too large ------------------------------------------------------------------


def quarters(whole: Batch) -> list[Batch]:
    return [quarter for half in whole.halves() for quarter in half.halves()]


def test_what_was_halved_was_too_large_when_all_of_its_pieces_passed() -> None:
    first, second, third, fourth = quarters(Batch("b", [Lease(1, chunk_of(*range(8))).part()]))

    assert [[cut.events for cut in one.passed()] for one in (first, third, fourth, second)] == [
        *([], [], [4], [4, 8])
    ]


def test_what_had_a_bad_event_in_it_was_not_too_large() -> None:
    first, second, third, fourth = quarters(Batch("b", [Lease(1, chunk_of(*range(8))).part()]))
    first.spoil()

    assert [[cut.events for cut in one.passed()] for one in (first, second, third, fourth)] == [
        *([], [], [], [4])
    ]


def test_a_part_of_a_piece_counts_as_a_part_of_it() -> None:
    half, other = Batch("b", [Lease(1, chunk_of(*range(4))).part()]).halves()
    one, two = half.choose([0]), half.choose([1])

    assert [[cut.events for cut in each.passed()] for each in (one, two, other)] == [[], [], [4]]
