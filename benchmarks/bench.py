"""Measures the daemon as a whole: socket → fsync → ack → HTTP, beside its peers that are here.

    python benchmarks/bench.py [--full] [--write] [--json FILE]

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
from typing import TYPE_CHECKING

import bars
import baseline
import report
import slowdisk
import tailing
from targets import (
    HERE,
    Agent,
    FluentBit,
    Sink,
    SyslogNg,
    TailingAgent,
    TailingFluentBit,
    TailingFluentBitUnsynced,
    Target,
    wait_until,
)

from agent import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
    with prepared(kind, args, **words) as target:
        target.start()
        yield target


@contextlib.contextmanager
def prepared(kind: type[Target], args: argparse.Namespace, **words: object):
    """The same, but for the starting."""
    if issubclass(kind, Agent):
        words["settings"] = settings(args)
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="bench-") as directory:
        sink = Sink(args.latency_ms)
        target = kind(Path(directory) / "t", sink, **words)
        try:
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
    return {"idle_mib": target.memory("VmRSS"), "idle_cpu_percent": max(0.0, share * 100)}


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
        before = directory_mib(agent)
        cpu, began = agent.cpu(), time.monotonic()
        agent.sink.hold(on=False)
        wait_until(lambda: agent.sink.stats()["events"] >= args.backlog + 1, 3600, "the backlog is drained")
        seconds = time.monotonic() - began
        return result | {
            "drain_events_per_second": args.backlog / seconds,
            "drain_cpu_seconds_per_million": (agent.cpu() - cpu) / args.backlog * 1e6,
            "drain_peak_mib": agent.memory("VmHWM"),
            "queue_mib_before": before,
            "queue_mib_after": directory_mib(agent) if settled(agent) else None,
        }


def directory_mib(agent: Agent) -> float:
    """Return how much of the disk the queue takes."""
    files = (agent.directory / "queue").iterdir()
    return sum(file.stat().st_blocks * 512 for file in files) / (1 << 20)


def growth(args: argparse.Namespace, backlogs: list[int]) -> list[dict]:
    """What an event costs when so many wait: the queue grows while the server is away."""
    rows, held, sample = [], 0, 100_000
    with running(Agent, args) as agent:
        load(agent, "--events", 20_000)
        agent.sink.hold(on=True)
        for backlog in backlogs:
            if backlog > held:
                load(agent, "--events", backlog - held)
                held = backlog
            cpu = agent.cpu()
            for _ in range(3):
                load(agent, "--events", sample)
            held += 3 * sample
            rows.append(
                {"backlog": f"{backlog:,}", "CPU-s_per_million": (agent.cpu() - cpu) / 3 / sample * 1e6}
            )
    return rows


def producers(args: argparse.Namespace) -> list[dict]:
    """Throughput by number of producers."""
    rows = []
    for count in (1, 10, 200, 1000):
        with running(Agent, args, flush=FAST_FLUSH) as agent:
            few = argparse.Namespace(**{**vars(args), "producers": count, "events": args.part})
            rows.append({"producers": count} | of_throughput(throughput(agent, few)))
            settled(agent)
    return rows


def inputs(args: argparse.Namespace) -> list[dict]:
    """Throughput by what the events are."""
    rows = []
    kinds = {"usual": (0, 0), "1 % bad lines": (0, 0.01), "30 % with _llm": (0.3, 0), "both": (0.3, 0.01)}
    for name, (llm, bad) in kinds.items():
        with running(Agent, args, flush=FAST_FLUSH) as agent:
            mixed = argparse.Namespace(**{**vars(args), "llm": llm, "bad": bad, "events": args.part})
            rows.append({"input": name} | of_throughput(throughput(agent, mixed)))
            settled(agent)
    return rows


def slow_disk(args: argparse.Namespace) -> list[dict]:
    """Throughput and latency where each fsync takes longer."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        library = slowdisk.build(Path(directory))
        if library is None:
            return []
        for more in (0, 2, 10):
            slow = slowdisk.environment(library, more)
            with running(Agent, args, flush=FAST_FLUSH, environment=slow) as agent:
                few = argparse.Namespace(**{**vars(args), "events": args.part})
                row = {"fsync takes": f"+{more} ms"} | of_throughput(throughput(agent, few))
                one = load(agent, "--latency", "--events", 300)
                rows.append(row | {"one_event_p50_ms": one["p50_ms"], "one_event_p99_ms": one["p99_ms"]})
    return rows


def of_throughput(figures: dict) -> dict:
    """Return the figures that are compared."""
    return {
        "events/s_delivered": figures["events_per_second_delivered"],
        "CPU-s_per_million": figures["cpu_seconds_per_million"],
        "peak_MiB": figures["peak_mib"],
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
    return {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "fdatasync_4k_ms": fdatasync_ms(directory),
        "directory": directory,
        "filesystem": filesystem(directory),
    }


def fdatasync_ms(directory: str) -> float:
    """Return how long it takes to make 4 KiB behind a file durable; the median of a hundred."""
    took = []
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(100):
            file.write(bytes(4096))
            file.flush()
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    return statistics.median(took) * 1000


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


def compare(kinds: list[type[Target]], args: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """Measure throughput of each in turn, several times; return the medians, and the ratios pair by pair."""
    runs: dict[str, list[dict]] = {kind.name: [] for kind in kinds}
    for _ in range(args.repeat):
        for kind in kinds:
            with running(kind, args, flush=FAST_FLUSH) as target:
                runs[kind.name].append(throughput(target, args))
                if isinstance(target, Agent):
                    settled(target)
    rows = [{"daemon": name} | of_throughput(median(run)) for name, run in runs.items()]
    return rows, ratios(runs, of_throughput)


def ratios(runs: dict[str, list[dict]], figures: Callable[[dict], dict]) -> list[dict]:
    """Return what the agent's figures are in units of each peer's; the median of the pairs."""
    ours = runs[Agent.name]
    rows = []
    for name, theirs in runs.items():
        if name != Agent.name:
            pairs = [(figures(one), figures(other)) for one, other in zip(ours, theirs, strict=True)]
            ratio = {
                key: statistics.median(one[key] / other[key] for one, other in pairs) for key in pairs[0][0]
            }
            rows.append({"agent ÷": name} | {key: round(value, 2) for key, value in ratio.items()})
    return rows


def tailed_file(args: argparse.Namespace) -> Iterator[tuple[str, str, list[dict]]]:
    """Measure tailing a file that is there, in turn with Fluent Bit where it is."""
    kinds: list[type[Target]] = [TailingAgent]
    if FluentBit.found():
        kinds += [TailingFluentBit, TailingFluentBitUnsynced]
    runs: dict[str, list[dict]] = {kind.name: [] for kind in kinds}
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="bench-") as directory:
        big = Path(directory) / "big.log"
        events = tailing.make_file(big, args.tail_mib << 20)
        for _ in range(args.repeat):
            for kind in kinds:
                with prepared(kind, args, flush=FAST_FLUSH) as target:
                    runs[kind.name].append(tailing.tailing(target, big, events))
                    if isinstance(target, Agent):
                        settled(target)
    rows = [{"daemon": name} | median(run) for name, run in runs.items()]
    yield f"Tailing a file of {args.tail_mib} MiB, {events:,} events", "daemon", rows
    compared = ratios(runs, lambda run: {key: run[key] for key in (bars.RATE, bars.CPU, bars.PEAK)})
    if compared:
        yield "Tailing, compared", "agent ÷", compared


def tailed_with_defaults(args: argparse.Namespace) -> list[dict]:
    """Measure tailing a file whose lines lack what `defaults` fill in: members of the metadata."""
    filled = {"POLAR_AGENT_TAIL__0__DEFAULTS__METADATA__TEAM": "core"}
    rows = []
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="bench-") as directory:
        big = Path(directory) / "big.log"
        events = tailing.make_file(big, min(args.tail_mib, 200) << 20)
        for name, environment in {"none": {}, "a member of the metadata": filled}.items():
            with prepared(TailingAgent, args, flush=FAST_FLUSH, environment=environment) as agent:
                rows.append({"defaults": name} | tailing.tailing(agent, big, events))
                settled(agent)
    return rows


def small_writes(kinds: list[type[Target]], args: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """Measure single-event writes at a steady rate, in turn."""
    runs: dict[str, list[dict]] = {kind.name: [] for kind in kinds}
    for _ in range(args.repeat):
        for kind in kinds:
            with running(kind, args) as target:
                runs[kind.name].append(trickle(target, args))

    def figures(run: dict) -> dict:
        return {"CPU-s_per_million": run["cpu_seconds_per_million"]}

    rows = [
        {"daemon": name, "rate": median(run)["rate"]} | figures(median(run)) for name, run in runs.items()
    ]
    return rows, ratios(runs, figures)


def quiet(kinds: list[type[Target]], args: argparse.Namespace) -> list[dict]:
    """Measure what is neither throughput nor load."""
    rows = []
    for kind in kinds:
        with running(kind, args) as target:
            rows.append({"daemon": kind.name} | idle(target))
            if isinstance(target, Agent):
                rows[-1] |= latency(target) | {"fdatasync_ms": fdatasync_ms(args.dir)}
                rows[-1]["start_to_first_ack_ms"] = statistics.median(start_up(args) for _ in range(5))
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--full", action="store_true", help="with 10 million events, and a backlog of as many"
    )
    parser.add_argument("--only-throughput", action="store_true", help="only that, beside the peers")
    parser.add_argument("--only-tailing", action="store_true", help="only that of a file, beside Fluent Bit")
    parser.add_argument("--tail-mib", type=int, help="size of the file that is tailed (default: 200; 1024)")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    parser.add_argument("--store", action="store_true", help="make the figures those of the last release")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--part", type=int, default=300_000, help="events of each lesser measurement")
    parser.add_argument("--producers", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3, help="how often daemons are compared (default: 3)")
    parser.add_argument("--rate", type=float, default=5000, help="for single-event writes (default: 5000/s)")
    parser.add_argument("--rate-seconds", type=float, default=10)
    parser.add_argument("--llm", type=float, default=0.0, metavar="SHARE", help="share of _llm events")
    parser.add_argument("--bad", type=float, default=0.0, metavar="SHARE", help="share of lines to refuse")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="of the sink")
    parser.add_argument("--max-batch-events", type=int, help="of the agent (default: its own)")
    parser.add_argument("--max-in-flight", type=int, help="of the agent (default: its own)")
    parser.add_argument("--profile", action="store_true", help="profile the agent instead of measuring it")
    parser.add_argument("--dir", default=QUEUES, help=f"where the queue is; a real disk (default: {QUEUES})")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    args = parser.parse_args()
    if args.tail_mib is None:
        args.tail_mib = 1024 if args.full else 200
    return args


def measure(args: argparse.Namespace) -> Iterator[tuple[str, str, list[dict]]]:
    """Yield title, name of the left column and rows of each measurement."""
    if args.only_tailing:
        yield from tailed_file(args)
        yield "Tailing with defaults", "defaults", tailed_with_defaults(args)
        return
    kinds: list[type[Target]] = [Agent, *(kind for kind in (FluentBit, SyslogNg) if kind.found())]
    rows, ratio = compare(kinds, args)
    yield f"{args.events:,} events from {args.producers} producer(s)", "daemon", rows
    if ratio:
        yield "The same, compared", "agent ÷", ratio
    if args.only_throughput:
        return
    if args.full:
        many = argparse.Namespace(**{**vars(args), "events": 10_000_000, "repeat": 1})
        yield "10 million events", "daemon", compare([Agent, *kinds[1:2]], many)[0]
    yield from tailed_file(args)
    yield "Tailing with defaults", "defaults", tailed_with_defaults(args)
    rows, ratio = small_writes(kinds, args)
    yield f"{args.rate:,.0f} events a second, one each write, 10 producers", "daemon", rows
    if ratio:
        yield "The same, compared ", "agent ÷", ratio
    yield "Nothing to do, and single events that wait for their durable ack", "daemon", quiet(kinds, args)
    yield "Number of producers", "producers", producers(args)
    yield "What is sent", "input", inputs(args)
    if rows := slow_disk(args):
        yield "A slow disk", "fsync takes", rows
    sizes = [1000, 100_000, 1_000_000, 10_000_000]
    yield "Taking an event with a backlog", "backlog", growth(args, sizes[: 4 if args.full else 2])
    size = 10_000_000 if args.full else args.part
    filled = backlog(argparse.Namespace(**{**vars(args), "backlog": size}))
    rows = [{"what": key.replace("_", " "), "value": value} for key, value in filled.items()]
    yield "Filling and draining a backlog", "what", rows


def watched(results: dict[str, list[dict]]) -> dict[str, float]:
    """Return the figures that must not grow."""
    figures = {}
    # What was measured once is too noisy to fail a run.
    for title, rows in results.items():
        for row in rows:
            if bars.CPU in row and (row.get("daemon") == Agent.name or "backlog" in row):
                figures[f"{title}: {next(iter(row.values()))}"] = row[bars.CPU]
    return figures


def judge(args: argparse.Namespace, calibration: float, figures: dict[str, float]) -> int:
    """Compare with the last release, or store the figures as those of one; return the exit code."""
    if args.store:
        baseline.store(__version__, calibration, figures)
        return 0
    rows = baseline.compare(calibration, figures)
    for name, then, now, worse in rows:
        verdict = "TOO MUCH" if worse else "fine"
        print(f"{name:70} {then:6.2f} CPU-s per million at the last release, now {now:6.2f}: {verdict}")
    if any(worse for *_, worse in rows):
        print("CPU per event has grown by more than 20 % since the last release")
        return 1
    return 0


def main() -> int:
    args = parse()
    if args.profile:
        profile(args)
        return 0
    here, load_before = machine(args.dir), os.getloadavg()[0]
    if here["filesystem"] == "tmpfs":
        print(f"{args.dir} is in memory: syncing costs nothing there; choose another with --dir")
    results: dict[str, list[dict]] = {}
    parts, calibrations = [], [baseline.calibrate()]
    for title, first, rows in measure(args):
        print(f"\n{title}\n{report.table(rows, first)}", flush=True)
        parts.append((title.strip(), first, rows))
        results[title] = rows
        calibrations.append(baseline.calibrate())
    rows = bars.judged(results)
    if rows:
        print(f"\nWhat has to be reached\n{report.table(rows, 'bar')}", flush=True)
        parts.append(("What has to be reached", "bar", rows))
    here["load"] = f"{load_before:.1f}, {os.getloadavg()[0]:.1f}"
    if args.json:
        Path(args.json).write_text(json.dumps({"machine": here} | results, indent=2) + "\n")
    if args.write:
        report.write(here, "--full --write" if args.full else "--write", parts)
    print()
    return judge(args, statistics.median(calibrations), watched(results))


if __name__ == "__main__":
    sys.exit(main())
