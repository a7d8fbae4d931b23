"""Which lines are taken, what is written into them, and in which words the others are refused."""

import gzip
import json
import random
import re
import string
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import process_time
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.clock import NOON
from support.lines import CUSTOMER, GOOD, costs, fine_lines, lines, llms, nested, whole_lines

from agent import quick, schema
from agent.chunk import MAX_EVENTS
from agent.event import Checker
from agent.framing import TOO_LONG
from agent.guess import iso
from agent.refusal import Refusal, full_check, queue_full
from agent.seen import Seen

NOW = datetime.fromtimestamp(NOON, UTC)
MINIMAL = b'{"name":"n","external_customer_id":"c"}'


def test_what_programs_stamp_by_a_clock_that_is_ahead_is_held():
    assert check(at(300), lead=lambda: 299.0, future_tolerance=2).held
    assert check(at(302), lead=lambda: 299.0, future_tolerance=2).refused == 1


STAMPED = b'{"name":"n","external_customer_id":"c","external_id":"e","timestamp":"2026-01-01T00:00:00Z"}'
ANY_UUID7 = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
DATA = Path(__file__).parent.parent / "data" / "verdicts.jsonl.gz"

STABLE_TYPES = {
    *("json_invalid", "too_long", "missing", "string_type", "string_too_long", "timestamp_in_future"),
    *("timestamp_invalid", "metadata_value", "not_allowed", "invalid_characters", "dict_type"),
    *("uuid_type", "uuid_parsing", "uuid_version", "decimal_type", "decimal_parsing", "decimal_max_digits"),
    *("decimal_max_places", "decimal_whole_digits", "finite_number", "string_pattern_mismatch"),
    *("int_type", "int_parsing", "int_from_float", "int_parsing_size"),
}
"""Producers may go by these words: one may be added, none may change."""

more = settings(max_examples=300)


def event(members=b""):
    """Return a fine line with more members."""
    return b'{"name":"n","external_customer_id":"c"%b}' % (b"," + members if members else b"")


def check(*given_lines, now=NOON, **options):
    """Check lines that came in one segment."""
    return Checker(**options).check([b"".join(line + b"\n" for line in given_lines)], now)


def accepted(checked):
    """Return the lines that are due."""
    return checked.lines.split(b"\n") if checked.count else []


def taken(line, **options):
    """Return what became of the one line that must be accepted."""
    checked = check(line, **options)
    assert (checked.accepted, checked.refused) == (1, 0), checked.fates
    (stamped,) = [*accepted(checked), *(held for _, held in checked.held)]
    return stamped


def refusal(line, **options):
    """Return the refusal of the one line that must be refused."""
    checked = check(line, **options)
    assert checked.accepted == 0
    ((number, refused),) = checked.fates[0].refused
    assert number == 1
    return refused


def read(line):
    """Read JSON with each number as it is written."""
    return json.loads(
        line,
        parse_int=lambda digits: ("number", digits),
        parse_float=lambda digits: ("number", digits),
        parse_constant=lambda word: ("number", word),
    )


def outcome(*checks):
    """Put checks together as one: events without the ids that we made up, and refusals by number."""
    due, held, refused, count = [], [], [], 0
    for checked in checks:
        due += accepted(checked)
        held += checked.held
        for fate in checked.fates:
            refused += [(count + number, why) for number, why in fate.refused]
            count += fate.lines
    return (
        [read(ANY_UUID7.sub(b"made up", line)) for line in due],
        [(moment, read(ANY_UUID7.sub(b"made up", line))) for moment, line in held],
        refused,
        count,
    )


# -- the real server -------------------------------------------------------------------


def recorded():
    with gzip.open(DATA, "rt", encoding="utf-8") as rows:
        return [json.loads(row) for row in rows]


ROWS = recorded()
ONLY_THE_SERVER_KNOWS = {"customer_id", "member_id"}


def server_took(row):
    """Tell whether the server took the event, but for what only its database knows."""
    return row["status"] == 200 or (
        row["errors"] is not None and {error[0] for error in row["errors"]} <= ONLY_THE_SERVER_KNOWS
    )


@pytest.mark.parametrize("status", [200, 400, 422, 500])
def test_an_event_is_taken_exactly_when_the_real_server_took_it(status):
    rows = [row for row in ROWS if row["status"] == status]
    assert rows

    differing = [
        row["event"][:200]
        for row in rows
        if (check(row["event"].encode(), future_tolerance=0).accepted == 1) != server_took(row)
    ]

    assert differing == []


@pytest.mark.parametrize("status", [200, 400, 422, 500])
def test_the_real_servers_verdict_holds_among_good_neighbours_who_come_to_no_harm(status):
    differing = []
    for row in ROWS:
        if row["status"] != status:
            continue
        checked = check(STAMPED, row["event"].encode(), STAMPED, future_tolerance=0)
        due = accepted(checked)
        if (checked.accepted == 3) != server_took(row) or (due[0], due[-1]) != (STAMPED, STAMPED):
            differing.append(row["event"][:200])

    assert differing == []


# -- the quick check and the full one ----------------------------------------------------


def quick_takes(line):
    """Tell whether the quick check alone is enough for a line, as `Checker` uses it."""
    found = quick.check_line(line) if line.startswith(b"{") and line.endswith(b"}") else None
    if found is None:
        return False
    return found.timestamp is quick.ABSENT or (
        quick.earliest_is_safe([found.timestamp]) and found.timestamp <= NOW
    )


def full_refusal(line):
    found = full_check(line, NOW)
    return found if isinstance(found, Refusal) else None


@settings(max_examples=800)
@given(lines())
def test_what_the_quick_check_takes_the_full_check_takes(line):
    if quick_takes(line):
        assert full_refusal(line) is None


@more
@given(lines())
def test_both_checks_read_the_same_of_a_line(line):
    """Whether it has an id, and its time; fractions beyond microseconds may be rounded or cut."""
    if not quick_takes(line):
        return
    one, other = quick.check_line(line), full_check(line, NOW)

    assert quick.own_id(one) == other.identity
    assert (one.timestamp is quick.ABSENT) == (other.timestamp is None)
    if other.timestamp is not None:
        assert abs(one.timestamp - other.timestamp) <= timedelta(microseconds=1)


@more
@given(st.lists(st.sampled_from(GOOD), max_size=3), lines(), st.lists(st.sampled_from(GOOD), max_size=3))
def test_what_the_quick_check_takes_in_a_block_the_full_check_takes(before, line, after):
    """Among neighbours too, whose room for closing brackets and digits a bad line might use."""
    block = [*before, line.strip(), *after]
    if not (block[-1].endswith(b"}") and all(text.startswith(b"{") for text in block)):
        return

    if isinstance(quick.check_block(b"\n".join(block), len(block)), quick.Found) and quick_takes(
        line.strip()
    ):
        assert full_refusal(line.strip()) is None


@more
@given(
    costs()
    | st.from_regex(r"-?\d{1,6}(\.\d{1,14})?(e-?\d)?", fullmatch=True).map(
        lambda amount: b'{"amount":%b,"currency":"usd"}' % amount.encode()
    )
)
def test_a_cost_that_the_quick_check_takes_the_full_check_takes(cost):
    line = event(b'"metadata":{"_cost":%b}' % cost)
    if quick_takes(line):
        assert full_refusal(line) is None


@more
@given(llms())
def test_what_the_quick_check_takes_of_a_language_model_the_full_check_takes(llm):
    line = event(b'"metadata":{"_llm":%b}' % llm)
    if quick_takes(line):
        assert full_refusal(line) is None


@pytest.mark.parametrize("field", ["prompt", "response", "cached_input_tokens"])
@pytest.mark.parametrize("value", [b"null", b"1", b"1.5", b'"1"', b"{}", b"true"])
def test_the_other_fields_of_a_language_model_are_checked_alike(field, value):
    line = event(
        b'"metadata":{"_llm":{"vendor":"v","model":"m","input_tokens":1,"output_tokens":1,"total_tokens":1,"%b":%b}}'
        % (field.encode(), value)
    )
    if quick_takes(line):
        assert full_refusal(line) is None


@pytest.mark.parametrize(
    "metadata",
    [
        b'{"_cost":1,"x":{"amount":1,"currency":"usd"}}',
        b'{"_llm":"m","x":{"amount":1,"currency":"usd"}}',
        b'{"x":{"amount":1,"currency":"usd"}}',
        b'{"_cost":{"amount":1,"currency":"usd"},"x":{}}',
        b'{"\\u005fcost":1}',
        b'{"_cost":null}',
    ],
)
def test_only_the_two_keys_with_a_meaning_may_hold_an_object_and_must(metadata):
    line = event(b'"metadata":' + metadata)

    assert quick.check_line(line) is None
    assert full_refusal(line) is not None


def test_the_quick_check_finds_an_integer_that_is_too_long_wherever_it_begins():
    found = [
        before
        for before in range(2300)
        if quick.check_line(event(b'"y":"%b","x":%b' % (b"y" * before, b"7" * 4301))) is not None
    ]

    assert found == []


@pytest.mark.parametrize("line", GOOD)
def test_usual_events_are_taken_by_the_quick_check(line):
    """It is of no use otherwise."""
    assert quick.check_line(line) is not None


def in_a_new_thread(function):
    """Call with a stack that holds nothing else: what is left of it bounds how deep JSON is read."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


@pytest.mark.parametrize("neighbours", [0, 1, 300, 1200])
@pytest.mark.parametrize("levels", [300, 901, 905, 915, 950, 990, 2000, 2600])
def test_how_deep_an_event_may_nest_does_not_depend_on_its_neighbours(levels, neighbours):
    """The server took 901 levels and failed at 2,000; in between, both are fine, but always the same."""
    line = event(b'"x":' + nested(levels - 1))

    checked = in_a_new_thread(lambda: check(*[MINIMAL] * neighbours, line))
    alone = in_a_new_thread(lambda: check(line))

    assert checked.refused == alone.refused
    assert checked.accepted == alone.accepted + neighbours
    if levels <= 901:
        assert alone.accepted == 1
    if levels >= 2000:
        assert alone.refused == 1


@pytest.mark.parametrize("where", [b'"x":%b', b'"metadata":{"k":%b}', b'"x":[{"y":%b}]'])
@pytest.mark.parametrize("before", [0, 1, 2000, 4298])
@pytest.mark.parametrize(("digits", "fine"), [(4300, True), (4301, False), (6000, False)])
def test_how_long_an_integer_may_be_does_not_depend_on_its_place(where, before, digits, fine):
    """Beyond 4,300 digits the server's parser gives up."""
    line = event(b'"y":"%b",' % (b"y" * before) + where % (b"7" * digits))

    assert check(line).accepted == fine
    assert check(*[MINIMAL] * 50, line, MINIMAL).accepted == 51 + fine


# -- blocks ------------------------------------------------------------------------------


@st.composite
def blocks(draw):
    """Whole lines of all kinds; now and then with a line break in the middle of one."""
    block = b"".join(line + b"\n" for line in draw(st.lists(whole_lines(), min_size=1, max_size=6)))
    if not draw(st.integers(0, 3)):
        place = draw(st.integers(0, len(block) - 1))
        wedge = draw(st.sampled_from([b"\n", b"\r\n", b"}\n{", b"}{", b"} {", b"\r"]))
        block = block[:place] + wedge + block[place:]
    return block


def by_line(block):
    return [line + b"\n" for line in block.split(b"\n")[:-1]]


@more
@given(blocks())
def test_checking_a_block_and_checking_line_by_line_agree(block):
    """The same lines come out, apart from the ids made up; the same refusals at the same places."""
    checker = Checker()

    assert outcome(checker.check([block], NOON)) == outcome(
        *(checker.check([line], NOON) for line in by_line(block))
    )


@settings(max_examples=200)
@given(st.lists(st.one_of(blocks(), st.just(TOO_LONG)), min_size=1, max_size=3))
def test_each_segment_gets_its_own_fate_whatever_else_comes_with_it(segments):
    checker = Checker()

    together = checker.check(segments, NOON)
    alone = [checker.check([segment], NOON) for segment in segments]

    assert outcome(together) == outcome(*alone)
    assert together.fates == [checked.fates[0] for checked in alone]


@more
@given(blocks(), st.data())
def test_the_split_into_segments_makes_no_difference(block, data):
    cut = by_line(block)
    ends = sorted(data.draw(st.sets(st.integers(1, len(cut)), max_size=4)) | {len(cut)})
    segments = [b"".join(cut[start:end]) for start, end in zip([0, *ends], ends, strict=False) if start < end]
    checker = Checker()

    assert outcome(checker.check(segments, NOON)) == outcome(checker.check([block], NOON))


@more
@given(st.lists(st.sampled_from(GOOD), max_size=3), lines(), st.lists(st.sampled_from(GOOD), max_size=3))
def test_neighbours_of_any_line_are_accepted_and_unharmed(before, line, after):
    alone = check(line)
    checked = check(*before, line, *after)

    assert checked.accepted == len(before) + len(after) + alone.accepted
    assert outcome(checked)[0] == outcome(check(*before), alone, check(*after))[0]


@more
@given(st.lists(fine_lines(), min_size=1, max_size=7))
def test_in_a_block_of_fine_lines_each_gets_what_it_lacks(block):
    checked = check(*block)

    assert (checked.count, checked.refused, checked.held) == (len(block), 0, [])
    for written, line in zip(block, accepted(checked), strict=True):
        before, after = read(written), read(line)
        assert after["external_id"]
        assert after["external_id"] == (before.get("external_id") or after["external_id"])
        assert after["timestamp"] == before.get("timestamp", iso(NOON).decode())
    assert outcome(checked) == outcome(*(check(line) for line in block))


@pytest.mark.parametrize("count", [1, 2, 499, 500, 501, 1000, 1001, 2300])
@pytest.mark.parametrize("line", [MINIMAL, STAMPED, event(b'"timestamp":"2026-01-01T00:00:00Z"')])
def test_a_block_of_any_length_keeps_every_line_in_order(line, count):
    numbered = [line[:-1] + b',"metadata":{"n":%d}}' % number for number in range(count)]

    checked = check(*numbered)

    assert [read(text)["metadata"]["n"][1] for text in accepted(checked)] == [str(n) for n in range(count)]
    assert (checked.count, checked.fates[0].lines) == (count, count)


def test_groups_hold_as_many_lines_as_they_say():
    checked = check(*[MINIMAL] * 1300, b"no", *[STAMPED] * 700)

    assert all(text.count(b"\n") + 1 == count for text, count in checked.groups)
    assert sum(count for _, count in checked.groups) == checked.count == 2000


@pytest.mark.parametrize("line", [MINIMAL, STAMPED])
def test_groups_of_usual_lines_are_no_larger_than_a_chunk(line):
    """So the writer need not cut them."""
    assert all(count <= MAX_EVENTS for _, count in check(*[line] * 1300).groups)


def test_nothing_to_check_gives_nothing():
    for segments in ([], [b"\n"], [b"\n \n\t\r\n", b"\n"]):
        checked = Checker().check(segments, NOON)

        assert (checked.lines, checked.count, checked.held) == (b"", 0, [])
        assert [fate.lines for fate in checked.fates] == [0] * len(segments)


# -- what a line may look like -------------------------------------------------------------


@pytest.mark.parametrize("before", [b"", b" ", b"\t ", b"\r"])
@pytest.mark.parametrize("after", [b"", b" ", b"\r", b" \t\r"])
def test_blanks_around_an_event_and_carriage_returns_are_no_part_of_it(before, after):
    assert taken(before + STAMPED + after) == STAMPED


def test_blanks_within_an_event_are_fine():
    spaced = b'{ "name" : "n" ,\t"external_customer_id":\r"c" }'

    assert read(taken(spaced))["name"] == "n"


@pytest.mark.parametrize("blank", [b"", b" ", b"\t", b"\r", b" \r\t "])
def test_blank_lines_are_not_counted(blank):
    checked = check(blank, MINIMAL, blank, b"no", blank)

    assert checked.fates[0].lines == 2
    assert [number for number, _ in checked.fates[0].refused] == [2]


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"[" + MINIMAL + b"]",
        b'"text"',
        b"1",
        b"true",
        b"null",
        b"NaN",
        b"{",
        b"}",
        b"no JSON",
        b"\xff",
        b"\x00",
        MINIMAL + b"x",
        MINIMAL + MINIMAL,
        MINIMAL + b" " + MINIMAL,
        MINIMAL + b"," + MINIMAL,
        b"\xef\xbb\xbf" + MINIMAL,
        MINIMAL.decode().encode("utf-16-le"),
        b"\x0b" + MINIMAL,
        b"\xc2\xa0" + MINIMAL,
        MINIMAL[:-1] + b",}",
        MINIMAL.replace(b'"', b"'"),
    ],
)
def test_a_line_that_is_not_one_json_object_is_refused(line):
    assert refusal(line).type == "json_invalid"
    assert refusal(line).loc == ()


@pytest.mark.parametrize("place", range(1, len(MINIMAL)))
def test_an_object_over_two_lines_is_two_bad_lines(place):
    checked = check(STAMPED, MINIMAL[:place], MINIMAL[place:], STAMPED)

    assert [number for number, _ in checked.fates[0].refused] == [2, 3]
    assert accepted(checked) == [STAMPED, STAMPED]


def test_two_objects_on_one_line_and_one_over_two_lines_do_not_make_up_for_each_other():
    """The counts of lines and of objects agree here."""
    over_two = b'{"name":"n","external_customer_id":"c","metadata":{}', b"}"
    checked = check(MINIMAL + MINIMAL, *over_two, MINIMAL)

    assert checked.fates[0].lines == 4
    assert [number for number, _ in checked.fates[0].refused] == [1, 2, 3]
    assert checked.accepted == 1


def test_a_line_break_in_a_text_ends_the_line():
    checked = check(event(b'"x":"}\n{"'), MINIMAL)

    assert [number for number, _ in checked.fates[0].refused] == [1, 2]


def test_a_line_beyond_the_bound_is_refused_in_its_place():
    checked = Checker(max_line_bytes=77).check([MINIMAL + b"\n", TOO_LONG, MINIMAL + b"\n"], NOON)

    assert [fate.lines for fate in checked.fates] == [1, 1, 1]
    ((number, refused),) = checked.fates[1].refused
    assert (number, refused.type, refused.loc) == (1, "too_long", ())
    assert "77" in refused.msg
    assert checked.count == 2


def test_of_equal_keys_the_last_counts_as_with_the_server():
    assert taken(b'{"name":5,"name":"n","external_customer_id":"c"}')
    assert refusal(event(b'"name":5')).loc == ("name",)
    assert refusal(event(b'"metadata":{"a":1},"metadata":[]')).loc == ("metadata",)


@pytest.mark.parametrize(
    "members",
    [
        b'"x":NaN',
        b'"x":[Infinity,-Infinity]',
        b'"x":1e400',
        b'"x":"\\ud800"',
        b'"x":"\\u0000"',
        b'"\\u0000":1',
        b'"":{"a":[null,{"b":1.50}]}',
        b'"source":"system"',
        b'"id":5',
    ],
)
def test_unknown_fields_are_ignored_and_kept(members):
    assert members in taken(event(members))


# -- stamping ------------------------------------------------------------------------------


def says_of_time(line):
    return "timestamp" in read(line)


@more
@given(st.lists(whole_lines(), min_size=1, max_size=5))
def test_an_accepted_line_keeps_every_value_digit_for_digit(written):
    for line in written:
        checked = check(line)
        if not checked.accepted:
            continue
        (stamped,) = [*accepted(checked), *(text for _, text in checked.held)]
        before, after = read(line), read(stamped)
        added = {key: after.pop(key) for key in ("external_id", "timestamp")}

        given_id = before.pop("external_id", None)
        assert added["external_id"] == given_id or not given_id
        assert added["timestamp"] == before.pop("timestamp", iso(NOON).decode())
        if before != after:
            # With both kinds of customer, and a time of ours, the idle one goes.
            assert set(before) - set(after) == {"customer_id"} or after["customer_id"] is None
            before.pop("customer_id")
            after.pop("customer_id", None)
        assert before == after


@more
@given(lines())
@example(
    event(
        b'"customer_id":"a5366a1f-519f-4d0c-9c28-b4f787be37ed","\\u0063ustomer_id":"%b","x":NaN'
        % (b"a5366a1f-519f-4d0c-9c28-b4f787be37ed")
    )
)
@example(event(b'"custome\\u0072_id":"a5366a1f-519f-4d0c-9c28-b4f787be37ed","x":NaN'))
def test_an_accepted_event_means_the_same_to_polar_as_it_did_before(line):
    """The same customer of the same kind, and all that Polar stores of it."""
    checked = check(line)
    if checked.accepted:
        (stamped,) = [*accepted(checked), *(text for _, text in checked.held)]
        latest = NOW + timedelta(seconds=60)
        before, after = (
            schema.parse_event(schema.parse_json(text.decode()), latest) for text in (line.strip(), stamped)
        )

        assert type(before) is type(after)
        ours = {"external_id", "timestamp"}
        assert repr(before.model_dump(exclude=ours)) == repr(after.model_dump(exclude=ours))
        assert before.timestamp in (after.timestamp, None)


@more
@given(lines())
def test_an_accepted_line_is_accepted_again_as_it_is(line):
    """So whatever is durable can be sent, and sent again."""
    checked = check(line)
    for stamped in [*accepted(checked), *(text for _, text in checked.held)]:
        assert taken(stamped) == stamped


@pytest.mark.parametrize(
    "line",
    [
        MINIMAL,
        event(b'"external_id":null'),
        event(b'"external_id":""'),
        event(b'"external\\u005fid":""'),
        event(b'"external_id":"","external_id":null'),
        event(b'"external_id":"e","external_id":""'),
        event(b'"external_id":null,"x":NaN'),
        event(b'"external_id":"","metadata":{"external_id":"mine"}'),
        b'{"external_id":null,"name":"n","external_customer_id":"c"}',
        b'{ "external_id" : null , "name":"n","external_customer_id":"c" } ',
        event(b'"external_id":"","customer_id":"a5366a1f-519f-4d0c-9c28-b4f787be37ed"'),
    ],
)
@pytest.mark.parametrize("neighbours", [(), (MINIMAL,), (STAMPED,), (b"no",)])
def test_an_event_without_an_id_gets_one(line, neighbours):
    checked = check(line, *neighbours)

    stamped = read(accepted(checked)[0])
    assert UUID(stamped["external_id"]).version == 7
    assert stamped.get("metadata", {}).get("external_id", "mine") == "mine"


@pytest.mark.parametrize("idle", [b"null", b'""'])
def test_an_id_that_says_nothing_makes_room_for_ours(idle):
    """Readers that take the first of two equal keys would see no id."""
    assert taken(event(b'"external_id":' + idle)).count(b'"external_id"') == 1


def test_an_idle_customer_id_is_taken_out_where_our_timestamp_would_wake_it():
    stamped = taken(event(b'"customer_id":"%b"' % CUSTOMER.encode()))

    assert CUSTOMER.encode() not in stamped
    assert read(stamped)["external_customer_id"] == "c"


@pytest.mark.parametrize("count", [1, 255, 256, 257, 1000, 5000])
@pytest.mark.parametrize("mixed", [False, True])
def test_ids_that_we_give_in_a_block_are_unique(count, mixed):
    some = [STAMPED, b"no", event(b'"external_id":null')] if mixed else []

    ids = [read(line)["external_id"] for line in accepted(check(*[MINIMAL] * count, *some))]

    assert len(set(ids)) == len(ids) == count + (2 if mixed else 0)


def test_ids_are_unique_over_blocks_of_the_same_moment():
    ids = {read(taken(MINIMAL))["external_id"] for _ in range(100)}

    assert len(ids) == 100


@pytest.mark.parametrize("written", [b'"e"', b'" "', b'"\\u00e9"', b'"null"', b'"' + b"x" * 600 + b'"'])
def test_an_id_that_is_given_stays_as_it_is(written):
    line = event(b'"external_id":%b,"timestamp":"2026-01-01T00:00:00Z"' % written)

    assert taken(line) == line
    assert read(taken(event(b'"external_id":' + written)))["external_id"] == json.loads(written)


@given(st.floats(0, 4e9))
def test_an_event_without_a_time_gets_the_time_of_receipt_never_a_later_one(now):
    stamped = datetime.fromisoformat(read(taken(MINIMAL, now=now))["timestamp"])

    assert -1e-6 <= now - stamped.timestamp() < 0.001001


@pytest.mark.parametrize(
    "written",
    [
        b'"2000-01-01T00:00:00Z"',
        b'"2000-01-01T09:00:00+09:00"',
        b'"2026-01-31t12:00:00.123456789z"',
        b'"0001-01-02T00:00:00Z"',
        b"0",
        b"-1",
        b"1696000000.50",
        b"1696000000123",
        b'"1696000000"',
        b'"2026-11-23T12:00:00Z"',
    ],
)
@pytest.mark.parametrize("neighbours", [(), (MINIMAL,), (STAMPED, MINIMAL)])
def test_a_time_that_is_given_stays_as_it_is(written, neighbours):
    line = event(b'"timestamp":' + written)

    stamped = accepted(check(line, *neighbours))[0]

    assert stamped.count(b'"timestamp"') == 1
    assert b'"timestamp":' + written in stamped


def test_a_complete_line_is_not_touched():
    odd = b'{ "timestamp":1.0e9 ,"external_id":"e","external_customer_id":"c","x":[1.50,-0],"name":"\\u006e"}'

    assert taken(odd) == odd


def test_what_the_producer_wrote_comes_first_and_is_not_touched():
    line = event(b'"metadata":{"a":1.50,"b":9007199254740993,"c":"\\u00e9"}')

    assert taken(line).startswith(line[:-1] + b",")


@pytest.mark.parametrize("timestamp", [b"", b',"timestamp":"2026-01-01T00:00:00Z"'])
def test_an_event_with_both_kinds_of_customer_stays_with_its_external_one(timestamp):
    line = event(b'"customer_id":"a5366a1f-519f-4d0c-9c28-b4f787be37ed"')[:-1] + timestamp + b"}"
    meant = schema.parse_event(json.loads(line), NOW)

    sent = schema.parse_event(json.loads(taken(line)), NOW)

    assert type(sent) is type(meant)


# -- the future ------------------------------------------------------------------------------


def at(seconds):
    """Return an event of a moment that is so far from now, with an id."""
    moment = (NOW + timedelta(seconds=seconds)).isoformat().encode()
    return event(b'"external_id":"e","timestamp":"%b"' % moment)


@given(st.integers(1, 60_000_000))
def test_an_event_ahead_of_now_within_the_tolerance_is_held_until_it_is_due(microseconds):
    line = at(microseconds / 1e6)

    checked = check(line)

    assert (checked.count, checked.accepted, checked.refused) == (0, 1, 0)
    ((due_ms, held),) = checked.held
    assert held == line
    assert 0 < due_ms / 1000 - (NOON + microseconds / 1e6) <= 0.0011, "not before it is due, nor much after"


@given(st.integers(60_000_001, 10**12))
def test_an_event_ahead_of_now_beyond_the_tolerance_is_refused(microseconds):
    refused = refusal(at(microseconds / 1e6))

    assert (refused.type, refused.loc) == ("timestamp_in_future", ("timestamp",))


@given(st.integers(-(10**12), 0))
def test_an_event_that_is_not_ahead_of_now_is_due_at_once(microseconds):
    assert accepted(check(at(microseconds / 1e6))) == [at(microseconds / 1e6)]


def test_the_tolerance_is_a_setting():
    assert check(at(10), future_tolerance=5).refused == 1
    assert check(at(10), future_tolerance=10).accepted == 1


def test_held_lines_leave_the_others_their_order():
    checked = check(at(-3), at(30), at(-2), at(20), at(-1), at(90))

    assert accepted(checked) == [at(-3), at(-2), at(-1)]
    assert [line for _, line in checked.held] == [at(30), at(20)]
    assert [number for number, _ in checked.fates[0].refused] == [6]


def test_held_lines_cost_no_more_each_the_more_come_together():
    """A large request of them kept everybody else waiting for so long that the agent was ended as stuck."""

    def seconds(count):
        lines = [at(1 + number % 50) for number in range(count)]
        began = process_time()
        assert len(check(*lines).held) == count
        return process_time() - began

    seconds(10)
    assert seconds(4_000) < 40 * seconds(400)


@pytest.mark.parametrize("written", [b"%d", b"%d.5", b'"%d"', b"%d000"])
def test_a_numeric_time_is_held_as_well(written):
    checked = check(event(b'"timestamp":' + written % int(NOON + 30)))

    ((due_ms, _),) = checked.held
    assert 0 < due_ms / 1000 - (NOON + 30) <= 0.502


def test_an_event_that_is_held_gets_an_id():
    checked = check(event(b'"timestamp":"2026-11-23T12:00:30Z"'))

    ((_, line),) = checked.held
    assert UUID(read(line)["external_id"]).version == 7


# -- refusals ------------------------------------------------------------------------------


def hard_to_compress(size):
    return "".join(random.Random(3).choices(string.ascii_letters + string.digits, k=size)).encode()


@pytest.mark.parametrize(
    ("members", "kind", "loc"),
    [
        (b'"metadata":{"k":NaN}', "metadata_value", ("metadata", "k")),
        (b'"metadata":{"k":Infinity}', "metadata_value", ("metadata", "k")),
        (b'"metadata":{"k":1e400}', "metadata_value", ("metadata", "k")),
        (
            b'"metadata":{"_cost":{"amount":NaN,"currency":"usd"}}',
            "finite_number",
            ("metadata", "_cost", "amount"),
        ),
        (b'"timestamp":NaN', "timestamp_invalid", ("timestamp",)),
        (b'"metadata":{"k":"\\ud800"}', "invalid_characters", ("metadata", "k")),
        (b'"metadata":{"\\ud800":1}', "invalid_characters", ("metadata",)),
        (b'"external_id":"\\ud800"', "invalid_characters", ("external_id",)),
        (b'"external_customer_id":"\\udc00\\ud800"', "invalid_characters", ("external_customer_id",)),
        (b'"external_member_id":"\\ud800"', "invalid_characters", ("external_member_id",)),
        (b'"parent_id":"\\ud800"', "invalid_characters", ("parent_id",)),
        (b'"name":"\\ud800"', "invalid_characters", ("name",)),
        (b'"external_id":"%b"' % hard_to_compress(2800), "string_too_long", ("external_id",)),
        (
            b'"external_customer_id":"%b"' % hard_to_compress(2800),
            "string_too_long",
            ("external_customer_id",),
        ),
        (b'"parent_id":"%b"' % hard_to_compress(2800), "string_too_long", ("parent_id",)),
        (b'"timestamp":"0001-01-01T00:00:00+14:00"', "timestamp_invalid", ("timestamp",)),
        (b'"metadata":{"k":%b}' % (b"7" * 4301), "json_invalid", ()),
        (b'"x":%b' % (b"7" * 4301), "json_invalid", ()),
        (b'"metadata":{"k":"\xff"}', "json_invalid", ()),
        (b'"x":"\xc0\x80"', "json_invalid", ()),
        (b'"x":"\xed\xa0\x80"', "json_invalid", ()),
        (b'"x":%b' % nested(2000), "json_invalid", ()),
        (b'"x":%b' % nested(100_000), "json_invalid", ()),
        (b'"name":"a\\u0000b"', "invalid_characters", ("name",)),
        (b'"external_id":"\\u0000"', "invalid_characters", ("external_id",)),
        (b'"external_customer_id":"\\u0000"', "invalid_characters", ("external_customer_id",)),
        (b'"parent_id":"\\u0000"', "invalid_characters", ("parent_id",)),
        (b'"external_member_id":"\\u0000"', "invalid_characters", ("external_member_id",)),
        (b'"metadata":{"k":"\\u0000"}', "invalid_characters", ("metadata",)),
        (b'"metadata":{"\\u0000":1}', "invalid_characters", ("metadata",)),
    ],
)
@pytest.mark.parametrize("neighbours", [(), (STAMPED, STAMPED)])
def test_poison_is_refused_with_its_type_and_the_field_at_fault(members, kind, loc, neighbours):
    """Each of these fails the whole batch that it is in."""
    checked = check(*neighbours, event(members), *neighbours)

    ((number, refused),) = checked.fates[0].refused
    assert (refused.type, refused.loc) == (kind, loc)
    assert number == len(neighbours) + 1
    assert accepted(checked) == [*neighbours, *neighbours]


@pytest.mark.parametrize(
    ("line", "kind", "loc"),
    [
        (b"{}", "missing", ("name",)),
        (b'{"external_customer_id":"c"}', "missing", ("name",)),
        (b'{"name":"n"}', "missing", ("external_customer_id",)),
        (b'{"name":"n","external_customer_id":null}', "string_type", ("external_customer_id",)),
        (b'{"name":"n","external_customer_id":7}', "string_type", ("external_customer_id",)),
        (b'{"name":"n","customer_id":null}', "missing", ("external_customer_id",)),
        (
            b'{"name":"n","external_customer_id":7,"customer_id":"no"}',
            "string_type",
            ("external_customer_id",),
        ),
        (b'{"name":"n","customer_id":7}', "uuid_type", ("customer_id",)),
        (b'{"name":"n","customer_id":"no"}', "uuid_parsing", ("customer_id",)),
        (
            b'{"name":"n","customer_id":"a5366a1f-519f-1d0c-9c28-b4f787be37ed"}',
            "uuid_version",
            ("customer_id",),
        ),
        (event(b'"name":null'), "string_type", ("name",)),
        (event(b'"name":"%b"' % (b"n" * 129)), "string_too_long", ("name",)),
        (event(b'"external_id":7'), "string_type", ("external_id",)),
        (event(b'"parent_id":[]'), "string_type", ("parent_id",)),
        (event(b'"external_member_id":7'), "string_type", ("external_member_id",)),
        (event(b'"timestamp":null'), "timestamp_invalid", ("timestamp",)),
        (event(b'"timestamp":true'), "timestamp_invalid", ("timestamp",)),
        (event(b'"timestamp":"yesterday"'), "timestamp_invalid", ("timestamp",)),
        (event(b'"timestamp":"2026-01-01"'), "timestamp_invalid", ("timestamp",)),
        (event(b'"timestamp":"2026-01-01T00:00:00"'), "timestamp_invalid", ("timestamp",)),
        (event(b'"timestamp":"2026-01-01T00:00:00+00"'), "timestamp_invalid", ("timestamp",)),
        (event(b'"timestamp":"2026-01-01T24:00:00Z"'), "timestamp_invalid", ("timestamp",)),
        (event(b'"timestamp":"2026-01-01T23:59:60Z"'), "timestamp_invalid", ("timestamp",)),
        (event(b'"metadata":null'), "dict_type", ("metadata",)),
        (event(b'"metadata":[]'), "dict_type", ("metadata",)),
        (event(b'"metadata":{"k":null}'), "metadata_value", ("metadata", "k")),
        (event(b'"metadata":{"k":""}'), "metadata_value", ("metadata", "k")),
        (event(b'"metadata":{"k":"%b"}' % (b"x" * 501)), "metadata_value", ("metadata", "k")),
        (event(b'"metadata":{"k":{}}'), "metadata_value", ("metadata", "k")),
        (event(b'"metadata":{"k":[1]}'), "metadata_value", ("metadata", "k")),
        (event(b'"metadata":{"_cost":1}'), "dict_type", ("metadata", "_cost")),
        (event(b'"metadata":{"_cost":{}}'), "missing", ("metadata", "_cost", "amount")),
        (
            event(b'"metadata":{"_cost":{"amount":0.30000000000000004,"currency":"usd"}}'),
            "decimal_max_places",
            ("metadata", "_cost", "amount"),
        ),
        (
            event(b'"metadata":{"_cost":{"amount":1,"currency":"eur"}}'),
            "string_pattern_mismatch",
            ("metadata", "_cost", "currency"),
        ),
        (event(b'"metadata":{"_llm":{"vendor":"v"}}'), "missing", ("metadata", "_llm", "model")),
        (
            event(b'"organization_id":"a5366a1f-519f-4d0c-9c28-b4f787be37ed"'),
            "not_allowed",
            ("organization_id",),
        ),
    ],
)
def test_a_refusal_says_what_is_wrong_and_where(line, kind, loc):
    refused = refusal(line)

    assert (refused.type, refused.loc) == (kind, loc)
    assert refused.msg


@pytest.mark.parametrize(
    ("line", "msg"),
    [
        (b"no", "Expecting value at character 1"),
        (event(b'"x":"\x01"'), "Invalid control character at character 45"),
        (event(b'"x":"\xff"'), "not UTF-8 at byte 45"),
        (event(b'"x":%b' % (b"7" * 4301)), "an integer has more than 4300 digits"),
    ],
)
def test_bad_json_is_told_with_its_place(line, msg):
    assert refusal(line).msg == msg


def test_every_refusal_has_one_of_the_stable_types():
    types = {
        refused.type
        for row in ROWS
        for fate in check(row["event"].encode(), future_tolerance=0).fates
        for _, refused in fate.refused
    }

    assert types <= STABLE_TYPES
    assert len(types) > 10


@more
@given(lines())
def test_a_refusal_of_any_line_has_a_stable_type_and_leads_into_the_event(line):
    for _, refused in check(line).fates[0].refused:
        assert refused.type in STABLE_TYPES
        assert (refused.loc == ()) == (refused.type == "json_invalid")
        assert 0 < len(refused.msg) < 300


SECRET = "s3cr3t-of-the-customer"


@pytest.mark.parametrize(
    "value",
    [f'"{SECRET}"', f'["{SECRET}"]', f'{{"k":["{SECRET}"]}}', f'"{SECRET}\\ud800"', f'"{SECRET}'],
)
@pytest.mark.parametrize(
    "place",
    [
        '"timestamp":%s',
        '"metadata":%s',
        '"metadata":{"_cost":%s}',
        '"metadata":{"_cost":{"amount":%s,"currency":"usd"}}',
        '"metadata":{"_cost":{"amount":1,"currency":%s}}',
        '"metadata":{"_llm":%s}',
        '"organization_id":%s',
        '"member_id":%s,"external_customer_id":null,"customer_id":%s',
    ],
)
def test_a_refusal_repeats_nothing_of_the_value(place, value):
    refused = refusal(event(place.replace("%s", value).encode()))

    assert SECRET not in refused.msg


def test_the_answer_to_a_producer_is_one_line_of_json():
    answer = refusal(b'{"name":"n"}').answer(7)

    assert answer.count(b"\n") == 1
    assert answer.endswith(b"}\n")
    assert json.loads(answer) == {
        "line": 7,
        "error": {"type": "missing", "loc": ["external_customer_id"], "msg": "this field is required"},
    }


def test_a_full_queue_has_a_word_of_its_own():
    assert json.loads(queue_full("no room").answer(3)) == {
        "line": 3,
        "error": {"type": "queue_full", "loc": [], "msg": "no room"},
    }


# -- a person's token --------------------------------------------------------------------------

ORGANIZATION = b'"organization_id":"a5366a1f-519f-4d0c-9c28-b4f787be37ed"'


def test_with_a_persons_token_every_event_needs_an_organization():
    refused = refusal(MINIMAL, personal_token=True)

    assert (refused.type, refused.loc) == ("missing", ("organization_id",))


def test_with_a_persons_token_an_event_with_an_organization_is_taken_and_stamped():
    stamped = read(taken(event(ORGANIZATION), personal_token=True))

    assert UUID(stamped["external_id"]).version == 7
    assert stamped["timestamp"] == iso(NOON).decode()


def test_an_organization_that_is_null_is_none():
    assert taken(event(b'"organization_id":null'))
    assert refusal(event(b'"organization_id":null'), personal_token=True).type == "missing"


def test_a_personal_token_needs_the_organization_in_each_of_many_lines():
    good = (
        b'{"name":"n","external_customer_id":"c","organization_id":"5b0a9f0e-3d3e-4a36-9e4c-1d1f5f6a7b8c"}\n'
    )
    bad = b'{"name":"n","external_customer_id":"c"}\n'

    checked = Checker(personal_token=True).check([good + bad + bad + good], NOON)

    assert [number for number, _ in checked.fates[0].refused] == [2, 3]


_LACKING = {"external_customer_id": '"external_customer_id":"c"', "name": '"name":"n"'}


@pytest.mark.parametrize(
    "lacking", [(), ("name",), ("external_customer_id",), ("name", "external_customer_id")]
)
@pytest.mark.parametrize(
    "more",
    [
        '"metadata":{"a":1}',
        '"metadata":{"a":null}',
        '"metadata":{"_cost":1}',
        '"timestamp":"2001-02-03T04:05:06Z"',
        '"timestamp":"2999-01-01T00:00:00Z"',
        '"timestamp":1',
        '"customer_id":"11111111-1111-4111-8111-111111111111"',
        '"customer_id":"no uuid"',
        '"external_customer_id":null',
        '"external\\u005fcustomer_id":"c"',
        '"name":7',
        '"external_id":"\\u0000"',
        '"unknown":1',
        '"organization_id":"11111111-1111-4111-8111-111111111111"',
    ],
)
def test_a_refusal_among_others_is_the_one_of_the_full_check(lacking, more):
    fields = [text for name, text in _LACKING.items() if name not in lacking]
    line = ("{" + ",".join([*fields, more]) + "}").encode()
    told = full_check(line, NOW + timedelta(seconds=60))
    fine = b'{"name":"n","external_customer_id":"c"}'
    checked = Checker().check([b"\n".join([fine, line, fine, b"bad", fine]) + b"\n"], NOON)
    first = [why for number, why in checked.fates[0].refused if number == 2]
    assert first == ([told] if isinstance(told, Refusal) else [])
    assert [number for number, _ in checked.fates[0].refused] == ([2, 4] if first else [4])


def test_what_is_refused_is_told_in_order_whatever_the_reason():
    event = b'{"name":"n","external_customer_id":"c","external_id":"%b","metadata":{"a":%d}}'
    lines = [event % (b"x", 1), b"bad", event % (b"x", 2), b"bad", event % (b"y", 1), event % (b"x", 1)]
    checked = Checker().check([b"\n".join(lines) + b"\n"], NOON, Seen())
    refused = [(number, why.type) for number, why in checked.fates[0].refused]
    assert refused == [(2, "json_invalid"), (3, "external_id_conflict"), (4, "json_invalid")]
    assert (checked.accepted, checked.repeated) == (2, 1)
