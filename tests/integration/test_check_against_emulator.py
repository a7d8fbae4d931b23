"""What we accept, Polar accepts; what we refuse, it refuses: our check against the emulator.

The emulator answers as a real server was seen to. The lines go the way that they go in the
agent: checked and stamped, kept as they came out, put into the body of one request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clock import NOON, FakeClock
from support.lines import CUSTOMER, GOOD, lines, whole_lines

from agent.batch import Batch, Lease
from agent.chunk import pack
from agent.emulator.options import Customer, Options
from agent.emulator.server import background
from agent.event import Checker

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKER = Checker(future_tolerance=0)
ONLY_THE_SERVER_KNOWS = {"customer_id", "member_id"}


@pytest.fixture(scope="module")
def polar() -> Iterator[httpx.Client]:
    """An emulator with one customer, at noon for ever."""
    yield from emulator(Options(customers=(Customer(UUID(CUSTOMER)),)))


@pytest.fixture(scope="module")
def stranger() -> Iterator[httpx.Client]:
    """An emulator that has no customer with an id of its own."""
    yield from emulator(Options())


def emulator(options: Options) -> Iterator[httpx.Client]:
    headers = {"Authorization": "Bearer polar_oat_test", "Content-Type": "application/json"}
    with background(options, FakeClock()) as url, httpx.Client(base_url=url, headers=headers) as client:
        yield client


def ingest(polar: httpx.Client, body: bytes) -> httpx.Response:
    return polar.post("/v1/events/ingest", content=body)


def body_of(segments: list[bytes]) -> tuple[bytes, int]:
    """Return the request that the agent makes of these lines, and how many events are in it."""
    chunks = pack(CHECKER.check(segments, NOON).groups, int(NOON * 1000))
    batch = Batch("b1", [Lease(key, chunk).part() for key, chunk in enumerate(chunks)])
    return bytes(batch.body()), batch.events


def only_the_server_knew(answer: httpx.Response) -> bool:
    """Tell whether the events are fine but for a customer or a member that the server does not have."""
    return answer.status_code == 422 and {error["type"] for error in answer.json()["detail"]} <= (
        ONLY_THE_SERVER_KNOWS
    )


@settings(max_examples=250)
@given(written=st.lists(whole_lines(), min_size=1, max_size=8))
def test_what_we_accept_the_server_accepts(polar, written):
    """In one request: nothing that we took is poison to the others."""
    body, events = body_of([line + b"\n" for line in written])

    answer = ingest(polar, body)

    if not only_the_server_knew(answer):
        assert answer.status_code == 200, answer.text
        assert sum(answer.json().values()) == events


@settings(max_examples=400)
@given(line=lines())
def test_what_we_refuse_the_server_refuses_or_fails_on(polar, line):
    checked = CHECKER.check([line + b"\n"], NOON)
    # Half a surrogate pair as bytes is no UTF-8, which our protocol wants; the server lets it pass
    # where it ignores the field.
    if checked.refused and b"\xed\xa0\x80" not in line:
        assert ingest(polar, b'{"events":[%b]}' % line).status_code in (400, 422, 500)


@settings(max_examples=150)
@given(line=lines())
def test_an_event_goes_to_the_kind_of_customer_that_it_goes_to_without_our_stamps(stranger, line):
    """A server that knows no customer by its id tells the two kinds apart."""
    body, events = body_of([line + b"\n"])
    if events:
        with_stamps, without = ingest(stranger, body), ingest(stranger, b'{"events":[%b]}' % line)

        assert with_stamps.status_code == without.status_code
        assert with_stamps.status_code == 200 or only_the_server_knew(with_stamps)


def test_a_request_that_is_sent_twice_is_stored_once(polar):
    body, events = body_of([b"".join(line + b"\n" for line in [GOOD[0], GOOD[2], GOOD[3], GOOD[4]] * 300)])

    assert events == 1200
    assert ingest(polar, body).json() == {"inserted": 1200, "duplicates": 0}
    assert ingest(polar, body).json() == {"inserted": 0, "duplicates": 1200}
