"""Nothing acknowledged is lost and nothing is stored twice, whoever is killed when."""

from __future__ import annotations

import json
import random
import signal
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from support.processes import Product, balanced, wait_until

if TYPE_CHECKING:
    from pathlib import Path

EVENTS = 100_000
KILLS = 10


def write_events(path: Path, count: int) -> None:
    """Write events of which half bring their own external_id; `n` tells them apart."""
    with path.open("w") as file:
        for number in range(count):
            event = {"name": "usage", "external_customer_id": f"c{number % 97}", "metadata": {"n": number}}
            if number % 2:
                event["external_id"] = f"own-{number}"
            file.write(json.dumps(event) + "\n")


@pytest.mark.timeout(300)
def test_100_000_events_survive_ten_kills_of_the_daemon_and_an_unsteady_server(
    product: Product, tmp_path: Path
) -> None:
    chance = random.Random(2)
    events = tmp_path / "events.ndjson"
    write_events(events, EVENTS)
    product.start_emulator()
    product.start_daemon()
    # A pipe slows the sender down, so that the kills meet it at work.
    sender = product.spawn("send", "--json", "--retry-for", "60", stdin=-1, stdout=-1, stderr=-1)
    assert sender.stdin is not None
    lines = events.read_text().splitlines(keepends=True)
    piece = EVENTS // KILLS
    away = False
    for kill in range(KILLS):
        at = chance.randrange(piece)
        sender.stdin.writelines(lines[kill * piece : kill * piece + at])
        sender.stdin.flush()
        assert product.stop_daemon(signal.SIGKILL) == -signal.SIGKILL
        if away:
            product.start_emulator()
            away = False
        elif chance.random() < 0.5:
            product.stop_emulator(chance.choice([signal.SIGTERM, signal.SIGKILL]))
            away = True
        product.start_daemon()
        sender.stdin.writelines(lines[kill * piece + at : (kill + 1) * piece])
        sender.stdin.flush()
    out, err = sender.communicate(timeout=120)
    report = json.loads(out)
    assert sender.returncode == 0, err
    assert report["acknowledged"] == EVENTS
    assert report["refused_count"] == 0
    if away:
        product.start_emulator()

    flushed = product.run("flush", "--timeout", "60")

    assert flushed.returncode == 0, flushed.stdout
    seen = Counter(event["metadata"]["n"] for event in product.stored())
    assert set(seen) == set(range(EVENTS)), "acknowledged events are missing"
    assert max(seen.values()) == 1, "events are stored twice"
    status = product.status()
    assert balanced(status)
    assert status["queue"]["events"] == 0
    assert status["ledger"]["accepted"] >= EVENTS


def test_a_killed_daemon_delivers_what_it_acknowledged_when_it_runs_again(product: Product) -> None:
    product.start_daemon()
    sent = product.run(
        "send", "--json", stdin='{"name":"usage","external_customer_id":"c","external_id":"one"}\n'
    )
    assert json.loads(sent.stdout)["acknowledged"] == 1

    product.stop_daemon(signal.SIGKILL)
    product.start_emulator()
    product.start_daemon()

    stored = wait_until(lambda: list(product.stored()), what="the event at the emulator")
    assert [event["external_id"] for event in stored] == ["one"]
