"""The rules of Polar's event schema, one by one."""

import json
import math
import random
import string
import sys
import time
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID, uuid1, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from agent.schema import (
    MAX_DEPTH,
    MAX_INT_DIGITS,
    BodyError,
    EventCreateCustomer,
    EventCreateExternalCustomer,
    PoisonError,
    check_poison,
    event_errors,
    index_overflow,
    parse_event,
    parse_json,
)

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
BASE64 = string.ascii_letters + string.digits + "-_"


def event(**fields):
    return {"name": "n", "external_customer_id": "c", **fields}


def of_external(found):
    """Return type and place of the errors that the branch for an external customer id has."""
    branch = "EventCreateExternalCustomer"
    return [(item["type"], item["loc"][1:]) for item in found if item["loc"][0] == branch]


def refusals(**fields):
    return of_external(event_errors(event(**fields), NOW))


# -- fields ----------------------------------------------------------------------------


def test_name_and_a_customer_are_enough():
    """Everything else has a default; the time is left to the server."""
    accepted = parse_event({"name": "n", "external_customer_id": "c"}, NOW)

    assert isinstance(accepted, EventCreateExternalCustomer)
    assert (accepted.timestamp, accepted.external_id, accepted.organization_id) == (None, None, None)
    assert accepted.metadata == {}


def test_every_error_is_told_for_both_branches():
    """The server cannot know which kind of customer was meant."""
    found = event_errors({"external_customer_id": "c"}, NOW)

    assert [(item["type"], item["loc"]) for item in found] == [
        ("missing", ("EventCreateCustomer", "name")),
        ("missing", ("EventCreateCustomer", "customer_id")),
        ("missing", ("EventCreateExternalCustomer", "name")),
    ]


def test_external_id_wins_when_both_kinds_of_customer_are_there():
    """`customer_id` is dropped without a word, even if it is wrong."""
    accepted = parse_event(event(customer_id=str(uuid4())), NOW)

    assert isinstance(accepted, EventCreateExternalCustomer)
    assert refusals(customer_id="nonsense") == []


def test_customer_id_counts_when_the_external_one_is_of_no_use():
    """An external id of a wrong type leaves the other branch."""
    accepted = parse_event(event(external_customer_id=None, customer_id=str(uuid4())), NOW)

    assert isinstance(accepted, EventCreateCustomer)


def test_customer_id_is_a_uuid_of_version_4():
    """Other versions are refused by the schema already."""
    found = event_errors({"name": "n", "customer_id": str(uuid1())}, NOW)

    assert ("uuid_version", ("EventCreateCustomer", "customer_id")) in [
        (item["type"], item["loc"]) for item in found
    ]


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_name_has_up_to_128_characters_and_may_be_empty(name):
    """Characters count, not bytes."""
    assert refusals(name=name) == ([("string_too_long", ("name",))] if len(name) > 128 else [])


@pytest.mark.parametrize("field", ["name", "external_customer_id", "external_id", "parent_id"])
def test_nul_in_a_text_is_refused_at_its_field(field):
    """PostgreSQL cannot store it."""
    assert refusals(**{field: "a\0b"}) == [("value_error", (field,))]


@pytest.mark.parametrize("metadata", [{"a\0": 1}, {"a": "\0"}, {"_cost": {"amount": 1, "currency": "usd\0"}}])
def test_nul_in_metadata_is_refused_for_all_of_it(metadata):
    """In a key, a value, or further down."""
    assert refusals(metadata=metadata) == [("value_error", ("metadata",))]


def test_what_is_dropped_is_not_looked_at():
    """Unknown fields, and unknown keys of `_llm`, may hold anything."""
    llm = {"vendor": "v", "model": "m", "input_tokens": 1, "output_tokens": 1, "total_tokens": 2}

    assert refusals(colour="a\0b", id=[math.nan], metadata={"_llm": {**llm, "zz": "a\0b"}}) == []


# -- metadata --------------------------------------------------------------------------

_plain = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=500
) | st.one_of(st.integers(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False))
_keys = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])).filter(
    lambda key: key not in {"_cost", "_llm"}
)


@given(st.dictionaries(_keys, _plain, max_size=60))
def test_metadata_takes_any_key_with_a_plain_value(metadata):
    """Neither the number nor the length of keys is limited; values stay as they are."""
    accepted = parse_event(event(metadata=metadata), NOW)

    check_poison(accepted)
    assert accepted.metadata == metadata
    assert [type(value) for value in accepted.metadata.values()] == [type(v) for v in metadata.values()]


@pytest.mark.parametrize("value", [None, "", "x" * 501, [], {}, [1]])
def test_a_bad_value_is_told_once_for_each_type_it_could_have(value):
    """The last part of the location names the type."""
    places = [loc for _, loc in refusals(metadata={"k": value})]

    branches = ["constrained-str", "int", "float", "bool"]
    assert places == [("metadata", "k", branch) for branch in branches]


@pytest.mark.parametrize(
    ("amount", "errors"),
    [
        (1, []),
        ("0.000000000001", []),
        (99999.5, []),
        ("1e2", []),
        (0.1 + 0.2, ["decimal_max_places"]),
        (123456, ["decimal_whole_digits"]),
        ("abc", ["decimal_parsing"]),
        (True, ["decimal_type"]),
        ("NaN", ["finite_number"]),
    ],
)
def test_cost_amount_has_five_digits_before_the_point_and_twelve_after(amount, errors):
    """As a number or a string; a float counts with the digits it prints."""
    found = refusals(metadata={"_cost": {"amount": amount, "currency": "usd"}})

    assert [(kind, ("metadata", "_cost", "amount")) for kind in errors] == found


@pytest.mark.parametrize(
    ("currency", "taken"), [("usd", True), ("xusd", True), ("eur", False), ("USD", False)]
)
def test_currency_contains_usd(currency, taken):
    """The server searches for its pattern and anchors it nowhere."""
    assert (refusals(metadata={"_cost": {"amount": 1, "currency": currency}}) == []) is taken


def test_llm_needs_five_fields_and_fills_in_two():
    """Texts of any length pass."""
    found = refusals(metadata={"_llm": {}})
    assert [loc[-1] for _, loc in found] == [
        "vendor",
        "model",
        "input_tokens",
        "output_tokens",
        "total_tokens",
    ]

    llm = {"vendor": "v", "model": "m", "input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    accepted = parse_event(event(metadata={"_llm": {**llm, "prompt": "p" * 100_000}}), NOW)
    assert accepted.metadata["_llm"]["response"] is None


# -- timestamps ------------------------------------------------------------------------

_offsets = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
_times = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=_offsets)  # noqa: DTZ001


@given(_times)
def test_a_timestamp_with_an_offset_is_taken_up_to_the_latest_allowed(moment):
    """It comes back as the same moment in UTC; a microsecond later is refused."""
    accepted = parse_event(event(timestamp=moment.isoformat()), moment)
    assert (moment, UTC) == (accepted.timestamp, accepted.timestamp.tzinfo)

    found = event_errors(event(timestamp=moment.isoformat()), moment - timedelta(microseconds=1))
    assert of_external(found) == [("value_error", ("timestamp",))]
    assert found[-1]["msg"] == "Value error, Timestamp must be in the past."


@pytest.mark.parametrize(
    "written",
    ["2026-01-01T00:00Z", "2026-01-01 00:00:00z", "2026-01-01t00:00:00,5+0000", 1767225600, "1767225600000"],
)
def test_these_ways_to_write_a_timestamp_are_taken(written):
    """RFC 3339 with some licence; Unix seconds and milliseconds, also as text."""
    timestamp = parse_event(event(timestamp=written), NOW).timestamp

    assert timedelta() <= timestamp - datetime(2026, 1, 1, tzinfo=UTC) < timedelta(seconds=1)


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        (None, "datetime_type"),
        (True, "datetime_type"),
        ("2026-01-01", "timezone_aware"),
        ("2026-01-01T00:00:00", "timezone_aware"),
        ("2026-01-01T00:00:00+00", "datetime_from_date_parsing"),
        ("2026-01-01T24:00:00Z", "datetime_from_date_parsing"),
        ("2016-12-31T23:59:60Z", "datetime_from_date_parsing"),
    ],
)
def test_these_are_no_timestamps(written, kind):
    """Null, no offset, half an offset, hours and seconds that do not exist."""
    assert refusals(timestamp=written) == [(kind, ("timestamp",))]


@pytest.mark.parametrize("written", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:00:00-14:00"])
def test_a_time_outside_of_the_years_in_utc_is_poison(written):
    """The server fails while it converts it."""
    with pytest.raises(PoisonError) as caught:
        event_errors(event(timestamp=written), NOW)

    assert caught.value.field == "timestamp"


# -- poison ----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_poison(number):
    """The schema takes it, the database does not."""
    accepted = parse_event(event(metadata={"k": number}), NOW)

    with pytest.raises(PoisonError) as caught:
        check_poison(accepted)
    assert caught.value.field == "metadata"


@pytest.mark.parametrize("field", ["external_customer_id", "external_id", "parent_id", "external_member_id"])
def test_half_a_surrogate_pair_is_poison(field):
    """Texts without limits of length are not looked at by the schema."""
    with pytest.raises(PoisonError) as caught:
        check_poison(parse_event(event(**{field: "\ud800"}), NOW))

    assert caught.value.field == field


@pytest.mark.parametrize("field", ["external_customer_id", "external_id", "parent_id"])
def test_an_id_too_long_for_the_index_is_poison(field):
    """Only what hardly repeats is too long."""
    long_id = "".join(random.Random(1).choices(BASE64, k=2750))
    with pytest.raises(PoisonError, match="too long"):
        check_poison(parse_event(event(**{field: long_id}), NOW))

    check_poison(parse_event(event(**{field: "n" * 2750}), NOW))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32), st.integers(1, 2600))
def test_no_id_up_to_2600_bytes_is_too_long(seed, length):
    """So many random ones were taken."""
    assert not index_overflow("".join(random.Random(seed).choices(BASE64, k=length)))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32), st.integers(2750, 6000))
def test_every_random_id_from_2750_bytes_on_is_too_long(seed, length):
    """So many were refused."""
    assert index_overflow("".join(random.Random(seed).choices(BASE64, k=length)))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32), st.sampled_from(["n", "ab", "é", "abcdefgh"]))
def test_text_that_repeats_fits_at_many_times_the_length(seed, unit):
    """It is compressed before it goes into the index."""
    repeats = random.Random(seed).randint(2000, 20_000)

    assert not index_overflow(unit * repeats)


@pytest.mark.parametrize(
    "text",
    [
        "n" * 262_144,
        "".join("nnnnnnnn" + chr(33 + number % 90) for number in range(29_000)),
        "".join(random.Random(2).choices("ab", k=262_144)),
    ],
    ids=["one letter", "nearly the same", "two letters"],
)
def test_the_longest_ids_are_judged_in_bounded_time(text):
    """Also those made to be slow to compress."""
    start = time.process_time()
    index_overflow(text)

    assert time.process_time() - start < 2


# -- JSON ------------------------------------------------------------------------------


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_is_read_as_it_was_meant(value):
    """Whatever Python writes comes back, half surrogate pairs included."""
    assert parse_json(json.dumps(value)) == value


def test_more_than_json_is_taken():
    """As the server's parser does."""
    assert math.isnan(parse_json("NaN"))
    assert parse_json('[Infinity, 1e400, "\\ud800"]') == [math.inf, math.inf, "\ud800"]
    assert parse_json('{"a": 1, "a": 2}') == {"a": 2}


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        ('{"events":[', 11),
        ('{"a":1,}', 6),
        ('{"a":1 , }', 7),
        ("[1,]", 2),
        ("[1, 2 ,\n ]", 6),
        ('{"a":,}', 5),
        ("[,]", 1),
        ('{"a":1,]', 7),
        ("[1,}", 3),
    ],
)
def test_a_syntax_error_is_where_the_newest_python_sees_it(text, offset):
    """Which is what the server runs on; before 3.13 a comma too many was seen elsewhere."""
    with pytest.raises(json.JSONDecodeError) as caught:
        parse_json(text)

    assert caught.value.pos == offset


@pytest.mark.parametrize("limit", [None, 0, 100_000])
@pytest.mark.parametrize("sign", ["", "-"])
def test_an_integer_has_up_to_4300_digits(sign, limit):
    """Whatever limit this interpreter was started with."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(before if limit is None else limit)
    try:
        assert parse_json(sign + "9" * MAX_INT_DIGITS) == int(sign + "9" * MAX_INT_DIGITS)
        with pytest.raises(BodyError) as caught:
            parse_json(sign + "9" * (MAX_INT_DIGITS + 1))
    finally:
        sys.set_int_max_str_digits(before)

    assert caught.value.status == 400


def nested(levels):
    """Return an event of so many levels; it is the first of them."""
    return '{"name":"n","zz":' + "[" * (levels - 1) + "]" * (levels - 1) + "}"


def test_an_event_as_deep_as_the_server_was_seen_to_take_is_read():
    """901 levels were answered with 200."""
    assert MAX_DEPTH >= 901
    assert parse_json(nested(MAX_DEPTH))["name"] == "n"


@pytest.mark.parametrize(("levels", "status"), [(MAX_DEPTH + 1, 500), (2000, 500), (200_000, 400)])
def test_an_event_that_is_too_deep_is_refused(levels, status):
    """With what the server was seen to answer."""
    with pytest.raises(BodyError) as caught:
        parse_json(nested(levels))

    assert caught.value.status == status


def test_brackets_in_strings_are_no_levels():
    """Nor are those behind an escaped quote."""
    assert parse_json(json.dumps(['"[' * 5000])) == ['"[' * 5000]


def test_errors_have_no_address_of_the_library():
    """Type, place, message, input and context are what the server tells."""
    with pytest.raises(ValidationError):
        parse_event({}, NOW)

    assert all("url" not in item for item in event_errors({}, NOW))


def test_organization_and_member_ids_are_uuids_of_version_4():
    """They are optional."""
    known = uuid4()

    assert parse_event(event(organization_id=str(known)), NOW).organization_id == UUID(str(known))
    assert refusals(organization_id="abc") == [("uuid_parsing", ("organization_id",))]
    assert refusals(organization_id=str(uuid1())) == [("uuid_version", ("organization_id",))]
