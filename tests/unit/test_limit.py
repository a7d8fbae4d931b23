"""What 429s say of the server's limit: found, kept and shared where there is one; not believed where not."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.limits import Server, Street

from agent.limit import Limit, Minute

BUDGET = 300.0
START = 1000.0


def limit() -> Limit:
    return Limit(lambda: 0.5)


def send(one: Limit, count: int, since: float, until: float) -> None:
    """Have requests go out at equal distances."""
    for number in range(count):
        one.sent(since + (until - since) * number / count)


# -- the last minute -------------------------------------------------------------------


def test_a_minute_counts_what_is_less_than_a_minute_old() -> None:
    minute = Minute()
    minute.add(0.0, 3)
    minute.add(30.0, 4)

    assert [minute.count(now) for now in (30.0, 59.0, 61.0, 89.0, 91.0, 10_000.0)] == [7, 7, 4, 4, 0, 0]


def test_what_was_refused_was_not_let_through() -> None:
    minute = Minute()
    minute.add(0.0, 3)
    minute.add(1.0, -1)

    assert minute.count(1.0) == 2


@pytest.mark.parametrize(
    ("age", "rate"), [(0.0, 120), (5.0, 120), (10.0, 60), (30.0, 20), (60.0, 10), (3600.0, 10)]
)
def test_before_a_minute_is_over_its_number_is_reckoned(age: float, rate: float) -> None:
    minute = Minute()
    minute.add(START, 10)

    assert minute.rate(START, START - age) == pytest.approx(rate)


def test_the_best_minute_is_remembered_for_ten_minutes_and_not_for_twenty() -> None:
    minute = Minute()
    minute.add(0.0, 50)
    seen = []
    for now in range(60, 1500, 60):
        minute.add(float(now), 10)
        seen.append(minute.best(float(now)))

    assert set(seen[:10]) == {50}
    assert set(seen[20:]) == {10, 11, 12, 20} & set(seen[20:])
    assert max(seen[20:]) < 50


def test_the_best_minute_is_forgotten_when_nothing_was_sent_for_long() -> None:
    minute = Minute()
    minute.add(0.0, 50)

    assert minute.best(1201.0) == 0


# -- one 429 ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("through", "rate"),
    [
        (0, 75),  # far too fast
        (37, 75),
        (38, 150),  # too fast
        (149, 150),
        (150, 150),  # half of what was asked for went through: a little less than that
        (240, 168),
        (300, 210),
    ],
)
def test_the_rate_is_lowered_towards_what_went_through_in_a_minute(through: int, rate: float) -> None:
    one = limit()
    one.waited(START - 60)
    send(one, through + 1, START - 54, START)

    one.refused(START, BUDGET, asked=60.0, again=False)

    assert one.of(BUDGET) == pytest.approx(rate)


def test_refusals_of_the_same_pause_lower_it_once() -> None:
    one = limit()
    one.waited(START - 60)
    send(one, 10, START - 2, START)
    one.refused(START, BUDGET, asked=60.0, again=False)
    lowered = one.of(BUDGET)

    one.refused(START, BUDGET, asked=60.0, again=True)

    assert one.of(BUDGET) == lowered


def test_nor_do_those_that_follow_before_anything_passed() -> None:
    one = limit()
    one.waited(START - 60)
    send(one, 10, START - 2, START)
    one.refused(START, BUDGET, asked=60.0, again=False)
    lowered = one.of(BUDGET)

    send(one, 10, START, START + 5)
    one.refused(START + 5, BUDGET, asked=60.0, again=True)

    assert one.of(BUDGET) == lowered


@pytest.mark.parametrize(("waited", "rate"), [(True, 150), (False, 75)])
def test_ten_within_five_seconds_tell_of_a_minute_where_the_budget_was_the_bound(
    waited: bool, rate: float
) -> None:
    one = limit()
    for number in range(11):
        one.sent(START + number / 2)
        if waited:
            one.waited(START + number / 2)

    one.refused(START + 5, BUDGET, asked=60.0, again=False)

    assert one.of(BUDGET) == rate


def test_a_refusal_of_what_was_on_its_way_with_the_last_one_does_not_lower_it_again() -> None:
    """An answer that passed may come between them."""
    one = limit()
    one.waited(START - 60)
    send(one, 10, START - 2, START)
    one.refused(START, BUDGET, asked=60.0, again=False)
    one.passed(BUDGET)
    lowered = one.of(BUDGET)

    one.refused(START, BUDGET, asked=60.0, again=False)

    assert one.of(BUDGET) == lowered


@pytest.mark.parametrize(("asked", "apart", "least"), [(1.0, 2, 100), (60.0, 21, 100), (60.0, 2, 2)])
def test_where_little_is_to_be_sent_cheap_or_rare_refusals_leave_a_third_of_the_budget(
    asked: float, apart: int, least: float
) -> None:
    one = limit()
    now = START
    for _ in range(20):
        for _ in range(apart):
            now += 30
            one.sent(now)
        one.refused(now, BUDGET, asked=asked, again=False)

    assert one.of(BUDGET) == pytest.approx(least, rel=0.5)


def test_the_rate_never_falls_below_one_a_minute() -> None:
    one = limit()
    for number in range(50):
        one.waited(START + number * 60)
        one.refused(START + number * 60, BUDGET, asked=60.0, again=False)

    assert one.of(BUDGET) == 1


def test_a_budget_is_never_exceeded() -> None:
    assert limit().of(BUDGET) == BUDGET


# -- growing ---------------------------------------------------------------------------


def lowered() -> Limit:
    """Return one that was refused at 300 a minute, of which 300 went through."""
    one = limit()
    one.waited(START - 60)
    send(one, 301, START - 54, START)
    one.refused(START, BUDGET, asked=60.0, again=False)
    assert one.of(BUDGET) == pytest.approx(210)
    return one


def test_the_rate_rises_quickly_up_to_near_what_was_too_much_and_then_slowly() -> None:
    one = lowered()
    rates = []
    for _ in range(3):
        for _ in range(20):
            one.passed(BUDGET)
        rates.append(one.of(BUDGET))

    assert rates == pytest.approx([255, 255.4, 255.8], abs=0.3)


def pass_for(one: Limit, since: float, minutes: int, wanted: float = BUDGET) -> list[float]:
    """Let requests pass, one after the other; return the rate at the end of each minute."""
    rates, now = [], since
    for minute in range(1, minutes + 1):
        while now < since + minute * 60:
            one.sent(now)
            one.passed(wanted)
            now += 60 / one.of(wanted)
        rates.append(one.of(wanted))
    return rates


def far_lowered() -> Limit:
    """Return one that was refused again and again; nothing went through."""
    one = limit()
    one.waited(START)
    for _ in range(3):
        one.sent(START)
        one.refused(START, BUDGET, asked=60.0, again=False)
    assert one.of(BUDGET) == pytest.approx(BUDGET / 64)
    return one


def test_after_some_minutes_more_is_tried_and_kept_when_it_goes_through() -> None:
    one = far_lowered()

    rates = pass_for(one, START, 45)

    assert rates[13] < 10 < rates[17]
    assert rates[-1] == BUDGET


def test_what_is_tried_in_vain_is_given_up_and_tried_later_each_time() -> None:
    one = far_lowered()
    now, tries = START, [START]
    while now < START + 3 * 3600:
        before = one.of(BUDGET)
        one.waited(now)
        one.sent(now)
        one.passed(BUDGET)
        if one.of(BUDGET) > before * 1.05:
            tries.append(now)
            one.sent(now)
            one.refused(now, BUDGET, asked=60.0, again=False)
            assert one.of(BUDGET) == before
        now += 60 / one.of(BUDGET)

    apart = [later - earlier for earlier, later in pairwise(tries)]
    assert apart[:4] == pytest.approx([900, 1800, 1800, 1800], abs=20)


# -- hours -----------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [0.0, 1.0])
@pytest.mark.parametrize(("share", "least"), [(0.005, 100), (0.024, 220), (0.1, 200), (0.3, 90)])
def test_refusals_at_random_do_not_keep_the_rate_down(share: float, asked: float, least: float) -> None:
    """They come at each rate alike, so that lowering it does not help."""
    street = Street(Server(share=share, asked=asked), [BUDGET])
    street.run(60)

    assert street.passed(20)[0] > least


@pytest.mark.parametrize("seed", range(2))
def test_nor_among_troubles_of_all_kinds(seed: int) -> None:
    street = Street(Server(share=0.03, broken=0.27), [BUDGET], seed)
    street.run(60)

    assert street.passed(20)[0] > BUDGET / 2


def test_nor_when_hardly_anything_was_to_be_sent_for_hours() -> None:
    street = Street(Server(share=0.05), [BUDGET], demand=2)
    street.run(180)
    street.demand = None
    street.run(30)

    assert street.passed(195)[0] > BUDGET / 2


@pytest.mark.parametrize("seed", range(3))
def test_after_a_burst_of_refusals_the_whole_budget_is_used_again_within_minutes(seed: int) -> None:
    server = Server()
    street = Street(server, [BUDGET], seed)
    street.run(15)
    server.share = 0.5
    street.run(1)
    server.share = 0.0
    street.run(14)

    assert street.passed(25)[0] > BUDGET * 0.9


SHARED = [
    (20, [300]),
    (20, [12] * 3),
    (20, [300] * 3),
    (10, [6] * 2),
    (100, [60] * 3),
    (100, [60] * 5),
    (100, [300] * 3),
    (100, [60, 60, 600]),
    (500, [300] * 3),
]


@pytest.mark.parametrize(("limit", "budgets"), SHARED, ids=str)
def test_a_limit_is_found_kept_and_shared(limit: int, budgets: list[float]) -> None:
    street = Street(Server(limit), budgets)
    street.run(90)
    parts = street.passed(15)

    assert street.refused(15) < 1 / 20
    assert sum(parts) > 0.6 * limit
    assert min(parts) > 0.1 * sum(parts) / len(parts), "somebody starves"


def test_those_who_come_later_get_their_part() -> None:
    street = Street(Server(100), [60] * 3)
    for agent in (1, 2):
        street._coming = [one for one in street._coming if one[2] != agent]
        street._add(1200.0 * agent, agent, None)
    street.run(120)
    parts = street.passed(60)

    assert street.refused(60) < 1 / 20
    assert min(parts) > 10


def test_a_limit_that_becomes_lower_is_found_and_a_higher_one_is_used() -> None:
    server = Server(500)
    street = Street(server, [BUDGET])
    street.run(20)
    server.limit = 60
    street.run(60)
    server.limit = 500
    street.run(80)

    assert street.passed(0, 20)[0] == pytest.approx(BUDGET, rel=0.02)
    assert 30 < street.passed(30, 80)[0] < 60
    assert sum(street.tallies[0].refused[30:80]) < 40
    assert street.passed(140)[0] > BUDGET * 0.9


def test_refusals_at_random_hide_no_limit() -> None:
    street = Street(Server(100, share=0.03), [60] * 2)
    street.run(120)
    parts = street.passed(15)

    assert street.refused(15) < 0.06
    assert sum(parts) > 30
    assert min(parts) > 3


def test_a_limit_that_comes_while_refusals_are_not_believed_is_found() -> None:
    server = Server(share=0.1)
    street = Street(server, [BUDGET], seed=3)
    while street.paces[0]._limit._unmoved_until < street.now + 600:
        street.run(1)
    server.share, server.limit = 0.0, 20
    street.run(6)

    assert street.paces[0]._limit.of(BUDGET) < 40


@given(
    st.lists(
        st.tuples(st.sampled_from(["send", "pass", "refuse", "again", "wait", "lack"]), st.floats(0, 4000)),
        max_size=200,
    ),
    st.floats(1, 60_000),
)
def test_whatever_happens_the_rate_is_between_one_and_the_budget(
    history: list[tuple[str, float]], budget: float
) -> None:
    one = limit()
    now = 0.0
    for what, number in history:
        match what:
            case "send":
                for _ in range(int(number) % 50):
                    one.sent(now)
            case "pass":
                one.passed(budget)
            case "wait":
                now += number
            case "lack":
                one.waited(now - 60)
            case _:
                one.refused(now, budget, asked=number, again=what == "again")
        assert 1 <= one.of(budget) <= budget
