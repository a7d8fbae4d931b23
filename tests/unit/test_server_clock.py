"""What the time is at Polar, from the `Date` headers of its answers."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clock import NOON, FakeClock

from agent.clock import SystemClock
from agent.guess import Guess
from agent.server_clock import ServerClock


def answered(clock, server, offset, flight=0.0, share=0.5):
    """Let a request be answered by a server that is `offset` ahead of true time.

    Args:
        clock: whose monotonic time goes as true time does.
        server: what learns of it.
        offset: how far the server is ahead.
        flight: seconds from the request to its answer.
        share: how much of them is over when the server looks at its clock.
    """
    sent = clock.monotonic()
    true_start = NOON + (sent - 1_000.0)
    clock.advance(flight)
    header = float(math.floor(true_start + flight * share + offset))
    server.learn(header, sent, clock.monotonic())


def server_time(clock, offset):
    return NOON + (clock.monotonic() - 1_000.0) + offset


def test_before_any_answer_our_own_clock_is_believed():
    clock = FakeClock()

    assert ServerClock(clock).now() == NOON
    assert ServerClock(clock).offset == 0


@pytest.mark.parametrize("jump", [-3600.0, 86_400.0])
def test_before_any_answer_stamps_take_no_notice_of_a_clock_that_is_set(jump):
    """Programs do: what they stamp is compared with what they believe."""
    clock = FakeClock()
    server = ServerClock(clock)
    clock.advance(5)
    clock.set_wall(NOON + jump)

    now = server.now()

    assert isinstance(now, Guess)
    assert now.stamp == pytest.approx(NOON + 5)
    assert now == NOON + jump
    assert server.correction is None


@given(st.floats(-1e6, 1e6) | st.sampled_from([-86_400.0, 3600.0]), st.floats(0, 3), st.floats(-5000, 5000))
def test_what_was_stamped_by_a_guess_is_corrected_by_what_the_first_answer_tells(ours, flight, jump):
    clock = FakeClock(wall=NOON + ours)
    server = ServerClock(clock)
    stamp = server.now().stamp
    clock.set_wall(NOON + ours + jump)
    answered(clock, server, 0.0, flight)

    assert not isinstance(server.now(), Guess)
    assert abs(stamp + server.correction - NOON) <= 1 + flight + 1e-3


@given(st.floats(-0.4, 0.4))
def test_what_was_stamped_by_a_clock_that_may_be_right_stays(offset):
    clock = FakeClock(wall=NOON + offset)
    server = ServerClock(clock)
    server.learn(NOON - 0.5, clock.monotonic(), clock.monotonic())

    assert server.correction == 0


@given(st.floats(-5000, 5000), st.floats(0, 3), st.floats(-5000, 5000))
def test_one_answer_tells_the_time_to_its_second_and_its_flight(offset, flight, ours):
    clock = FakeClock(wall=NOON + ours)
    server = ServerClock(clock)

    answered(clock, server, offset, flight)

    assert abs(server.now() - server_time(clock, offset)) <= 1 + flight + 1e-3


@given(
    st.floats(-5000, 5000),
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 2)), min_size=1, max_size=20),
)
def test_more_answers_never_make_it_worse(offset, answers):
    """Of an honest server, which is `offset` away from us."""
    clock = FakeClock()
    server = ServerClock(clock)
    worst = math.inf
    for pause, flight in answers:
        clock.advance(pause)
        answered(clock, server, offset, flight)
        error = abs(server.now() - server_time(clock, offset))
        assert error <= worst + 1e-3
        worst = min(worst, 1 + flight)


@given(st.floats(-100, 100))
def test_many_quick_answers_tell_the_time_to_a_tenth_of_a_second(offset):
    clock = FakeClock(wall=NOON + 40)
    server = ServerClock(clock)
    for _ in range(40):
        clock.advance(0.97)
        answered(clock, server, offset)

    assert abs(server.now() - server_time(clock, offset)) < 0.1


@given(st.floats(-0.4, 0.4))
def test_within_what_the_answers_allow_our_own_clock_is_believed(offset):
    """It is finer than a header that is cut to the second."""
    clock = FakeClock(wall=NOON + offset)
    server = ServerClock(clock)
    server.learn(NOON - 0.5, clock.monotonic(), clock.monotonic())

    assert server.now() == pytest.approx(NOON + offset, abs=1e-3)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 3), st.floats(0, 1)), min_size=1, max_size=20))
def test_a_clock_that_is_right_is_never_corrected(answers):
    """Whenever on its way a request is answered."""
    clock = FakeClock()
    server = ServerClock(clock)
    for pause, flight, share in answers:
        clock.advance(pause)
        answered(clock, server, 0.0, flight, share)
        assert server.offset == pytest.approx(0, abs=1e-3)


@given(
    st.floats(10, 5000) | st.floats(-5000, -10),
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 3), st.floats(0, 1)), min_size=1, max_size=20),
)
def test_with_a_clock_that_is_clearly_wrong_we_are_never_ahead_of_the_server(ours, answers):
    """A stamp that is ahead would be refused, if only by a millisecond."""
    clock = FakeClock(wall=NOON + ours)
    server = ServerClock(clock)
    for pause, flight, share in answers:
        clock.advance(pause)
        answered(clock, server, 0.0, flight, share)
        assert server.now() <= server_time(clock, 0.0) + 1e-6


@pytest.mark.parametrize("ours", [0.0, 500.0])
def test_a_machine_that_slept_knows_the_servers_time_still(ours):
    clock = FakeClock(wall=NOON + ours)
    server = ServerClock(clock)
    answered(clock, server, 0.0)
    clock.sleep(3600)

    assert server.now() == pytest.approx(NOON + 3600, abs=1)
    server.learn(NOON + 3600, clock.monotonic(), clock.monotonic())
    assert server.now() == pytest.approx(NOON + 3600, abs=1)


def test_a_machine_that_slept_before_the_first_answer_has_stamped_by_its_clock_all_the_same():
    clock = FakeClock(wall=NOON - 500)
    server = ServerClock(clock)
    clock.sleep(3600)
    stamp = server.now().stamp
    answered(clock, server, 3600.0)

    assert stamp == NOON - 500 + 3600
    assert server.correction == pytest.approx(500, abs=1)


def test_elapsed_time_is_of_the_clock_that_goes_on_while_the_machine_sleeps(monkeypatch):
    monkeypatch.setattr("agent.clock.time.clock_gettime", {time.CLOCK_BOOTTIME: 7.0}.__getitem__)

    assert SystemClock().elapsed() == 7


def test_a_local_clock_that_is_set_does_no_harm():
    clock = FakeClock()
    server = ServerClock(clock)
    for _ in range(10):
        clock.advance(0.9)
        answered(clock, server, 0.0)

    clock.set_wall(NOON + 86_400)

    assert server.now() == pytest.approx(server_time(clock, 0), abs=1)
    assert server.offset == pytest.approx(-86_400, abs=30)


@pytest.mark.parametrize("jump", [-30.0, 30.0])
def test_a_server_clock_that_is_set_is_believed_at_once(jump):
    clock = FakeClock()
    server = ServerClock(clock)
    answered(clock, server, 0.0)

    answered(clock, server, jump)

    assert server.now() == pytest.approx(server_time(clock, jump), abs=1)


def test_time_goes_on_between_answers():
    clock = FakeClock(wall=NOON - 500)
    server = ServerClock(clock)
    answered(clock, server, 0.0)
    before = server.now()

    clock.advance(12.5)

    assert server.now() == pytest.approx(before + 12.5)


@pytest.mark.parametrize(("ahead", "lead"), [(300, 300), (-300, 0), (0, 0), (86_400, 3600)])
def test_the_lead_is_how_far_programs_here_are_ahead_up_to_an_hour(ahead, lead):
    clock = FakeClock(wall=NOON + ahead)
    server = ServerClock(clock)
    assert server.lead == 0
    answered(clock, server, 0.0)

    assert server.lead == pytest.approx(lead, abs=1)


def test_the_offset_is_how_far_the_server_is_ahead():
    clock = FakeClock(wall=NOON - 100)
    server = ServerClock(clock)
    answered(clock, server, 0.0)

    assert server.offset == pytest.approx(100, abs=1)
