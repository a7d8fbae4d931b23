"""Stamps from before Polar's time was known: what is marked, and what becomes of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.clock import NOON
from support.queues import line

from agent.event import Checker
from agent.guess import Guess, correct, iso, may_be_ours, member, unmarked
from agent.ids import Ids

DAY = 86_400.0
THEIRS = b'"2026-11-23T11:00:00.123Z"'
NESTED = b',"metadata":{\t"b":1,"timestamp":\t%b}}' % THEIRS


def ours(name: object, at: float = NOON) -> bytes:
    """Return a line that was stamped by a guess."""
    return line(name)[:-1] + member(Guess(at, at)) + b"}"


def theirs(name: object, stamp: bytes = THEIRS, blank: bytes = b"") -> bytes:
    """Return a line that a program stamped."""
    return line(name)[:-1] + b',"timestamp":' + blank + stamp + b"}"


def seconds(line: bytes) -> float:
    """Return the time that a line carries."""
    return datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp()


def test_a_guess_is_marked_and_a_known_time_is_not() -> None:
    assert member(Guess(NOON, NOON + 1)) == b',"timestamp":\t"2026-11-23T12:00:01.000Z"'
    assert member(NOON) == b',"timestamp":"2026-11-23T12:00:00.000Z"'


TIMES = st.floats(0, 4e9)
OFFSETS = st.floats(-5e9, 5e9) | st.sampled_from([0.0, DAY, -DAY, 3600.0, -3600.0, 0.0004])
LINES = st.lists(
    st.one_of(
        st.builds(ours, st.integers(), TIMES),
        st.builds(
            theirs,
            st.integers(),
            st.sampled_from([THEIRS, b"1795435200.1230", b'"2031-01-01T00:00:00+01:00"']),
            st.sampled_from([b"", b" ", b"\t\t", b" \t"]),
        ),
        st.builds(lambda name: theirs(name)[:-1] + NESTED, st.integers()),
        st.builds(lambda name: theirs(name, blank=b"\t")[:-1] + b" }", st.integers()),
    ),
    min_size=1,
    max_size=8,
)


@given(LINES, OFFSETS, TIMES)
@example([ours("a", NOON + DAY), theirs("b"), ours("c", NOON + DAY + 0.001)], -DAY, NOON + 1)
def test_only_our_marked_stamps_are_corrected_and_no_length_changes(
    lines: list[bytes], offset: float, now: float
) -> None:
    after = correct(b"\n".join(lines), offset, now).split(b"\n")

    assert len(after) == len(lines)
    for old, new in zip(lines, after, strict=True):
        assert len(new) == len(old)
        if b'"timestamp":\t"' not in old or THEIRS in old:
            assert new == old
            continue
        assert b"\t" not in new
        assert seconds(new) <= max(0, now)
        assert seconds(new) == pytest.approx(max(0, min(seconds(old) + offset, now)), abs=0.0021)
        assert json.loads(new) | {"timestamp": 0} == json.loads(old) | {"timestamp": 0}
    assert correct(b"\n".join(after), offset, now) == b"\n".join(after)


@given(st.lists(TIMES, min_size=2), OFFSETS, TIMES)
def test_corrected_stamps_stay_in_order(times: list[float], offset: float, now: float) -> None:
    stamped = b"\n".join(ours(number, at) for number, at in enumerate(sorted(times)))

    after = [seconds(line) for line in correct(stamped, offset, now).split(b"\n")]

    assert after == sorted(after)


def test_what_looks_like_a_mark_and_is_no_time_stays_but_for_its_tab() -> None:
    """No check of ours lets it pass, but a queue may be older than the check."""
    assert correct(theirs("a", b'"2026-02-30T25:61:00.000Z"', b"\t"), 5.0, NOON) == theirs(
        "a", b'"2026-02-30T25:61:00.000Z"', b" "
    )


def test_our_stamps_are_told_from_a_programs_before_and_after_they_are_corrected() -> None:
    marked = ours("a", NOON)

    assert may_be_ours(marked)
    assert may_be_ours(correct(marked, -5.0, NOON))
    assert not may_be_ours(theirs("a"))
    assert not may_be_ours(marked + b" ")
    assert not may_be_ours(b"{}")


FINE, STAMPED, ODD = line("a"), theirs("b"), theirs("c", blank=b"\t")
NO_ID = b'{"name":"n","external_customer_id":"c"}'
WAYS = {
    "as a block": lambda lines, now: Checker().check([b"".join(one + b"\n" for one in lines)], now),
    "one by one": lambda lines, now: Checker().check([b"bad\n", *(one + b"\n" for one in lines)], now),
    "of a file": lambda lines, now: Checker().check_block(
        b"\n".join(lines), now, lambda _: Ids([b"id"], [[b"%d" % n for n in range(len(lines))]])
    ),
    "of a file, one by one": lambda lines, now: Checker().check_lines(lines, now, [b"i"] * len(lines)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "lines",
    [[FINE], [NO_ID], [STAMPED], [ODD], [ODD, STAMPED], [FINE, STAMPED, ODD], [NO_ID, ODD], [FINE, NO_ID]],
    ids=["none", "no id", "theirs", "odd", "both theirs", "all", "mixed", "ours"],
)
def test_whatever_the_way_of_a_line_its_stamp_is_marked_if_it_is_ours_and_guessed(
    way: str, lines: list[bytes]
) -> None:
    """A program's own cannot be taken for one, though it may have a tab there."""
    for now in (Guess(NOON + 1, NOON), NOON):
        checked = WAYS[way](lines, now)
        assert checked is not None
        for old, new in zip(lines, checked.lines.split(b"\n"), strict=True):
            if b'"timestamp"' not in old:
                assert may_be_ours(new) == isinstance(now, Guess)
                assert new.endswith(member(now) + b"}")
            else:
                assert new == old.replace(b"\t", b" ")
            assert (b"\t" in new) == (b'"timestamp"' not in old and isinstance(now, Guess))


def test_of_a_program_that_writes_a_tab_there_nothing_else_changes() -> None:
    nested = theirs("a")[:-1] + NESTED

    assert unmarked(nested) == nested
    assert unmarked(b"\n".join([ODD, nested, FINE])) == b"\n".join([ODD.replace(b"\t", b" "), nested, FINE])


def test_a_program_whose_stamp_is_ahead_and_looks_like_a_mark_is_held_and_not_marked() -> None:
    ahead = theirs("a", b'"%b"' % iso(NOON + 5), b"\t")

    ((due, held),) = Checker().check([ahead + b"\n"], Guess(NOON, NOON)).held

    assert (due, held) == (int((NOON + 5) * 1000) + 1, ahead.replace(b"\t", b" "))


def test_a_stamp_is_cut_to_the_millisecond() -> None:
    assert iso(NOON + 0.9999) == b"2026-11-23T12:00:00.999Z"
    assert iso(datetime(1970, 1, 1, tzinfo=UTC).timestamp()) == b"1970-01-01T00:00:00.000Z"
