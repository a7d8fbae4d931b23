"""Defaults of tailed files: what is filled into many lines at once is what is filled into each."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agent.stamp import cut
from agent.tail.filling import Filling

_values = {
    "name": st.sampled_from(["own", "", None, 5]),
    "customer_id": st.sampled_from(["own", None]),
    "external_customer_id": st.sampled_from(["own", None]),
    "metadata": st.sampled_from(
        [None, {}, {"k": "v"}, {"k": "}"}, {"k": {"k": 1}}, {"region": "own"}, {"region": None, "k": 1}]
    ),
    "other": st.sampled_from([1, {"k": "v"}, {}]),
}
_member = st.sampled_from(list(_values)).flatmap(lambda key: st.tuples(st.just(key), _values[key]))
_event = st.lists(_member, max_size=5).map(lambda members: json.dumps(dict(members)).encode())
_defaults = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("d"),
        "external_customer_id": st.just("dc"),
        "metadata": st.sampled_from([{}, {"region": "eu"}, {"region": "eu", "n": 1}, {'a"b': True}]),
    },
)


def filled(defaults: dict[str, Any], lines: list[bytes]) -> list[bytes] | None:
    """Return lines that were filled together; None where that was not possible."""
    whole = cut(b"\n".join(lines))
    assert whole is not None
    block = Filling(defaults).block(whole)
    return None if block is None else block.split(b"\n")


@given(_defaults, st.lists(_event, min_size=1, max_size=3), st.booleans())
def test_what_is_filled_into_many_lines_is_what_is_filled_into_each(
    defaults: dict[str, Any], lines: list[bytes], alike: bool
) -> None:
    if alike:
        lines = [lines[0]] * 3

    found = filled(defaults, lines)

    try:
        events = None if found is None else list(map(json.loads, found))
    except ValueError:
        events = None  # such a block is looked at line by line
    assert events in (None, [json.loads(Filling(defaults).line(one)) for one in lines])


def test_lines_that_lack_the_same_are_filled_together() -> None:
    defaults = {"name": "d", "external_customer_id": "dc", "metadata": {"region": "eu", "n": 1}}

    assert filled(defaults, [b'{"x":1.10}', b'{"x":2}']) == [
        b'{"x":1.10,"name":"d","external_customer_id":"dc","metadata":{"region":"eu","n":1}}',
        b'{"x":2,"name":"d","external_customer_id":"dc","metadata":{"region":"eu","n":1}}',
    ]
    assert filled(defaults, [b'{"name":"a","customer_id":"c","metadata":{"n":2.0}}']) == [
        b'{"name":"a","customer_id":"c","metadata":{"n":2.0,"region":"eu"}}'
    ]


def test_lines_that_lack_nothing_stay_as_they_are() -> None:
    whole = [b'{ "name":"a", "external_customer_id":"c","metadata":{"region":"us","n":1}}']

    assert filled({"name": "d", "metadata": {"region": "eu", "n": 1}}, whole) == whole


def test_lines_that_lack_different_fields_are_not_filled_together() -> None:
    assert filled({"name": "d"}, [b'{"name":"a"}', b'{"x":1}']) is None


def test_defaults_do_not_get_into_another_object_that_ends_a_line() -> None:
    assert filled({"metadata": {"region": "eu"}}, [b'{"metadata":{"k":1},"other":{"k":1}}']) is None
