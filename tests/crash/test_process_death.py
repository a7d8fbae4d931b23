"""The daemon is killed at every step of an event's way, of a start and of a stop: nothing is lost or twice.

Each round ends with an account of every event that was ever written to the queue's
daemons (`Trial.account`).
"""

from __future__ import annotations

import random
import signal
from typing import TYPE_CHECKING

import pytest
from support.failpoints import START_STEPS, STEPS, STOP_STEPS, Nursery
from support.processes import Product
from support.trials import Trial, Victim

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROUNDS = 6
FEW_ROUNDS = 3
RANDOM_ROUNDS = 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An emulator that all trials share."""
    product = Product(tmp_path_factory.mktemp("server"))
    product.start_emulator()
    yield product.url
    product.close()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def victim(tmp_path: Path, server: str, nursery: Nursery) -> Iterator[Victim]:
    victim = Victim(tmp_path, server, nursery, flush_interval="0.02", max_batch_events="20")
    yield victim
    victim.close()


@pytest.fixture
def trial(victim: Victim, request: pytest.FixtureRequest) -> Trial:
    """Load and accounts; the test's name is its seed."""
    return Trial(victim, random.Random(request.node.name))


@pytest.mark.parametrize("step", STEPS)
def test_a_daemon_killed_at_a_step_of_an_events_way_loses_nothing_and_doubles_nothing(
    trial: Trial, step: str
) -> None:
    victim = trial.victim
    victim.start_daemon()
    for _ in range(ROUNDS):
        victim.failpoint.arm(step, call=trial.chance.randint(1, 4))
        load = trial.load()
        trial.wait_for_death()
        load.join()
        trial.revive()
        trial.check()


@pytest.mark.parametrize("step", START_STEPS)
def test_a_daemon_killed_at_a_step_of_its_start_leaves_a_queue_that_the_next_one_takes_up(
    trial: Trial, step: str
) -> None:
    victim = trial.victim
    for _ in range(FEW_ROUNDS):
        victim.failpoint.arm(step)
        victim.start_daemon(wait=False)
        trial.wait_for_death()
        trial.revive()
        trial.load(most=20).join()
        victim.stop_daemon(signal.SIGKILL)
    trial.revive()
    trial.check()


@pytest.mark.parametrize("step", STOP_STEPS)
def test_a_daemon_killed_at_a_step_of_its_stop_loses_nothing_and_doubles_nothing(
    trial: Trial, step: str
) -> None:
    victim = trial.victim
    victim.start_daemon()
    for _ in range(FEW_ROUNDS):
        load = trial.load()
        victim.failpoint.arm(step)
        trial.over.wait(trial.chance.uniform(0.0, 0.1))
        assert victim.stop_daemon(signal.SIGTERM) == -signal.SIGKILL
        load.join()
        trial.revive()
        trial.check()


def test_a_daemon_killed_at_random_moments_loses_nothing_and_doubles_nothing(trial: Trial) -> None:
    victim = trial.victim
    victim.start_daemon()
    for _ in range(RANDOM_ROUNDS):
        load = trial.load()
        trial.over.wait(trial.chance.uniform(0.0, 0.15))
        victim.stop_daemon(signal.SIGKILL)
        load.join()
        trial.revive()
        trial.check()


def test_a_daemon_killed_again_while_it_recovers_loses_nothing_and_doubles_nothing(trial: Trial) -> None:
    victim = trial.victim
    victim.start_daemon()
    for _ in range(RANDOM_ROUNDS // 2):
        # With something left to deliver, so that the next one gets as far as to deliver it.
        victim.failpoint.arm(trial.chance.choice(["before POST", "after the server stored", "before settle"]))
        load = trial.load()
        trial.wait_for_death()
        load.join()
        victim.failpoint.arm(trial.chance.choice(["before POST", "before settle commit", "after settle"]))
        victim.start_daemon(wait=False)
        trial.wait_for_death()
        trial.revive()
        trial.check()
