"""The demonstration: emulator, daemon and producer as real processes on this machine.

It promises to prove what it shows: the events that the producer was told are safe are
compared, one by one, with what the emulator stored. Everything lives in a temporary
directory and ends with the demonstration, however that ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from agent.clock import Clock, SystemClock
from agent.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_BAD = (
    '{"name":"ai_usage","metadata":{"tokens":12}}',
    '{"name":"ai_usage","external_customer_id":"cus_7","metadata":{"tokens":null}}',
    '{"name":"ai_usage","external_customer_id":"cus_7","timestamp":"tomorrow"}',
    '{"name":"ai_usage","external_customer_id":"cus_7"',
)
_STRANGER = "5b0a9f0e-3d3e-4a36-9e4c-1d1f5f6a7b8c"  # a customer that Polar does not know
_MODELS = ("gpt-4o-mini", "claude-sonnet", "mistral-small")
_TOKEN = "polar_oat_demo"  # noqa: S105  # the emulator's, which takes any
_START_SECONDS = 20.0
_FLUSH_SECONDS = 40
_FEED_SECONDS = 4.0
_STEPS = 40


@dataclass(slots=True)
class Result:
    """What the demonstration found.

    Attributes:
        sent: good events handed to the producer.
        refused: bad lines refused at the socket.
        unknown: events that only Polar could refuse, now dead letters.
        stored: events at the emulator.
        lost: external ids that were acknowledged and are not at the emulator.
        twice: external ids that the emulator holds more than once.
        problems: everything that is not as it should be; empty when all is well.
    """

    sent: int = 0
    refused: int = 0
    unknown: int = 0
    stored: int = 0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    ledger: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Demo:
    """One demonstration.

    Args:
        events: how many good events to send.
        say: prints one line of the story.
        clock: for waiting.
    """

    def __init__(self, events: int, say: Callable[[str], None], clock: Clock | None = None) -> None:
        self._events = events
        self._say = say
        self._clock = clock or SystemClock()
        self._pause = threading.Event()  # never set: for waits
        self._processes: list[subprocess.Popen[str]] = []
        self._stack = contextlib.ExitStack()
        self._emulator = ""
        self._environ: dict[str, str] = {}

    def __enter__(self) -> Self:
        """Make the temporary directory."""
        directory = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="polar-agent-demo-"))
        self._directory = Path(directory)
        self._stack.callback(self._end_processes)
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes and remove the directory."""
        self._stack.close()

    def run(self) -> Result:
        """Run the story from beginning to end."""
        result = Result()
        self._start_emulator()
        daemon = self._start_daemon()
        producer = self._start_producer()
        lines = list(self._lines(result))
        middle = len(lines) // 2
        self._feed(producer, lines[:middle])
        daemon.send_signal(signal.SIGKILL)
        self._say(f"kill -9 of the daemon (process {daemon.pid}) in the middle of it all ...")
        daemon.wait()
        daemon = self._start_daemon(again=True)
        self._feed(producer, lines[middle:])
        report = self._finish(producer)
        self._note_refusals(report, result)
        self._flush(result)
        self._read_back()
        self._check_books(report, result)
        return result

    # -- processes ---------------------------------------------------------------------

    def _spawn(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(  # noqa: S603  # this very program
            [sys.executable, "-m", "agent", *words], env=self._environ or None, text=True, **options
        )
        self._processes.append(process)
        return process

    def _end_processes(self) -> None:
        for process in reversed(self._processes):
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()

    def _start_emulator(self) -> None:
        options = ["--listen", "127.0.0.1:0", "--data", str(self._directory / "polar.db")]
        process = self._spawn("emulator", *options, stdout=subprocess.PIPE)
        assert process.stdout is not None  # noqa: S101  # asked for above
        ready = process.stdout.readline().split()
        if not ready:
            raise AgentError("start the emulator", "agent emulator", "it ended at once")
        self._emulator = ready[-1]
        self._say(f"emulator of Polar's events API on {self._emulator}")
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("POLAR_")},
            "POLAR_ACCESS_TOKEN": _TOKEN,
            "POLAR_AGENT_BASE_URL": self._emulator,
            "POLAR_AGENT_SOCKET_PATH": str(self._directory / "agent.sock"),
            "POLAR_AGENT_QUEUE_DIR": str(self._directory / "queue"),
            "POLAR_AGENT_FLUSH_INTERVAL": "0.5",
            "POLAR_AGENT_LOG_LEVEL": "error",
            "POLAR_AGENT_REQUESTS_PER_MINUTE": "3000",
        }

    def _start_daemon(self, *, again: bool = False) -> subprocess.Popen[str]:
        process = self._spawn("run")
        deadline = self._clock.monotonic() + _START_SECONDS
        while not self._status().get("daemon", {}).get("running"):
            if process.poll() is not None or self._clock.monotonic() > deadline:
                raise AgentError("start the daemon", "agent run", "it does not answer")
            self._clock.wait(self._pause, 0.05)
        word = "started again" if again else "started"
        self._say(f"daemon {word} (process {process.pid}), its queue in {self._directory / 'queue'}")
        return process

    def _start_producer(self) -> subprocess.Popen[str]:
        process = self._spawn(
            "send", "--json", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._say(f"producer started (process {process.pid}): it writes JSON lines to the Unix socket")
        return process

    # -- the story ---------------------------------------------------------------------

    def _lines(self, result: Result) -> Iterator[str]:
        """Yield the events, a bad line now and then."""
        bad = [(2 * place + 1) * self._events // (2 * len(_BAD)) for place in range(len(_BAD))]
        for number in range(self._events):
            yield from (text for place, text in zip(bad, _BAD, strict=True) if place == number)
            event = {
                "name": "ai_usage" if number % 5 else "image_render",
                "external_customer_id": f"cus_{number % 50}",
                "external_id": f"demo-{number}",
                "metadata": {
                    "model": _MODELS[number % 3],
                    "tokens": number % 4000,
                    "cached": number % 7 == 0,
                },
            }
            result.sent += 1
            yield json.dumps(event, separators=(",", ":"))
        yield json.dumps({"name": "ai_usage", "customer_id": _STRANGER, "external_id": "demo-stranger"})

    def _feed(self, producer: subprocess.Popen[str], lines: list[str]) -> None:
        """Write lines to the producer, bit by bit, and show what happens."""
        assert producer.stdin is not None  # noqa: S101  # asked for where it was started
        size = max(1, -(-len(lines) // (_STEPS // 2)))
        for start in range(0, len(lines), size):
            if start // size % 5 == 1:
                self._show_travel()
            self._clock.wait(self._pause, _FEED_SECONDS / _STEPS)
            producer.stdin.write("\n".join(lines[start : start + size]) + "\n")
            producer.stdin.flush()

    def _show_travel(self) -> None:
        status = self._status()
        if status:
            ledger, queue = status["ledger"], status["queue"]
            self._say(
                f"  accepted {ledger['accepted']:>7,}   on disk, on their way {queue['events']:>7,}"
                f"   delivered {ledger['delivered']:>7,}   refused {ledger['refused']:>3}"
            )

    def _finish(self, producer: subprocess.Popen[str]) -> dict[str, Any]:
        """Let the producer end, and return what it was told."""
        out, _ = producer.communicate(timeout=60)
        report: dict[str, Any] = json.loads(out)
        self._say(
            f"producer ended: {report['acknowledged']:,} lines acknowledged after they were safe on disk, "
            f"{report['refused_count']} of them refused:"
        )
        return report

    def _note_refusals(self, report: dict[str, Any], result: Result) -> None:
        result.refused = report["refused_count"]
        for refusal in report["refused"][: len(_BAD)]:
            error = refusal["error"]
            where = ".".join(map(str, error["loc"])) or "the line"
            self._say(f"  line {refusal['line']}: {error['type']} at {where}: {error['msg']}")
        if "error" in report:
            result.problems.append(f"the producer could not finish: {report['error']}")

    def _flush(self, result: Result) -> None:
        process = self._spawn("flush", "--timeout", str(_FLUSH_SECONDS), stdout=subprocess.PIPE)
        out, _ = process.communicate()
        self._say(f"agent flush: {out.strip()}")
        if process.returncode:
            result.problems.append(f"the queue did not drain: {out.strip()}")
        for letter in self._json("dead", "list", "--json")["items"]:
            result.unknown += 1
            self._say(f"  dead letter {letter['id']}: {letter['external_id']}: {letter['reason']}")

    def _read_back(self) -> None:
        """Read the events back through the real command line."""
        names = self._json("events", "names", "--json")["items"]
        told = ", ".join(f"{item['name']} {item['occurrences']:,}" for item in names)
        self._say(f"agent events names: {told}")
        page = self._json("events", "list", "--external-customer-id", "cus_7", "--limit", "1", "--json")
        total = page["pagination"]["total_count"]
        newest = page["items"][0]
        self._say(f"agent events list --external-customer-id cus_7: {total:,} events; the newest:")
        event = self._json("events", "get", newest["id"], "--json")
        self._say(f"agent events get {event['id']}: {event['name']} {json.dumps(event['metadata'])}")

    def _check_books(self, report: dict[str, Any], result: Result) -> None:
        """Compare what was acknowledged with what is stored, and the ledger with itself."""
        with urllib.request.urlopen(f"{self._emulator}/_emulator/events") as answer:  # noqa: S310  # our own
            stored = Counter(json.loads(line)["external_id"] for line in answer)
        result.stored = stored.total()
        expected = {f"demo-{number}" for number in range(self._events)}
        result.lost = sorted(expected - set(stored))
        result.twice = sorted(name for name, count in stored.items() if count > 1)
        status = self._status()
        result.ledger = ledger = status["ledger"]
        pending = status["queue"]["events"]
        ends = sum(ledger[end] for end in ("delivered", "duplicates", "dead", "dropped"))
        problems = result.problems
        if result.lost:
            problems.append(f"{len(result.lost)} acknowledged events are lost")
        if result.twice:
            problems.append(f"{len(result.twice)} events are stored twice")
        if set(stored) - expected:
            problems.append(f"{len(set(stored) - expected)} events are stored that nobody sent")
        if ledger["accepted"] != pending + ends:
            problems.append("the ledger does not balance")
        good = result.sent + result.unknown
        if report["accepted"] != good:
            problems.append(f"{report['accepted']} lines were accepted where {good} should be")
        if result.unknown != 1 or result.refused != len(_BAD):
            problems.append("not every bad line was found")

    # -- looking -----------------------------------------------------------------------

    def _status(self) -> dict[str, Any]:
        """Return the daemon's status; empty while it does not answer."""
        from agent.daemon import call  # noqa: PLC0415

        with contextlib.suppress(AgentError):
            return call(self._directory / "api.sock", "GET", "/status", timeout=5) or {}
        return {}

    def _json(self, *words: str) -> dict[str, Any]:
        """Run a command of ours and return its document."""
        process = self._spawn(*words, stdout=subprocess.PIPE)
        out, _ = process.communicate(timeout=60)
        if process.returncode:
            command = f"agent {' '.join(words)}"
            raise AgentError("run a command", command, f"it ended with {process.returncode}")
        document: dict[str, Any] = json.loads(out)
        return document
