"""Polar's own SDK, as it comes from PyPI, with the agent as its server."""

from __future__ import annotations

import asyncio
import importlib
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from support.http import Caller
from support.processes import _free_port, wait_until

if TYPE_CHECKING:
    from support.processes import Product

VERSIONS = ("v2026_04", "v2026_10", "v2027_01")
EVENTS = [
    {"name": "ai_usage", "external_customer_id": "cus_1", "metadata": {"tokens": number}}
    for number in range(3)
]


def sdk(version: str, name: str) -> Any:
    return getattr(importlib.import_module(f"polar.{version}"), name)


@pytest.fixture
def base_url(product: Product) -> str:
    port = _free_port()
    product.set(api_listen=f"127.0.0.1:{port}")
    product.start_daemon()
    Caller(port).wait()
    return f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("version", VERSIONS)
def test_its_events_are_safe_while_polar_is_away_and_arrive_when_it_is_back(
    product: Product, base_url: str, version: str
) -> None:
    with sdk(version, "Polar")("no token is needed", base_url=base_url) as polar:
        answer = polar.events.ingest(events=EVENTS)

    assert (answer.inserted, answer.duplicates) == (3, 0)
    product.stop_daemon(9)
    product.start_emulator()
    product.start_daemon()
    wait_until(lambda: len(list(product.stored())) == 3)
    assert [event["metadata"] for event in product.stored()] == [event["metadata"] for event in EVENTS]


@pytest.mark.parametrize("version", VERSIONS[:2])
def test_it_reads_back_through_the_agent(product: Product, base_url: str, version: str) -> None:
    product.start_emulator()
    with sdk(version, "Polar")("no token is needed", base_url=base_url) as polar:
        polar.events.ingest(events=EVENTS)
        wait_until(lambda: len(list(product.stored())) == 3)

        listed = polar.events.list(name="ai_usage", limit=2)
        names = polar.events.list_names()
        event = polar.events.get(listed.items[0].id)

    assert (listed.pagination.total_count, len(listed.items)) == (3, 2)
    assert [(name.name, name.occurrences) for name in names.items] == [("ai_usage", 3)]
    assert event == listed.items[0]


def test_it_raises_its_own_error_for_a_bad_event(base_url: str) -> None:
    error = importlib.import_module("polar.v2026_10.errors").HTTPValidationError

    with (
        sdk("v2026_10", "Polar")("no token is needed", base_url=base_url) as polar,
        pytest.raises(error) as raised,
    ):
        polar.events.ingest(events=[{"name": "x"}])

    assert "external_customer_id" in str(vars(raised.value))


def test_its_asynchronous_client_works_as_well(product: Product, base_url: str) -> None:
    async def send() -> list[int]:
        async with sdk("v2026_10", "PolarAsync")("no token is needed", base_url=base_url) as polar:
            answers = await asyncio.gather(*(polar.events.ingest(events=EVENTS) for _ in range(20)))
            return [answer.inserted for answer in answers]

    assert asyncio.run(send()) == [3] * 20
    assert product.status()["ledger"]["accepted"] == 60


def test_over_the_unix_socket_httpx_sends_the_same(product: Product, base_url: str) -> None:
    """The SDK takes no transport of its user's; who wants the Unix socket uses httpx, which it is made of."""
    del base_url
    transport = httpx.HTTPTransport(uds=str(product.directory / "api.sock"))
    with httpx.Client(transport=transport, base_url="http://agent") as client:
        answer = client.post("/v1/events/ingest", json={"events": EVENTS})

    assert answer.json() == {"inserted": 3, "duplicates": 0}
