"""Recorded exchanges with a real Polar server, replayed in their order against the emulator.

Not compared: how long an answer took; ids, times and totals of the lists, which come from
the recording's own database; `input` and `msg` of errors, which the data leaves out.
"""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from agent.emulator.options import Customer, Options, parse_token
from agent.emulator.server import background

CUSTOMER = UUID("a5366a1f-519f-4d0c-9c28-b4f787be37ed")
ORGANIZATION_TOKEN = "polar_oat_all"
OTHER_TOKENS = {
    "auth.polar_read_token": "polar_oat_read=events:read",
    "auth.polar_noevents_token": "polar_oat_none=products:read",
    "auth.polar_writeonly_token": "polar_oat_write=events:write",
    "pat": "polar_pat_person",
}

AFTER_RECORDING = datetime(2026, 11, 23, 11, 30, tzinfo=UTC)
WHEN_FUTURE_WAS_FUTURE = datetime(2026, 11, 23, 11, 17, 38, 926264, tzinfo=UTC)

# What the recording server had stored before, as far as the recorded answers show it.
STORED_BEFORE = [
    {"name": "rec.base", "external_customer_id": "cust_ext_1", "external_id": "x1-c31b39"},
    {"name": "rec.min", "external_customer_id": "nobody_yet"},
    {"name": "p", "external_customer_id": "cust_ext_1", "timestamp": "2026-01-01T00:00:00.5Z"},
    {"name": "p", "external_customer_id": "cust_ext_1", "timestamp": "2026-01-01T00:00:00.123456Z"},
]


class Clock:
    """A clock that is set."""

    now = AFTER_RECORDING

    def wall(self) -> float:
        return self.now.timestamp()

    def monotonic(self) -> float:
        return 0.0

    def wait(self, *_args) -> bool:
        raise AssertionError


def load() -> list[dict[str, Any]]:
    path = Path(__file__).parent.parent / "data" / "exchanges.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


EXCHANGES = load()
RATE = next(exchange for exchange in EXCHANGES if exchange["case"] == "rate.sandbox")
REPLAYED = [exchange for exchange in EXCHANGES if exchange is not RATE]


def token_for(exchange: dict[str, Any]) -> str | None:
    kind = exchange["request"]["token"]
    if kind == "OTHER":
        case = exchange["case"]
        known = next(text for prefix, text in OTHER_TOKENS.items() if case.startswith(prefix))
        return known.partition("=")[0]
    return ORGANIZATION_TOKEN if kind == "ORG" else None


def body_for(exchange: dict[str, Any]) -> bytes | None:
    """Return the bytes that were sent; what the recording left out is made up alike."""
    body = exchange["request"].get("body")
    case = exchange["case"]
    if body is None:
        return None
    if isinstance(body, dict):
        return json.dumps(body).encode()
    if case == "http.gzip":
        return gzip.compress(b'{"events":[]}')
    if case == "http.too_large":
        return b'{"events":[' + b" " * (10_485_773 - 13) + b"]}"
    if case.startswith("size."):
        events = [
            {"name": "rec.base", "external_customer_id": "c", "external_id": f"{case}-{number}"}
            for number in range(int(case.split(".")[1]))
        ]
        return json.dumps({"events": events}).encode()
    return body.encode()


def send(client: httpx.Client, exchange: dict[str, Any], known_id: str) -> httpx.Response:
    request = exchange["request"]
    headers = dict(request.get("headers", {}))
    token = token_for(exchange)
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    if isinstance(request.get("body"), dict) or exchange["case"].startswith("size."):
        headers.setdefault("Content-Type", "application/json")
    path = f"/v1/events/{known_id}" if exchange["case"] == "get.ok" else request["path"]
    return client.request(
        request["method"], path, params=request.get("params"), headers=headers, content=body_for(exchange)
    )


@pytest.fixture(scope="module")
def answers():
    """The emulator's answers to all exchanges, sent in the recorded order."""
    clock = Clock()
    options = Options(
        tokens=(parse_token(ORGANIZATION_TOKEN), *map(parse_token, OTHER_TOKENS.values())),
        customers=(Customer(CUSTOMER, "cust_ext_1"),),
    )
    found = {}
    with background(options, clock) as url, httpx.Client(base_url=url, timeout=60) as client:
        authorization = {"Authorization": f"Bearer {ORGANIZATION_TOKEN}"}
        stored = client.post("/v1/events/ingest", json={"events": STORED_BEFORE}, headers=authorization)
        assert stored.json()["inserted"] == len(STORED_BEFORE)
        for exchange in REPLAYED:
            future = exchange["case"].startswith("ts.future")
            clock.now = WHEN_FUTURE_WAS_FUTURE if future else AFTER_RECORDING
            newest = client.get("/v1/events/", headers=authorization).json()["items"][0]["id"]
            found[exchange["case"]] = send(client, exchange, newest)
    return found


def shape(value: Any) -> Any:
    """Return the keys of a document, all the way down, for one item of each list."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return None


def errors(body: Any) -> list[tuple[Any, ...]]:
    return sorted((item["type"], *map(str, item["loc"])) for item in body["detail"])


@pytest.mark.parametrize("exchange", REPLAYED, ids=lambda exchange: exchange["case"])
def test_emulator_answers_a_recorded_request_as_the_server_did(answers, exchange):
    """Same status, headers, counts, error, and set of error types and locations."""
    answer = answers[exchange["case"]]
    expected = exchange["response"]

    assert expected["status"] == answer.status_code
    headers = {name: value for name, value in expected["headers"].items() if name != "location"}
    assert headers == {name: answer.headers.get(name) for name in headers}
    body = expected["body"]
    if not isinstance(body, dict):
        assert body == answer.text
    elif isinstance(body.get("detail"), list):
        assert body["error"] == answer.json()["error"]
        assert errors(body) == errors(answer.json())
    elif "items" in body:
        assert set(body) == set(answer.json())
        assert bool(body["items"]) == bool(answer.json()["items"])
        assert (body["pagination"]["total_count"] == 0) == (answer.json()["pagination"]["total_count"] == 0)
    elif "inserted" in body or "detail" in body or "error_description" in body:
        assert body == answer.json()
    else:
        assert shape(body).keys() == shape(answer.json()).keys()


@pytest.mark.parametrize("case", ["list.default", "list.name", "names.default"])
def test_items_of_a_list_have_the_fields_of_the_servers(answers, case):
    """Each item has the recorded keys, in their order, down to those of the customer."""
    recorded = next(exchange for exchange in REPLAYED if exchange["case"] == case)
    expected = recorded["response"]["body"]["items"][0]
    item = answers[case].json()["items"][0]

    assert list(expected) == list(item)
    if expected.get("customer"):
        assert list(expected["customer"]) == list(item["customer"])


def test_call_over_the_rate_limit_gets_429():
    """Of 101 calls in a minute the sandbox answers the last with an empty 429 and `retry-after: 60`."""
    expected = RATE["response"]
    options = Options(requests_per_minute=100)
    headers = {"Authorization": "Bearer any"}
    with background(options, Clock()) as url, httpx.Client(base_url=url, headers=headers) as client:
        statuses = [client.get("/v1/events/").status_code for _ in range(100)]
        answer = client.post("/v1/events/ingest", json={"events": []})

    assert {200} == set(statuses)
    assert (expected["status"], expected["body"]) == (answer.status_code, answer.text)
    assert expected["headers"]["retry-after"] == answer.headers["retry-after"]
    assert expected["headers"]["polar-version"] == answer.headers["polar-version"]
