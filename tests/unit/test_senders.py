"""The threads that carry requests: one each, and none that anything can end before its time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from support.delivery import BROKEN, ScriptedSender, ok
from support.processes import wait_until

from agent.answer import NoAnswer
from agent.batch import NOTHING
from agent.clock import SystemClock
from agent.flusher.senders import Result, Senders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.answer import Outcome
    from agent.batch import Body


class Polar(ScriptedSender):
    """Fails as the test says, by a mistake."""

    mistake: Exception | None = None

    def ingest(self, body: Body) -> Outcome:
        if self.mistake is not None:
            raise self.mistake
        return super().ingest(body)


@pytest.fixture
def polar() -> Polar:
    return Polar()


@pytest.fixture
def senders(polar: Polar) -> Iterator[Senders]:
    senders = Senders(lambda: polar, SystemClock(), threading.Event())
    yield senders
    senders.close()


def results(senders: Senders) -> Callable[[], list[Result]]:
    """Return a function that takes what came back so far."""
    found: list[Result] = []

    def take() -> list[Result]:
        found.extend(senders.results())
        return found

    return take


def test_each_request_under_way_has_a_thread_of_its_own(senders: Senders, polar: Polar) -> None:
    for number in range(3):
        senders.send(number, None, NOTHING)
    wait_until(lambda: len(polar.requests) == 3, what="three requests at once")
    took = results(senders)

    for number in (2, 0, 1):
        polar.requests[number].answer(ok(number))
    wait_until(lambda: len(took()) == 3, what="the answers")

    assert sorted(result.number for result in took()) == [0, 1, 2]
    assert {result.outcome for result in took()} == {ok(number) for number in range(3)}
    assert senders.in_flight == 0


def test_a_thread_that_is_free_is_used_again(senders: Senders, polar: Polar) -> None:
    took = results(senders)
    for number in range(3):
        senders.send(number, None, NOTHING)
        wait_until(lambda number=number: len(polar.requests) == number + 1, what="a request")
        polar.requests[-1].answer(ok(0))
        wait_until(lambda number=number: len(took()) == number + 1, what="an answer")

    assert len(senders._threads) == 1


def test_a_mistake_of_ours_in_the_client_is_a_request_without_an_answer(
    senders: Senders, polar: Polar
) -> None:
    polar.mistake = RuntimeError("a mistake")
    took = results(senders)

    senders.send(1, None, NOTHING)

    wait_until(took, what="the result")
    assert took()[0].outcome == NoAnswer("broken", "RuntimeError in the HTTP client")


def test_closing_breaks_off_what_is_under_way(senders: Senders, polar: Polar) -> None:
    senders.send(1, None, NOTHING)
    wait_until(lambda: polar.requests, what="the request")

    senders.close()

    assert [result.outcome for result in senders.results()] == [BROKEN]
