"""Whether a batch is bad, or the server is in trouble: what each piece of evidence is worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.queues import chunk_of

from agent.batch import Batch, Lease
from agent.flusher.suspicion import FAILURES_TO_BURY, MAX_SUSPECTS, REFUSALS_TO_HOLD, Evidence, Fate, Suspects

if TYPE_CHECKING:
    from collections.abc import Callable

TOO_LARGE, BAD_REQUEST = 413, 400


def batch(*names: str) -> Batch:
    return Batch("b", [Lease(1, chunk_of(*names)).part()])


class Server:
    """What the requests of a test come to, in order."""

    def __init__(self) -> None:
        self.evidence = Evidence()

    def _sent(self) -> int:
        self.evidence.sent += 1
        return self.evidence.sent

    def takes(self, one: Batch | None = None) -> None:
        self.evidence.took(self._sent(), one or batch("other"))

    def takes_nothing_at_all(self) -> None:
        """Take a batch without events."""
        self.evidence.probed(self._sent(), took=True)

    def fails_on_nothing(self) -> None:
        self.evidence.probed(self._sent(), took=False)

    def fails(self, one: Batch, *, untried: bool = False) -> Fate:
        self._sent()
        return self.evidence.after_failure(one, untried=untried)

    def refuses(self, one: Batch, status: int = BAD_REQUEST) -> Fate:
        self._sent()
        return self.evidence.after_refusal(one, status)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture(params=["fails", "refuses"])
def turns_down(request: pytest.FixtureRequest, server: Server) -> Callable[[Batch], Fate]:
    """Both ways in which a batch can come back without a reason."""
    return getattr(server, request.param)


# -- one event -----------------------------------------------------------------------------


def test_a_lone_event_is_buried_when_it_was_turned_down_so_often_while_others_passed(
    server: Server, turns_down: Callable[[Batch], Fate]
) -> None:
    one, fates = batch("one"), []
    while Fate.BURY not in fates:
        fates.append(turns_down(one))
        server.takes()

    assert len(fates) == FAILURES_TO_BURY >= 6, "a server that fails now and then must not cost an event"


def test_a_lone_event_is_not_buried_while_no_event_passes(
    server: Server, turns_down: Callable[[Batch], Fate]
) -> None:
    """Empty batches pass; its database cannot be written, say."""
    one, fates = batch("one"), []
    for _ in range(50):
        fates.append(turns_down(one))
        server.takes_nothing_at_all()

    assert Fate.BURY not in fates


def test_what_passed_before_its_first_failure_says_nothing_of_an_event(
    server: Server, turns_down: Callable[[Batch], Fate]
) -> None:
    one, fates = batch("one"), []
    server.takes()
    for _ in range(50):
        fates.append(turns_down(one))
        server.takes_nothing_at_all()

    assert Fate.BURY not in fates


def test_failures_between_which_nothing_passed_are_one(
    server: Server, turns_down: Callable[[Batch], Fate]
) -> None:
    one = batch("one")
    turns_down(one)
    server.takes()

    fates = [turns_down(one) for _ in range(50)]

    assert Fate.BURY not in fates


def test_failures_begin_anew_when_the_server_itself_fails(
    server: Server, turns_down: Callable[[Batch], Fate]
) -> None:
    one, fates = batch("one"), []
    for _ in range(10):
        for _ in range(FAILURES_TO_BURY - 1):
            fates.append(turns_down(one))
            server.takes()
        server.fails_on_nothing()

    assert Fate.BURY not in fates


def test_failures_begin_anew_when_another_batch_failed_that_passed_later(
    server: Server, turns_down: Callable[[Batch], Fate]
) -> None:
    """So the server fails at random."""
    one, fates = batch("one"), []
    for _ in range(10):
        for _ in range(FAILURES_TO_BURY - 1):
            fates.append(turns_down(one))
            server.takes()
        other = batch("other")
        server.fails(other)
        server.takes(other)

    assert Fate.BURY not in fates


def test_an_event_that_is_too_large_alone_needs_no_more_than_another_that_passed(server: Server) -> None:
    one = batch("one")
    assert server.refuses(one, TOO_LARGE) is Fate.WAIT
    server.takes()

    assert server.refuses(one, TOO_LARGE) is Fate.BURY


def test_half_of_what_was_turned_down_while_others_passed_is_blamed_already(
    server: Server, turns_down: Callable[[Batch], Fate]
) -> None:
    whole = batch("one", "two")
    server.fails(whole)
    server.takes()
    server.fails(whole)
    one, _ = whole.halves()
    fates = []
    while Fate.BURY not in fates:
        fates.append(turns_down(one))
        server.takes_nothing_at_all()

    assert len(fates) == FAILURES_TO_BURY


# -- several events ------------------------------------------------------------------------


def test_what_is_refused_is_halved_at_once(server: Server) -> None:
    assert server.refuses(batch("a", "b")) is Fate.HALVE


def test_what_the_server_fails_on_is_halved_once_others_passed(server: Server) -> None:
    whole = batch("a", "b")
    assert server.fails(whole) is Fate.WAIT
    assert server.fails(whole) is Fate.WAIT
    server.takes()

    assert server.fails(whole) is Fate.HALVE


def test_what_is_larger_than_what_is_known_to_work_is_halved_at_once(server: Server) -> None:
    assert server.fails(batch("a", "b"), untried=True) is Fate.HALVE


def test_a_batch_that_fails_stands_aside_while_the_server_works(server: Server) -> None:
    server.takes()

    assert server.fails(batch("a", "b")) is Fate.ASIDE


def test_a_server_that_takes_nothing_any_more_is_waited_for(server: Server) -> None:
    server.takes()
    fates = [server.fails(batch("a", "b")) for _ in range(20)]

    assert fates[-1] is Fate.WAIT


def test_failures_count_since_something_passed(server: Server) -> None:
    fates = []
    for _ in range(40):
        server.takes()
        fates.append(server.fails(batch("a", "b")))

    assert set(fates) == {Fate.ASIDE}


def test_an_event_that_fails_alone_is_waited_for_until_it_shows_that_the_server_works(server: Server) -> None:
    one = batch("one")
    server.takes()
    assert server.fails(one) is Fate.WAIT

    server.takes()

    assert server.fails(one) is Fate.ASIDE


def test_what_is_refused_alone_stands_aside_once_others_passed(server: Server) -> None:
    one = batch("one")
    assert server.refuses(one) is Fate.WAIT
    server.takes()

    assert server.refuses(one) is Fate.ASIDE


def test_several_events_are_doubted_when_they_failed_twice_and_one_when_others_passed(server: Server) -> None:
    several, one = batch("a", "b"), batch("one")
    doubted = []
    for _ in range(2):
        server.fails(several)
        server.fails(one)
        doubted += [server.evidence.doubted(several), server.evidence.doubted(one)]
    server.takes()

    assert doubted == [False, False, True, False]
    assert server.evidence.doubted(one)


def test_refusals_of_everything_are_no_matter_of_the_events(server: Server) -> None:
    assert REFUSALS_TO_HOLD > 2 * 10, "to find one bad event among a thousand takes as many"
    for _ in range(REFUSALS_TO_HOLD):
        server.refuses(batch("a", "b"))
        assert not server.evidence.all_refused
    server.refuses(batch("a"))
    assert server.evidence.all_refused

    server.takes()

    assert not server.evidence.all_refused


# -- what was put aside --------------------------------------------------------------------


def test_suspects_go_by_their_moments() -> None:
    suspects = Suspects()
    later, sooner = batch("a"), batch("b")
    suspects.add(20.0, later)
    suspects.add(10.0, sooner)

    assert (suspects.due(9.0), suspects.wait(9.0)) == (False, 1.0)
    assert suspects.due(10.0)
    assert [suspects.pop(), suspects.pop()] == [sooner, later]


def test_hastened_suspects_go_at_once_in_the_same_order() -> None:
    suspects = Suspects()
    batches = [batch("a") for _ in range(9)]
    for number, one in enumerate(batches):
        suspects.add(100.0 - number, one)

    suspects.hasten()
    suspects.add(1.0, batch("new"))

    assert suspects.due(0.0)
    assert [suspects.pop() for _ in range(9)] == batches[::-1]
    assert not suspects.due(0.0)


def test_many_or_heavy_suspects_go_before_anything_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    suspects = Suspects()
    for _ in range(MAX_SUSPECTS):
        suspects.add(1.0, batch("a"))
    assert not suspects.many
    suspects.add(1.0, batch("a"))
    assert suspects.many

    monkeypatch.setattr("agent.flusher.suspicion.MOST_BYTES", suspects.pop().weight * MAX_SUSPECTS - 1)
    assert suspects.heavy
    suspects.pop()
    assert not suspects.heavy


def test_the_smallest_that_can_be_halved_is_searched_first() -> None:
    suspects = Suspects()
    small = batch("a", "b")
    for one in (batch("a", "b", "c"), small, batch("a")):
        suspects.add(1.0, one)

    assert [half.events for half in suspects.halve()] == [1, 1]
    assert [half.events for half in suspects.halve()] == [1, 2]
    assert suspects.halve() == ()
    assert len(suspects) == 1
