"""The process that checks large pieces: with it, without it and when it dies, the same comes of lines."""

from __future__ import annotations

import json
import os
import signal
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.clock import FakeClock
from support.processes import wait_until
from support.tails import Desk, append, line

from agent.event import Checker
from agent.guess import TAB, Guess, iso, may_be_ours
from agent.seen import Seen
from agent.tail import Table, identity
from agent.tail.helper import Helper, is_possible
from agent.tail.taking import Place, Taken, Taking

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.tail.checking import Answer

pytestmark = pytest.mark.skipif(not is_possible(), reason="needs Linux and two processors")

NOW = 1.8e9
PIECE = 100_000
DEFAULTS: dict[str, Any] = {"name": "filled", "metadata": {"team": "core"}}
TABLES = [Table("/x"), Table("/y", defaults=DEFAULTS)]
PLACE = Place("00112233445566aa-0", "/x/app.log", 4096, 7)


class Pair:
    """The same lines for one who has a helper, and for one who has none."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.helper = Helper(TABLES, clock, backlog_bytes=2 << 20)
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget what came."""
        self.helped = [Taking(Checker(), table, place, self.helper) for place, table in enumerate(TABLES)]
        self.alone = [Taking(Checker(), table) for table in TABLES]
        self.seen = Seen(), Seen()

    def start(self) -> None:
        """Have the helper started, as a backlog does, and wait until it is there."""
        self.helper.note(1 << 20)
        self.helper.note(1 << 20)
        wait_until(self.ready)

    def ready(self) -> bool:
        ticket = self.helper.ask(0, PLACE.identity, 0, many(line("hello")), NOW)
        return ticket is not None and self.helper.answer(ticket) is not None

    def take(self, block: bytes, table: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what becomes of lines with the helper, and without it."""
        ticket = self.helped[table].ask(PLACE.identity, PLACE.offset, block, NOW)
        with_it = self.helped[table].take(PLACE, block, self.seen[0], now=NOW, wall=NOW, ticket=ticket)
        without = self.alone[table].take(PLACE, block, self.seen[1], now=NOW, wall=NOW)
        return told(with_it), told(without)


def told(taken: Taken) -> dict[str, Any]:
    """Return what became of lines, each event as a value: how defaults are spelled is nobody's affair."""
    if taken.reserved is not None:
        taken.reserved.keep()
    return {
        "events": [json.loads(one) for lines, _ in taken.groups for one in lines.split(b"\n")],
        "counted": sum(count for _, count in taken.groups),
        "held": [(moment, json.loads(one)) for moment, one in taken.held],
        "letters": taken.letters,
        "repeated": taken.repeated,
    }


def many(*lines: bytes) -> bytes:
    """Return these lines again and again, as a piece of a file."""
    once = b"".join(lines)
    return (once * (PIECE // len(once) + 1)).removesuffix(b"\n")


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair(FakeClock())
    yield pair
    pair.helper.close()


@pytest.fixture(scope="module")
def started() -> Iterator[Pair]:
    pair = Pair(FakeClock())
    pair.start()
    yield pair
    pair.helper.close()


LINES = st.sampled_from(
    [
        line("plain"),
        line("ä", metadata={"x": 1.5, "y": "z", "n": 2**63}),
        line("old", timestamp="2024-01-01T00:00:00Z"),
        line("ahead", timestamp="2027-01-15T08:00:30Z"),
        line("too far ahead", timestamp="2199-01-01T00:00:00Z"),
        line("own", external_id="mine"),
        line("cost", metadata={"_cost": {"amount": 1, "currency": "usd"}}),
        b'{"external_customer_id":"c"}\n',
        b'{"name":"nobody"}\n',
        b"nonsense\n",
        b"\n",
        line("spaced")[:-1] + b" \r\n",
        b'{"name":"two","external_customer_id":\n"c"}\n',
    ]
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(LINES, min_size=1, max_size=3), st.integers(0, 1))
def test_what_becomes_of_lines_is_the_same_with_it(started: Pair, lines: list[bytes], table: int) -> None:
    started.begin_anew()
    with_it, without = started.take(many(*lines), table)
    assert with_it == without


@pytest.mark.parametrize("table", [0, 1])
def test_a_stamp_that_is_a_guess_is_marked_by_it_too(started: Pair, table: int) -> None:
    """And the ids of the lines are the same."""
    block = many(line("a"))
    started.begin_anew()
    known, _ = started.take(block, table)
    started.begin_anew()
    guess, helped = Guess(NOW, NOW - 5), started.helped[table]

    ticket = helped.ask(PLACE.identity, PLACE.offset, block, guess)
    taken = helped.take(PLACE, block, started.seen[0], now=guess, wall=NOW, ticket=ticket)

    assert ticket is not None
    lines = [one for some, _ in taken.groups for one in some.split(b"\n")]
    assert all(may_be_ours(one) and TAB in one for one in lines)
    assert {event["timestamp"] for event in map(json.loads, lines)} == {iso(NOW - 5).decode()}
    assert [json.loads(one)["external_id"] for one in lines] == [
        event["external_id"] for event in known["events"]
    ]


def test_it_is_asked_at_all(started: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    started.begin_anew()
    started.take(many(line("plain"), line("other")))  # of other lines than those before
    monkeypatch.setattr(started.helped[0], "_line_by_line", None)
    monkeypatch.setattr(started.helped[0], "_checker", None)

    with_it, without = started.take(many(line("plain"), line("other")))

    assert with_it == without


@pytest.mark.parametrize("table", [0, 1])
@pytest.mark.parametrize("again", ["same", "other"])
def test_what_came_before_is_known_although_the_lines_go_through_it(
    started: Pair, again: str, table: int
) -> None:
    started.begin_anew()
    block = b"".join(line(n, external_id=f"id-{n}") for n in range(2000)).removesuffix(b"\n")
    first, _ = started.take(block, table)
    assert len(first["events"]) == 2000

    if again == "other":
        block = block.replace(b'{"name": "7",', b'{"name": "8",', 1)
    with_it, without = started.take(block, table)

    assert with_it == without
    assert (with_it["repeated"], len(with_it["letters"])) == ((2000, 0) if again == "same" else (1999, 1))


def test_an_id_that_stands_twice_in_a_piece_is_found(started: Pair) -> None:
    started.begin_anew()
    block = b"".join(line(n, external_id=f"new-{n % 1999}") for n in range(2000)).removesuffix(b"\n")
    with_it, without = started.take(block)
    assert with_it == without
    assert len(with_it["letters"]) == 1


def test_when_it_dies_lines_are_checked_without_it(pair: Pair) -> None:
    pair.start()
    pid = pair.helper.pid or 0
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    with_it, without = pair.take(many(line("plain")))

    assert with_it == without
    assert pair.helper.pid is None


def test_when_it_dies_while_it_has_lines_they_are_checked_without_it(pair: Pair) -> None:
    pair.start()
    pid = pair.helper.pid or 0
    os.kill(pid, signal.SIGSTOP)
    block = many(line("plain"))
    ticket = pair.helped[0].ask(PLACE.identity, PLACE.offset, block, NOW)
    os.kill(pid, signal.SIGKILL)

    taken = pair.helped[0].take(PLACE, block, pair.seen[0], now=NOW, wall=NOW, ticket=ticket)

    assert told(taken) == pair.take(block)[1]


def test_one_that_died_is_replaced_after_a_minute_not_before(pair: Pair) -> None:
    pair.start()
    os.kill(pair.helper.pid or 0, signal.SIGKILL)
    pair.take(many(line("plain")))

    pair.helper.note(2 << 20)
    assert pair.helper.pid is None
    pair.clock.advance(61)
    pair.start()


def test_one_that_does_not_answer_is_given_up(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.tail.helper._ANSWER_SECONDS", 0.2)
    pair.start()
    pid = pair.helper.pid or 0
    os.kill(pid, signal.SIGSTOP)

    with_it, without = pair.take(many(line("plain")))

    assert with_it == without
    assert not Path(f"/proc/{pid}").exists()


def test_without_a_backlog_there_is_none(pair: Pair) -> None:
    for _ in range(100):
        pair.helper.note(256 * 1024)  # of somebody who keeps up
    pair.helper.note(1 << 20)
    assert pair.helper.pid is None


def test_one_that_dies_again_and_again_is_tried_ever_more_seldom(pair: Pair) -> None:
    waits = []
    for _ in range(9):
        waited = 0
        while pair.helper.pid is None:
            pair.clock.advance(30)
            waited += 30
            pair.helper.note(2 << 20)
        waits.append(waited)
        os.kill(pair.helper.pid or 0, signal.SIGKILL)
        wait_until(lambda: not pair.ready() and pair.helper.pid is None)
    assert waits == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]


def test_it_ends_when_there_was_nothing_to_read_for_a_while(pair: Pair) -> None:
    pair.start()
    pid = pair.helper.pid
    pair.clock.advance(20)
    pair.helper.rest()
    assert pair.helper.pid == pid
    pair.clock.advance(20)
    pair.helper.rest()

    assert pair.helper.pid is None
    assert not Path(f"/proc/{pid}").exists()
    pair.start()


def test_it_knows_no_token_and_no_setting(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLAR_ACCESS_TOKEN", "polar_oat_secret")
    monkeypatch.setenv("POLAR_AGENT_ACCESS_TOKEN", "polar_oat_secret")
    pair.start()

    assert b"POLAR" not in Path(f"/proc/{pair.helper.pid}/environ").read_bytes()


def test_signals_for_the_daemon_do_not_end_it(pair: Pair) -> None:
    pair.start()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(pair.helper.pid or 0, number)
    pid = pair.helper.pid

    with_it, without = pair.take(many(line("plain")))

    assert with_it == without
    assert pair.helper.pid == pid


def test_more_than_it_has_room_for_is_not_asked_of_it(started: Pair) -> None:
    assert started.helper.ask(0, PLACE.identity, 0, b"x" * (3 << 20), NOW) is None


def test_lines_that_become_too_long_leave_those_that_wait_behind_them_alone(pair: Pair) -> None:
    long = {"metadata": {f"k{n}": "x" * 400 for n in range(20)}}
    pair.helper = helper = Helper([Table("/x", defaults=long)], pair.clock, backlog_bytes=2 << 20)
    helper.note(2 << 20)
    wait_until(helper._is_ready)
    lacking = (b'{"name":"a","external_customer_id":"c"}\n' * 2000).removesuffix(b"\n")
    whole = (line("b", **long) * 20).removesuffix(b"\n")

    first, second = (helper.ask(0, PLACE.identity, *one, NOW) for one in ((1, lacking), (2, whole)))

    assert helper.answer(first or 0) is None
    assert offset_of(helper.answer(second or 0)) == 2


def test_lines_of_another_shape_go_through_it_too(started: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    started.begin_anew()
    started.take(many(line("plain", metadata={"x": 1})))
    started.take(many(line("other", metadata={"y": "z"})))
    monkeypatch.setattr(started.helped[0], "_line_by_line", None)

    with_it, without = started.take(many(line("other", metadata={"y": "z"})))

    assert with_it == without


def offset_of(answer: Answer | None) -> int:
    """Return where the first of these lines stood in its file."""
    assert answer is not None
    return int(json.loads(answer.groups[0][0].partition(b"\n")[0])["external_id"].split("-")[3])


def test_two_pieces_may_be_on_their_way_at_once(started: Pair) -> None:
    started.take(many(line("a")))  # of other lines than those before
    tickets = [started.helper.ask(0, PLACE.identity, offset, many(line("a")), NOW) for offset in (1, 2)]
    assert [offset_of(started.helper.answer(ticket or 0)) for ticket in tickets] == [1, 2]


def test_an_answer_that_nobody_wants_is_passed_over(started: Pair) -> None:
    started.take(many(line("a")))  # of other lines than those before
    tickets = [started.helper.ask(0, PLACE.identity, offset, many(line("a")), NOW) for offset in (3, 4, 5)]
    assert offset_of(started.helper.answer(tickets[2] or 0)) == 5
    assert started.helper.answer(tickets[0] or 0) is None


# -- in a tail -----------------------------------------------------------------------------


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()


def helper_of(desk: Desk) -> Helper:
    """Have the helper of a tail started by much less than usual."""
    helper = desk.tail._shelf.reading._helper
    assert helper is not None
    helper._backlog_bytes = 1 << 20
    return helper


def with_it(desk: Desk) -> int:
    """Read a file so large that the helper is started; return how many lines that are."""
    helper = helper_of(desk)
    lines = [line(n, metadata={"text": "x" * 400}) for n in range(4000)]
    append(desk.directory / "app.log", *lines)
    desk.settle()
    wait_until(helper._is_ready)
    return len(lines)


def test_each_line_of_a_file_has_the_id_of_its_place(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    with_it(desk)
    monkeypatch.setattr(Taking, "_line_by_line", None)
    monkeypatch.setattr(Checker, "check_block", None)
    append(desk.directory / "app.log", *(line(n) for n in range(40_000)))

    desk.settle()

    text = (desk.directory / "app.log").read_bytes()
    mark = identity.identity(identity.fingerprint(text) or "", 0)
    offsets = accumulate(map(len, text.splitlines(keepends=True)), initial=0)
    ids = [identity.line_id(mark, *one).decode() for one in zip(offsets, text.splitlines(), strict=False)]
    assert [event["external_id"] for event in desk.events()] == ids


def test_a_tail_ends_it_when_it_has_little_to_read(desk: Desk) -> None:
    with_it(desk)
    pid = helper_of(desk).pid
    desk.settle(40)
    assert not Path(f"/proc/{pid}").exists()


def test_a_tail_that_is_closed_leaves_none_behind(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    with_it(desk)
    pid = helper_of(desk).pid
    desk.close()
    assert not Path(f"/proc/{pid}").exists()


def test_with_a_token_of_a_person_every_line_is_checked_by_its_rules(tmp_path: Path) -> None:
    desk = Desk(tmp_path, personal_token=True)
    append(tmp_path / "app.log", *(line(n, metadata={"text": "x" * 400}) for n in range(4000)))
    desk.settle()
    assert desk.tail._shelf.reading._helper is None
    assert desk.queue.books().dead == 4000  # they name no organization
    desk.close()
