"""Measures what trouble costs: the daemon against the emulator, with faults and without.

    python benchmarks/faults.py [--events 200000] [--batches 1000]

First the same events without faults, and with 30 % errors of all kinds at 100 ms latency: the daemon's
CPU for each event, and whether each event arrived exactly once. Then a poisoned event in each of many
batches, named by the server and not: how much later the others arrive.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.processes import Product, wait_until
from targets import TICK

ERRORS = {
    "status": 503,
    "share": 0.12,
    "reset_share": 0.1,
    "lose_answer_share": 0.1,
    "latency_ms": 100,
    "retry_after": "0",
}


def cpu(pid: int) -> float:
    """Return the CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def lines(events: int, every: int, poison: str) -> tuple[str, set[str]]:
    """Return events as NDJSON, and the ids of those that the server is to refuse."""
    bad = {f"e{number}" for number in range(every // 2, events, every)} if every else set()
    text = []
    for number in range(events):
        event = {"name": "usage", "external_customer_id": "c", "external_id": f"e{number}"}
        if poison == "named" and event["external_id"] in bad:
            del event["external_customer_id"]
            event["customer_id"] = "0b9a4e6c-3d3e-4a36-9e4c-1d1f5f6a7b8c"
        event["metadata"] = {"n": number, "model": "m" * 100}
        text.append(json.dumps(event))
    return "\n".join(text) + "\n", bad


def run(events: int, faults: dict, *, every: int = 0, poison: str = "", **settings: object) -> dict:
    """Deliver events and compare each; return the figures."""
    with tempfile.TemporaryDirectory() as directory:
        product = Product(Path(directory), backoff_max=5, **settings)
        text, bad = lines(events, every, poison)
        (product.directory / "events.ndjson").write_text(text)
        try:
            product.start_emulator()
            product.start_daemon()
            if poison == "500":
                faults = {**faults, "poison_external_ids": sorted(bad)}
            if faults:
                product.faults(**faults)
            before, began = cpu(product.daemon.pid), time.monotonic()
            sent = product.run("send", str(product.directory / "events.ndjson"))
            if sent.returncode:
                raise SystemExit(sent.stderr)
            good = events - len(bad)
            wait_until(lambda: product.stats()["events_stored"] >= good, seconds=3600, what="delivery")
            seconds = time.monotonic() - began
            wait_until(
                lambda: product.status()["queue"]["events"] == 0, seconds=3600, what="the last settlement"
            )
            used = cpu(product.daemon.pid) - before
            stored = Counter(event["external_id"] for event in product.stored())
            status = product.status()
            exact = stored == Counter({f"e{number}": 1 for number in range(events)}.keys() - bad)
            return {
                "seconds": round(seconds, 2),
                "cpu_us_per_event": round(used / events * 1e6, 2),
                "requests": product.stats()["requests"],
                "exactly_once": exact,
                "dead": status["ledger"]["dead"],
                "expected_dead": len(bad),
            }
        finally:
            product.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--batches", type=int, default=1000)
    args = parser.parse_args()
    for name, faults in (("no faults", {}), ("100 ms", {"latency_ms": 100}), ("30 % errors, 100 ms", ERRORS)):
        print(name, json.dumps(run(args.events, faults)), flush=True)
    each = max(2, args.events // args.batches)
    for poison in ("", "named", "500"):
        figures = run(
            each * args.batches, {}, every=each if poison else 0, poison=poison, max_batch_events=each
        )
        print(
            f"{args.batches} batches of {each}, poison: {poison or 'none'}", json.dumps(figures), flush=True
        )


if __name__ == "__main__":
    main()
