"""Dead letters have a bound: at it, bad events wait and the others go on; nothing is dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.delivery import Desk, Polar, named, ok
from support.queues import counts

from agent.flusher import graveyard
from agent.queue import Change

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.delivery import Request

    from agent.answer import Outcome


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    desks: list[Desk] = []

    def make(**choices: object) -> Desk:
        desks.append(Desk(tmp_path, **choices))
        return desks[-1]

    yield make
    for desk in desks:
        desk.close()


class Strict(Polar):
    """Names every event whose id begins with `bad`."""

    def __call__(self, request: Request) -> Outcome:
        bad = [place for place, name in enumerate(request.names) if name.startswith("bad")]
        return named(*bad) if bad else super().__call__(request)


def purge(desk: Desk, count: int) -> None:
    numbers = [letter.id for letter in desk.queue.dead_letters()]
    desk.queue.commit(Change(purged=numbers[:count]))


def run(desk: Desk, polar: Polar, seconds: float = 30.0) -> list[Request]:
    return desk.run(polar, seconds=seconds)


def test_beyond_the_bound_bad_events_wait_and_good_ones_are_delivered(made: Callable[..., Desk]) -> None:
    desk, polar = made(max_dead_letters=3), Strict()
    for n in range(5):
        desk.put(f"good{n}", f"bad{n}", age=60)

    run(desk, polar)

    assert desk.dead == ["bad0", "bad1", "bad2"]
    assert desk.pending == ["bad3", "bad4"]
    assert sorted(polar.stored) == [f"good{n}" for n in range(5)]
    assert counts(desk.queue.books()) == {"accepted": 10, "delivered": 5, "dead": 3, "pending": 2}


def test_the_bound_is_kept_to_the_letter_within_one_batch(made: Callable[..., Desk]) -> None:
    desk = made(max_dead_letters=2)
    desk.put("bad0", "bad1", "bad2", "bad3", age=60)

    run(desk, Strict())

    assert desk.dead == ["bad0", "bad1"]
    assert desk.pending == ["bad2", "bad3"]


def test_what_waits_is_buried_once_there_is_room_without_another_request(made: Callable[..., Desk]) -> None:
    desk = made(max_dead_letters=2)
    desk.put("bad0", "bad1", "bad2", "bad3", age=60)
    requests = run(desk, Strict())

    purge(desk, 1)
    requests += run(desk, Strict())

    assert desk.dead == ["bad1", "bad2"]
    assert desk.pending == ["bad3"]
    purge(desk, 2)
    requests += run(desk, Strict())
    assert desk.dead == ["bad3"]
    assert desk.pending == []
    assert len(requests) == 1


def test_it_says_what_waits_and_what_to_do(made: Callable[..., Desk]) -> None:
    desk = made(max_dead_letters=1)
    desk.put("bad0", "bad1", age=60)
    run(desk, Strict())

    error = desk.flusher.delivery.last_error
    assert error is not None
    assert "1 refused events find no place among 1 dead letters" in error
    assert "max_dead_letters" in error
    purge(desk, 1)
    run(desk, Strict())
    desk.step()
    assert desk.flusher.delivery.last_error is None


def test_when_too_much_waits_nothing_is_sent_until_there_is_room(
    made: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits is kept in memory, which is bounded, too."""
    monkeypatch.setattr(graveyard, "_MOST_WAITING_BYTES", 300)
    desk, polar = made(max_dead_letters=1), Strict()
    for n in range(20):
        desk.put(f"bad{n}", age=60)
    desk.put("good", age=60)

    run(desk, polar)

    assert desk.flusher.delivery.state == "blocked"
    assert polar.stored == []
    assert desk.queue.read_ahead() < 10
    desk.flusher._graveyard.most = 100
    run(desk, polar)
    assert polar.stored == ["good"]
    assert len(desk.dead) == 20
    assert desk.flusher.delivery.state == "idle"


def test_what_waits_does_not_set_off_a_search_for_lost_events(
    made: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = made(max_dead_letters=1)
    monkeypatch.setattr(desk.queue, "audit", lambda: pytest.fail("it searched"))
    desk.put("bad0", "bad1", age=60)

    assert len(run(desk, Strict(), seconds=600)) == 1


def test_it_warns_before_the_bound_once(made: Callable[..., Desk], capfd: pytest.CaptureFixture) -> None:
    desk = made(max_dead_letters=10, max_batch_events=1)
    for n in range(9):
        desk.put(f"bad{n}", age=60)
    run(desk, Strict())

    assert capfd.readouterr().err.count("many dead letters") == 1
    purge(desk, 5)
    for n in range(9, 14):
        desk.put(f"bad{n}", age=60)
    run(desk, Strict())
    assert capfd.readouterr().err.count("many dead letters") == 1


def test_a_letter_holds_what_is_needed_to_judge_it(made: Callable[..., Desk]) -> None:
    desk = made()
    desk.put("good", "bad", age=60)
    first = desk.request()
    sent = desk.clock.wall()
    desk.clock.advance(3)
    desk.answer(first, named(1))
    desk.answer(desk.request(), ok(1))
    desk.step()

    (letter,) = desk.queue.dead_letters()
    assert (letter.external_id, letter.name, letter.status, letter.attempts) == ("bad", "usage", 422, 1)
    assert letter.reason == "name: Input should be a valid string"
    assert letter.errors == [
        {"type": "string_type", "loc": ["name"], "msg": "Input should be a valid string"}
    ], "the server's echo of the data is not kept"
    assert (letter.first_attempt, letter.died_at) == (sent, sent + 3)
    assert letter.batch
