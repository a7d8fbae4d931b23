"""Single events with the verdict that a real Polar server gave on each: ours must be the same.

The data holds one event a row, as the text that stood in `{"events":[…]}`, with the
server's status and, for a 422, the types and locations of its errors.
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
from pydantic import ValidationError

from agent.emulator.options import Customer, Options
from agent.emulator.server import background
from agent.schema import BodyError, PoisonError, check_poison, errors_of, parse_event, parse_json

CUSTOMER = "a5366a1f-519f-4d0c-9c28-b4f787be37ed"
RECORDED_AT = datetime(2026, 11, 23, 12, tzinfo=UTC)
STATUSES = (200, 400, 422, 500)

# What only the server's database knows; the schema passes these events.
SECOND_STAGE = {"customer_id", "member_id", "organization_token"}


class Clock:
    """The clock of the recording."""

    def wall(self) -> float:
        return RECORDED_AT.timestamp()

    def monotonic(self) -> float:
        return 0.0

    def wait(self, *_args) -> bool:
        raise AssertionError


def load() -> list[dict[str, Any]]:
    path = Path(__file__).parent.parent / "data" / "verdicts.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


ROWS = load()


def errors_in(row: dict[str, Any]) -> list[list[str]] | None:
    return None if row["errors"] is None else sorted(row["errors"])


def schema_verdict(text: str) -> tuple[str, list[list[str]] | None]:
    """Return what the schema says: accepted, refused with errors, or fatal to the server."""
    body = f'{{"events":[{text}]}}'
    try:
        event = parse_json(body)["events"][0]
        check_poison(parse_event(event, RECORDED_AT))
    except json.JSONDecodeError as error:
        return "refused", [["json_invalid", "body", str(error.pos)]]
    except (BodyError, PoisonError):
        return "fatal", None
    except ValidationError as error:
        found = errors_of(error)
        try:
            # The server's answer repeats the input, and fails when that is no JSON.
            json.dumps([item["input"] for item in found], allow_nan=False, ensure_ascii=False).encode()
        except ValueError:
            return "fatal", None
        return "refused", sorted(
            [item["type"], "body", "events", "0", *map(str, item["loc"])] for item in found
        )
    return "accepted", None


def expected_of_schema(row: dict[str, Any]) -> tuple[str, list[list[str]] | None]:
    if row["errors"] and {error[0] for error in row["errors"]} <= SECOND_STAGE:
        return "accepted", None
    kind = {200: "accepted", 422: "refused"}.get(row["status"], "fatal")
    return kind, errors_in(row)


@pytest.mark.parametrize("status", STATUSES)
def test_schema_gives_the_verdict_of_the_server(status):
    """For every recorded event: accepted or not, and the same set of error types and locations."""
    rows = [row for row in ROWS if row["status"] == status]
    assert rows

    differing = [
        (row["event"][:200], expected_of_schema(row), schema_verdict(row["event"]))
        for row in rows
        if expected_of_schema(row) != schema_verdict(row["event"])
    ]

    assert differing == []


@pytest.fixture(scope="module")
def client():
    """An emulator that knows the one customer that the recording server knew."""
    options = Options(customers=(Customer(UUID(CUSTOMER), "cust_ext_1"),))
    headers = {"Authorization": "Bearer polar_oat_test", "Content-Type": "application/json"}
    with background(options, Clock()) as url, httpx.Client(base_url=url, headers=headers) as client:
        yield client


def emulator_verdict(client: httpx.Client, text: str) -> tuple[int, list[list[str]] | None]:
    answer = client.post("/v1/events/ingest", content=f'{{"events":[{text}]}}'.encode())
    if answer.status_code != 422:
        return answer.status_code, None
    detail = answer.json()["detail"]
    return 422, sorted([item["type"], *map(str, item["loc"])] for item in detail)


@pytest.mark.parametrize("status", STATUSES)
def test_emulator_answers_as_the_server_did(client, status):
    """For every recorded event: the same status, and the same set of error types and locations."""
    rows = [row for row in ROWS if row["status"] == status]

    differing = [
        (row["event"][:200], (status, errors_in(row)), answer)
        for row in rows
        if (answer := emulator_verdict(client, row["event"])) != (status, errors_in(row))
    ]

    assert differing == []
