"""What was learned of events makes reading faster, and changes nothing else."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clock import NOON
from support.lines import costs, lines, llms, whole_lines

from agent import event, quick
from agent.event import Checker
from agent.refusal import Refusal, full_check
from agent.shape import Shapes

NOW = datetime.fromtimestamp(NOON, UTC)

MANY = 40
"""Enough to learn from."""

USUAL = b'{"name":"n","external_customer_id":"c","metadata":{"tokens":77,"model":"m","x":1.50,"ok":true}}'
RICH = (
    b'{"name":"n","external_customer_id":"c","metadata":{"_cost":{"amount":0.25,"currency":"usd"},'
    b'"_llm":{"vendor":"v","model":"m","input_tokens":1,"output_tokens":2,"total_tokens":3}}}'
)
WITH_ID = b'{"name":"n","external_customer_id":"c","external_id":"e","metadata":{"a":1}}'
WITH_TIME = b'{"timestamp":"2026-01-01T00:00:00Z","name":"n","external_customer_id":"c","parent_id":"p"}'
COMPLETE = b'{"name":"n","external_customer_id":"c","external_id":"e","timestamp":"2026-01-01T00:00:00Z"}'
TEACHERS = (USUAL, RICH, WITH_ID, WITH_TIME, COMPLETE)

more = settings(max_examples=300)


def segment(*given_lines):
    return b"".join(line + b"\n" for line in given_lines)


def taught(*teachers):
    """Return shapes that know these lines."""
    shapes = Shapes()
    block = [*teachers] * MANY
    found = quick.check_block(b"\n".join(block), len(block))
    assert isinstance(found, quick.Found)
    shapes.learn(found)
    return shapes


def knows(shapes, *given_lines):
    """Tell whether lines are read by what was learned."""
    return isinstance(shapes.read(b"\n".join(given_lines)), quick.Found)


def told(checked):
    """Return all that is said of lines but for the ids that were made up."""
    return (
        [len(line) for line in checked.lines.split(b"\n")],
        [(moment, len(line)) for moment, line in checked.held],
        checked.fates,
    )


@st.composite
def near(draw):
    """Return a line like the teachers', with something else in it."""
    line = draw(st.sampled_from(TEACHERS))
    old = draw(
        st.sampled_from([b'"m"', b"77", b"1.50", b"true", b'"c"', b'"e"', b"0.25", b'"usd"', b'"v"', b"1,"])
    )
    value = draw(
        st.sampled_from(
            [
                *(
                    b'""',
                    b"null",
                    b"{}",
                    b"[]",
                    b"1e400",
                    b'"\\u0000"',
                    b'"\\ud800"',
                    b'"\xff"',
                    b"NaN",
                    b"-1,",
                ),
                *(
                    b'"%b"' % (b"x" * 501),
                    b"9" * 4301,
                    b"123456",
                    b"0.1234567890123",
                    b'"a\nb"',
                    b'"}\n{"',
                    b"2,",
                ),
            ]
        )
    )
    return line.replace(old, value, 1) if draw(st.booleans()) else line


def refused(line):
    """Tell whether the full check refuses a line for anything but its time."""
    found = full_check(line, NOW)
    return isinstance(found, Refusal) and not found.type.startswith("timestamp_in_future")


@settings(max_examples=600)
@given(st.sampled_from(TEACHERS), st.lists(near() | lines(), min_size=1, max_size=4))
def test_what_is_read_by_its_shape_the_full_check_takes_and_the_quick_one_reads_alike(teacher, block):
    if not all(line.startswith(b"{") and line.endswith(b"}") and b"\n" not in line for line in block):
        return
    found = taught(teacher).read(b"\n".join(block))
    if not isinstance(found, quick.Found) or len(found.events) != len(block):
        return
    if found.with_times and not quick.earliest_is_safe([event.timestamp for event in found.events]):
        return  # whoever reads sees to that

    assert [line for line in block if refused(line)] == []
    known = quick.check_block(b"\n".join(block), len(block))
    if isinstance(known, quick.Found):
        assert (found.with_ids, found.with_times) == (known.with_ids, known.with_times)


@pytest.mark.parametrize("teacher", [WITH_ID, COMPLETE])
@pytest.mark.parametrize("nothing", [b'""', b"null"])
def test_an_empty_id_is_none_whatever_was_learned(teacher, nothing):
    line = teacher.replace(b'"e"', nothing)
    checker = Checker()

    for given_lines in ([teacher] * MANY, [teacher, line]):
        checked = checker.check([segment(*given_lines)], NOON)

    assert len(json.loads(checked.lines.split(b"\n")[1])["external_id"]) == 36


@pytest.mark.parametrize("text", [b"a\\u0000b", b"\\ud800"])
def test_what_no_server_takes_is_refused_whatever_was_learned(text):
    checker = Checker()
    checker.check([segment(*[USUAL] * MANY)], NOON)

    assert checker.check([segment(USUAL, USUAL.replace(b'"m"', b'"%b"' % text))], NOON).refused == 1


@pytest.mark.parametrize("between", [b"", b" ", b","])
def test_two_events_on_one_line_are_refused_whatever_was_learned(between):
    checker = Checker()
    checker.check([segment(*[USUAL] * MANY)], NOON)

    checked = checker.check([segment(USUAL, USUAL + between + USUAL, USUAL)], NOON)

    assert (checked.accepted, [number for number, _ in checked.fates[0].refused]) == (2, [2])


@more
@given(costs(), llms())
def test_a_cost_or_use_of_a_model_that_is_read_by_its_shape_the_full_check_takes(cost, llm):
    shapes = taught(RICH)
    for member in (b'"_cost":%b' % cost, b'"_llm":%b' % llm):
        line = b'{"name":"n","external_customer_id":"c","metadata":{%b}}' % member
        if b"\n" not in line and knows(shapes, line):
            assert not refused(line)


@more
@given(
    st.lists(st.sampled_from(TEACHERS), min_size=1, max_size=2),
    st.lists(st.one_of(st.sampled_from(TEACHERS), near(), whole_lines()), min_size=1, max_size=12),
)
def test_what_was_taken_before_makes_no_difference(before, block):
    """Neither to what is taken, nor to what is refused and how."""
    checker, fresh = Checker(), Checker()
    for teacher in before:
        checker.check([segment(*[teacher] * MANY)], NOON)

    for _ in range(2):  # the second time it may be trusted, or not any more
        assert told(checker.check([segment(*block)], NOON)) == told(fresh.check([segment(*block)], NOON))


@pytest.mark.parametrize("teacher", TEACHERS)
def test_more_of_the_same_is_read_by_its_shape(teacher):
    """It is of no use otherwise."""
    shapes = taught(teacher)

    assert knows(shapes, teacher, teacher)
    assert not knows(shapes, teacher, teacher.replace(b'"name"', b'"new":1,"name"'))


def test_events_with_some_of_the_fields_are_of_the_shape_of_all_that_were_seen():
    shapes = taught(USUAL, RICH)

    assert knows(shapes, USUAL, RICH)
    assert knows(shapes, b'{"name":"n","external_customer_id":"c","metadata":{"ok":"yes"}}')
    assert knows(shapes, b'{"name":"n","external_customer_id":"c"}')


def test_a_few_events_teach_nothing():
    shapes = Shapes()
    shapes.learn(quick.check_block(USUAL, 1))

    assert not knows(shapes, USUAL)


@pytest.mark.parametrize(
    "key", [b"f0", b"cost", b"llm", b"", b"\xc3\xa9", b"class", b"__init__", b"a b", b"\\u0041"]
)
def test_any_key_can_be_learned(key):
    line = b'{"name":"n","external_customer_id":"c","metadata":{"f1":"x","%b":1}}' % key

    assert knows(taught(line), line)


@pytest.mark.parametrize("key", [b'\\"', b"\\\\", b"\\n", b"\\u2028"])
def test_a_key_that_no_field_can_have_is_left_to_the_quick_check(key):
    line = b'{"name":"n","external_customer_id":"c","metadata":{"%b":1}}' % key
    checker = Checker()

    assert [checker.check([segment(*[line] * MANY)], NOON).accepted for _ in range(3)] == [MANY] * 3


def test_events_that_are_all_different_are_given_up_as_a_teacher():
    """Making a type for each block would cost more than it can save."""
    lessons = 0
    checker = Checker()
    for block in range(400):
        number = 100 * block
        different = [USUAL.replace(b"tokens", b"k%d" % (number + place)) for place in range(MANY)]
        before = checker.shapes._decoder
        checker.check([segment(*different)], NOON)
        lessons += checker.shapes._decoder is not before

    assert 1 <= lessons <= 12


def test_a_change_of_what_comes_is_learned():
    checker = Checker()
    for line in (USUAL, WITH_ID, USUAL):
        for _ in range(4):
            checker.check([segment(*[line] * MANY)], NOON)
        assert knows(checker.shapes, line)


@pytest.mark.parametrize(
    "bad", [b"no", b"{}", USUAL[:-1], b'{"name":"n","metadata":{"tokens":1}}', b'{"name":"\xff"}']
)
@pytest.mark.parametrize("neighbour", TEACHERS)
def test_one_bad_line_does_not_have_its_neighbours_looked_at_one_by_one(bad, neighbour, monkeypatch):
    alone = []
    check_line = quick.check_line
    monkeypatch.setattr(event.quick, "check_line", lambda line: alone.append(line) or check_line(line))
    checker = Checker()
    checker.check([segment(*[neighbour] * MANY)], NOON)

    checked = checker.check([segment(*[neighbour] * 300, bad, *[neighbour] * 300)], NOON)

    assert (checked.accepted, [number for number, _ in checked.fates[0].refused]) == (600, [301])
    assert len(alone) < 10
