"""Disasters for as long as you like: `make soak`, `make soak ARGS='--minutes 60 --seed 7'`.

Producers write to a daemon that is killed, at a random step or moment, while it starts,
again while it recovers, or is stopped; its server fails, forgets to answer, dies. Every
half a minute all stops: the daemon ends by SIGTERM, `agent flush` drains the queue alone,
and every event that was ever written is accounted for.

Ends with 1 at the first event that is lost or doubled, and leaves the directory as it is.
The seed repeats the choices, not the timing.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.failpoints import START_STEPS, STEPS, STOP_STEPS, Nursery
from support.processes import Product
from support.trials import Trial, Victim

if TYPE_CHECKING:
    from collections.abc import Callable

COMPARE_SECONDS = 30.0
FAULTS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"status": 503, "share": 0.5},
    {"status": 429, "share": 0.3, "retry_after": "0"},
    {"reset_share": 0.3},
    {"lose_answer_share": 0.5},
    {"latency_ms": 200},
    {"lose_answer_share": 0.3, "status": 502, "share": 0.3, "reset_share": 0.2},
    {"max_events": 7},
)


class Soak:
    """Rounds without end, on one queue and one server."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.server = Product(directory)
        self.nursery = Nursery()
        home = directory / "victim"
        home.mkdir()
        settings = {"flush_interval": "0.05", "max_batch_events": "50", "shutdown_timeout": "1"}
        self.victim = Victim(home, self.server.url, self.nursery, log_level="error", **settings)
        self.trial = Trial(self.victim, self.chance)
        self.disasters: Counter[str] = Counter()

    def run(self, seconds: float) -> None:
        """Go on for so long; raises AssertionError at the first event that is lost or doubled."""
        end = time.monotonic() + seconds
        self.server.start_emulator()
        self.victim.start_daemon()
        while time.monotonic() < end:
            compare_at = time.monotonic() + COMPARE_SECONDS
            while time.monotonic() < compare_at:
                self.round()
            self.compare()

    def round(self) -> None:
        """Load, and one disaster."""
        self.server.faults(**self.chance.choice(FAULTS))
        weights: dict[Callable[[], str], int] = {
            self.killed_at_a_step: 8,
            self.killed_at_a_moment: 4,
            self.killed_while_it_starts: 2,
            self.killed_while_it_recovers: 2,
            self.killed_while_it_stops: 2,
            self.stopped: 2,
            self.server_killed: 2,
            self.left_alone: 1,
        }
        (disaster,) = self.chance.choices(list(weights), list(weights.values()))
        load = self.trial.load(producers=self.chance.randint(1, 6), most=self.chance.choice([50, 500]))
        what = disaster()
        self.trial.over.set()
        load.join()
        self.disasters[disaster.__name__] += 1
        written, acked = len(self.trial.written), len(self.trial.acked)
        say(f"round {self.disasters.total():>5}  {written:>8,} written  {acked:>8,} acknowledged  {what}")

    # -- disasters ---------------------------------------------------------------------

    def killed_at_a_step(self) -> str:
        step, call = self.chance.choice(list(STEPS)), self.chance.randint(1, 6)
        self.victim.failpoint.arm(step, call)
        self._wait(self.chance.uniform(1, 3))
        died = self._kill()
        self.trial.revive()
        return f"kill -9 {step}, call {call}" + ("" if died else " (not reached: at another moment)")

    def killed_at_a_moment(self) -> str:
        seconds = self.chance.uniform(0, 0.5)
        self._wait(seconds)
        self._kill()
        self.trial.revive()
        return f"kill -9 after {seconds * 1000:.0f} ms"

    def killed_while_it_starts(self) -> str:
        self._wait(self.chance.uniform(0, 0.2))
        self._kill()
        step = self.chance.choice(list(START_STEPS))
        self.victim.failpoint.arm(step)
        self.victim.start_daemon(wait=False)
        self.trial.wait_for_death()
        self.trial.revive()
        return f"kill -9 while it starts: {step}"

    def killed_while_it_recovers(self) -> str:
        self._wait(self.chance.uniform(0, 0.2))
        self._kill()
        step = self.chance.choice(list(STEPS))
        self.victim.failpoint.arm(step)
        self.victim.start_daemon(wait=False)
        self._wait(self.chance.uniform(0, 0.5))
        self._kill()
        self.trial.revive()
        return f"kill -9 while it recovers: {step}"

    def killed_while_it_stops(self) -> str:
        self._wait(self.chance.uniform(0, 0.2))
        step = self.chance.choice(list(STOP_STEPS))
        self.victim.failpoint.arm(step)
        self.victim.stop_daemon(signal.SIGTERM)
        self.trial.revive()
        return f"kill -9 while it stops: {step}"

    def stopped(self) -> str:
        self._wait(self.chance.uniform(0, 0.5))
        code = self.victim.stop_daemon(signal.SIGTERM)
        assert code == 0, f"the daemon ended with {code}"
        self.trial.revive()
        return "SIGTERM"

    def server_killed(self) -> str:
        self._wait(self.chance.uniform(0, 0.2))
        self.server.stop_emulator(signal.SIGKILL)
        self._wait(self.chance.uniform(0, 0.3))
        self.server.start_emulator()
        return "kill -9 of the server"

    def left_alone(self) -> str:
        self._wait(2)
        return "nothing"

    def _wait(self, seconds: float) -> None:
        """Wait so long, or until the load is over."""
        self.trial.over.wait(seconds)

    def _kill(self) -> bool:
        """Kill the daemon; True when it had died by itself."""
        assert self.victim.daemon is not None
        died = self.victim.daemon.poll() is not None
        self.victim.stop_daemon(signal.SIGKILL)
        return died

    # -- accounting --------------------------------------------------------------------

    def compare(self) -> None:
        """Stop everything, drain the queue without a daemon, and account for every event."""
        began = time.monotonic()
        self.server.faults()
        self.trial.write_again()
        code = self.victim.stop_daemon(signal.SIGTERM)
        assert code == 0, f"the daemon ended with {code}"
        flushed = self.victim.run("flush", "--timeout", "60")
        assert flushed.returncode == 0, flushed.stdout + flushed.stderr
        stored = self.trial.stored()
        self.trial.account(self.victim.status(), stored)
        took = time.monotonic() - began
        say(f"compared {len(self.trial.written):,} events in {took:.1f} s: none lost, none twice, balanced")
        self.victim.start_daemon()

    def close(self) -> None:
        """End all processes."""
        self.victim.close()
        self.nursery.close()
        self.server.close()


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # a program, not a test


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to go on (default: 10)")
    parser.add_argument("--seed", type=int, help="repeats the choices of an earlier run")
    options = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    directory = Path(tempfile.mkdtemp(prefix="polar-agent-soak-"))
    say(f"seed {seed}, for {options.minutes:g} minutes, in {directory}")
    soak = Soak(directory, seed)
    try:
        soak.run(options.minutes * 60)
    except BaseException:
        say(f"FAILED with seed {seed} in round {soak.disasters.total() + 1}; see {directory}")
        raise
    finally:
        soak.close()
    shutil.rmtree(directory)
    say(f"OK: {soak.disasters.total()} rounds: {json.dumps(dict(soak.disasters))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
