"""Agents that always have something to send, against a server that refuses; hours of it in a moment.

Only the pace is real: requests have no events, and time is a number.
"""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.emulator.ratelimit import RateLimit
from agent.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Sequence

LATENCY = 0.1
IN_FLIGHT = 4
ASKED = 60.0


@dataclass
class Server:
    """Refuses what is over its limit by the minute, and a share of the rest for no reason.

    Attributes:
        limit: requests a minute, of all agents together.
        share: of the requests that are refused whatever the rate.
        asked: seconds that such a refusal asks for.
        broken: share of the requests that fail otherwise.
    """

    limit: int | None = None
    share: float = 0.0
    asked: float = 1.0
    broken: float = 0.0


@dataclass
class Tally:
    """What became of an agent's requests, by minute."""

    passed: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)


class Street:
    """Some agents on the way to one server.

    Args:
        server: as it is at first; may be changed between two runs.
        budgets: of the agents, requests a minute.
        seed: of all chance.
        demand: requests a minute that each agent has to send; None for without end.
    """

    def __init__(
        self, server: Server, budgets: Sequence[float], seed: int = 0, demand: float | None = None
    ) -> None:
        self.server = server
        self.demand = demand
        self.chance = random.Random(seed)
        self.paces = [Pace(budget, 5.0, self.chance.random) for budget in budgets]
        self.tallies = [Tally() for _ in budgets]
        self.now = 0.0
        self._limit = RateLimit()
        self._flying = [0] * len(budgets)
        self._wanted = [1.0] * len(budgets)
        self._asked_at = [0.0] * len(budgets)
        self._order = itertools.count()
        self._coming: list[tuple[float, int, int, int | None]] = []  # when, order, agent, status
        for agent in range(len(budgets)):
            self._add(self.chance.random() * 5, agent, None)

    def run(self, minutes: float) -> None:
        """Let time pass."""
        end = self.now + minutes * 60
        while self._coming and self._coming[0][0] <= end:
            self.now, _, agent, status = heapq.heappop(self._coming)
            if status is not None:
                self._answer(agent, status)
            self._step(agent, woken=status is None)
        self.now = end

    def passed(self, first: int = 0, last: int | None = None) -> list[float]:
        """Return how many requests a minute of each agent passed, from one minute to another."""
        minutes = (self.now / 60 if last is None else last) - first
        return [sum(tally.passed[first:last]) / minutes for tally in self.tallies]

    def refused(self, first: int = 0) -> float:
        """Return the share of requests that were refused, from a minute on."""
        refused = sum(sum(tally.refused[first:]) for tally in self.tallies)
        return refused / (refused + sum(sum(tally.passed[first:]) for tally in self.tallies))

    def _add(self, when: float, agent: int, status: int | None) -> None:
        heapq.heappush(self._coming, (when, next(self._order), agent, status))

    def _answer(self, agent: int, status: int) -> None:
        pace, tally = self.paces[agent], self.tallies[agent]
        self._flying[agent] -= 1
        minute = int(self.now // 60)
        for counts in (tally.passed, tally.refused):
            counts.extend([0] * (minute + 1 - len(counts)))
        if status == 200:
            pace.succeeded()
            tally.passed[minute] += 1
        elif status == 500:
            pace.failed(self.now)
        else:
            # What is over the limit has the real server's header.
            pace.too_fast(self.now, ASKED if status == 429 else self.server.asked)
            tally.refused[minute] += 1

    def _step(self, agent: int, *, woken: bool) -> None:
        """Do as the flusher does."""
        pace = self.paces[agent]
        waits = False
        while self._flying[agent] < (1 if pace.probing else IN_FLIGHT):
            wait = self._until_wanted(agent)
            if not wait:
                wait = pace.wait(self.now)
                if wait > 0:
                    pace.lacked(self.now)
            if wait > 0:
                waits = True
                if woken or not any(one[2] == agent and one[3] is None for one in self._coming):
                    self._add(self.now + wait + 1e-6, agent, None)
                break
            pace.take(self.now)
            self._wanted[agent] -= 1
            self._flying[agent] += 1
            self._add(self.now + LATENCY, agent, self._serve())
        assert waits or self._flying[agent], "an agent sleeps for ever"

    def _until_wanted(self, agent: int) -> float:
        """Return the seconds until there is something to send."""
        if self.demand is None:
            return 0.0
        self._wanted[agent] += (self.now - self._asked_at[agent]) * self.demand / 60
        self._asked_at[agent] = self.now
        return max(0.0, 1 - self._wanted[agent]) * 60 / self.demand

    def _serve(self) -> int:
        if self.chance.random() < self.server.share:
            return 428  # a 429 for no reason
        if not self._limit.take(self.now, self.server.limit):
            return 429
        return 500 if self.chance.random() < self.server.broken else 200
