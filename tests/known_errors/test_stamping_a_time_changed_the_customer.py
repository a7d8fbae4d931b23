"""Polar's choice between its two kinds of event depends on whether there is a timestamp.

An event with both `customer_id` and `external_customer_id` goes by the external id as it was
written; with the timestamp that we added it went by the other one, to another customer or
to none.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from agent import schema
from agent.event import Checker

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
BOTH = {
    "name": "usage",
    "external_customer_id": "c",
    "customer_id": "5b0a9f0e-3d3e-4a36-9e4c-1d1f5f6a7b8c",
}


@pytest.mark.parametrize(
    "more",
    [
        "",
        ',"external_id":null',
        ',"metadata":{"tokens":77}',
        ',"metadata":{"customer_id":"x"}',
        ',"metadata":{"_cost":{"amount":1,"currency":"usd"}}',
        ',"timestamp":"2026-01-01T00:00:00Z"',
        ',"colour":NaN',
    ],
)
def test_an_event_goes_to_the_same_customer_with_our_stamps_as_without(more: str) -> None:
    line = json.dumps(BOTH)[:-1] + more + "}"
    meant = schema.parse_event(schema.parse_json(line), NOW)

    checked = Checker().check([line.encode() + b"\n"], NOW.timestamp())

    sent = schema.parse_event(schema.parse_json(checked.lines.decode()), NOW)
    assert type(sent) is type(meant)
    assert sent.timestamp is not None
