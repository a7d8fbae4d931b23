"""How large a batch may be: grows with care, shrinks at once, remembers for a while."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.ceiling import MOST_EVENTS, Ceiling

PATIENCE = 10.0


def ceiling(start: int = 500, most: int = MOST_EVENTS) -> Ceiling:
    return Ceiling(start, most, PATIENCE)


def passes(tried: Ceiling, *, seconds: float = 0.1, now: float = 0.0, scarce: bool = False) -> int:
    """Have a full batch of the size that is asked for pass; return that size."""
    size = tried.size(now)
    tried.sent(size)
    tried.passed(size, seconds, now, scarce=scarce)
    return size


def test_it_doubles_with_each_full_quick_answer_up_to_the_most() -> None:
    tried = ceiling()

    assert [passes(tried) for _ in range(6)] == [500, 1000, 2000, 4000, 4681, 4681]


def test_what_is_not_full_makes_it_no_larger() -> None:
    tried = ceiling()

    tried.passed(300, 0.1, 0.0, scarce=False)

    assert tried.size(0.0) == 500


def test_a_chosen_most_is_never_exceeded() -> None:
    tried = ceiling(500, 700)

    assert [passes(tried) for _ in range(3)] == [500, 700, 700]


@pytest.mark.parametrize(
    ("seconds", "scarce", "following"),
    [
        (0.9, False, 1000),
        (1.1, False, 500),  # the server is strained
        (1.1, True, 1000),  # it is, but fewer requests are what is wanted
        (5.1, True, 500),
        (10.1, False, 250),  # slow: half at once
        (10.1, True, 250),
    ],
)
def test_the_time_of_an_answer_says_what_comes_next(seconds: float, scarce: bool, following: int) -> None:
    tried = ceiling()

    passes(tried, seconds=seconds, scarce=scarce)

    assert tried.size(0.0) == following


@pytest.mark.parametrize(
    ("seconds", "scarce", "works"),
    [
        (0.59, False, 1000),  # 0.4 ms for each event before, 0.59 now
        (0.61, False, 500),
        (0.61, True, 1000),
    ],
)
def test_a_larger_batch_must_not_take_much_more_time_for_each_event(
    seconds: float, scarce: bool, works: int
) -> None:
    tried = ceiling()
    passes(tried, seconds=0.2)

    passes(tried, seconds=seconds, scarce=scarce)

    assert tried.works == works


def test_the_time_for_each_event_says_nothing_while_answers_take_none() -> None:
    tried = ceiling()
    passes(tried, seconds=0.01)

    passes(tried, seconds=0.2)

    assert tried.works == 1000


def test_only_one_batch_tries_a_larger_size() -> None:
    tried = ceiling()
    passes(tried)
    tried.sent(tried.size(0.0))

    assert tried.size(0.0) == 500


def fails(tried: Ceiling, size: int, *, now: float = 0.0) -> bool:
    """Have a batch fail and its pieces pass; return whether that was enough to learn from."""
    tried.sent(size)
    tried.failed(size, unnamed=True)
    return tried.too_much(size, now)


def test_an_untried_size_that_fails_twice_while_its_pieces_pass_is_too_much() -> None:
    tried = ceiling()
    passes(tried)

    assert not fails(tried, 1000)
    assert tried.limit is None
    assert fails(tried, 1000)

    assert (tried.works, tried.limit) == (500, 1000)


def test_between_what_works_and_what_is_too_much_the_middle_is_tried() -> None:
    tried = ceiling()
    passes(tried)
    fails(tried, 1000)
    fails(tried, 1000)

    assert [passes(tried) for _ in range(6)] == [500, 750, 875, 937, 968, 968]


def test_a_size_that_worked_is_too_much_when_it_fails_three_times() -> None:
    tried = ceiling()
    passes(tried)

    assert [fails(tried, 500) for _ in range(3)] == [False, False, True]

    assert (tried.works, tried.limit) == (250, 500)


def test_a_pass_of_the_size_in_between_takes_it_all_back() -> None:
    tried = ceiling()
    for _ in range(2):
        fails(tried, 500)
    tried.passed(500, 0.1, 0.0, scarce=False)

    assert [fails(tried, 500) for _ in range(2)] == [False, False]


def test_a_pass_of_a_smaller_size_takes_nothing_back() -> None:
    tried = ceiling()
    passes(tried)
    for _ in range(2):
        fails(tried, 500)
    tried.passed(499, 0.1, 0.0, scarce=False)

    assert fails(tried, 500)


def test_small_pieces_that_fail_say_nothing_of_a_size_that_works() -> None:
    tried = ceiling()
    passes(tried)

    assert not any(fails(tried, 250) for _ in range(20))


def test_small_pieces_count_while_nothing_larger_has_passed() -> None:
    tried = ceiling()
    for size in (500, 250, 125):
        tried.failed(size, unnamed=True)

    assert fails(tried, 62)

    assert (tried.works, tried.limit) == (31, 62)


def test_what_the_server_says_itself_needs_one() -> None:
    tried = ceiling()

    assert tried.too_much(500, 0.0, sure=True)

    assert (tried.works, tried.limit) == (250, 500)


def test_what_is_known_to_be_too_much_is_learned_once() -> None:
    tried = ceiling()
    tried.too_much(500, 0.0, sure=True)

    assert not tried.too_much(500, 0.0, sure=True)
    assert not tried.too_much(600, 0.0, sure=True)
    assert tried.too_much(499, 0.0, sure=True)


def test_one_event_alone_is_never_too_many() -> None:
    assert not ceiling().too_much(1, 0.0, sure=True)


def test_a_bound_that_is_passed_is_forgotten() -> None:
    tried = ceiling()
    tried.too_much(500, 0.0, sure=True)

    tried.passed(500, 0.1, 0.0, scarce=False)

    assert (tried.works, tried.limit) == (500, None)


def test_after_one_that_was_refuted_the_next_is_remembered_as_shortly_as_the_first() -> None:
    tried = ceiling()
    for now in (0.0, 100.0, 300.0):
        tried.size(now)
        tried.too_much(500, now, sure=True)
    tried.size(1000.0)
    tried.passed(500, 0.1, 1000.0, scarce=False)

    tried.too_much(500, 1000.0, sure=True)

    tried.size(1059.0)
    assert tried.limit == 500
    tried.size(1061.0)
    assert tried.limit is None


def test_a_bound_is_remembered_longer_each_time_that_it_holds() -> None:
    tried = ceiling()
    now, spans = 0.0, []
    for _ in range(9):
        tried.too_much(500, now, sure=True)
        learned = now
        while tried.limit is not None:
            now += 1.0
            tried.size(now)
        spans.append(now - learned)

    assert spans == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]


@pytest.mark.parametrize(("size", "works"), [(500, 250), (100, 50), (15, 10), (1, 10)])
def test_a_time_out_halves_it_down_to_a_few_events(size: int, works: int) -> None:
    tried = ceiling()

    tried.timed_out(size)

    assert tried.works == works


def test_four_time_outs_of_one_size_halve_it_once() -> None:
    tried = ceiling()

    for _ in range(4):
        tried.timed_out(500)

    assert tried.works == 250


def test_slow_answers_halve_it_down_to_what_cannot_be_too_much() -> None:
    tried = ceiling()
    for _ in range(20):
        tried.passed(tried.size(0.0), PATIENCE + 1, 0.0, scarce=False)

    assert tried.works == 100


def test_a_slow_answer_to_little_says_nothing_of_the_size() -> None:
    tried = ceiling()

    tried.passed(3, PATIENCE + 1, 0.0, scarce=False)

    assert tried.works == 500


def test_it_recovers_from_time_outs() -> None:
    tried = ceiling()
    for size in (500, 250, 125):
        tried.timed_out(size)

    assert [passes(tried) for _ in range(5)] == [62, 124, 248, 496, 992]


def test_a_size_that_was_long_not_needed_is_not_begun_with() -> None:
    tried = ceiling()
    for _ in range(4):
        passes(tried)
    assert tried.size(500.0) == 4681

    assert tried.size(601.0) == 500


@given(
    st.integers(1, 5000),
    st.lists(
        st.tuples(
            st.sampled_from(["pass", "fail", "slow", "time out", "too much", "wait"]), st.integers(1, 5000)
        )
    ),
)
def test_whatever_happens_it_is_at_least_one_and_at_most_the_most(
    start: int, history: list[tuple[str, int]]
) -> None:
    tried = Ceiling(start, MOST_EVENTS, PATIENCE)
    now = 0.0
    for what, number in history:
        size = min(number, tried.size(now))
        tried.sent(size)
        match what:
            case "pass":
                tried.passed(size, 0.1, now, scarce=False)
            case "slow":
                tried.passed(size, 20.0, now, scarce=True)
            case "fail":
                tried.failed(size, unnamed=True)
            case "time out":
                tried.timed_out(size)
            case "too much":
                tried.failed(size, unnamed=True)
                tried.too_much(size, now)
            case _:
                now += number
        assert 1 <= tried.size(now) <= max(start, MOST_EVENTS)
        assert tried.works >= 1


@given(st.integers(1, MOST_EVENTS))
def test_any_bound_of_a_server_is_come_close_to(most: int) -> None:
    tried = ceiling()
    for _ in range(60):
        size = tried.size(0.0)
        tried.sent(size)
        if size <= most:
            tried.passed(size, 0.1, 0.0, scarce=False)
        else:
            fails(tried, size)

    assert most * 15 / 16 - 1 <= tried.works <= most
