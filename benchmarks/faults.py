"""Measures what trouble costs: the daemon against the emulator, with faults and without.

    python benchmarks/faults.py [mix] [named] [unnamed] [agents]
        [--events 200000] [--batches 1000] [--limit 300]

- mix: the same events without faults, and with 30 % errors of all kinds at 100 ms latency: the daemon's
  CPU for each event, its ratio, and whether each event arrived exactly once.
- named: a poisoned event in each of many full batches, that the server names: how much later the last
  of the others arrives than without poison.
- unnamed: one in each twentieth batch, that breaks the server: how many requests each of them costs.
- agents: three of one organization within its limit, each with 60 % of it for its own: how many requests are
  refused after the first two minutes, and how many events each had delivered when the first was ready.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.bad_road import HOLDING, KINDS, BadRoad
from support.processes import Product, wait_until
from targets import TICK

BATCH = 500
SPARSE = 20
AGENTS, SMALL = 3, 100
UNSTEADY_SECONDS = 120


def cpu(pid: int) -> float:
    """Return the CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def lines(events: int, every: int, poison: str, prefix: str = "e") -> tuple[str, set[str]]:
    """Return events as NDJSON, and the ids of those that the server is to refuse."""
    bad = {f"{prefix}{number}" for number in range(every // 2, events, every)} if every else set()
    text = []
    for number in range(events):
        event: dict[str, Any] = {
            "name": "usage",
            "external_customer_id": "c",
            "external_id": f"{prefix}{number}",
        }
        if poison == "named" and event["external_id"] in bad:
            del event["external_customer_id"]
            event["customer_id"] = "0b9a4e6c-3d3e-4a36-9e4c-1d1f5f6a7b8c"
        event["metadata"] = {"n": number, "model": "m" * 100}
        text.append(json.dumps(event))
    return "\n".join(text) + "\n", bad


def run(
    events: int,
    *,
    every: int = 0,
    poison: str = "",
    share: float = 0.0,
    latency: float = 0.0,
    **settings: Any,
) -> dict[str, Any]:
    """Deliver events and compare each; return the figures."""
    with tempfile.TemporaryDirectory() as directory:
        product = Product(Path(directory), backoff_max=5, **settings)
        text, bad = lines(events, every, poison)
        file = product.directory / "events.ndjson"
        file.write_text(text)
        road = None
        try:
            product.start_emulator()
            if share:
                road = BadRoad(int(product.url.rpartition(":")[2]), share, (*KINDS, *HOLDING))
                product.set(base_url=road.url)
            product.start_daemon()
            unnamed = sorted(bad) if poison == "unnamed" else []
            product.faults(latency_ms=latency, poison_external_ids=unnamed)
            before, began = cpu(product.daemon.pid), time.monotonic()
            sent = product.run("send", str(file))
            if sent.returncode:
                raise SystemExit(sent.stderr)
            good = events - len(bad)
            looks: Counter[str] = Counter()

            def delivered() -> bool:
                # Each look costs the daemon 1.4 ms of CPU; with delays of minutes these would be most of it.
                time.sleep(5 if share else 0.5)
                delivery = product.status()["delivery"]
                looks[f"{delivery['state']}: {delivery['last_error']}"] += 1
                return product.stats()["events_stored"] >= good

            wait_until(delivered, seconds=3600, what="delivery")
            seconds = time.monotonic() - began
            wait_until(lambda: product.status()["queue"]["events"] == 0, seconds=3600, what="settlement")
            used = cpu(product.daemon.pid) - before
            stored = Counter(event["external_id"] for event in product.stored())
            ledger = product.status()["ledger"]
            figures = {
                "seconds": round(seconds, 2),
                "cpu_us_per_event": round(used / events * 1e6, 2),
                "requests": product.stats()["requests"] if road is None else road.met.total(),
                "exactly_once": stored == Counter(f"e{number}" for number in range(events)) - Counter(bad),
                "dead": ledger["dead"],
                "expected_dead": len(bad),
                "duplicates": ledger["duplicates"],
            }
            if road is not None:
                figures["in_trouble"] = round(1 - road.met[""] / road.met.total(), 2)
                figures["troubles"] = dict(sorted(road.met.items()))
            if unnamed:
                figures["status_meanwhile"] = dict(looks)
            return figures
        finally:
            product.close()
            if road is not None:
                road.close()


def agents(events: int, limit: int) -> dict[str, Any]:
    """Deliver with several agents within the limit of one organization; return the figures."""
    with tempfile.TemporaryDirectory() as directory:
        server = Product(Path(directory))
        products = []
        try:
            server.start_emulator("--requests-per-minute", str(limit))
            for number in range(AGENTS):
                own = Path(directory) / str(number)
                own.mkdir()
                product = Product(
                    own, requests_per_minute=limit * 6 // 10, base_url=server.url, max_batch_events=SMALL
                )
                text, _ = lines(events, 0, "", f"{number}-")
                (own / "events.ndjson").write_text(text)
                product.start_daemon()
                products.append(product)
            began = time.monotonic()
            for product in products:
                file = product.directory / "events.ndjson"
                product.spawn("send", str(file), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            finished: dict[int, float] = {}
            early: dict[str, Any] = {}
            first: list[int] = []

            def ends() -> bool:
                time.sleep(0.5)
                ledgers = [product.polled()["ledger"] for product in products]
                done = [ledger["delivered"] + ledger["duplicates"] for ledger in ledgers]
                for number, delivered in enumerate(done):
                    if number not in finished and delivered == events:
                        finished[number] = round(time.monotonic() - began, 1)
                        first.extend(done if not first else [])
                if time.monotonic() - began < UNSTEADY_SECONDS:
                    early.update(server.stats())
                return len(finished) == AGENTS

            wait_until(ends, seconds=7200, what="delivery")
            stats = server.stats()
            stored = Counter(event["external_id"] for event in server.stored())
            steady = {
                status: count - early["by_status"].get(status, 0)
                for status, count in stats["by_status"].items()
            }
            return {
                "finished_after_seconds": finished,
                "requests": stats["requests"],
                "by_status": stats["by_status"],
                "delivered_when_the_first_was_ready": first,
                "refused_in_steady_state": round(steady.get("429", 0) / max(1, sum(steady.values())), 4),
                "exactly_once": len(stored) == AGENTS * events == stored.total(),
            }
        finally:
            for product in (*products, server):
                product.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = ("mix", "named", "unnamed", "agents")
    parser.add_argument("what", nargs="*", choices=(*what, []), help="all of them unless said")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--limit", type=int, default=300, help="requests a minute, for agents")
    args = parser.parse_args()
    chosen = args.what or what

    def show(name: str, figures: object) -> None:
        print(name, json.dumps(figures), flush=True)

    events, full = args.batches * BATCH, {"max_batch_events": BATCH}
    if "mix" in chosen:
        plain = run(args.events, latency=100, **full)
        show("100 ms, no errors:", plain)
        mixed = run(args.events, latency=100, share=0.3, **full)
        show("100 ms, 30 % errors of all kinds:", mixed)
        show("CPU for each event, times:", round(mixed["cpu_us_per_event"] / plain["cpu_us_per_event"], 2))
    if {"named", "unnamed"} & set(chosen):
        plain = run(events, **full)
        show(f"{args.batches} batches of {BATCH}:", plain)
    if "named" in chosen:
        named = run(events, every=BATCH, poison="named", **full)
        show("with a named poison in each:", named)
        show("until the last of the others, times:", round(named["seconds"] / plain["seconds"], 2))
    if "unnamed" in chosen:
        figures = run(events, every=BATCH * SPARSE, poison="unnamed", **full)
        figures["requests_for_each"] = round(
            (figures["requests"] - plain["requests"]) / max(1, figures["expected_dead"]), 1
        )
        show(f"with an unnamed poison in each {SPARSE}th:", figures)
    if "agents" in chosen:
        show(f"{AGENTS} agents within {args.limit} requests a minute:", agents(events // AGENTS, args.limit))


if __name__ == "__main__":
    main()
