"""How fast: waiting after failures, what `Retry-After` asks for, and the budget of requests."""

import time
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.clock import NOON

from agent.pace import Pace, backoff, retry_after

chances = st.floats(0, 1, exclude_max=True)


def always(chance):
    return lambda: chance


def pace(requests_per_minute=600.0, backoff_max=60.0, chance=0.5):
    return Pace(requests_per_minute, backoff_max, always(chance))


# -- back-off --------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.floats(0.1, 3600), chances)
def test_backoff_is_never_negative_nor_longer_than_the_longest(failures, longest, chance):
    assert 0 <= backoff(failures, longest, always(chance)) <= longest


@given(st.integers(1, 10_000), st.floats(0.1, 3600))
def test_backoff_is_full_jitter(failures, longest):
    """Anything from nothing to the bound, so that many agents do not come back at once."""
    bound = backoff(failures, longest, always(1.0))

    assert backoff(failures, longest, always(0.0)) == 0
    assert backoff(failures, longest, always(0.25)) == bound / 4


def test_the_bound_of_backoff_doubles_with_each_failure_up_to_the_longest():
    bounds = [backoff(failures, 60, always(1.0)) for failures in range(1, 12)]

    assert bounds[-1] == bounds[-2] == 60
    assert all(later == 2 * earlier for earlier, later in pairwise(bounds[:6]))
    assert bounds[0] <= 2


# -- Retry-After -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("0", 0),
        ("5", 5),
        (" 60 ", 60),
        ("1.5", 1.5),
        ("-1", 0),
        ("nan", 0),
        ("inf", 0),
        ("-inf", 0),
        ("1e999", 0),
        ("soon", 0),
        ("5 seconds", 0),
        ("99999999999", 3600),
        ("9" * 500, 0),
        ("Mon, 23 Nov 2026 12:00:30 GMT", 30),
        ("Monday, 23-Nov-26 12:00:30 GMT", 30),
        ("Mon Nov 23 12:00:30 2026", 30),
        ("Mon, 23 Nov 2026 21:00:30 +0900", 30),
        ("Mon, 23 Nov 2026 11:00:00 GMT", 0),
        ("Tue, 24 Nov 2026 12:00:00 GMT", 3600),
        ("Mon, 23 Nov 99999 12:00:30 GMT", 0),
        ("Mon, 99 Nov 2026 12:00:30 GMT", 0),
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
def test_retry_after_is_read_in_every_form(value, seconds, zone, monkeypatch):
    """Seconds, or one of the three forms of an HTTP date, wherever this machine stands."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert retry_after(value, NOON) == seconds
    finally:
        monkeypatch.undo()
        time.tzset()


@given(
    st.text()
    | st.text("0123456789.eE+-_ ")
    | st.from_regex(r"[A-Z][a-z]{2}, \d{1,3} (Nov|xx) \d{1,6} \d{1,3}:\d\d(:\d\d)?( [A-Z]{3}| [+-]\d{1,8})?")
)
def test_whatever_retry_after_says_the_wait_is_between_nothing_and_an_hour(value):
    assert 0 <= retry_after(value, NOON) <= 3600


# -- the budget ------------------------------------------------------------------------


@st.composite
def days(draw):
    """A pace, and what happens to it: waits that are kept, pauses, answers."""
    rate = draw(st.floats(1, 60_000))
    steps = st.sampled_from(["send", "send", "send", "pause", "success", "throttled", "failed"])
    return rate, draw(st.lists(st.tuples(steps, st.floats(0, 30)), max_size=80))


@given(days(), chances, st.sampled_from([0.0, 1.0, 1e6]))
@example((2.25, [("send", 0.0), ("send", 0.0)]), 0.0, 1e6)
def test_requests_never_exceed_the_budget_over_any_window_plus_a_burst(day, chance, start):
    """The burst: two seconds' worth, or a single request where that is more."""
    per_minute, steps = day
    pace = Pace(per_minute, 60.0, always(chance))
    now, sent = start, []
    for step, seconds in steps:
        match step:
            case "send":
                while (pause := pace.wait(now)) > 0:
                    assert now + pause > now, "a wait that never ends"
                    now += pause
                pace.take(now)
                sent.append(now)
            case "pause":
                now += seconds
            case "success":
                pace.succeeded()
            case "throttled":
                pace.too_fast(now, seconds)
            case "failed":
                pace.failed(now, seconds)

    rate = per_minute / 60
    for first in range(len(sent)):
        for last in range(first, len(sent)):
            allowed = (sent[last] - sent[first]) * rate + max(1.0, 2 * rate)
            assert last - first + 1 <= allowed + 0.01


def test_a_budget_that_is_not_used_does_not_pile_up():
    fresh, rested = pace(), pace()
    fresh.take(1.0)
    rested.take(1.0)
    bursts = []
    for one, now in ((fresh, 10.0), (rested, 100_000.0)):
        count = 0
        while one.wait(now) == 0:
            one.take(now)
            count += 1
        bursts.append(count)

    assert bursts[0] == bursts[1] == 20


def test_the_first_request_goes_at_once():
    assert pace(requests_per_minute=1.0).wait(5.0) == 0


def test_when_the_budget_is_used_up_the_wait_is_until_the_next_request_is_in_it():
    slow = pace(requests_per_minute=60.0)
    for _ in range(2):
        slow.take(100.0)

    assert slow.wait(100.0) == pytest.approx(1.0)
    assert slow.wait(100.6) == pytest.approx(0.4)
    assert slow.wait(101.0) == 0


def test_the_budget_is_scarce_when_hardly_a_request_is_left():
    steady = pace(requests_per_minute=600.0)
    steady.take(100.0)
    assert not steady.scarce

    for _ in range(18):
        steady.take(100.0)
    assert steady.scarce


# -- answers ---------------------------------------------------------------------------


def requests_in(pace, start, seconds):
    """Return how many requests go out from `start` on when each goes as soon as it may."""
    count, now = 0, start
    while True:
        now += pace.wait(now)
        if now > start + seconds:
            return count
        pace.take(now)
        count += 1


def test_being_too_fast_lowers_the_rate_and_success_raises_it_up_to_the_whole_budget():
    """How far: see test_limit."""
    usual, warned = pace(), pace()
    requests_in(warned, 100.0, 10)
    warned.lacked(110.0)
    warned.too_fast(110.0, 5.0)
    rates = []
    for start in (1000.0, 2000.0, 3000.0):
        rates.append(requests_in(warned, start, 60))
        for _ in range(100):
            warned.take(start + 100)
            warned.succeeded()

    assert rates[0] < rates[-1] * 0.8
    assert rates[-1] == requests_in(usual, 3000.0, 60)


def test_requests_that_were_on_their_way_together_lower_the_rate_once():
    once, often = pace(), pace()
    for one in (once, often):
        requests_in(one, 90.0, 10)
        one.lacked(100.0)
    once.too_fast(100.0, 5.0)
    for _ in range(4):
        often.too_fast(100.0, 5.0)

    assert requests_in(often, 200.0, 60) == requests_in(once, 200.0, 60) < 600


@pytest.mark.parametrize(("lacking", "least"), [(True, 0), (False, 200)])
def test_it_matters_to_the_rate_whether_events_wait_for_the_budget(lacking, least):
    warned = pace()
    for minute in range(10):
        now = 100.0 + minute * 60
        for _ in range(20 if lacking else 2):
            warned.take(now)
        warned.lacked(now)
        warned.too_fast(now, 5.0)
        warned.succeeded()

    assert least <= requests_in(warned, 1000.0, 60) < least + 60


@given(st.floats(0, 3600), chances)
def test_being_too_fast_waits_as_long_as_the_server_asks_and_hardly_longer(asked, chance):
    warned = pace(chance=chance)
    warned.too_fast(100.0, asked)

    assert warned.wait(100.0) >= asked - 1e-9
    assert warned.wait(100.0) <= max(asked * 1.25, 10)


@given(chances)
def test_being_too_fast_waits_a_second_at_least_when_the_server_asks_for_nothing(chance):
    warned = pace(chance=chance)
    warned.too_fast(100.0)

    assert warned.wait(100.0) >= 1


@given(st.integers(1, 20), st.floats(0, 3600), chances)
def test_a_failure_waits_as_long_as_the_server_asks_or_backs_off(failures, asked, chance):
    failing = pace(backoff_max=60.0, chance=chance)
    for _ in range(failures):
        wait = failing.failed(100.0, asked)

    assert asked <= wait <= max(asked, 60.0)
    assert failing.wait(100.0) == pytest.approx(wait)


def test_a_later_answer_never_shortens_the_wait():
    failing = pace(chance=0.0)
    failing.too_fast(100.0, 50.0)
    failing.failed(100.0)
    failing.hold(100.0)

    assert failing.wait(100.0) >= 50


@pytest.mark.parametrize("trouble", ["failed", "too_fast", "hold"])
def test_after_trouble_one_request_probes_until_one_succeeds(trouble):
    one = pace()
    assert not one.probing

    getattr(one, trouble)(100.0)
    assert one.probing

    one.succeeded()
    assert not one.probing


def test_holding_looks_now_and_then():
    one = pace()

    assert 5 <= one.hold(100.0) <= 60
    assert one.wait(100.0) == one.hold(100.0)


def test_a_try_that_became_worth_while_goes_at_once():
    one = pace()
    one.hold(100.0)
    one.retry_now()

    assert one.wait(100.0) == 0


def test_backoff_starts_anew_after_a_success():
    one = pace(chance=1.0)
    first = one.failed(100.0)
    for _ in range(5):
        one.failed(100.0)
    one.succeeded()

    assert one.failed(100.0) == first
