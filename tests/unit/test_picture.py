"""The screen of `agent top`."""

from __future__ import annotations

from typing import Any

import pytest

from agent.picture import picture, troubled


def overview(**changes: Any) -> dict[str, Any]:
    usual = {
        "version": "1.2.3",
        "daemon": {"running": True, "pid": 1, "uptime_seconds": 7300.0},
        "queue": {"path": "/q", "events": 1234, "bytes": 5 << 20, "oldest_age_seconds": 3.5, "dead": 2},
        "ledger": {
            "accepted": 5000,
            "refused": 7,
            "delivered": 3000,
            "duplicates": 1,
            "dead": 2,
            "dropped": 0,
        },
        "delivery": {
            "state": "retrying",
            "last_error": "no answer from Polar; " * 20,
            "last_success": None,
            "next_attempt_in_seconds": 4.0,
        },
        "health": {"live": True, "ready": True, "delivering": False, "reasons": ["too slow"]},
        "sources": {"socket": {"accepted": 4000, "refused": 7}, "api": {"accepted": 1000, "refused": 0}},
        "connections": {"events": 3, "api": 1},
        "requests": {"200": 12, "timeout": 1},
        "latency": {
            "ack": {"p50": 0.001, "p99": 0.005},
            "request": {"p50": 0.25, "p99": 2.5},
            "age": {"p50": None, "p99": None},
        },
        "refusals": [
            {"at": 1e9, "source": "socket", "type": "missing", "loc": ["name"], "msg": "required", "count": 3}
        ]
        * 50,
        "memory_bytes": 40 << 20,
    }
    return {**usual, **changes}


def shown(*documents: dict[str, Any], width: int = 80, height: int = 24) -> str:
    now, before = documents[0], documents[1] if len(documents) > 1 else None
    return "\n".join(picture(now, before, 2.0, width, height))


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (200, 60), (20, 3)])
def test_it_keeps_to_the_screen_and_leaves_the_last_line(width: int, height: int) -> None:
    lines = picture(overview(), overview(), 2.0, width, height)

    assert len(lines) <= height - 1
    assert max(map(len, lines)) <= width


def test_at_80_by_24_all_parts_are_there() -> None:
    text = shown(overview())

    for part in (
        "live  ready  NOT DELIVERING",
        "1,234 waiting, 5 MiB, the oldest for 3.5 s",
        "2 letters",
        "retrying, next attempt in 4.0 s",
        "no answer from Polar",
        "200: 12  timeout: 1",
        "ack 1 ms/5 ms, request 250 ms/2.5 s, to Polar -/-",
        "socket",
        "api",
    ):
        assert part in text


def test_rates_are_what_was_added_since_the_last_look() -> None:
    ledger = {**overview()["ledger"], "accepted": 5100, "delivered": 3003}

    lines = shown(overview(ledger=ledger), overview()).splitlines()

    assert next(line.split() for line in lines if line.startswith("accepted")) == ["accepted", "5,100", "50"]
    assert next(line.split() for line in lines if line.startswith("delivered")) == [
        "delivered",
        "3,003",
        "1.5",
    ]


def test_the_first_look_and_the_one_after_a_restart_tell_no_rates() -> None:
    lines = shown(overview()).splitlines()
    again = shown(overview(), overview(ledger={**overview()["ledger"], "accepted": 9000})).splitlines()

    for text in (lines, again):
        assert next(line.split()[-1] for line in text if line.startswith("accepted")) == "-"


def test_refusals_fill_what_is_left_the_latest_first() -> None:
    text = shown(overview(), height=40)

    assert "recent refusals" in text
    assert text.count("socket missing name (x3): required") > 5


def test_what_programs_wrote_cannot_steer_the_terminal() -> None:
    refusal = {**overview()["refusals"][0], "loc": ["metadata", "\x1b[2J\x07"]}

    text = shown(overview(refusals=[refusal]), height=40)

    assert "\x1b" not in text
    assert "\x07" not in text


def test_trouble_is_any_of_the_three() -> None:
    assert troubled(overview())
    assert not troubled(overview(health={"live": True, "ready": True, "delivering": True, "reasons": []}))


def test_a_long_trouble_is_broken_between_words() -> None:
    trouble = "403: the token may not write events; give the token the scope events:write, then wait a minute"
    delivery = {**overview()["delivery"], "last_error": trouble}

    lines = [line.strip() for line in shown(overview(delivery=delivery)).splitlines()]

    first = next(number for number, line in enumerate(lines) if line.startswith("403:"))
    assert " ".join(lines[first : first + 2]) == trouble


def test_all_times_are_seen_on_80_columns() -> None:
    slow = {name: {"p50": 0.5, "p99": 30.0} for name in ("ack", "request", "age")}

    told = "ack 500 ms/30.0 s, request 500 ms/30.0 s, to Polar 500 ms/30.0 s"
    assert told in shown(overview(latency=slow))


def test_a_refusal_of_a_whole_line_names_no_place() -> None:
    one = {"at": 1e9, "source": "socket", "type": "json_invalid", "loc": [], "msg": "no JSON", "count": 1}

    assert "socket json_invalid: no JSON" in shown(overview(refusals=[one]), height=40)
