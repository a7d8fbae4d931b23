"""What an answer of Polar means, row by row."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.answer import Answer, NoAnswer
from agent.verdict import MAX_REASON, TABLE, Action, judge

SECRET = "cus_very_secret"
EXTERNAL, CUSTOMER = "EventCreateExternalCustomer", "EventCreateCustomer"
PAST = "Value error, Timestamp must be in the past."


def sums(inserted, duplicates):
    return Answer(200, json.dumps({"inserted": inserted, "duplicates": duplicates}).encode())


def error(index, *path, kind="missing", msg="Field required"):
    """Return an entry of a 422 as the server writes it: with an echo of the data."""
    loc = ["body", "events", index, *path]
    return {"type": kind, "loc": loc, "msg": msg, "input": {"secret": SECRET}, "ctx": {"error": SECRET}}


def both_branches(index, *path, **said):
    """Return what the server says of a bad field of an event that has an external customer."""
    return [
        error(index, CUSTOMER, *path, **said),
        error(index, CUSTOMER, "customer_id"),
        error(index, EXTERNAL, *path, **said),
    ]


def refused(*errors, kind="RequestValidationError"):
    return Answer(422, json.dumps({"error": kind, "detail": list(errors)}).encode())


# -- statuses --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "action"),
    [
        (400, Action.SPLIT),
        (401, Action.HOLD),
        (403, Action.HOLD),
        (404, Action.HOLD),
        (405, Action.HOLD),
        (408, Action.RETRY),
        (411, Action.HOLD),
        (413, Action.SPLIT),
        (425, Action.RETRY),
        (429, Action.THROTTLE),
        (500, Action.RETRY),
        (502, Action.RETRY),
        (503, Action.RETRY),
        (504, Action.RETRY),
    ],
)
def test_each_status_has_its_action(status, action):
    verdict = judge(Answer(status, b"<html>"), 5)

    assert (verdict.action, verdict.status) == (action, status)
    assert verdict.reason.startswith(f"{status}: ")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 300, 304, 399])
def test_a_redirect_holds_everything_and_says_where_to(status):
    verdict = judge(Answer(status, location="https://elsewhere.example/v1"), 5)

    assert verdict.action is Action.HOLD
    assert "https://elsewhere.example/v1" in verdict.reason
    assert "base_url" in verdict.hint


def test_a_redirect_to_nowhere_holds_everything_as_well():
    assert judge(Answer(307), 5).action is Action.HOLD


@pytest.mark.parametrize("status", [402, 406, 409, 410, 418, 421, 451, 499])
def test_another_refusal_of_the_request_is_not_the_events_fault(status):
    verdict = judge(Answer(status), 5)

    assert verdict.action is Action.HOLD
    assert verdict.hint


@pytest.mark.parametrize("status", [501, 505, 507, 511, 520, 524, 599, 600, 999])
def test_another_failure_of_the_server_is_tried_again(status):
    assert judge(Answer(status), 5).action is Action.RETRY


@pytest.mark.parametrize("status", [0, 100, 101, 103, 201, 202, 204, 206, 299])
def test_a_status_that_says_nothing_of_the_events_settles_nothing(status):
    assert judge(Answer(status, sums(5, 0).body), 5).action is Action.RETRY


@given(st.integers(0, 999), st.binary(max_size=40))
def test_only_a_200_settles_whatever_else_comes(status, body):
    verdict = judge(Answer(status, body), 5)

    assert (verdict.action is Action.SETTLE) == (
        status == 200 and verdict.delivered + verdict.duplicates == 5
    )


@pytest.mark.parametrize("status", [401, 403, 404, 405, 411])
def test_what_only_a_person_can_mend_comes_with_a_hint(status):
    assert judge(Answer(status), 5).hint


def test_only_a_500_makes_the_batch_itself_suspect():
    """The server fails for ever on some events, and does not say which."""
    suspects = {status for status in range(100, 600) if judge(Answer(status), 5).suspect}

    assert suspects == {500}


@pytest.mark.parametrize("kind", ["connect", "dns", "tls", "timeout", "broken", "too_large", "something new"])
def test_no_answer_is_tried_again(kind):
    verdict = judge(NoAnswer(kind, "the connection broke"), 5)

    assert (verdict.action, verdict.reason, verdict.status) == (Action.RETRY, "the connection broke", 0)


def test_having_no_token_holds_everything_and_says_how_to_give_one():
    verdict = judge(NoAnswer("token", "there is no token"), 5)

    assert (verdict.action, verdict.reason) == (Action.HOLD, "there is no token")
    assert "POLAR_ACCESS_TOKEN" in verdict.hint


def test_what_is_wrong_with_a_token_file_comes_with_what_to_do():
    verdict = judge(NoAnswer("token", "the token file /a; b is empty; put the token in"), 5)

    assert (verdict.reason, verdict.hint) == ("the token file /a; b is empty", "put the token in")


@pytest.mark.parametrize(
    "outcome",
    [
        *(Answer(status) for status in range(100, 600)),
        *(NoAnswer(kind, "no") for kind in ("connect", "dns", "tls", "timeout", "broken", "too_large")),
        *(NoAnswer(kind, "no") for kind in ("token", "elsewhere", "personal")),
    ],
    ids=lambda outcome: str(getattr(outcome, "status", "")) or outcome.kind,
)
def test_all_trouble_comes_with_what_happened_and_what_to_do(outcome):
    verdict = judge(outcome, 5)

    assert verdict.reason
    assert verdict.hint


def test_the_table_names_no_status_that_is_read_closer():
    assert not {200, 422} & TABLE.keys()


# -- 200 -------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_200_settles_when_its_sums_are_those_of_the_batch(inserted, duplicates):
    verdict = judge(sums(inserted, duplicates), inserted + duplicates)

    assert verdict.action is Action.SETTLE
    assert (verdict.delivered, verdict.duplicates) == (inserted, duplicates)
    assert not verdict.reason


@pytest.mark.parametrize(("inserted", "duplicates"), [(0, 0), (4, 0), (5, 1), (0, 6), (2, 2), (10**30, 0)])
def test_200_is_sent_again_when_its_sums_differ(inserted, duplicates):
    verdict = judge(sums(inserted, duplicates), 5)

    assert verdict.action is Action.RESEND
    assert (verdict.delivered, verdict.duplicates) == (inserted, duplicates)
    assert verdict.reason


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>Welcome to the hotel</html>",
        b"null",
        b"[]",
        b"{}",
        b"5",
        b'{"inserted": 5}',
        b'{"inserted": "5", "duplicates": 0}',
        b'{"inserted": 5.0, "duplicates": 0}',
        b'{"inserted": true, "duplicates": 4}',
        b'{"inserted": null, "duplicates": 5}',
        b'{"inserted": 6, "duplicates": -1}',
        b'{"inserted": 5, "duplicates": 0',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"inserted": ' + b"9" * 5000 + b', "duplicates": 0}',
    ],
)
def test_200_that_is_not_polars_settles_nothing(body):
    """A proxy's welcome page, say."""
    verdict = judge(Answer(200, body), 5)

    assert verdict.action is Action.RETRY
    assert "base_url" in verdict.hint


# -- 422 -------------------------------------------------------------------------------


def test_422_names_one_event():
    verdict = judge(refused(*both_branches(3, "name")), 5)

    assert verdict.action is Action.SIFT
    assert verdict.faults.keys() == {3}
    assert verdict.faults[3].reason == "name: Field required"
    assert verdict.reason == "422: the server refuses 1 of 5"


def test_422_names_many_events():
    answer = refused(
        *both_branches(0, "name"), *both_branches(4, "metadata", msg="Input should be an object")
    )

    verdict = judge(answer, 5)

    assert {index: fault.reason for index, fault in verdict.faults.items()} == {
        0: "name: Field required",
        4: "metadata: Input should be an object",
    }


def test_422_names_every_event():
    verdict = judge(refused(*(entry for index in range(5) for entry in both_branches(index, "name"))), 5)

    assert verdict.action is Action.SIFT
    assert verdict.faults.keys() == set(range(5))


def test_a_fault_tells_of_the_kind_of_event_that_was_meant():
    """The one with fewer errors; the other one lacks its customer id on top."""
    by_customer = [
        error(0, CUSTOMER, "name", msg="too long"),
        error(0, EXTERNAL, "name", msg="too long"),
        error(0, EXTERNAL, "external_customer_id"),
    ]

    for errors in (by_customer, both_branches(0, "name", msg="too long")):
        fault = judge(refused(*errors), 1).faults[0]
        assert fault.errors == [{"type": "missing", "loc": ["name"], "msg": "too long"}]
        assert fault.reason == "name: too long"


def test_a_fault_keeps_all_errors_of_the_kind_that_was_meant():
    verdict = judge(refused(*both_branches(0, "name"), *both_branches(0, "metadata", "k", "int")), 1)

    assert [entry["loc"] for entry in verdict.faults[0].errors] == [["name"], ["metadata", "k", "int"]]


def test_second_stage_errors_have_no_kind_of_event():
    answer = refused(
        error(1, "customer_id", kind="customer_id", msg="Customer not found."),
        kind="PolarRequestValidationError",
    )

    fault = judge(answer, 2).faults[1]

    assert fault.errors == [{"type": "customer_id", "loc": ["customer_id"], "msg": "Customer not found."}]
    assert fault.reason == "customer_id: Customer not found."
    assert not fault.future


def test_an_event_that_is_only_too_early_is_told_as_such():
    verdict = judge(refused(*both_branches(2, "timestamp", kind="value_error", msg=PAST)), 5)

    assert verdict.faults[2].future


@pytest.mark.parametrize(
    "more", [both_branches(2, "name"), [error(2, EXTERNAL, "timestamp", kind="datetime_type", msg="no time")]]
)
def test_an_event_that_is_too_early_and_wrong_besides_is_not_only_too_early(more):
    errors = both_branches(2, "timestamp", kind="value_error", msg=PAST)

    assert not judge(refused(*errors, *more, *more), 5).faults[2].future


def test_a_metadata_key_of_that_name_is_not_the_timestamp():
    errors = both_branches(2, "metadata", "timestamp", kind="value_error", msg=PAST)

    assert not judge(refused(*errors), 5).faults[2].future


@pytest.mark.parametrize(
    "entry",
    [
        {"type": "json_invalid", "loc": ["body", 3], "msg": "JSON decode error"},
        {"type": "list_type", "loc": ["body", "events"], "msg": "Input should be a list"},
        {"type": "model_attributes_type", "loc": ["body"], "msg": "no"},
        {"type": "uuid_parsing", "loc": ["path", "id"], "msg": "no"},
        {"type": "missing", "loc": ["query", "events", 0, "name"], "msg": "no"},
        {"type": "missing", "loc": ["body", "events", "0", "name"], "msg": "no"},
        {"type": "missing", "loc": ["body", "events", True, "name"], "msg": "no"},
        {"type": "missing", "loc": ["body", "events", 0.0, "name"], "msg": "no"},
        {"type": "missing", "loc": ["body", "events", -1, "name"], "msg": "no"},
        {"type": "missing", "loc": ["body", "events", 5, "name"], "msg": "no"},
        {"type": "missing", "loc": ["body", "events", 10**30, "name"], "msg": "no"},
        {"type": "missing", "loc": "body.events.0", "msg": "no"},
        {"type": "missing", "loc": None, "msg": "no"},
        {"type": "missing", "msg": "no"},
        None,
        "events.0",
        [],
    ],
)
def test_422_that_names_no_event_of_the_batch_halves_it(entry):
    verdict = judge(refused(entry), 5)

    assert verdict.action is Action.SPLIT
    assert not verdict.faults


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"Unprocessable",
        b"null",
        b"[]",
        b'"detail"',
        b"{}",
        b'{"detail": null}',
        b'{"detail": "no"}',
        b'{"detail": {"loc": ["body", "events", 0]}}',
        b'{"detail": [',
        b"\xff",
        b"[" * 100_000,
        b'{"detail": [{"loc": ["body", "events", ' + b"9" * 5000 + b"]}]}",
    ],
)
def test_422_without_a_readable_reason_halves_the_batch(body):
    assert judge(Answer(422, body), 5).action is Action.SPLIT


def test_what_is_said_of_the_batch_beside_an_event_does_not_hide_the_event():
    answer = refused({"loc": ["body"], "msg": "no"}, error(99, EXTERNAL, "name"), *both_branches(1, "name"))

    assert judge(answer, 5).faults.keys() == {1}


@pytest.mark.parametrize(
    "entry",
    [
        {"loc": ["body", "events", 0]},
        {"loc": ["body", "events", 0, EXTERNAL]},
        {"loc": ["body", "events", 0, None, {}], "type": 5, "msg": {"a": 1}},
        {"loc": ["body", "events", 0, [EXTERNAL], "x"], "type": None, "msg": None},
    ],
)
def test_an_event_that_is_named_without_a_reason_is_named_all_the_same(entry):
    verdict = judge(refused(entry), 1)

    assert verdict.action is Action.SIFT
    assert not verdict.faults[0].future


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 9)
    | st.text(max_size=5)
    | st.sampled_from(["body", "events"]),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.sampled_from(["detail", "loc", "msg", "type", "inserted"]), inner, max_size=4)
    ),
    max_leaves=20,
)
entries = st.fixed_dictionaries(
    {"loc": st.tuples(st.just("body"), st.just("events"), st.integers(-1, 6), json_values, json_values)},
    optional={"msg": json_values, "type": json_values},
)


@given(st.sampled_from([200, 422]), json_values | st.fixed_dictionaries({"detail": st.lists(entries)}))
def test_no_answer_of_any_form_breaks_it_or_names_an_event_that_was_not_sent(status, body):
    verdict = judge(Answer(status, json.dumps(body).encode()), 5)

    assert verdict.action in Action
    assert all(0 <= index < 5 for index in verdict.faults)
    assert (verdict.action is Action.SIFT) == bool(verdict.faults)


# -- reasons ---------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from(["name", "timestamp", "customer_id"]), st.booleans()),
        min_size=1,
        max_size=9,
    )
)
def test_the_servers_echo_of_the_data_gets_into_no_reason(named):
    errors = [
        entry
        for index, field, first_stage in named
        for entry in (both_branches(index, field) if first_stage else [error(index, field)])
    ]

    verdict = judge(refused(*errors), 10)

    assert SECRET not in repr(verdict)


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 413, 422, 429, 500, 503])
def test_no_body_gets_into_a_reason(status):
    body = json.dumps({"detail": SECRET, "error": SECRET, "input": SECRET}).encode()

    assert SECRET not in repr(judge(Answer(status, body), 5))


def test_reasons_are_bounded():
    long = "x" * 100_000
    fault = judge(refused(error(0, EXTERNAL, long, msg=long, kind=long)), 1).faults[0]

    assert len(fault.reason) <= MAX_REASON
    assert len(str(fault.errors[0]["msg"])) <= MAX_REASON
    assert len(judge(Answer(307, location=long), 5).reason) <= 2 * MAX_REASON
