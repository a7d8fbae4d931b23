"""Measures the daemon as a whole: socket → fsync → ack → HTTP, beside Fluent Bit if it is here.

    python benchmarks/bench.py [--events 1000000] [--repeat 3] [--backlog 1000000] [--json FILE]

The daemon, the load and the sink are processes of their own; the queue is on a real disk.
CPU and memory are the daemon's alone. The load is written as fast as it is taken; delivery
runs at the same time. Where a measurement is repeated the median is shown, and the daemons
take turns, so that a slow moment of the machine hits both.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import pstats
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from targets import HERE, Agent, FluentBit, Sink, Target, wait_until

IDLE_SECONDS = 10
FAST_FLUSH = 0.2
"""Seconds a part of a batch may wait while throughput is measured, for every daemon alike: the
last events are part of what is measured. Everything else is measured with the defaults."""
QUEUES = "/var/tmp"  # noqa: S108 - only directories of random names are made in it


def load(target: Target, *words: object) -> dict:
    """Run the load generator; return its report."""
    command = [sys.executable, str(HERE / "loadgen.py"), str(target.socket), *map(str, words)]
    if not target.acknowledges:
        command.append("--no-acks")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"load on {target.name} failed: {done.stdout} {done.stderr}")
    return json.loads(done.stdout)


@contextlib.contextmanager
def running(kind: type[Target], args: argparse.Namespace, **words: object):
    """Start a daemon and its sink in a new directory; stop and remove them."""
    if kind is Agent:
        words["settings"] = settings(args)
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="bench-") as directory:
        sink = Sink(args.latency_ms)
        target = kind(Path(directory) / "t", sink, **words)
        try:
            target.start()
            yield target
        finally:
            if target.process is not None and target.process.poll() is None:
                target.stop()
            sink.stop()


def settings(args: argparse.Namespace) -> dict[str, str]:
    chosen = {"MAX_BATCH_EVENTS": args.max_batch_events, "MAX_IN_FLIGHT": args.max_in_flight}
    return {key: str(value) for key, value in chosen.items() if value is not None}


def throughput(target: Target, args: argparse.Namespace) -> dict:
    """Write as fast as it goes and wait until all is delivered."""
    load(target, "--events", 20_000)  # warm: imports, connections, the first commit
    wait_until(lambda: target.sink.stats()["events"] >= 20_000, 60, "the first events are delivered")
    target.forget_peak()
    before, cpu = target.sink.stats(), target.cpu()
    report = load(
        target, "--events", args.events, "--producers", args.producers, "--llm", args.llm, "--bad", args.bad
    )
    expected = before["events"] + args.events - report["bad"]
    # One question a tenth of a second: asking must not cost the machine anything.
    deadline = time.monotonic() + 600
    while (stats := target.sink.stats())["events"] < expected:
        if time.monotonic() > deadline:
            raise SystemExit(f"{target.name}: {expected - stats['events']} events are not delivered")
        time.sleep(0.1)
    time.sleep(0.5)  # the last answers are being settled
    requests = stats["requests"] - before["requests"]
    return {
        "events_per_second_to_ack": report["events_per_second"] if target.acknowledges else None,
        "events_per_second_delivered": (args.events - report["bad"])
        / (stats["last_at"] - report["started_at"]),  # monotonic time is one for all processes
        "cpu_seconds_per_million": (target.cpu() - cpu) / args.events * 1e6,
        "peak_mib": target.memory("VmHWM"),
        "events_per_request": (stats["events"] - before["events"]) / max(1, requests),
        "generator_cpu_seconds": report["cpu_seconds"],
        "sink_cpu_seconds": stats["cpu_seconds"] - before["cpu_seconds"],
    }


def trickle(target: Target, args: argparse.Namespace) -> dict:
    """One event a write, at a steady rate."""
    load(target, "--events", 1000)
    cpu = target.cpu()
    report = load(
        target, "--events", int(args.rate * args.rate_seconds), "--rate", args.rate, "--producers", 10
    )
    return {
        "rate": report["events_per_second"],
        "cpu_seconds_per_million": (target.cpu() - cpu) / report["events"] * 1e6,
        "stalls": report["stalls"],
    }


def latency(agent: Agent) -> dict:
    """Single events, each waiting for its durable ack."""
    load(agent, "--latency", "--events", 200)
    one = load(agent, "--latency", "--events", 3000)
    many = load(agent, "--latency", "--events", 20_000, "--producers", 1000)
    return {
        "p50_ms": one["p50_ms"],
        "p99_ms": one["p99_ms"],
        "p99_ms_of_1000_producers": many["p99_ms"],
        "acks_per_second_of_1000_producers": many["events_per_second"],
    }


def idle(target: Target) -> dict:
    """Nothing happens: what does it cost?"""
    time.sleep(2)  # what the start left to do
    cpu, began = target.fine_cpu(), time.monotonic()
    time.sleep(IDLE_SECONDS)
    share = (target.fine_cpu() - cpu) / (time.monotonic() - began)
    return {"idle_mib": target.memory("VmRSS"), "idle_cpu_percent": share * 100}


def start_up(args: argparse.Namespace) -> float:
    """Measure from fork to the first ack, without the generator's own start."""
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="bench-") as directory:
        sink = Sink(args.latency_ms)
        agent = Agent(Path(directory) / "t", sink, settings=settings(args))
        try:
            return timed_start(agent)
        finally:
            agent.stop()
            sink.stop()


def timed_start(agent: Agent) -> float:
    """Start the agent, have one event acknowledged; return the milliseconds that took."""
    agent.start()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(agent.socket))
        connection.sendall(b'{"name":"first","external_customer_id":"c"}\n')
        if not connection.recv(1000).startswith(b'{"ack"'):
            raise SystemExit("the first event was not acknowledged")
        return (time.monotonic() - agent.started_at) * 1000


def backlog(args: argparse.Namespace) -> dict:
    """Fill the queue while the server is away, restart, drain."""
    with running(Agent, args) as agent:
        agent.sink.hold(on=True)
        cpu = agent.cpu()
        report = load(agent, "--events", args.backlog, "--producers", args.producers)
        filling = (agent.cpu() - cpu) / args.backlog * 1e6
        agent.stop()
        result = {"events": args.backlog, "fill_events_per_second": report["events_per_second"]}
        result |= {"fill_cpu_seconds_per_million": filling, "restart_to_first_ack_ms": timed_start(agent)}
        cpu, began = agent.cpu(), time.monotonic()
        agent.sink.hold(on=False)
        wait_until(lambda: agent.sink.stats()["events"] >= args.backlog + 1, 3600, "the backlog is drained")
        seconds = time.monotonic() - began
        return result | {
            "drain_events_per_second": args.backlog / seconds,
            "drain_cpu_seconds_per_million": (agent.cpu() - cpu) / args.backlog * 1e6,
            "drain_peak_mib": agent.memory("VmHWM"),
        }


def settled(agent: Agent) -> dict:
    """Wait until the agent says that nothing is left; return its books."""
    status = wait_until(
        lambda: (now := agent.status())["queue"]["events"] == 0 and now, 60, "the queue is empty"
    )
    ledger = status["ledger"]
    gone = ledger["delivered"] + ledger["duplicates"] + ledger["dead"] + ledger["dropped"]
    if ledger["accepted"] != gone:
        raise SystemExit(f"the books do not balance: {ledger}")
    return ledger


def machine(directory: str) -> dict:
    """Say what the figures were taken on."""
    took = []
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(100):
            began = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    return {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "fdatasync_4k_ms": statistics.median(took) * 1000,
        "directory": directory,
        "filesystem": filesystem(directory),
    }


def filesystem(directory: str) -> str:
    """Return the type of the file system that holds a directory."""
    best = ("", "?")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split()
        inside = os.path.realpath(directory) == point or os.path.realpath(directory).startswith(
            point.rstrip("/") + "/"
        )
        if inside and len(point) >= len(best[0]):
            best = (point, kind)
    return best[1]


def median(results: list[dict]) -> dict:
    """Return the median of each figure."""
    return {
        key: None if results[0][key] is None else statistics.median(result[key] for result in results)
        for key in results[0]
    }


def profile(args: argparse.Namespace) -> None:
    """Run one throughput measurement under the profiler and print where the time went."""
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="bench-") as directory:
        profiles = Path(directory)
        with running(Agent, args, flush=FAST_FLUSH, profile=profiles) as agent:
            figures = throughput(agent, args)
        print(
            f"{figures['cpu_seconds_per_million']:.2f} CPU-s per million events, the profiler's own included"
        )
        for file in sorted(profiles.glob("*.prof")):
            print(f"\n=== thread {file.stem}")
            pstats.Stats(str(file)).sort_stats("tottime").print_stats(15)
    print("For exact shares: py-spy record --native --threads -p PID, on a daemon without the profiler.")


def show(title: str, figures: dict) -> None:
    print(f"\n{title}")
    for key, value in figures.items():
        if value is not None:
            number = isinstance(value, int | float)
            shown = f"{value:,.3g}" if number and value < 1000 else f"{value:,.0f}" if number else value
            print(f"  {key.replace('_', ' '):34} {shown:>12}")


def compare(kinds: list[type[Target]], args: argparse.Namespace) -> dict:
    """Measure throughput of each in turn, several times; return the medians."""
    runs: dict[str, list[dict]] = {kind.name: [] for kind in kinds}
    for _ in range(args.repeat):
        for kind in kinds:
            with running(kind, args, flush=FAST_FLUSH) as target:
                runs[kind.name].append(throughput(target, args))
                if isinstance(target, Agent):
                    settled(target)
    results = {name: {"throughput": median(run)} for name, run in runs.items()}
    for name, result in results.items():
        show(f"{name}: {args.events:,} events, {args.producers} producer(s)", result["throughput"])
    return results


def small(kind: type[Target], args: argparse.Namespace) -> dict:
    """Measure what is not throughput."""
    with running(kind, args) as target:
        result = {"idle": idle(target)}
        if isinstance(target, Agent):
            result["latency"] = latency(target)
    with running(kind, args) as target:
        result["trickle"] = trickle(target, args)
    if kind is Agent:
        result["start"] = {"first_ack_ms": statistics.median(start_up(args) for _ in range(5))}
    for part, figures in result.items():
        show(f"{kind.name}: {part}", figures)
    return result


def ratio(ours: dict, theirs: dict) -> dict:
    keys = ("events_per_second_delivered", "cpu_seconds_per_million", "peak_mib")
    return {key: ours["throughput"][key] / theirs["throughput"][key] for key in keys}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--producers", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3, help="how often throughput is measured (default: 3)")
    parser.add_argument("--rate", type=float, default=5000, help="for single-event writes (default: 5000/s)")
    parser.add_argument("--rate-seconds", type=float, default=10)
    parser.add_argument("--llm", type=float, default=0.0, metavar="SHARE", help="share of _llm events")
    parser.add_argument("--bad", type=float, default=0.0, metavar="SHARE", help="share of lines to refuse")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="of the sink")
    parser.add_argument("--max-batch-events", type=int, help="of the agent (default: its own)")
    parser.add_argument("--max-in-flight", type=int, help="of the agent (default: its own)")
    parser.add_argument(
        "--backlog", type=int, default=0, help="also fill and drain a backlog of so many events"
    )
    parser.add_argument("--only-throughput", action="store_true")
    parser.add_argument("--profile", action="store_true", help="profile the agent instead of measuring it")
    parser.add_argument("--dir", default=QUEUES, help=f"where the queue is; a real disk (default: {QUEUES})")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    return parser.parse_args()


def main() -> int:
    args = parse()
    if args.profile:
        profile(args)
        return 0
    results: dict = {"machine": machine(args.dir)}
    show("machine", results["machine"])
    if results["machine"]["filesystem"] == "tmpfs":
        print(f"{args.dir} is in memory: syncing costs nothing there; choose another with --dir")
    kinds: list[type[Target]] = [Agent, FluentBit] if FluentBit.found() else [Agent]
    results |= compare(kinds, args)
    if not args.only_throughput:
        for kind in kinds:
            results[kind.name] |= small(kind, args)
    if args.backlog:
        results["agent"]["backlog"] = backlog(args)
        show("agent: backlog", results["agent"]["backlog"])
    if FluentBit.found():
        results["ratio"] = ratio(results["agent"], results["fluent-bit"])
        show("agent ÷ fluent-bit", results["ratio"])
    else:
        print("\nfluent-bit is not installed here: no comparison")
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
