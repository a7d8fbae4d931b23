"""Who wants everything now gets a try at once, and believes what stands in the way after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.delivery import BROKEN, Desk, Polar, named, ok

from agent.answer import Answer, NoAnswer, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

REFUSED = Answer(401)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    """Make desks; each waits for as long as it may."""
    desks: list[Desk] = []

    def make(**choices: object) -> Desk:
        desks.append(Desk(tmp_path, **{"chance": lambda: 1.0, **choices}))
        return desks[-1]

    yield make
    for desk in desks:
        desk.close()


@pytest.fixture
def desk(make: Callable[..., Desk]) -> Desk:
    """One with a full batch in its queue."""
    desk = make()
    desk.put("a", "b", "c", "d")
    return desk


def in_trouble(desk: Desk, outcome: Outcome) -> None:
    """Have the server answer so, until the next try is some time off."""
    while requests := desk.sent():
        for request in requests:
            desk.answer(request, outcome)


def is_settled(desk: Desk, demand: int) -> bool:
    """Tell whether what is shown is no older than a demand."""
    desk.step()
    return desk.flusher.delivery.tried >= demand


@pytest.mark.parametrize(
    "outcome", [BROKEN, NoAnswer("connect", "refused"), Answer(503), Answer(500), Answer(400), REFUSED]
)
def test_what_waits_for_another_try_is_tried_at_once(desk: Desk, outcome: Outcome) -> None:
    in_trouble(desk, outcome)

    desk.flusher.hurry()

    assert desk.requests.requests[0].names == ["a", "b", "c", "d"]
    assert desk.request().names[0] == "a"


@pytest.mark.parametrize(
    "outcome", [Answer(429, retry_after="60"), Answer(503, retry_after="60"), Answer(429)]
)
def test_what_the_server_asked_for_is_waited_for_all_the_same(desk: Desk, outcome: Outcome) -> None:
    in_trouble(desk, outcome)

    demand = desk.flusher.hurry()

    assert desk.sent() == []
    assert is_settled(desk, demand)


def test_a_block_is_believed_after_the_try(desk: Desk) -> None:
    in_trouble(desk, REFUSED)
    demand = desk.flusher.hurry()
    request = desk.request()
    assert desk.flusher.delivery.state == "blocked"
    assert not is_settled(desk, demand)

    desk.answer(request, REFUSED)

    assert is_settled(desk, demand)
    assert desk.flusher.delivery.state == "blocked"


def test_what_is_under_way_already_is_a_try(desk: Desk) -> None:
    request = desk.request()
    demand = desk.flusher.hurry()
    assert not is_settled(desk, demand)

    desk.answer(request, REFUSED)

    assert is_settled(desk, demand)


def test_each_demand_is_one_try(desk: Desk) -> None:
    in_trouble(desk, REFUSED)
    desk.flusher.hurry()
    desk.answer(desk.request(), REFUSED)

    assert desk.run(Polar(outage=REFUSED), seconds=14) == []
    demand = desk.flusher.hurry()
    desk.answer(desk.request(), ok(4))

    assert is_settled(desk, demand)
    assert desk.pending == []


def test_with_nothing_to_send_there_is_nothing_to_try(make: Callable[..., Desk]) -> None:
    desk = make()
    in_vain = desk.flusher.hurry()

    assert is_settled(desk, in_vain)


def test_when_nothing_can_be_sent_there_is_nothing_to_try(
    make: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.flusher.graveyard._MOST_WAITING_BYTES", 10)
    desk = make(max_dead_letters=0)
    desk.put("a", "b", "c", "d")
    desk.put("e", "f", "g", "h")
    desk.answer(desk.request(), named(0, 1, 2, 3))
    desk.step()
    assert desk.flusher.delivery.state == "blocked"

    assert is_settled(desk, desk.flusher.hurry())


def test_batches_that_were_put_aside_go_in_their_order(make: Callable[..., Desk]) -> None:
    desk = make(max_in_flight=2)
    desk.put("a", "b", "c", "d")
    desk.put("e", "f", "g", "h")
    for request in desk.sent():
        desk.answer(request, Answer(500))
    assert desk.sent() == []

    desk.flusher.hurry()

    first = desk.request()
    assert first.names == ["a", "b", "c", "d"]
    desk.answer(first, ok(4))
    assert desk.request().names == ["e", "f", "g", "h"]


def test_a_demand_that_ended_hurries_nobody(make: Callable[..., Desk]) -> None:
    desk = make()
    desk.flusher.hurry()
    desk.flusher.hurry()
    desk.flusher.relax()
    desk.flusher.relax()

    desk.put("a")

    assert desk.sent() == []
