"""Distributions, tallies, recent refusals, the last hour, and the text that Prometheus reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from support.clock import NOON

from agent.flusher import Delivery
from agent.history import COLUMNS, SAMPLE_SECONDS, History
from agent.meters import Histogram, Meters, latest
from agent.process import Process, measure
from agent.prometheus import render
from agent.queue import Books
from agent.refusal import Refusal
from agent.stats import STALLED_SECONDS, Detail, Snapshot, stalled

BOOKS = Books(accepted=100, refused=7, delivered=60, duplicates=10, dead=4, dropped=1, lost=1, bytes=4096)
MISSING = Refusal("missing", ("name",), "this field is required")


def detail(**changes: object) -> Detail:
    usual = Detail(
        sick=None,
        unready=None,
        stalled=None,
        meters=Meters(),
        connections={"events": 3, "api": 1},
        peers_refused={"events": 2, "api": 0},
        queue_max_bytes=1 << 30,
        clock_offset=-0.25,
        process=Process(30_000_000, 1.5, 12),
        started_at=NOON,
    )
    return replace(usual, **changes)


def snapshot(**changes: object) -> Snapshot:
    usual = Snapshot(Path("/q"), BOOKS, 3.5, Delivery("sending", None, NOON), 1, 2.0, detail())
    return replace(usual, **changes)


def samples(text: str) -> dict[str, float]:
    """Return what Prometheus reads, by name and labels."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


# -- distributions -------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 9))))
def test_each_bucket_counts_what_is_at_or_below_its_bound(observed: list[tuple[float, int]]) -> None:
    histogram = Histogram(1, 5, 10)
    for value, times in observed:
        histogram.observe(value, times)
    meters = Meters()
    meters.ack = histogram

    found = samples(render(snapshot(), detail(meters=meters)))

    name = "polar_agent_ack_duration_seconds"
    for bound in ("1", "5", "10", "+Inf"):
        expected = sum(times for value, times in observed if value <= float(bound))
        assert found[f"{name}_bucket{{le={bound}}}"] == expected
    assert found[f"{name}_count"] == sum(times for _, times in observed)
    assert found[f"{name}_sum"] == pytest.approx(sum(value * times for value, times in observed))


def test_a_quantile_is_the_bound_that_so_much_is_below() -> None:
    histogram = Histogram(1, 5, 10)
    assert histogram.quantile(0.5) is None
    for value in (0.5, 0.6, 3, 100):
        histogram.observe(value)

    assert [histogram.quantile(share) for share in (0.5, 0.75, 0.99)] == [1, 5, 10]


# -- what is counted -----------------------------------------------------------------------


def test_sources_and_requests_are_counted_apart() -> None:
    meters = Meters()
    meters.took("socket", 10, 1, 0.001)
    meters.took("socket", 5, 0, 0.001)
    meters.took("api", 1, 0, 0.001)
    meters.answered("200", 16, 0.1)
    meters.answered("timeout", 16, 60)
    meters.answered("200", 0, 0.1)

    found = samples(render(snapshot(), detail(meters=meters)))

    assert found["polar_agent_source_events_total{source=socket}"] == 15
    assert found["polar_agent_source_refused_total{source=socket}"] == 1
    assert found["polar_agent_source_events_total{source=api}"] == 1
    assert found["polar_agent_requests_total{result=200}"] == 2
    assert found["polar_agent_requests_total{result=timeout}"] == 1
    assert found["polar_agent_batch_events_count"] == 2
    assert found["polar_agent_request_duration_seconds_count"] == 3


def test_refusals_that_are_alike_are_one_line_and_their_number_is_bounded() -> None:
    meters = Meters()
    meters.refuse("socket", [MISSING] * 100, NOON)
    meters.refuse("socket", [MISSING], NOON + 1)

    assert latest(meters.refusals) == [
        {
            "at": NOON + 1,
            "source": "socket",
            "type": "missing",
            "loc": ["name"],
            "msg": MISSING.msg,
            "count": 4,
        }
    ]
    for number in range(200):
        meters.refuse("socket", [Refusal("x", (number,), "")], NOON)
    assert len(latest(meters.refusals)) == 50
    assert latest(meters.refusals)[0]["loc"] == [199]


# -- the text ------------------------------------------------------------------------------


def test_the_ledger_and_the_queue_are_told_with_their_units() -> None:
    found = samples(render(snapshot(), detail()))

    assert found["polar_agent_events_accepted_total"] == 100
    assert found["polar_agent_events_delivered_total"] == 60
    assert found["polar_agent_events_duplicate_total"] == 10
    assert found["polar_agent_events_dropped_total"] == 1
    assert found["polar_agent_dead_letters"] == 4
    assert found["polar_agent_queue_events"] == 25
    assert found["polar_agent_queue_bytes"] == 4096
    assert found["polar_agent_queue_oldest_age_seconds"] == 3.5
    assert found["polar_agent_peers_refused_total{socket=events}"] == 2
    assert found["process_resident_memory_bytes"] == 30_000_000


def test_of_the_states_of_delivery_one_is_1() -> None:
    found = samples(render(snapshot(delivery=Delivery("blocked", "no token", None)), detail()))

    states = {name: value for name, value in found.items() if "delivery_state" in name}
    assert sum(states.values()) == states["polar_agent_delivery_state{state=blocked}"] == 1
    assert found["polar_agent_delivery_last_success_timestamp_seconds"] == 0


@pytest.mark.parametrize(
    ("field", "name"), [("sick", "live"), ("unready", "ready"), ("stalled", "delivering")]
)
def test_health_is_1_or_0(field: str, name: str) -> None:
    assert samples(render(snapshot(), detail()))[f"polar_agent_{name}"] == 1
    assert samples(render(snapshot(), detail(**{field: "why"})))[f"polar_agent_{name}"] == 0


def test_what_the_system_does_not_tell_is_left_out() -> None:
    text = render(snapshot(), detail(process=Process(None, 0.0, None)))

    assert "process_open_fds" not in samples(text)


def test_this_process_is_measured() -> None:
    process = measure()

    assert process.cpu_seconds > 0
    assert process.memory_bytes is None or process.memory_bytes > 1_000_000


# -- delivering ----------------------------------------------------------------------------

OLD = STALLED_SECONDS + 1


@pytest.mark.parametrize(
    ("pending", "age", "state", "since_success", "fine"),
    [
        (0, None, "idle", None, True),
        (0, None, "blocked", None, True),
        (1, 1.0, "sending", None, True),
        (1, 1.0, "blocked", 1.0, False),
        (1, OLD, "retrying", OLD, False),
        (1, OLD, "retrying", None, False),
        (1, OLD, "sending", 1.0, True),  # a backlog that drains
        (1, 1.0, "idle", OLD, True),  # there was nothing to deliver for long
    ],
)
def test_delivering_is_the_last_success_and_the_oldest_event_within_limits(
    pending: int, age: float | None, state: str, since_success: float | None, fine: bool
) -> None:
    last = None if since_success is None else NOON - since_success

    why = stalled(Books(accepted=pending), age, Delivery(state, "no answer", last), NOON)

    assert (why is None) is fine


# -- the last hour -------------------------------------------------------------------------


def test_samples_are_due_now_and_then() -> None:
    history = History()

    due = [moment for moment in range(0, 61, 5) if history.due(float(moment))]

    assert due == [0, 15, 30, 45, 60]
    assert SAMPLE_SECONDS == 15


def test_the_ring_keeps_the_latest_and_no_more() -> None:
    history = History(samples=3)
    assert history.document() == {name: [] for name in COLUMNS}

    for number in range(5):
        history.add(NOON + number, Books(accepted=number, delivered=number), None)

    document = history.document()
    assert document["at"] == [NOON + 2, NOON + 3, NOON + 4]
    assert document["accepted"] == [2, 3, 4]
    assert set(document) == set(COLUMNS)


def test_the_overview_is_the_status_and_more() -> None:
    shown = snapshot(detail=detail(stalled="too slow"))

    overview = shown.overview({"at": [1.0]})

    assert {name: overview[name] for name in shown.document()} == shown.document()
    assert overview["health"] == {"live": True, "ready": True, "delivering": False, "reasons": ["too slow"]}
    assert overview["history"] == {"at": [1.0]}
