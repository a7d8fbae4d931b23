"""The document that `agent status --json` prints."""

from pathlib import Path

import pytest
from support.clock import NOON

from agent import __version__
from agent.flusher import Delivery
from agent.queue import Books
from agent.stats import Snapshot, moment

BOOKS = Books(accepted=100, refused=7, delivered=60, duplicates=10, dead=4, dropped=1, bytes=4096)


def delivery(**fields):
    return Delivery(
        **{"state": "idle", "last_error": None, "last_success": None, "next_attempt_in": None, **fields}
    )


def test_without_a_daemon_and_without_events_it_is_all_there():
    document = Snapshot(Path("/q"), Books(), None, delivery()).document()

    assert document == {
        "version": __version__,
        "daemon": {"running": False, "pid": None, "uptime_seconds": None},
        "queue": {"path": "/q", "events": 0, "bytes": 0, "oldest_age_seconds": None, "dead": 0},
        "ledger": {
            "accepted": 0,
            "refused": 0,
            "delivered": 0,
            "duplicates": 0,
            "dead": 0,
            "dropped": 0,
        },
        "delivery": {
            "state": "idle",
            "since": None,
            "batch_events": None,
            "delivering": False,
            "last_error": None,
            "last_success": None,
            "next_attempt_in_seconds": None,
        },
    }


def test_a_running_daemon_is_told_with_its_process_and_uptime():
    document = Snapshot(Path("/q"), Books(), None, delivery(), pid=42, uptime=12.345).document()

    assert document["daemon"] == {"running": True, "pid": 42, "uptime_seconds": 12.3}


def test_the_ledger_balances_with_what_waits():
    document = Snapshot(Path("/q"), BOOKS, 3.14159, delivery()).document()

    assert document["ledger"] == {
        "accepted": 100,
        "refused": 7,
        "delivered": 60,
        "duplicates": 10,
        "dead": 4,
        "dropped": 1,
    }
    assert document["queue"] == {
        "path": "/q",
        "events": 25,
        "bytes": 4096,
        "oldest_age_seconds": 3.142,
        "dead": 4,
    }


def test_how_delivery_stands_is_told_with_its_times():
    sending = delivery(
        state="retrying",
        last_error="503: no",
        last_success=NOON + 0.5,
        next_attempt_in=1.23456,
        since=NOON,
        batch_events=500,
    )

    assert Snapshot(Path("/q"), Books(), None, sending).document()["delivery"] == {
        "state": "retrying",
        "since": "2026-11-23T12:00:00.000Z",
        "delivering": False,
        "batch_events": 500,
        "last_error": "503: no",
        "last_success": "2026-11-23T12:00:00.500Z",
        "next_attempt_in_seconds": 1.235,
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (NOON, "2026-11-23T12:00:00.000Z"),
        (NOON + 0.25, "2026-11-23T12:00:00.250Z"),
    ],
)
def test_a_moment_is_rfc_3339_in_utc_to_the_millisecond(seconds, text):
    assert moment(seconds) == text
