"""What a request wants remembered is remembered when it stays, and only then."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from support.clock import NOON

from agent.event import Checker
from agent.reservation import Reservation
from agent.seen import Seen

EVENTS = st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 1)), max_size=6)


def line(name: str, n: int) -> bytes:
    event = {"name": "n", "external_customer_id": "c", "external_id": name, "metadata": {"n": n}}
    return json.dumps(event).encode() + b"\n"


@given(st.lists(st.tuples(EVENTS, st.sampled_from(["socket", "kept", "turned away"])), max_size=6))
def test_a_request_that_was_turned_away_leaves_no_trace(
    requests: list[tuple[list[tuple[str, int]], str]],
) -> None:
    seen, known = Seen(), dict[str, int]()
    checker = Checker()
    for events, way in requests:
        reserved = Reservation(seen)
        memory = seen if way == "socket" else reserved
        checked = checker.check([b"".join(line(*event) for event in events)], NOON, memory)

        mine = dict(known)
        fates = [mine.setdefault(name, n) == n for name, n in events]
        assert checked.refused == fates.count(False)
        assert checked.accepted == len(mine) - len(known)
        assert checked.repeated == len(events) - checked.refused - checked.accepted
        if way == "kept":
            reserved.keep()
        if way != "turned away":
            known = mine


def test_of_requests_that_bring_the_same_at_one_moment_one_event_is_remembered() -> None:
    seen, checker = Seen(), Checker()
    one, other = Reservation(seen), Reservation(seen)
    for reserved, more in ((one, "b"), (other, "c")):
        checker.check([line("a", 1) + line(more, 1)], NOON, reserved)

    one.keep()
    other.keep()

    for name in "abc":
        assert seen.ask(name, line(name, 1).strip()) is True
    assert seen.ask("d", line("d", 1).strip()) is None


def test_answers_stand_until_what_they_rest_on_changes() -> None:
    seen, checker = Seen(), Checker()
    checker.check([line("old", 1)], NOON, seen)
    reserved = Reservation(seen)
    checker.check([line("new", 1) + line("old", 1)], NOON, reserved)
    assert reserved.stands()

    other = Reservation(seen)
    checker.check([line("new", 2)], NOON, other)
    other.keep()
    assert not reserved.stands(), "what was new is known now"

    repeat = Reservation(seen)
    checker.check([line("old", 1)], NOON, repeat)
    assert repeat.stands()
    seen.forget(["old"])
    assert not repeat.stands(), "what came before is forgotten"
