"""Dead letters go back on their way, as they are or mended, under their own ids."""

import json

import pytest
from support.clock import NOON

from agent.chunk import MAX_EVENTS
from agent.dead import Edit, Filter, revive
from agent.event import Checker
from agent.queue import DeadLetter

ARRIVED = 1_795_435_200_000


def letter(number=1, event=None, **fields):
    event = event or json.dumps(
        {
            "name": "n",
            "external_customer_id": "c",
            "external_id": f"e{number}",
            "timestamp": "2026-01-01T00:00:00Z",
            **fields,
        }
    )
    return DeadLetter(
        id=number,
        event=event,
        external_id=f"e{number}",
        name="n",
        status=422,
        reason="no",
        errors=[],
        attempts=1,
        first_attempt=1.0,
        died_at=2.0,
        batch="b1",
    )


def retried(letters, edits=None, checker=None):
    return revive(letters, edits or {}, checker or Checker(), NOON, ARRIVED)


def lines_of(revival):
    return [line for chunk in revival.change.requeued for line in chunk.lines.split(b"\n")]


def test_a_letter_goes_back_exactly_as_it_was():
    one = letter(
        event='{"name":"n","external_customer_id":"c","external_id":"e1","timestamp":1.0e9,"x":1.50}'
    )

    revival = retried([one])

    assert lines_of(revival) == [one.event.encode()]
    assert revival.change.revived == [1]
    assert revival.refused == []


def test_letters_go_back_in_order_and_share_a_chunk():
    letters = [letter(number) for number in (3, 4, 5)]

    revival = retried(letters)

    assert lines_of(revival) == [one.event.encode() for one in letters]
    assert [(chunk.count, chunk.arrived_ms, chunk.due_ms) for chunk in revival.change.requeued] == [
        (3, ARRIVED, 0)
    ]


def test_more_letters_than_a_chunk_holds_go_back_in_more_chunks():
    letters = [letter(number) for number in range(1, 1201)]

    revival = retried(letters)

    assert lines_of(revival) == [one.event.encode() for one in letters]
    assert all(chunk.count <= MAX_EVENTS for chunk in revival.change.requeued)


def test_a_mended_letter_goes_back_as_it_was_mended():
    mended = letter(external_customer_id="other").event.encode()

    assert lines_of(retried([letter()], {1: mended})) == [mended]


def test_an_edit_of_another_letter_changes_nothing():
    assert lines_of(retried([letter(1)], {2: b"{}"})) == [letter(1).event.encode()]


@pytest.mark.parametrize("without", [b"", b',"external_id":null', b',"external_id":""'])
def test_a_letter_that_lost_its_id_in_mending_keeps_it(without):
    """Under another id Polar would take the event once more, should it have it already."""
    mended = b'{"name":"n","external_customer_id":"other"%b}' % without

    (line,) = lines_of(retried([letter(1)], {1: mended}))

    assert json.loads(line)["external_id"] == "e1"
    assert json.loads(line)["external_customer_id"] == "other"


def test_an_id_that_was_mended_is_the_new_one():
    """It may have been the id that was wrong."""
    (line,) = lines_of(retried([letter(1)], {1: letter(1, external_id="shorter").event.encode()}))

    assert json.loads(line)["external_id"] == "shorter"


def test_a_letter_may_be_mended_over_several_lines():
    mended = json.dumps(json.loads(letter().event), indent=2).encode()

    (line,) = lines_of(retried([letter()], {1: mended}))

    assert json.loads(line) == json.loads(mended)


@pytest.mark.parametrize(
    ("mended", "reason"),
    [
        (b'{"name":"n","external_id":"e1"}', "external_customer_id: this field is required"),
        (b'{"external_customer_id":"c","external_id":"e1"}', "name: this field is required"),
        (b"", "not one JSON object"),
        (b" \n ", "not one JSON object"),
        (b"[]", "a line must be one JSON object"),
    ],
)
def test_a_letter_that_would_only_come_back_stays_and_says_why(mended, reason):
    revival = retried([letter(1)], {1: mended})

    assert revival.refused == [(1, reason)]
    assert revival.change.revived == []
    assert revival.change.requeued == []


def test_an_edit_of_two_events_is_refused():
    """One letter cannot become two events: the books would not balance."""
    event = letter(1).event.encode()

    for between in (b"\n", b"", b" "):
        revival = retried([letter(1)], {1: event + between + event})
        assert [number for number, _ in revival.refused] == [1]


def test_one_that_stays_does_not_keep_the_others():
    revival = retried([letter(1), letter(2), letter(3)], {2: b"{}"})

    assert revival.change.revived == [1, 3]
    assert [number for number, _ in revival.refused] == [2]
    assert len(lines_of(revival)) == 2


def test_a_letter_that_is_not_due_is_held_until_it_is():
    early = letter(1, timestamp="2026-11-23T12:00:30Z")

    revival = retried([letter(2), early])

    due = {chunk.due_ms: chunk for chunk in revival.change.requeued}
    assert due[0].lines == letter(2).event.encode()
    (held_until,) = due.keys() - {0}
    assert due[held_until].lines == early.event.encode()
    assert (due[held_until].count, due[held_until].arrived_ms) == (1, ARRIVED)
    assert NOON + 30 <= held_until / 1000 <= NOON + 30.1
    assert sorted(revival.change.revived) == [1, 2]


def test_the_books_say_that_as_many_events_wait_as_letters_went_back():
    revival = retried([letter(1), letter(2), letter(3, timestamp="2026-11-23T12:00:30Z")], {1: b"{}"})

    assert sum(chunk.count for chunk in revival.change.requeued) == len(revival.change.revived) == 2


def test_nothing_to_retry_is_nothing_to_commit():
    assert not retried([]).change
    assert not retried([letter(1)], {1: b"{}"}).change


# -- choosing ----------------------------------------------------------------------------


def refused(number=1, **changes):
    values = {name: getattr(letter(number), name) for name in DeadLetter.__struct_fields__}
    return DeadLetter(**{**values, **changes})


ERROR = {"type": "missing", "loc": ["name"], "msg": "Field required"}


@pytest.mark.parametrize(
    ("chosen", "one", "other"),
    [
        (Filter(name="n"), {}, {"name": "m"}),
        (Filter(status=422), {}, {"status": 500}),
        (Filter(status=0), {"status": 0}, {}),
        (Filter(type="missing"), {"errors": [{"type": "other"}, ERROR]}, {"errors": [{"type": "other"}]}),
        (Filter(reason="NOT found"), {"reason": "customer: Customer not found"}, {}),
        (Filter(external_ids=frozenset(["e1", "e3"])), {}, {"external_id": "e2"}),
        (Filter(customer="c"), {}, {"event": '{"external_customer_id":"d"}'}),
        (Filter(customer="u"), {"event": '{"customer_id":"u","external_customer_id":"d"}'}, {}),
        (Filter(customer="c"), {}, {"event": "no JSON"}),
        (Filter(since=2.0), {}, {"died_at": 1.9}),
        (Filter(until=2.1), {}, {"died_at": 2.1}),
        (Filter(name="n", status=422), {}, {"name": "m"}),
    ],
)
def test_a_filter_takes_one_letter_and_not_the_other(chosen, one, other):
    assert chosen.takes(refused(**one))
    assert not chosen.takes(refused(**other))
    assert chosen


def test_a_filter_that_says_nothing_takes_all():
    assert not Filter()
    assert Filter().takes(letter())


# -- mending field by field --------------------------------------------------------------

EVENT = '{"name":"n","external_customer_id":"c","external_id":"e","metadata":{"a":1.50,"b":"x"},"big":1e400}'


@pytest.mark.parametrize(
    ("edit", "mended"),
    [
        (Edit({"name": "m"}), EVENT.replace('"name":"n"', '"name":"m"')),
        (Edit({"name": "5"}), EVENT.replace('"name":"n"', '"name":"5"')),
        (Edit({"name": '"q"'}), EVENT.replace('"name":"n"', '"name":"q"')),
        (Edit({"metadata.a": "2.50"}), EVENT.replace("1.50", "2.50")),
        (Edit({"metadata.b": "y z"}), EVENT.replace('"x"', '"y z"')),
        (Edit({"metadata.b": "true"}), EVENT.replace('"x"', "true")),
        (Edit({"metadata.c.d": "1"}), EVENT.replace('"x"', '"x","c.d":1')),
        (Edit(unsets=("metadata.a",)), EVENT.replace('"a":1.50,', "")),
        (Edit(unsets=("metadata", "none")), EVENT.replace('"metadata":{"a":1.50,"b":"x"},', "")),
        (Edit({"metadata": "{}", "metadata.c": "1"}), EVENT.replace('{"a":1.50,"b":"x"}', '{"c":1}')),
        (Edit(unsets=("big",)), EVENT.replace(',"big":1e400', "")),
        (Edit({"timestamp": "1e9"}), EVENT.replace("1e400", '1e400,"timestamp":1e9')),
        (Edit({"timestamp": "2026-01-01T00:00:00Z"}), EVENT[:-1] + ',"timestamp":"2026-01-01T00:00:00Z"}'),
        (Edit({"parent_id": "null"}), EVENT[:-1] + ',"parent_id":null}'),
        (
            Edit({"customer_id": "u"}),
            EVENT.replace('"external_customer_id":"c",', "")[:-1] + ',"customer_id":"u"}',
        ),
    ],
)
def test_an_edit_changes_its_fields_and_no_digit_beside_them(edit, mended):
    assert edit.apply(EVENT) == mended


@pytest.mark.parametrize("odd", ["", "[]", "no JSON", '{"metadata":[]}'])
def test_what_has_no_fields_cannot_be_changed_field_by_field(odd):
    with pytest.raises(ValueError, match="cannot be changed field by field"):
        Edit({"metadata.a": "1"}).apply(odd)


def test_metadata_of_a_wrong_kind_can_be_replaced():
    assert Edit({"metadata": '{"a":1}'}).apply('{"metadata":[]}') == '{"metadata":{"a":1}}'
