"""The flusher: what it sends when, and what it makes of each answer.

Most tests step it by hand, in one thread and in a time of their own: `support.delivery`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from support.clock import NOON, FakeClock
from support.delivery import BROKEN, Desk, Polar, Request, named, ok, too_early
from support.processes import wait_until
from support.queues import chunk_of, counts, line, names

from agent.answer import Answer, NoAnswer, Outcome
from agent.chunk import Chunk, DamagedChunkError, NewerChunkError
from agent.clock import SystemClock
from agent.errors import QueueError
from agent.guess import Guess, member
from agent.queue import Change

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, MutableMapping
    from pathlib import Path


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    """Make desks with settings of the test's choice."""
    desks: list[Desk] = []

    def make(**choices: Any) -> Desk:
        desks.append(Desk(tmp_path, **choices))
        return desks[-1]

    yield make
    for desk in desks:
        desk.close()


@pytest.fixture
def desk(make: Callable[..., Desk]) -> Desk:
    """Four events make a batch, one request at a time, two seconds of age, jitter 0.5."""
    return make()


def fill(desk: Desk, events: int, *, start: int = 0, chunk: int = 4) -> list[str]:
    """Put events 0, 1, 2… into the queue; return their names."""
    for first in range(start, start + events, chunk):
        desk.put(*range(first, min(first + chunk, start + events)))
    return [str(number) for number in range(start, start + events)]


def answer_once(desk: Desk, outcome: Outcome) -> None:
    """Have one full batch sent and answered, and the answer acted upon."""
    desk.answer(desk.request(), outcome)
    desk.step()


SERVER_DOWN = Answer(500, b"Internal Server Error")


# -- which events go when ----------------------------------------------------------------


def test_a_full_batch_goes_at_once(desk: Desk) -> None:
    desk.put("a", "b")
    desk.put("c", "d")

    assert desk.request().names == ["a", "b", "c", "d"]


def test_a_body_is_the_stored_lines_as_they_are(desk: Desk) -> None:
    odd = b'{ "name":"u", "n":1.50, "external_id":"b" }'
    desk.add(chunk_of("a"), type(chunk_of("a"))(odd, 1))
    desk.put("c", "d")

    body = desk.request().body

    assert body == b'{"events":[' + b",".join([line("a"), odd, line("c"), line("d")]) + b"]}"


def test_fewer_events_wait_until_the_oldest_is_of_the_flush_interval(desk: Desk) -> None:
    desk.put("a")
    assert desk.sent() == []
    desk.clock.advance(1.5)
    desk.put("b")

    assert desk.step() == pytest.approx(0.5)
    desk.clock.advance(0.5)

    assert desk.request().names == ["a", "b"]


def test_a_chunk_that_the_disk_does_not_give_is_read_again_and_nothing_is_left_out(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.put("a", "b")
    desk.put("c", "d")
    get, refusals = desk.queue.get, [1]

    def unsteady(key: int) -> Chunk | None:
        if key in refusals:
            refusals.remove(key)
            raise QueueError("read the queue", "memory", "disk I/O error", "see the disk's health")
        return get(key)

    monkeypatch.setattr(desk.queue, "get", unsteady)
    assert desk.step() == pytest.approx(1.0)
    assert "disk I/O error" in (desk.flusher.delivery.last_error or "")
    desk.clock.advance(2.0)

    assert desk.request().names == ["a", "b", "c", "d"]
    assert desk.flusher.delivery.last_error is None


def test_events_that_waited_before_the_start_go_at_once(desk: Desk) -> None:
    desk.put("a", age=3600)

    assert desk.request().names == ["a"]


def test_a_clock_that_was_set_back_holds_nothing_up(desk: Desk) -> None:
    desk.put("a", age=-3600)

    assert desk.request().names == ["a"]


def test_a_batch_that_is_full_by_bytes_goes_at_once(make: Callable[..., Desk]) -> None:
    desk = make(max_batch_events=500, max_batch_bytes=10_000)
    desk.put("a", filler=4000)
    assert desk.sent() == []

    desk.put("b", filler=4000)
    desk.put("c", filler=4000)
    request = desk.request()

    assert request.names == ["a", "b"]
    assert len(request.body) <= 10_000


def test_a_chunk_that_is_larger_than_a_batch_goes_in_several(desk: Desk) -> None:
    fill(desk, 10, chunk=10)

    made = desk.run(Polar())

    assert [request.names for request in made] == [
        ["0", "1", "2", "3"],
        ["4", "5", "6", "7"],
        ["8", "9"],
    ]
    assert desk.pending == []


def test_an_event_that_is_larger_than_a_batch_goes_alone(make: Callable[..., Desk]) -> None:
    desk = make(max_batch_bytes=1000)
    desk.put("small")
    desk.put("large", filler=5000)
    desk.put("other")

    assert [request.names for request in desk.run(Polar())] == [["small"], ["large"], ["other"]]


def test_events_go_in_order_of_arrival(desk: Desk) -> None:
    everything = fill(desk, 50, chunk=3)

    made = desk.run(Polar())

    assert [name for request in made for name in request.names] == everything


def test_what_is_on_its_way_is_not_sent_twice(make: Callable[..., Desk]) -> None:
    desk = make(max_in_flight=3)
    fill(desk, 4)
    desk.request()

    desk.clock.advance(100)

    assert desk.sent() == []


def test_several_requests_are_under_way_but_no_more_than_allowed(make: Callable[..., Desk]) -> None:
    desk = make(max_in_flight=3)
    fill(desk, 20)

    first, second, third = desk.sent()
    assert desk.sent() == []
    desk.answer(second, ok(4))

    assert desk.request().names == ["12", "13", "14", "15"]
    assert [first.names[0], second.names[0], third.names[0]] == ["0", "4", "8"]


def test_who_is_in_a_hurry_waits_for_no_full_batch(desk: Desk) -> None:
    desk.put("a")
    assert desk.sent() == []

    desk.flusher.hurry()

    assert desk.request().names == ["a"]


def test_after_the_hurry_events_are_gathered_again(desk: Desk) -> None:
    desk.flusher.hurry()
    desk.flusher.hurry()
    desk.flusher.relax()
    desk.put("a")
    answer_once(desk, ok(1))
    desk.flusher.relax()

    desk.put("b")

    assert desk.sent() == []


def test_it_is_woken_by_the_first_event(desk: Desk) -> None:
    assert desk.step() is None
    desk.flusher._wake.clear()

    desk.put("a")

    assert desk.flusher._wake.is_set()


def test_it_is_not_woken_before_a_batch_can_be_filled(desk: Desk) -> None:
    desk.put("a")
    desk.step()
    desk.flusher._wake.clear()

    desk.put("b", "c")
    assert not desk.flusher._wake.is_set()
    desk.put("d")

    assert desk.flusher._wake.is_set()


def test_what_came_while_it_looked_is_not_slept_over(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    books = desk.queue.books

    def books_then_more() -> Any:
        before = books()
        monkeypatch.undo()
        desk.put("a")
        return before

    monkeypatch.setattr(desk.queue, "books", books_then_more)

    assert desk.step() == 0.0


# -- settling ----------------------------------------------------------------------------


def test_nothing_is_settled_before_its_answer(desk: Desk) -> None:
    everything = fill(desk, 4)

    desk.request()
    desk.clock.advance(1000)
    desk.step()

    assert desk.pending == everything


def test_a_200_settles(desk: Desk) -> None:
    fill(desk, 4)

    answer_once(desk, ok(4))

    assert desk.pending == []
    assert counts(desk.queue.books()) == {"accepted": 4, "delivered": 4}


def test_duplicates_are_counted(desk: Desk) -> None:
    fill(desk, 4)

    answer_once(desk, ok(1, 3))

    assert counts(desk.queue.books()) == {"accepted": 4, "delivered": 1, "duplicates": 3}


def test_a_batch_of_several_chunks_settles_them_all(desk: Desk) -> None:
    fill(desk, 4, chunk=1)

    answer_once(desk, ok(3, 1))

    assert desk.pending == []
    assert counts(desk.queue.books()) == {"accepted": 4, "delivered": 3, "duplicates": 1}


def test_a_chunk_that_was_sent_in_part_keeps_the_rest(desk: Desk) -> None:
    fill(desk, 6, chunk=6)

    answer_once(desk, ok(4))

    assert desk.pending == ["4", "5"]


def test_parts_of_a_chunk_may_be_answered_in_any_order(make: Callable[..., Desk]) -> None:
    desk = make(max_in_flight=3)
    fill(desk, 12, chunk=12)
    first, second, third = desk.sent()

    desk.answer(third, ok(4))
    desk.answer(first, ok(4))
    desk.step()
    assert desk.pending == second.names
    desk.answer(second, ok(4))
    desk.step()

    assert desk.pending == []
    assert counts(desk.queue.books()) == {"accepted": 12, "delivered": 12}


def test_sums_that_differ_are_sent_once_more_at_once(desk: Desk) -> None:
    fill(desk, 4)
    first = desk.request()

    desk.answer(first, ok(3))
    again = desk.request()
    assert again.body == first.body
    assert len(desk.pending) == 4
    desk.answer(again, ok(1, 3))
    desk.step()

    assert counts(desk.queue.books()) == {"accepted": 4, "delivered": 1, "duplicates": 3}


@pytest.mark.parametrize(
    ("sums", "settled"),
    [
        (ok(3), {"accepted": 4, "delivered": 4}),
        (ok(0, 3), {"accepted": 4, "delivered": 1, "duplicates": 3}),
        (ok(7, 9), {"accepted": 4, "duplicates": 4}),
    ],
)
def test_sums_that_stay_wrong_settle_with_an_alarm(
    desk: Desk, capsys: pytest.CaptureFixture[str], sums: Outcome, settled: dict[str, int]
) -> None:
    fill(desk, 4)

    desk.answer(desk.request(), sums)
    answer_once(desk, sums)

    assert counts(desk.queue.books()) == settled
    assert desk.sent() == []
    (alarm,) = [json.loads(text) for text in capsys.readouterr().err.splitlines() if "sums" in text]
    assert alarm["level"] == "error"


@pytest.mark.parametrize("body", [b"", b"<html>Welcome</html>", b"[]", b'{"inserted":4}', b"null"])
def test_a_200_that_is_not_polars_settles_nothing(desk: Desk, body: bytes) -> None:
    everything = fill(desk, 4)

    answer_once(desk, Answer(200, body))

    assert desk.pending == everything
    assert "not Polar's" in desk.flusher.delivery.last_error
    desk.run(Polar())
    assert counts(desk.queue.books()) == {"accepted": 4, "delivered": 4}


@pytest.mark.parametrize("status", [201, 202, 204, 206])
def test_another_success_settles_nothing(desk: Desk, status: int) -> None:
    everything = fill(desk, 4)

    answer_once(desk, Answer(status, b'{"inserted":4,"duplicates":0}'))

    assert desk.pending == everything


# -- events that the server names --------------------------------------------------------


def test_named_events_become_dead_letters_and_the_rest_goes_at_once(desk: Desk) -> None:
    fill(desk, 4)
    desk.answer(desk.request(), named(1, 3))

    rest = desk.request()
    desk.answer(rest, ok(2))
    desk.step()

    assert rest.names == ["0", "2"]
    assert desk.dead == ["1", "3"]
    assert counts(desk.queue.books()) == {"accepted": 4, "delivered": 2, "dead": 2}


def test_a_dead_letter_tells_what_happened(desk: Desk) -> None:
    fill(desk, 4)
    desk.answer(desk.request(), SERVER_DOWN)
    desk.step()
    desk.clock.advance(10)

    answer_once(desk, named(2))  # the second try

    (letter,) = desk.queue.dead_letters()
    assert letter.event.encode() == line("2")
    assert (letter.external_id, letter.name, letter.status) == ("2", "usage", 422)
    assert letter.reason == "name: Input should be a valid string"
    assert letter.errors == [
        {"type": "string_type", "loc": ["name"], "msg": "Input should be a valid string"}
    ]
    assert (letter.attempts, letter.first_attempt, letter.died_at) == (2, NOON, NOON + 10)
    assert letter.batch


def test_a_dead_letter_keeps_nothing_of_the_servers_echo(desk: Desk) -> None:
    fill(desk, 4)

    answer_once(desk, named(0))

    (letter,) = desk.queue.dead_letters()
    assert "input" not in letter.errors[0]
    assert "secret" not in repr(letter)


def test_isolating_may_take_two_rounds(desk: Desk) -> None:
    fill(desk, 4)
    desk.answer(desk.request(), named(0))
    desk.answer(desk.request(), named(1))  # of those that were left

    rest = desk.request()

    assert rest.names == ["1", "3"]
    assert desk.dead == ["0", "2"]


def test_what_is_left_of_a_batch_keeps_its_place(make: Callable[..., Desk]) -> None:
    desk = make(max_in_flight=2)
    fill(desk, 8)
    first, second = desk.sent()
    desk.answer(second, Answer(503))
    desk.answer(first, named(1))
    desk.step()
    desk.clock.advance(60)

    desk.step()

    assert [request.names for request in desk.requests.requests[2:]] == [["0", "2", "3"], second.names]


def test_a_server_that_names_events_works(desk: Desk) -> None:
    fill(desk, 8)
    answer_once(desk, BROKEN)
    desk.clock.advance(60)
    assert desk.pace.probing

    answer_once(desk, named(0))

    assert not desk.pace.probing
    assert desk.taken()


def test_a_batch_of_named_events_alone_leaves_nothing_to_send(desk: Desk) -> None:
    fill(desk, 4)

    desk.answer(desk.request(), named(0, 1, 2, 3))

    assert desk.sent() == []
    assert desk.dead == ["0", "1", "2", "3"]
    assert desk.pending == []


def test_a_batch_of_several_chunks_buries_the_right_ones(desk: Desk) -> None:
    fill(desk, 4, chunk=2)

    answer_once(desk, named(1, 2))

    assert desk.dead == ["1", "2"]
    assert desk.pending == ["0", "3"]


# -- events that are too early -----------------------------------------------------------


def test_a_chunk_is_not_sent_before_it_is_due(desk: Desk) -> None:
    desk.put("a", due=NOON + 30, age=3600)

    assert desk.sent() == []
    assert desk.step() == pytest.approx(30)
    desk.clock.advance(29.9)
    assert desk.sent() == []
    desk.clock.advance(0.2)

    assert desk.request().names == ["a"]


def test_a_chunk_that_is_due_later_does_not_hold_others_up(desk: Desk) -> None:
    desk.put("later", due=NOON + 30)
    desk.put("a", "b", "c", "d")

    assert desk.request().names == ["a", "b", "c", "d"]


def test_chunks_are_due_by_the_servers_clock(desk: Desk) -> None:
    now = desk.clock.monotonic()
    desk.server_clock.learn(NOON + 100, now, now)
    desk.put("a", due=NOON + 30, age=3600)

    assert desk.request().names == ["a"]


def test_the_servers_clock_is_learned_from_its_answers(desk: Desk) -> None:
    fill(desk, 4)

    answer_once(desk, Answer(200, ok(4).body, server_time=NOON + 100))

    assert desk.server_clock.offset == pytest.approx(100, abs=1.1)


def early(name: str, seconds: float) -> bytes:
    return line(name).replace(b"}", b',"timestamp":%d}' % (NOON + seconds))


def test_events_that_are_too_early_are_held_and_the_rest_goes_at_once(desk: Desk) -> None:
    desk.add(type(chunk_of("a"))(b"\n".join([line("a"), early("b", 20), line("c"), early("d", 40)]), 4))
    desk.answer(desk.request(), too_early(1, 3))

    rest = desk.request()
    desk.answer(rest, ok(2))
    desk.step()

    assert rest.names == ["a", "c"]
    assert desk.pending == ["b", "d"]
    assert desk.dead == []


def test_events_that_were_too_early_go_once_they_are_due(desk: Desk) -> None:
    desk.add(type(chunk_of("a"))(b"\n".join([early("b", 20), early("d", 40)]), 2))
    desk.clock.advance(5)
    desk.answer(desk.request(), too_early(0, 1))
    assert desk.sent() == []

    desk.clock.advance(14)
    assert desk.sent() == []
    desk.clock.advance(2)
    assert desk.request().names == ["b"]


def test_events_that_were_too_early_are_due_by_the_servers_clock(desk: Desk) -> None:
    now = desk.clock.monotonic()
    desk.server_clock.learn(NOON - 100, now, now)
    desk.add(type(chunk_of("a"))(early("b", -80), 1, int((NOON - 60) * 1000)))
    desk.answer(desk.request(), too_early(0))

    desk.clock.advance(18)
    assert desk.sent() == []
    desk.clock.advance(3)
    assert desk.request().names == ["b"]


def test_events_that_stay_too_early_are_never_buried(desk: Desk) -> None:
    """The server's clock stands still, say."""
    desk.add(type(chunk_of("a"))(b"\n".join([early("a", -5), early("b", 5)]), 2))

    made = desk.run(lambda request: too_early(*range(len(request.names))), seconds=600)

    assert desk.dead == []
    assert desk.pending == ["a", "b"]
    assert len(made) < 1300
    desk.run(Polar())
    assert counts(desk.queue.books()) == {"accepted": 2, "delivered": 2}


def test_events_that_are_too_early_and_bad_are_buried(desk: Desk) -> None:
    fill(desk, 4)
    both = json.loads(too_early(1).body)
    both["detail"] += json.loads(named(1).body)["detail"]

    answer_once(desk, Answer(422, json.dumps(both).encode()))

    assert desk.dead in (["1"], [])


# -- stamps from before the server's time was known ---------------------------------------


def guessed(desk: Desk, *names: object, ahead: float = 0.0) -> Chunk:
    """Return a chunk that was stamped by a guess, each event a second after the last one."""
    start = desk.clock.wall() + ahead
    times = [member(Guess(NOON, start + place)) for place in range(len(names))]
    lines = [line(name)[:-1] + time + b"}" for name, time in zip(names, times, strict=True)]
    return Chunk(b"\n".join(lines), len(names), int(desk.clock.wall() * 1000))


def stamps(lines: Iterable[bytes | str]) -> list[float]:
    """Return the times that events carry, seconds from noon."""
    return [datetime.fromisoformat(json.loads(one)["timestamp"]).timestamp() - NOON for one in lines]


def stamps_of(request: Request) -> list[float]:
    """Return the times that the events of a request carry, seconds from noon."""
    return stamps(map(json.dumps, request.events))


@dataclasses.dataclass
class Strict(Polar):
    """A server that tells its time, takes nothing that is early, and notes the stamps.

    Attributes:
        clock: of the machine.
        behind: how far this server's clock is behind it.
    """

    clock: FakeClock = dataclasses.field(kw_only=True)
    behind: float = dataclasses.field(kw_only=True)
    stamps: list[float] = dataclasses.field(default_factory=list)

    def __call__(self, request: Request) -> Outcome:
        now = self.clock.wall() - self.behind
        bad = [place for place, at in enumerate(stamps_of(request)) if NOON + at > now]
        outcome = too_early(*bad) if bad else super().__call__(request)
        assert isinstance(outcome, Answer)
        self.stamps += [] if bad else stamps_of(request)
        return dataclasses.replace(outcome, server_time=math.floor(now))


@pytest.mark.parametrize("in_flight", [1, 4])
def test_what_was_stamped_by_a_clock_a_day_ahead_goes_again_at_once_and_in_its_place(
    make: Callable[..., Desk], in_flight: int
) -> None:
    desk = make(max_in_flight=in_flight)
    for first in range(0, 12, 4):
        desk.add(guessed(desk, *range(first, first + 4)))
        desk.clock.advance(4)
    polar = Strict(clock=desk.clock, behind=86_400.0)

    made = desk.run(polar, seconds=1)

    assert polar.stored == [str(number) for number in range(12)]
    assert desk.pending == []
    assert polar.stamps == pytest.approx([-86_400 + number for number in range(12)], abs=1.1)
    assert len(made) == 1 + 3


def test_the_first_request_with_a_guess_in_it_goes_alone(make: Callable[..., Desk]) -> None:
    """Where the clock is behind, what it carries is stored with wrong stamps: the rest is not."""
    desk = make(max_in_flight=4)
    for first in range(0, 12, 4):
        desk.add(guessed(desk, *range(first, first + 4), ahead=-3700))

    first = desk.request()
    desk.answer(first, Answer(200, ok(4).body, server_time=NOON + 3600))
    others = desk.sent()

    assert stamps_of(first) == [-3700, -3699, -3698, -3697]
    assert [stamps_of(other) for other in others] == 2 * [pytest.approx([-100, -99, -98, -97], abs=1.1)]


def test_who_never_tells_the_time_gets_requests_as_ever(make: Callable[..., Desk]) -> None:
    desk = make(max_in_flight=4)
    for first in range(0, 16, 4):
        desk.add(guessed(desk, *range(first, first + 4)))

    desk.answer(desk.request(), ok(4))

    assert len(desk.sent()) == 3


def test_after_a_failure_what_was_stamped_by_a_guess_is_corrected_if_the_answer_tells_the_time(
    desk: Desk,
) -> None:
    desk.add(guessed(desk, "a", "b"), guessed(desk, "c", "d"))
    first = desk.request()
    desk.answer(first, Answer(503, server_time=NOON - 100))

    (again,) = desk.run(Polar())

    assert again.names == first.names
    assert stamps_of(again) == pytest.approx([-100, -99, -100, -99], abs=1.1)
    assert len(again.body) == len(first.body)


def test_without_a_word_of_the_servers_time_what_is_early_is_held(desk: Desk) -> None:
    """To send it again would be to ask the same again and again."""
    desk.add(guessed(desk, "a", "b", "c", "d", ahead=20))
    desk.answer(desk.request(), too_early(0, 1, 2, 3))

    assert desk.sent() == []
    desk.clock.advance(18)
    assert desk.sent() == []
    desk.clock.advance(3)
    assert desk.request().names == ["a"]


def test_an_event_that_a_program_stamped_too_late_is_held_beside_our_guesses(desk: Desk) -> None:
    mine, own = guessed(desk, "a", "b").lines.split(b"\n"), early("own", -70)
    desk.add(Chunk(b"\n".join([mine[0], own, mine[1]]), 3))
    desk.answer(desk.request(), dataclasses.replace(too_early(0, 1, 2), server_time=NOON - 100))

    again = desk.request()
    desk.answer(again, ok(2))

    assert again.names == ["a", "b"]
    assert desk.sent() == []
    desk.clock.advance(31.5)
    assert desk.request().body == b'{"events":[' + own + b"]}"


def test_what_is_still_early_once_it_was_corrected_is_held(desk: Desk) -> None:
    """The server's time is known to a second only."""
    desk.add(guessed(desk, "a"))
    desk.clock.advance(5)
    desk.answer(desk.request(), dataclasses.replace(too_early(0), server_time=NOON + 5))

    desk.answer(desk.request(), too_early(0))

    assert desk.sent() == []
    desk.clock.advance(1.5)
    assert desk.request().names == ["a"]


def test_what_is_left_of_a_chunk_is_written_back_with_its_stamps_corrected(desk: Desk) -> None:
    """Once: the next start must not correct it again."""
    now = desk.clock.monotonic()
    desk.server_clock.learn(NOON - 100, now, now)
    key = desk.add(guessed(desk, *"abcdefg"))

    answer_once(desk, ok(4))

    rest = desk.queue.get(key)
    assert rest is not None
    assert b"\t" not in rest.lines
    assert stamps(rest.lines.split(b"\n")) == [-100, -100, -100]


def test_a_guess_that_becomes_a_dead_letter_is_corrected_too(desk: Desk) -> None:
    desk.add(guessed(desk, "a", "b", "c", "d"))
    answer_once(desk, dataclasses.replace(named(1), server_time=NOON - 100))

    (dead,) = desk.queue.dead_letters()
    assert "\t" not in dead.event
    assert stamps([dead.event]) == pytest.approx([-99], abs=1.1)


def test_a_request_that_is_under_way_while_its_chunk_is_corrected_keeps_its_size(
    make: Callable[..., Desk],
) -> None:
    """Its bytes are made as they are sent."""
    desk = make()
    desk.add(guessed(desk, *range(8)))
    first = desk.request()
    desk.answer(first, Answer(200, ok(4).body, server_time=NOON - 100))

    second = desk.request()

    assert stamps_of(second) == pytest.approx([-100, -100, -100, -100], abs=1.1)
    assert len(bytes(first.unmade)) == len(first.unmade) == len(first.body)


# -- one bad event that the server does not name -----------------------------------------

MANY = 512


def most_requests(batches: int, poison: int, each: int) -> int:
    """Return how many requests may be needed: a few for each halving."""
    return batches + poison * (each * int(math.log2(MANY)) + 12)


@pytest.mark.parametrize("place", [0, 1, 255, 256, 300, 510, 511])
@pytest.mark.parametrize("in_flight", [1, 4])
def test_poison_that_breaks_the_server_is_isolated_and_buried_alone(
    make: Callable[..., Desk], place: int, in_flight: int
) -> None:
    desk = make(max_batch_events=MANY, max_in_flight=in_flight)
    everything = fill(desk, MANY * 4, chunk=MANY)
    server = Polar(poison={str(MANY + place)})

    made = desk.run(server)

    assert desk.dead == [str(MANY + place)]
    assert sorted(server.stored, key=int) == [name for name in everything if name != desk.dead[0]]
    assert desk.pending == []
    assert len(made) <= most_requests(4, 1, 4)


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("place", [0, 1, 255, 256, 511])
@pytest.mark.parametrize("in_flight", [1, 4])
def test_poison_that_the_server_refuses_unnamed_is_isolated_and_buried_alone(
    make: Callable[..., Desk], status: int, place: int, in_flight: int
) -> None:
    desk = make(max_batch_events=MANY, max_in_flight=in_flight)
    fill(desk, MANY * 2, chunk=MANY)
    server = Polar(poison={str(place)}, status=status)

    made = desk.run(server)

    assert desk.dead == [str(place)]
    assert len(server.stored) == MANY * 2 - 1
    assert desk.pending == []
    assert len(made) <= most_requests(2, 1, 2)
    (letter,) = desk.queue.dead_letters()
    assert letter.status == status


def test_all_poison_is_found(make: Callable[..., Desk]) -> None:
    desk = make(max_batch_events=MANY, max_in_flight=4)
    everything = fill(desk, MANY * 4, chunk=MANY)
    chance = random.Random(1)
    poison = set(chance.sample(everything, 12))
    server = Polar(poison=poison)

    desk.run(server)

    assert set(desk.dead) == poison
    assert set(server.stored) == set(everything) - poison
    assert desk.pending == []


def test_any_amount_of_poison_is_no_block_while_others_pass(make: Callable[..., Desk]) -> None:
    desk = make()
    everything = fill(desk, 400)
    server = Polar(poison=set(everything[::8]), status=400)
    states = set()

    desk.run(lambda request: states.add(desk.flusher.delivery.state) or server(request))

    assert len(desk.dead) == 50
    assert states == {"sending"}


@pytest.mark.parametrize("status", [500, 400, 422])
@pytest.mark.parametrize("in_flight", [1, 4])
def test_poison_is_isolated_with_nothing_else_in_the_queue(
    make: Callable[..., Desk], status: int, in_flight: int
) -> None:
    desk = make(max_batch_events=8, max_in_flight=in_flight)
    fill(desk, 8, chunk=8)
    server = Polar(poison={"5"}, status=status)

    desk.run(server, seconds=600)

    assert desk.dead == ["5"]
    assert sorted(server.stored) == ["0", "1", "2", "3", "4", "6", "7"]
    assert desk.pending == []


def test_others_do_not_wait_for_poison(make: Callable[..., Desk]) -> None:
    desk = make(max_batch_events=4)
    fill(desk, 40)
    server = Polar(poison={"1"})

    made = desk.run(server, until=lambda: len(server.stored) >= 36)

    assert len(made) < 25
    assert desk.clock.wall() - NOON < 5


@pytest.mark.parametrize("status", [500, 400, 422])
def test_a_lone_event_is_not_buried_while_nothing_shows_that_others_pass(desk: Desk, status: int) -> None:
    desk.put("alone")
    server = Polar(poison={"alone"}, status=status)

    desk.run(server, seconds=7200)

    assert desk.dead == []
    assert desk.pending == ["alone"]


@pytest.mark.parametrize("status", [500, 400, 422])
def test_a_lone_event_is_buried_once_others_pass(desk: Desk, status: int) -> None:
    desk.put("alone")
    server = Polar(poison={"alone"}, status=status)
    desk.run(server, seconds=60)

    desk.put("a", "b", "c", "d")
    desk.run(server, seconds=600)

    assert desk.dead == ["alone"]
    assert server.stored == ["a", "b", "c", "d"]


def test_an_outage_is_no_evidence_against_an_event_that_failed_before(desk: Desk) -> None:
    """An empty batch that is answered with a failure, too, does not show that the server works."""
    desk.put("alone")
    server = Polar(poison={"alone"})
    desk.run(server, seconds=5)
    desk.put("a", "b", "c", "d")
    desk.run(server, until=lambda: len(server.stored) == 4)
    server.outage = SERVER_DOWN

    desk.run(server, seconds=7200)

    assert desk.dead == []
    assert desk.pending == ["alone"]


@pytest.mark.parametrize("status", [500, 400, 422])
def test_what_passed_before_an_event_failed_says_nothing_of_it(desk: Desk, status: int) -> None:
    fill(desk, 40)
    server = Polar(poison={"alone"}, status=status)
    desk.run(server)
    desk.put("alone")

    desk.run(server, seconds=3600)

    assert desk.dead == []
    assert desk.pending == ["alone"]


def test_an_event_that_is_too_large_alone_is_buried(desk: Desk) -> None:
    desk.put("a", "large", "b", "c")

    made = desk.run(Polar(poison={"large"}, status=413))

    assert desk.dead == ["large"]
    assert len(made) == 5
    (letter,) = desk.queue.dead_letters()
    assert letter.status == 413


def test_a_batch_that_is_too_large_is_halved_at_once(desk: Desk) -> None:
    fill(desk, 4)

    made = desk.run(takes(2, Answer(413)))

    assert [len(request.names) for request in made] == [4, 2, 2]
    assert counts(desk.queue.books()) == {"accepted": 4, "delivered": 4}
    assert desk.clock.wall() == NOON


@pytest.mark.parametrize("events", [4, 400])
@pytest.mark.parametrize("in_flight", [1, 4])
@pytest.mark.parametrize("status", [500, 400, 413])
def test_full_batches_that_are_all_too_much_for_the_server_are_halved(
    make: Callable[..., Desk], events: int, in_flight: int, status: int
) -> None:
    """Polar fails on more than 4,681 pairs of an event and a meter, whichever events these are."""
    desk = make(max_in_flight=in_flight)
    fill(desk, events)

    made = desk.run(takes(2, Answer(status)), seconds=3600)

    assert desk.pending == []
    assert desk.dead == []
    assert len(made) <= events * 2 + 12


# -- how large a batch may be ------------------------------------------------------------


def takes(most: int, refusal: Outcome) -> Callable[[Request], Outcome]:
    """Return a server that refuses what has more events."""
    return lambda request: ok(len(request.names)) if len(request.names) <= most else refusal


def sizes(made: list[Request]) -> list[int]:
    return [len(request.names) for request in made]


def test_a_backlog_goes_in_ever_larger_batches_up_to_the_ceiling(make: Callable[..., Desk]) -> None:
    desk = make(max_batch_events=500, batch_ceiling=4681)
    fill(desk, 20_000, chunk=1000)

    assert sizes(desk.run(takes(4681, SERVER_DOWN))) == [500, 500, 1000, 2000, 4000, 4000, 4000, 4000]


def test_a_size_that_a_user_chose_is_the_most(make: Callable[..., Desk]) -> None:
    desk = make(max_batch_events=500, batch_ceiling=500)
    fill(desk, 5_000, chunk=1000)

    assert sizes(desk.run(Polar())) == [500] * 10


def test_another_size_of_batches_counts_from_the_next_one_on(make: Callable[..., Desk]) -> None:
    desk = make(max_batch_events=500)
    fill(desk, 3_000, chunk=500)
    desk.run(Polar(), until=lambda: bool(desk.requests.requests))

    desk.flusher.configure(
        dataclasses.replace(desk.flusher._options, max_batch_events=100, batch_ceiling=100)
    )

    assert set(sizes(desk.run(Polar()))[1:]) == {100}


def test_without_a_backlog_a_batch_is_as_large_as_what_waits(make: Callable[..., Desk]) -> None:
    desk = make(max_batch_events=500, batch_ceiling=4681)
    made = []
    for first in range(0, 5000, 500):
        fill(desk, 500, start=first, chunk=100)
        made += desk.run(Polar())

    assert sizes(made) == [500] * 10


def test_while_a_request_is_under_way_the_next_one_waits_for_more(make: Callable[..., Desk]) -> None:
    desk = make(max_batch_events=500, batch_ceiling=4681, max_in_flight=2)
    fill(desk, 20_000, chunk=500)
    desk.run(Polar())  # larger ones are known to work by then
    for first in (20_000, 20_500):
        fill(desk, 500, start=first, chunk=500)
    assert sizes(desk.sent()) == [1000]

    fill(desk, 500, start=21_000, chunk=500)
    assert desk.sent() == []
    desk.clock.advance(2.0)

    assert sizes(desk.sent()) == [500]


def test_a_larger_batch_is_tried_alone(make: Callable[..., Desk]) -> None:
    desk = make(max_batch_events=500, batch_ceiling=4681, max_in_flight=4)
    fill(desk, 20_000, chunk=500)
    for request in desk.sent():
        desk.answer(request, ok(500))

    assert sizes(desk.sent()) == [1000, 500, 500, 500]


@pytest.mark.parametrize("refusal", [SERVER_DOWN, Answer(400)], ids=["500", "400"])
@pytest.mark.parametrize("most", [60, 499, 700, 1234, 2340, 4681])
@pytest.mark.parametrize("in_flight", [1, 4])
def test_the_largest_size_that_works_is_found_and_kept(
    make: Callable[..., Desk], refusal: Outcome, most: int, in_flight: int
) -> None:
    """Polar fails on more than 4,681 pairs of an event and a meter, whichever events these are."""
    desk = make(max_batch_events=500, batch_ceiling=4681, max_in_flight=in_flight, requests_per_minute=6e5)
    fill(desk, most * 60, chunk=100)

    made = desk.run(takes(most, refusal))

    assert desk.dead == []
    assert desk.pending == []
    assert len(made) < 120
    assert max(size for size in sizes(made) if size <= most) >= 0.8 * most


def test_a_size_that_fails_is_not_tried_again_at_once_but_after_a_while(make: Callable[..., Desk]) -> None:
    desk = make(max_batch_events=500, batch_ceiling=4681)

    def refused(server: Callable[[Request], Outcome]) -> int:
        fill(desk, 60_000, start=desk.queue.books().accepted, chunk=100)
        return sum(size > 1234 for size in sizes(desk.run(server)))

    limited = takes(1234, SERVER_DOWN)
    assert 1 <= refused(limited) <= 8
    assert refused(limited) == 0
    desk.clock.advance(200)
    assert 1 <= refused(limited) <= 8
    desk.clock.advance(400)
    assert refused(takes(4681, SERVER_DOWN)) > 10


def test_what_was_learned_of_the_size_is_logged_once(
    make: Callable[..., Desk], capsys: pytest.CaptureFixture[str]
) -> None:
    desk = make(max_batch_events=500, batch_ceiling=4681)
    fill(desk, 60_000, chunk=100)

    desk.run(takes(1234, SERVER_DOWN))

    told = [json.loads(text) for text in capsys.readouterr().err.splitlines()]
    learned = [one for one in told if one["message"] == "the server does not take such large batches"]
    assert 1 <= len(learned) <= 6
    assert learned[-1]["largest_that_works"] <= 1234 < learned[-1]["size"]


def test_a_server_that_fails_at_random_keeps_its_large_batches(make: Callable[..., Desk]) -> None:
    chance = random.Random(7)
    desk = make(max_batch_events=500, batch_ceiling=4681)
    fill(desk, 400_000, chunk=1000)

    made = desk.run(lambda request: SERVER_DOWN if chance.random() < 0.3 else ok(len(request.names)))

    assert desk.dead == []
    assert sum(sizes(made)) < 400_000 * 1.7
    assert len(made) < 800


def test_a_batch_that_is_not_answered_in_time_goes_again_in_smaller_ones(
    make: Callable[..., Desk],
) -> None:
    desk = make(max_batch_events=500)
    fill(desk, 1000, chunk=500)

    made = desk.run(takes(100, NoAnswer("timeout", "no complete answer within 60 s")))

    assert sizes(made)[:4] == [500, 250, 125, 62]
    assert len(made) < 30
    assert desk.pending == []


def test_what_is_too_large_by_bytes_is_learned_from_a_413(make: Callable[..., Desk]) -> None:
    """A proxy of the user's takes a megabyte, say."""
    desk = make(max_batch_events=500, max_batch_bytes=5 << 20)
    for number in range(200):
        desk.put(number, filler=100_000)

    made = desk.run(lambda request: ok(len(request.names)) if len(request.body) <= 1 << 20 else Answer(413))

    refused = [request for request in made if len(request.body) > 1 << 20]
    assert len(refused) <= 6
    assert len(made) <= 40
    assert desk.dead == []


def test_what_is_too_large_by_bytes_limits_no_small_events(make: Callable[..., Desk]) -> None:
    desk = make(max_batch_events=500, max_batch_bytes=5 << 20)
    for number in range(200):
        desk.put(number, filler=100_000)
    desk.run(lambda request: ok(len(request.names)) if len(request.body) <= 1 << 20 else Answer(413))
    fill(desk, 500, start=200, chunk=500)

    assert sizes(desk.run(Polar())) == [500]


# -- when the server is in trouble -------------------------------------------------------

OUTAGES = {
    "500": SERVER_DOWN,
    "502": Answer(502),
    "503": Answer(503),
    "504": Answer(504),
    "507": Answer(507),
    "408": Answer(408),
    "425": Answer(425),
    "a proxy's welcome": Answer(200, b"<html>"),
    "no connection": NoAnswer("connect", "connection refused"),
    "no such host": NoAnswer("dns", "name or service not known"),
    "no encryption": NoAnswer("tls", "certificate expired"),
    "no answer in time": NoAnswer("timeout", "no complete answer within 60 s"),
    "a broken connection": BROKEN,
}
REFUSALS = {
    "400": Answer(400, b'{"detail":"There was an error parsing the body"}'),
    "422 of the body": Answer(422, b'{"detail":[{"loc":["body"],"type":"json_invalid","msg":"no"}]}'),
}
BLOCKS = {
    "401": Answer(401),
    "403": Answer(403),
    "404": Answer(404),
    "405": Answer(405),
    "411": Answer(411),
    "418": Answer(418),
    "301": Answer(301, location="https://elsewhere.example/"),
    "307": Answer(307, location="/v1/events/ingest"),
    "no token": NoAnswer("token", "there is no access token to send"),
}
ANY_TROUBLE = {**OUTAGES, **REFUSALS, **BLOCKS, "429": Answer(429, retry_after="60")}


def each(cases: dict[str, Outcome]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("outcome", cases.values(), ids=cases.keys())


@each(ANY_TROUBLE)
@pytest.mark.parametrize("before", [0, 40])
def test_trouble_kills_no_event_and_all_is_delivered_afterwards(
    make: Callable[..., Desk], outcome: Outcome, before: int
) -> None:
    desk = make(max_batch_events=100, max_in_flight=4)
    server = Polar()
    fill(desk, before)
    desk.run(server)
    everything = fill(desk, 2000, start=before, chunk=50)
    server.outage = outcome

    desk.run(server, seconds=3600)
    assert desk.dead == []
    assert desk.pending == everything
    server.outage = None
    desk.run(server, seconds=3600)

    assert desk.pending == []
    assert desk.dead == []
    assert counts(desk.queue.books()) == {"accepted": 2000 + before, "delivered": 2000 + before}


@each(ANY_TROUBLE)
@pytest.mark.parametrize("size", [1, 16])
def test_trouble_that_comes_and_goes_kills_no_event(
    make: Callable[..., Desk], outcome: Outcome, size: int
) -> None:
    count = 64 if size > 1 else 16
    desk = make(max_batch_events=size, max_in_flight=2)
    fill(desk, count, chunk=size)
    server = Polar()
    while desk.queue.books().pending:
        server.outage = outcome
        desk.run(server, seconds=300)
        server.outage = None
        # Something passes, and it is back.
        goal = len(server.stored) + 1
        desk.run(server, until=lambda goal=goal: len(server.stored) >= goal, seconds=3600)

    assert desk.dead == []
    assert counts(desk.queue.books()) == {"accepted": count, "delivered": count}


@each({"500": SERVER_DOWN, **REFUSALS})
@pytest.mark.parametrize("size", [1, 16])
def test_a_server_that_takes_nothing_but_empty_batches_kills_no_event(
    make: Callable[..., Desk], outcome: Outcome, size: int
) -> None:
    """Its database cannot be written, say."""
    desk = make(max_batch_events=size, max_in_flight=2)
    fill(desk, 64, chunk=size)

    desk.run(lambda request: outcome if request.names else ok(0), seconds=7200)

    assert desk.dead == []
    assert len(desk.pending) == 64
    desk.run(Polar())
    assert counts(desk.queue.books()) == {"accepted": 64, "delivered": 64}


@each(ANY_TROUBLE)
def test_a_request_in_trouble_stays_rare(make: Callable[..., Desk], outcome: Outcome) -> None:
    desk = make(max_batch_events=100, max_in_flight=4)
    fill(desk, 2000, chunk=50)

    made = desk.run(Polar(outage=outcome), seconds=3600)

    assert len(made) < 600


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [1, 20])
def test_a_server_that_fails_at_random_kills_no_event(
    make: Callable[..., Desk], seed: int, size: int
) -> None:
    chance = random.Random(seed)
    desk = make(max_batch_events=size, max_in_flight=4)
    fill(desk, 300 * size, chunk=size)
    server = Polar()

    desk.run(lambda request: SERVER_DOWN if chance.random() < 0.2 else server(request))

    assert desk.dead == []
    assert len(server.stored) == 300 * size


def test_an_answer_that_was_sent_before_the_trouble_began_is_no_evidence(
    make: Callable[..., Desk],
) -> None:
    desk = make(max_batch_events=1, max_in_flight=2)
    desk.put("a")
    desk.put("b")
    first, second = desk.sent()
    desk.answer(first, REFUSALS["400"])
    desk.answer(second, ok(1))

    desk.run(Polar(outage=REFUSALS["400"]), seconds=3600)

    assert desk.dead == []
    assert desk.pending == ["a"]


def test_unnamed_poison_in_every_batch_holds_the_rest_up_for_seconds_only(make: Callable[..., Desk]) -> None:
    desk = make(max_batch_events=16, max_in_flight=4)
    fill(desk, 16 * 60, chunk=16)
    server = Polar(poison={str(number) for number in range(21, 16 * 60, 16)})
    began = desk.clock.monotonic()

    before = desk.run(server, until=lambda: len(server.stored) == 16 + 15 * 59)
    rest = desk.clock.monotonic() - began
    made = desk.run(server)

    assert set(desk.dead) == server.poison
    assert rest < 20, "seconds, with answers that take no time"
    # It fails twice whole, is halved four times, and the one fails six times while an empty one passes.
    assert len(before) + len(made) < 59 * (2 + 2 * 4 + 2 * 6), "requests"


def test_what_poisoned_batches_keep_in_memory_is_bounded(
    make: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.flusher.suspicion.MOST_BYTES", 40_000)
    desk = make(max_batch_events=16, max_in_flight=4)
    for first in range(0, 16 * 60, 16):
        desk.put(*range(first, first + 16), filler=100)
    server = Polar(poison={str(number) for number in range(5, 16 * 60, 16)})

    assert most_read_ahead(desk, server) < 40
    assert set(desk.dead) == server.poison


def test_a_server_that_fails_after_it_worked_is_left_alone_soon(make: Callable[..., Desk]) -> None:
    desk = make(max_in_flight=4)
    fill(desk, 400)
    server = Polar()
    desk.run(server, until=lambda: len(server.stored) >= 40)
    server.outage = SERVER_DOWN

    assert len(desk.run(server, seconds=60)) < 30
    server.outage = None
    desk.run(server)
    assert desk.dead == []
    assert len(server.stored) == 400


# -- how long it waits -------------------------------------------------------------------


def waits(desk: Desk, outcome: Outcome, tries: int) -> list[float]:
    """Return how long it waits after each of so many failures."""
    result = []
    for _ in range(tries):
        desk.answer(desk.request(), outcome)
        wait = desk.step()
        assert wait is not None
        result.append(wait)
        desk.clock.advance(wait)
    return result


def test_waits_double_up_to_the_longest(make: Callable[..., Desk]) -> None:
    desk = make(chance=lambda: 1.0, backoff_max=20.0)
    fill(desk, 4)

    assert waits(desk, BROKEN, 8) == pytest.approx([1, 2, 4, 8, 16, 20, 20, 20])


def test_waits_are_jittered_down_to_nothing(make: Callable[..., Desk]) -> None:
    chances = itertools.cycle([1.0, 0.25, 0.5])
    desk = make(chance=lambda: next(chances))
    fill(desk, 4)

    assert waits(desk, BROKEN, 6) == pytest.approx([1, 0.5, 2, 8, 4, 16])


def test_waits_begin_anew_after_a_success(make: Callable[..., Desk]) -> None:
    desk = make(chance=lambda: 1.0)
    fill(desk, 8)
    assert waits(desk, BROKEN, 4) == pytest.approx([1, 2, 4, 8])

    desk.answer(desk.request(), ok(4))

    assert waits(desk, BROKEN, 2) == pytest.approx([1, 2])


def test_nothing_is_sent_while_it_waits(desk: Desk) -> None:
    fill(desk, 8)
    answer_once(desk, BROKEN)

    for _ in range(5):
        assert desk.sent() == []
        desk.clock.advance(0.101)

    assert len(desk.sent()) == 1


def test_one_request_goes_ahead_after_a_failure_and_the_others_follow_its_success(
    make: Callable[..., Desk],
) -> None:
    desk = make(max_in_flight=4)
    fill(desk, 40)
    for request in desk.sent():
        desk.answer(request, BROKEN)
    desk.step()
    desk.clock.advance(60)

    (probe,) = desk.sent()
    desk.answer(probe, ok(4))

    assert len(desk.sent()) == 4


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_that_asks_for_time_gets_it(desk: Desk, status: int) -> None:
    fill(desk, 4)
    answer_once(desk, Answer(status, retry_after="120"))

    desk.clock.advance(119)
    assert desk.sent() == []
    desk.clock.advance(2)

    assert len(desk.sent()) == 1


def test_a_server_that_worked_and_asks_for_time_gets_it(desk: Desk) -> None:
    fill(desk, 12)
    answer_once(desk, ok(4))
    (request,) = desk.taken()
    desk.answer(request, Answer(500, retry_after="120"))
    desk.step()

    desk.clock.advance(119)
    assert desk.sent() == []
    desk.clock.advance(2)

    assert len(desk.sent()) == 1


@pytest.mark.parametrize("asked", ["60", "Mon, 23 Nov 2026 12:01:00 GMT"])
def test_a_rate_limit_is_waited_for(desk: Desk, asked: str) -> None:
    everything = fill(desk, 4)
    answer_once(desk, Answer(429, retry_after=asked))

    desk.clock.advance(59)
    assert desk.sent() == []
    assert desk.pending == everything
    desk.clock.advance(10)

    assert desk.request().names == everything


def test_a_rate_limit_halves_the_rate(make: Callable[..., Desk]) -> None:
    desk = make(requests_per_minute=60)

    def minute(server: Polar) -> int:
        fill(desk, 4000, start=len(desk.pending))
        return len(desk.run(server, seconds=60))

    assert minute(Polar()) == pytest.approx(60, abs=5)
    minute(Polar(outage=Answer(429, retry_after="1")))

    assert minute(Polar()) < 55


def test_the_budget_of_requests_is_kept(make: Callable[..., Desk]) -> None:
    desk = make(requests_per_minute=300, max_in_flight=4)
    fill(desk, 2000)

    made = desk.run(Polar(), seconds=60)

    assert len(made) == pytest.approx(300, abs=12)


def test_a_block_is_looked_at_now_and_then_with_one_request(make: Callable[..., Desk]) -> None:
    desk = make(max_in_flight=4)
    fill(desk, 40)

    made = desk.run(Polar(outage=Answer(403)), seconds=300)

    assert 15 <= len(made) <= 25


@pytest.mark.parametrize("outcome", [Answer(401), BLOCKS["no token"]])
def test_another_token_is_tried_within_seconds(desk: Desk, outcome: Outcome) -> None:
    fill(desk, 4)
    answer_once(desk, outcome)
    assert desk.flusher.delivery.state == "blocked"

    assert desk.step() <= 2
    desk.token = "polar_oat_two"
    made = desk.run(Polar(), seconds=3)

    assert len(made) == 1
    assert desk.pending == []
    assert desk.flusher.delivery.state == "idle"


def test_the_same_token_is_not_tried_at_once_again(desk: Desk) -> None:
    fill(desk, 4)
    answer_once(desk, Answer(401))

    assert desk.run(Polar(outage=Answer(401)), seconds=14) == []


@each(REFUSALS)
def test_refusals_without_end_are_a_block_and_not_tried_at_once_again(
    make: Callable[..., Desk], outcome: Outcome
) -> None:
    desk = make(max_batch_events=500)
    fill(desk, 500)
    server = Polar(outage=outcome)
    desk.run(server, until=lambda: desk.flusher.delivery.state == "blocked")

    assert desk.run(server, seconds=14) == []
    assert "whatever we send" in desk.flusher.delivery.last_error


# -- memory ------------------------------------------------------------------------------


def most_read_ahead(desk: Desk, server: Callable[[Request], Outcome], **options: Any) -> int:
    """Return the most chunks that were read and not settled, at any time of a run."""
    most = 0

    def watched(request: Request) -> Outcome:
        nonlocal most
        most = max(most, desk.queue.read_ahead())
        return server(request)

    desk.run(watched, **options)
    return max(most, desk.queue.read_ahead())


def test_few_chunks_are_read_ahead_of_a_long_queue(make: Callable[..., Desk]) -> None:
    desk = make(max_in_flight=4)
    fill(desk, 4000)

    assert most_read_ahead(desk, Polar()) <= 6


def test_each_chunk_is_read_once(make: Callable[..., Desk]) -> None:
    desk = make(max_in_flight=4)
    fill(desk, 400)

    desk.run(Polar())

    assert desk.queue.read == sorted(set(desk.queue.read))


@each(ANY_TROUBLE)
def test_few_chunks_are_read_ahead_in_trouble(make: Callable[..., Desk], outcome: Outcome) -> None:
    desk = make(max_in_flight=4)
    fill(desk, 4000)

    assert most_read_ahead(desk, Polar(outage=outcome), seconds=3600) <= 12


def test_few_chunks_are_read_ahead_when_many_become_due_at_once(make: Callable[..., Desk]) -> None:
    desk = make(max_in_flight=4)
    for number in range(500):
        desk.put(number, due=NOON + 30)
    desk.step()
    desk.queue.read.clear()
    desk.clock.advance(31)

    assert most_read_ahead(desk, Polar()) <= 25
    assert desk.pending == []


def test_a_chunk_that_was_offered_is_not_read(desk: Desk) -> None:
    chunk = chunk_of("a", "b", "c", "d")
    keys = desk.queue.commit(Change(appends=[chunk]))
    desk.flusher.offer(keys, [chunk])

    desk.run(Polar())

    assert desk.queue.read == []
    assert desk.pending == []


def test_offers_are_kept_up_to_a_bound(make: Callable[..., Desk]) -> None:
    desk = make(max_batch_bytes=5 << 20)
    for number in range(30):
        chunk = chunk_of(number, filler=1 << 20)
        desk.flusher.offer(desk.queue.commit(Change(appends=[chunk])), [chunk])

    server = Polar()
    desk.run(server)

    assert desk.queue.read == list(range(8, 31))
    assert len(server.stored) == 30


def test_an_offer_that_comes_too_late_is_not_kept(desk: Desk) -> None:
    for number in range(100):
        chunk = chunk_of(number, filler=1 << 20)
        keys = desk.queue.commit(Change(appends=[chunk]))
        desk.run(Polar())
        desk.flusher.offer(keys, [chunk])
    chunk = chunk_of("last", filler=1 << 20)
    desk.flusher.offer(desk.queue.commit(Change(appends=[chunk])), [chunk])
    desk.queue.read.clear()

    desk.run(Polar())

    assert desk.queue.read == []


# -- events that cannot be found ----------------------------------------------------------


def test_events_that_are_pending_and_cannot_be_found_have_the_queue_looked_through_and_go(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the index of the rows is damaged."""
    desk.put("hidden", age=60)
    desk.put("b", age=60)
    looks: list[str] = []
    first_key, get = desk.queue.first_key, desk.queue.get
    monkeypatch.setattr(desk.queue, "first_key", lambda: first_key() if looks else 2)
    monkeypatch.setattr(desk.queue, "get", lambda key: get(key) if looks or key != 1 else None)
    monkeypatch.setattr(desk.queue, "audit", lambda: bool(looks.append("look")))

    made = desk.run(lambda request: ok(len(request.names)))

    assert [request.names for request in made] == [["b"], ["hidden"]]
    assert looks == ["look"]


# -- chunks that cannot be read ----------------------------------------------------------


@pytest.mark.parametrize("error", [DamagedChunkError("checksum"), NewerChunkError("version 99")])
def test_a_chunk_that_cannot_be_read_is_told_and_holds_nobody_up(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fill(desk, 12)
    get = desk.queue.get

    def unreadable(key: int) -> Any:
        if key == 2:
            raise error
        return get(key)

    monkeypatch.setattr(desk.queue, "get", unreadable)
    server = Polar()

    desk.run(server, until=lambda: len(server.stored) == 8)

    assert server.stored == ["0", "1", "2", "3", "8", "9", "10", "11"]
    monkeypatch.undo()
    assert desk.pending == ["4", "5", "6", "7"]
    told = [json.loads(text) for text in capsys.readouterr().err.splitlines() if str(error) in text]
    assert {(one["level"], one["chunk"]) for one in told} == {("error", 2)}


# -- status ------------------------------------------------------------------------------


def test_it_is_idle_with_nothing_to_do(desk: Desk) -> None:
    desk.step()

    delivery = desk.flusher.delivery
    assert (delivery.state, delivery.last_error, delivery.last_success) == ("idle", None, None)
    assert (delivery.next_attempt_in, delivery.held, delivery.requests) == (None, 0, 0)


def test_it_is_sending_while_a_request_is_under_way(desk: Desk) -> None:
    fill(desk, 4)
    desk.request()

    assert desk.flusher.delivery.state == "sending"
    assert desk.flusher.delivery.requests == 1


def test_it_is_idle_again_after_a_success_and_knows_when_it_was(desk: Desk) -> None:
    fill(desk, 4)
    request = desk.request()
    desk.clock.advance(3)
    desk.answer(request, ok(4))
    desk.step()

    delivery = desk.flusher.delivery
    assert (delivery.state, delivery.last_success) == ("idle", NOON + 3)


def shown(desk: Desk) -> tuple[str, str | None, float | None]:
    """Return the state, what happened, and when it is tried again."""
    delivery = desk.flusher.delivery
    reason = delivery.last_error and delivery.last_error.partition("; ")[0]
    return delivery.state, reason, delivery.next_attempt_in


def test_it_is_retrying_after_a_failure(desk: Desk) -> None:
    fill(desk, 4)

    answer_once(desk, NoAnswer("connect", "connection refused"))

    assert shown(desk) == ("retrying", "connection refused", pytest.approx(0.5))


def test_it_is_retrying_while_a_refused_event_waits_for_another_try(desk: Desk) -> None:
    desk.put("a", age=60)

    answer_once(desk, REFUSALS["400"])

    assert shown(desk) == ("retrying", "400: the server could not read the request", pytest.approx(15))


def test_it_is_throttled_after_a_429(desk: Desk) -> None:
    fill(desk, 4)

    answer_once(desk, Answer(429, retry_after="60"))

    assert shown(desk) == ("throttled", "429: the server's rate limit is used up", pytest.approx(62.5))


def test_it_is_throttled_while_events_wait_for_a_rate_that_warnings_brought_down(
    make: Callable[..., Desk],
) -> None:
    desk = make(requests_per_minute=60)
    fill(desk, 80)
    for _ in range(6):
        desk.run(Polar(outage=Answer(429)), until=lambda: desk.pace.throttled)
        desk.run(Polar(), until=lambda: not desk.pace.throttled)
    desk.step()

    delivery = desk.flusher.delivery
    assert delivery.state == "throttled"
    assert "requests a minute" in delivery.last_error
    assert delivery.next_attempt_in is not None


def test_the_pace_learns_that_events_wait_for_the_budget(make: Callable[..., Desk]) -> None:
    """A 429 tells more of the rate then: see test_limit."""
    desk = make(requests_per_minute=60)
    fill(desk, 80)

    desk.run(Polar(), until=lambda: desk.pace._limit._waited_at > 0)


def test_it_is_blocked_after_a_401_and_says_what_to_do(desk: Desk) -> None:
    fill(desk, 4)

    answer_once(desk, Answer(401))

    state, _, wait = shown(desk)
    assert (state, wait) == ("blocked", pytest.approx(15))
    error = desk.flusher.delivery.last_error
    assert error.startswith("401: the server does not accept the token; check POLAR_ACCESS_TOKEN")


def test_a_redirect_is_told_with_its_target(desk: Desk) -> None:
    fill(desk, 4)

    answer_once(desk, Answer(307, location="https://elsewhere.example/"))

    assert "redirects to https://elsewhere.example/" in desk.flusher.delivery.last_error


def test_the_last_error_stays_until_something_was_delivered(desk: Desk) -> None:
    fill(desk, 4)
    answer_once(desk, BROKEN)
    desk.clock.advance(60)
    request = desk.request()
    assert shown(desk)[1] == "the connection broke"

    desk.answer(request, ok(4))
    desk.step()

    assert shown(desk) == ("idle", None, None)


def test_the_next_attempt_comes_nearer(desk: Desk) -> None:
    fill(desk, 4)
    answer_once(desk, Answer(401))
    desk.clock.advance(10)
    desk.step()

    assert desk.flusher.delivery.next_attempt_in == pytest.approx(5)


def test_it_tells_how_much_waits_for_its_own_time(desk: Desk) -> None:
    desk.put("a", due=NOON + 30)
    desk.put("b", due=NOON + 40)

    desk.step()

    assert desk.flusher.delivery.held == 2


def test_trouble_is_logged_once(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    fill(desk, 4)

    desk.run(Polar(outage=BROKEN), seconds=3600)
    desk.run(Polar())

    (told,) = [json.loads(text) for text in capsys.readouterr().err.splitlines()]
    assert told["message"] == "nothing is delivered: events stay in the queue"
    assert (told["reason"], told["hint"]) == ("the connection broke", "it is tried again by itself")


def test_a_clock_that_differs_is_logged_once(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    fill(desk, 40)

    def a_day_apart(request: Request) -> Answer:
        return Answer(200, ok(len(request.names)).body, server_time=desk.clock.wall() - 86_400)

    desk.run(a_day_apart)

    (told,) = [json.loads(text) for text in capsys.readouterr().err.splitlines()]
    assert told["message"] == "this machine's clock is 86400 s ahead of Polar's: our own stamps go by Polar's"
    assert "chrony" in told["hint"]


@pytest.fixture
def logged() -> Iterator[list[MutableMapping[str, Any]]]:
    """What is logged, of some weight and more."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("info"))
    with structlog.testing.capture_logs() as entries:
        yield entries
    structlog.configure(**before)


def test_the_end_of_a_trouble_is_logged_if_its_beginning_was(
    desk: Desk, logged: list[MutableMapping[str, Any]]
) -> None:
    fill(desk, 4)
    desk.run(Polar(outage=BROKEN), seconds=3600)
    desk.run(Polar())
    fill(desk, 4, start=4)
    turns = itertools.cycle([BROKEN, ok(4)])
    desk.run(lambda _: next(turns))

    assert [(line["log_level"], line["event"]) for line in logged] == [
        ("warning", "nothing is delivered: events stay in the queue"),
        ("info", "delivery works again"),
    ]


def test_a_failure_that_the_next_try_mends_is_not_logged(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(desk, 40)
    turns = itertools.cycle([BROKEN, ok(4)])

    desk.run(lambda _: next(turns))

    assert capsys.readouterr().err == ""


def test_it_tells_since_when_it_is_in_trouble(desk: Desk) -> None:
    fill(desk, 4)
    desk.clock.advance(10)
    desk.run(Polar(outage=BROKEN), seconds=300)

    assert desk.flusher.delivery.since == pytest.approx(NOON + 10, abs=0.1)
    desk.run(Polar())
    assert desk.flusher.delivery.since > NOON + 300


# -- its thread --------------------------------------------------------------------------


@pytest.fixture
def live(make: Callable[..., Desk]) -> Desk:
    """A desk in real time, with its threads; the queue holds one full batch."""
    desk = make(clock=SystemClock(), threads=True)
    desk.put("a", "b", "c", "d")
    desk.writer.start()
    desk.flusher.start()
    wait_until(lambda: desk.sender.requests, what="the first request")
    return desk


def test_its_thread_delivers(live: Desk) -> None:
    live.sender.requests[0].answer(ok(4))
    wait_until(lambda: not live.queue.books().pending, what="the settlement")
    live.put("e", "f", "g", "h")
    wait_until(lambda: len(live.sender.requests) == 2, what="the second request")
    live.sender.requests[1].answer(ok(4))
    wait_until(lambda: not live.queue.books().pending, what="the settlement")

    live.flusher.stop()
    live.writer.stop()

    assert counts(live.queue.books()) == {"accepted": 8, "delivered": 8}
    assert not live.flusher.alive


def test_stopping_breaks_a_request_off_and_leaves_its_events_in_the_queue(live: Desk) -> None:
    live.flusher.stop()
    live.writer.stop()

    assert live.pending == ["a", "b", "c", "d"]
    assert live.dead == []


def test_an_answer_that_came_before_the_end_is_settled(live: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live.sender, "close", lambda: live.sender.requests[0].answer(ok(4)))

    live.flusher.stop()
    live.writer.stop()

    assert live.pending == []
    assert counts(live.queue.books()) == {"accepted": 4, "delivered": 4}


def test_it_stops_before_any_request_was_made(make: Callable[..., Desk]) -> None:
    desk = make(clock=SystemClock(), threads=True)
    desk.flusher.start()

    desk.flusher.stop()

    assert not desk.flusher.alive


def test_the_next_start_sends_what_was_left(make: Callable[..., Desk], live: Desk) -> None:
    live.flusher.stop()
    live.writer.stop()
    again = make(clock=FakeClock(wall=live.clock.wall() + 60))
    again.flusher._store = again.flusher._intake._store = again.queue = live.queue
    again.writer._queue = live.queue

    server = Polar()
    again.run(server)

    assert server.stored == ["a", "b", "c", "d"]
    assert names(b"") == [""]
    assert again.pending == []
