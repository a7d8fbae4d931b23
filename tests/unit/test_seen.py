"""An external_id that comes again: the same event is a repeat, another one a conflict."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clock import NOON

from agent.event import Checker
from agent.seen import EVENT_BYTES, Seen, identity_of, is_same, is_unstamped

ONE = b'{"name":"n","external_customer_id":"c","external_id":"e1","metadata":{"a":1,"b":"x"}}'
ANOTHER = ONE.replace(b'"a":1', b'"a":2')
NEW, SAME, OTHER = "new", "same", "other"


@dataclass
class Socket:
    """What a producer would be told of its lines."""

    seen: Seen = field(default_factory=Seen)
    checker: Checker = field(default_factory=Checker)

    def write(self, *lines: bytes) -> list[str]:
        """Write lines that one read brings; return what became of each."""
        checked = self.checker.check([b"".join(line + b"\n" for line in lines)], NOON, self.seen)
        (fate,) = checked.fates
        refused = {number: why.type for number, why in fate.refused}
        stored = Counter(event["metadata"].get("n") for event in _events(checked))
        fates = []
        for number in range(1, fate.lines + 1):
            place = json.loads(lines[number - 1])["metadata"].get("n") if number not in refused else None
            if number in refused:
                fates.append(OTHER if refused[number] == "external_id_conflict" else refused[number])
            elif stored[place]:
                stored[place] -= 1
                fates.append(NEW)
            else:
                fates.append(SAME)
        assert fates.count(SAME) == checked.repeated
        assert fates.count(NEW) == checked.accepted
        return fates


def _events(checked: Any) -> list[dict[str, Any]]:
    due = checked.lines.split(b"\n") if checked.count else []
    return [json.loads(line) for line in (*due, *(line for _, line in checked.held))]


def event(external_id: str | None, n: int = 0, **more: Any) -> bytes:
    members = {"name": "n", "external_customer_id": "c", "external_id": external_id, "metadata": {"n": n}}
    return json.dumps({**members, **more}).encode()


@pytest.fixture
def line() -> Socket:
    return Socket()


# -- what is the same --------------------------------------------------------------------


@pytest.mark.parametrize(
    "again",
    [
        ONE,
        ONE.replace(b":", b" :  ").replace(b",", b"\t, "),
        b'{"metadata":{"b":"x","a":1},"external_id":"e1","external_customer_id":"c","name":"n"}',
        ONE.replace(b'"n"', b'"\\u006e"'),
        ONE.replace(b'"a":1', b'"a":1.0'),
        ONE.replace(b'"a":1', b'"a":10e-1'),
    ],
)
def test_the_same_content_is_the_same_event_however_it_is_spelled(again: bytes) -> None:
    assert is_same(ONE, again)


@pytest.mark.parametrize(
    "again",
    [
        ANOTHER,
        ONE.replace(b'"a":1', b'"a":true'),
        ONE.replace(b'"a":1', b'"a":"1"'),
        ONE.replace(b'"a":1', b'"a":1.0000000000000000000000001'),
        ONE.replace(b'"a":1', b'"a":1,"c":1'),
        ONE.replace(b',"b":"x"', b""),
        ONE.replace(b'"name":"n"', b'"name":"m"'),
        ONE[:-1] + b',"timestamp":"2026-01-01T00:00:00Z"}',
        ONE[:-1] + b',"parent_id":null}',
        ONE[:-1] + b',"unknown":[1]}',
    ],
)
def test_other_content_is_another_event(again: bytes) -> None:
    assert not is_same(ONE, again)
    assert not is_same(again, ONE)


def test_what_cannot_be_compared_is_not_the_same() -> None:
    deep = b"[" * 100_000

    assert not is_same(ONE, deep)
    assert not is_same(b'{"a":[1,2]}', b'{"a":[1]}')
    assert not is_same(b'{"a":[1]}', b'{"a":{}}')


# -- what a producer is told -------------------------------------------------------------


def test_an_id_that_comes_again(line: Socket) -> None:
    assert line.write(event("a", 1)) == [NEW]
    assert line.write(event("a", 1)) == [SAME]
    assert line.write(event("a", 2)) == [OTHER]
    assert line.write(event("a", 1)) == [SAME]


def test_an_id_that_comes_twice_in_one_read(line: Socket) -> None:
    assert line.write(event("a", 1), event("b", 2), event("a", 1), event("b", 3), event("c", 4)) == [
        *(NEW, NEW, SAME, OTHER, NEW)
    ]
    assert line.write(event("c", 4), event("d", 5)) == [SAME, NEW]


def test_an_event_among_many_of_one_read_is_found_again(line: Socket) -> None:
    lines = [event(f"e{n}", n) for n in range(300)]
    line.write(*lines)

    assert line.write(*lines) == [SAME] * 300
    assert line.write(*[event(f"e{n}", n + 1000) for n in range(300)]) == [OTHER] * 300


@pytest.mark.parametrize("nothing", [None, ""])
def test_events_without_an_id_of_their_own_are_never_repeats(line: Socket, nothing: str | None) -> None:
    assert line.write(event(nothing, 1), event(nothing, 1)) == [NEW, NEW]
    assert line.write(event(nothing, 1), event("a", 2), event(nothing, 1)) == [NEW] * 3
    assert line.write(event("a", 2), event(nothing, 1)) == [SAME, NEW]


def test_a_refused_event_may_come_again_mended(line: Socket) -> None:
    assert line.write(event("a", 1, name="x" * 129)) == ["string_too_long"]
    assert line.write(event("a", 1)) == [NEW]


def test_an_event_that_is_held_is_remembered_too(line: Socket) -> None:
    soon = event("a", 1, timestamp="2026-11-23T12:00:30Z")

    assert line.write(soon) == [NEW]
    assert line.write(soon) == [SAME]
    assert line.write(event("a", 1)) == [OTHER]


def test_the_content_is_what_the_producer_wrote_without_our_stamps(line: Socket) -> None:
    checked = line.checker.check([event("a", 1) + b"\n"], NOON, line.seen)
    stamped = checked.lines

    assert b"timestamp" in stamped
    assert line.write(event("a", 1)) == [SAME]
    assert line.write(stamped) == [OTHER]


def test_the_refusal_says_what_would_become_of_the_event(line: Socket) -> None:
    line.write(event("a", 1))

    checked = line.checker.check([event("a", 2) + b"\n"], NOON, line.seen)

    ((_, why),) = checked.fates[0].refused
    assert (why.type, why.loc) == ("external_id_conflict", ("external_id",))
    assert "Polar would drop this one" in why.msg


def test_without_a_memory_every_event_is_new() -> None:
    checked = Checker().check([event("a", 1) + b"\n" + event("a", 2) + b"\n"], NOON)

    assert (checked.count, checked.repeated, checked.refused) == (2, 0, 0)


def test_what_is_dead_may_come_again_mended(line: Socket) -> None:
    line.write(event("a", 1), event("b", 2), event("c", 3))
    line.write(event("d", 4))

    line.seen.forget(["a", "d", "never"])

    assert line.write(event("b", 2), event("a", 10)) == [SAME, NEW]
    assert line.write(event("d", 40)) == [NEW]
    assert line.write(event("a", 1), event("d", 4)) == [OTHER, OTHER]


# -- one id, two organizations -----------------------------------------------------------

HERE, THERE = "5b0a9f0e-3d3e-4a36-9e4c-1d1f5f6a7b8c", "6b0a9f0e-3d3e-4a36-9e4c-1d1f5f6a7b8c"


def test_a_dead_letter_that_was_retried_is_remembered_again(line: Socket) -> None:
    line.seen.forget(["e1"])
    line.seen.revive("e1", ONE[:-1] + b',"timestamp":"2026-11-23T12:00:00Z"}')

    assert line.write(ANOTHER) == [OTHER]
    assert line.write(ONE) == [SAME], "our stamp is none of the producer's content"
    assert line.write(ONE[:-1] + b',"timestamp":"2026-11-23T11:00:00Z"}') == [OTHER]


def test_two_organizations_may_use_one_id() -> None:
    line = Socket(checker=Checker(personal_token=True))

    assert line.write(event("a", 1, organization_id=HERE), event("a", 2, organization_id=THERE)) == [NEW, NEW]
    assert line.write(event("a", 1, organization_id=HERE)) == [SAME]
    assert line.write(event("a", 1, organization_id=THERE)) == [OTHER]


def test_a_dead_event_of_one_organization_is_forgotten_for_that_one() -> None:
    line = Socket(checker=Checker(personal_token=True))
    line.write(event("a", 1, organization_id=HERE), event("a", 2, organization_id=THERE))

    line.seen.forget([identity_of(event("a", 1, organization_id=HERE.upper()))])

    assert line.write(event("a", 3, organization_id=HERE), event("a", 4, organization_id=THERE)) == [
        NEW,
        OTHER,
    ]


@pytest.mark.parametrize("odd", [b"", b"{", b"[]", b'{"external_id":1}', event("a", organization_id="x")])
def test_what_is_no_event_has_no_identity(odd: bytes) -> None:
    assert identity_of(odd) == ""
    assert identity_of(event(None)) == ""
    assert identity_of(event("a")) == "a"


# -- against a plain model ---------------------------------------------------------------

SPELLINGS = (
    json.dumps,
    lambda members: json.dumps(members, separators=(",", ":")),
    lambda members: json.dumps(dict(reversed(members.items()))),
)


@st.composite
def written(draw: st.DrawFn) -> tuple[str, Any, bytes]:
    """One line: its id ("" for none), its content, its text."""
    name = draw(st.sampled_from(["", "a", "b", "c", "d", "\u00e9", "x" * 50]))
    members: dict[str, Any] = {
        "name": "n",
        "external_customer_id": "c",
        "metadata": {"n": draw(st.integers(0, 2))},
    }
    if name:
        members["external_id"] = name
    if draw(st.booleans()):
        members["timestamp"] = draw(st.sampled_from(["2026-01-01T00:00:00Z", "2026-11-23T12:00:10Z"]))
    if draw(st.integers(0, 9)) == 0:
        del members["name"]
    return name, members, draw(st.sampled_from(SPELLINGS))(members).encode()


reads = st.lists(st.lists(written(), min_size=1, max_size=8), max_size=12)


@settings(max_examples=300)
@given(reads, st.data())
def test_it_decides_as_a_plain_table_of_all_events_does(reads: list, data: st.DataObject) -> None:
    line, table = Socket(), {}
    for read in reads:
        expected = []
        for name, members, _ in read:
            if "name" not in members:
                expected.append("missing")
            elif not name:
                expected.append(NEW)
            elif name not in table:
                table[name] = members
                expected.append(NEW)
            else:
                expected.append(SAME if table[name] == members else OTHER)

        assert Counter(line.write(*[text for _, _, text in read])) == Counter(expected)

        dead = data.draw(st.sets(st.sampled_from(sorted(table)))) if table else set()
        line.seen.forget(dead)
        for name in dead:
            del table[name]


@settings(max_examples=200)
@given(reads, st.integers(0, 3000))
def test_with_a_small_memory_it_forgets_the_oldest_and_nothing_else(reads: list, room: int) -> None:
    """Whatever came within `room` is remembered; what it says of an older one is true or nothing."""
    line, table, age = Socket(Seen(room)), {}, {}
    for read in reads:
        for name, members, text in read:
            (fate,) = line.write(text)
            if "name" not in members:
                assert fate == "missing"
                continue
            known = table.get(name) if name else None
            if known is not None and age[name] < room:
                assert fate != NEW
            if fate != NEW:
                assert known is not None
                assert fate == (SAME if known == members else OTHER)
            elif name:
                size = len(text) + EVENT_BYTES
                age = {one: years + size for one, years in age.items()} | {name: 0}
                table[name] = members


def test_its_memory_is_bounded(line: Socket) -> None:
    seen = Seen(20_000)
    line = Socket(seen)
    for n in range(2_000):
        line.write(event(f"e{n}", n))
        kept = sum(len(block) for part in (seen._young, seen._old) for block in part.blocks)
        places = len(seen._young.places) + len(seen._old.places)
        assert kept + places * EVENT_BYTES <= 2 * (20_000 + 500)


# -- what is recalled from before --------------------------------------------------------

STAMP = b',"timestamp":"2026-11-23T12:00:00.000Z"}'


def stamped(line: bytes) -> bytes:
    """Return a line as it goes out."""
    return line[:-1] + STAMP


def from_before(*blocks: bytes, room: int = 1 << 20) -> Socket:
    """Return a socket of an agent that has these blocks from before, the newest first."""
    return Socket(Seen(room, lambda: iter(blocks)))


def test_what_is_recalled_is_known_without_our_stamps() -> None:
    line = from_before(b"\n".join([stamped(event("a", 1)), event("b", 1)]))

    assert line.write(event("a", 1), event("b", 1), event("a", 2), event("b", 2), event("c")) == [
        *(SAME, SAME, OTHER, OTHER, NEW)
    ]


@pytest.mark.parametrize("blank", [b"\t", b" "])
def test_what_was_stamped_by_a_guess_is_recalled_like_all_else(blank: bytes) -> None:
    """With its stamp as it was made, and corrected."""
    line = from_before(
        b"\n".join([stamped(event("a", 1)).replace(b':"2026', b':%b"2026' % blank), event("b", 1)])
    )

    assert line.write(event("a", 1), event("a", 2), event("c")) == [SAME, OTHER, NEW]


def test_what_is_recalled_is_known_to_the_first_who_asks() -> None:
    blocks = [stamped(event("a", 1))]

    assert Seen(recall=lambda: blocks).knows("a")
    assert Seen(recall=lambda: blocks).ask("a", event("a", 1)) is True
    assert Seen(recall=lambda: blocks).first_repeat(["", "b", "a"]) == 2
    assert not Seen(recall=lambda: blocks).enter(["a"], event("a", 1))


def test_it_is_recalled_once() -> None:
    calls = []
    line = Socket(Seen(recall=lambda: calls.append(1) or []))

    line.write(event("a"), event("b"))
    line.write(event("a"), event("c"))

    assert calls == [1]


def test_of_two_that_are_recalled_the_newer_counts() -> None:
    line = from_before(stamped(event("a", 2)), stamped(event("a", 1)))

    assert line.write(event("a", 2), event("a", 1)) == [SAME, OTHER]


def test_so_much_is_recalled_and_no_more() -> None:
    blocks = iter([stamped(event(f"e{n}", n)) for n in range(100)])
    line = Socket(Seen(10 * (len(stamped(event("e1"))) + EVENT_BYTES), lambda: blocks))

    assert line.write(event("e3", 3), event("e99", 99)) == [SAME, NEW]
    assert len(list(blocks)) == 89


def test_a_dead_letter_that_was_recalled_may_come_again() -> None:
    line = from_before(stamped(event("a", 1)))

    line.seen.forget(["a"])

    assert line.write(event("a", 2)) == [NEW]


def test_of_a_person_events_are_recalled_by_their_organization() -> None:
    one, other = (str(uuid.UUID(int=n, version=4)) for n in (1, 2))
    of_one, of_other = event("a", 1, organization_id=one), event("a", 2, organization_id=other)
    line = from_before(b"\n".join([stamped(of_one), stamped(of_other)]))
    line.checker = Checker(personal_token=True)

    assert line.write(of_other, event("a", 2, organization_id=one)) == [SAME, OTHER]


def test_what_cannot_be_read_is_not_recalled() -> None:
    line = from_before(b"no JSON", stamped(event("a", 1)))

    assert line.write(event("a", 1)) == [SAME]


@pytest.mark.parametrize("went_out", [b"", b',"customer_id":null'])
def test_a_customer_that_stamping_took_out_is_no_difference(went_out: bytes) -> None:
    line = event("a", 1, customer_id="0b9a4e6c-3d3e-4a36-9e4c-1d1f5f6a7b8c")
    out = event("a", 1)[:-1] + went_out + STAMP

    assert is_unstamped(out, line)
    assert not is_unstamped(line[:-1] + STAMP, event("a", 1))
