"""Whether a batch is bad, or the server is in trouble. Pure.

A batch that fails unnamed may be bad, or the server may be. What tells them apart is what
became of requests that were sent after it had failed: those before say nothing. When one
event is left, it has to fail again and again while everything else passes.
"""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.batch import Batch
    from agent.verdict import Verdict

FAILURES_TO_BURY = 6
"""In a row: a server that fails now and then must not cost an event."""
REFUSALS_TO_HOLD = 24
"""Refusals that name no event, one after the other: then it is not the events."""
MAX_SUSPECTS = 4
"""So many batches may be put aside before one of them is tried in place of fresh events."""
FAILURES_IN_PASSING = 12
"""Unnamed failures since a batch passed: up to so many, the server is taken to work on the whole."""
MOST_BYTES = 16 << 20
"""Of chunks that batches put aside keep in memory, before no fresh ones are read."""
_TOO_LARGE = 413
_SOONEST = 0.01


def alone(verdict: Verdict) -> str:
    """Return why an event is buried that the server did not name."""
    return f"{verdict.reason}, with this event alone, while others passed"


class Fate(Enum):
    """What happens to a batch that failed without a reason."""

    HALVE = "halve"
    """Both halves go next."""
    BURY = "bury"
    """It is one event, and that is bad."""
    ASIDE = "aside"
    """The server works otherwise: others go first, this one again soon."""
    WAIT = "wait"
    """Perhaps it is the server: wait, and let others go first then."""


@dataclass(slots=True)
class Evidence:
    """What became of requests; they are numbered in the order of sending.

    Attributes:
        sent: the newest that was sent.
        passed: the newest that the server took.
        worked: the same, where one without events counts too.
        failed: the newest that failed through the server: it had no events, or passed later.
        refusals: refusals that name no event, since the last batch that passed.
        failures: batches on which the server failed, since the last one that passed.
    """

    sent: int = 0
    passed: int = 0
    worked: int = 0
    failed: float = 0.0
    refusals: int = 0
    failures: int = 0

    def took(self, number: int, batch: Batch) -> None:
        """The server took a batch."""
        self.refusals = self.failures = 0
        if batch.failures:
            self.failed = max(self.failed, batch.failed_at)  # so it was not the batch
        self.passed = max(self.passed, number)
        self.worked = max(self.worked, number)

    def probed(self, number: int, *, took: bool) -> None:
        """An empty batch came back."""
        if took:
            self.worked = max(self.worked, number)
        else:
            self.failed = max(self.failed, number)

    def after_refusal(self, batch: Batch, status: int) -> Fate:
        """Say what happens to a batch that the server does not want, while it works."""
        worked = self._count_failure(batch)
        if batch.events > 1:
            self.refusals += 1
            return Fate.HALVE
        if self._certain(batch) or (status == _TOO_LARGE and self.blamed(batch)):
            return Fate.BURY
        if worked and self.blamed(batch):
            return Fate.ASIDE
        # Alone and refused, but nothing else passed either: perhaps it is not the event.
        self.refusals += 1
        return Fate.WAIT

    def after_failure(self, batch: Batch, *, untried: bool = False) -> Fate:
        """Say what happens to a batch on which the server failed: either is in trouble.

        Args:
            batch: it.
            untried: it was larger than what is known to work.
        """
        others_passed = self.passed > batch.failed_at
        worked = self._count_failure(batch)
        self.failures += 1
        if batch.events > 1 and (others_passed or untried):
            return Fate.HALVE
        if batch.events == 1 and self._certain(batch):
            return Fate.BURY
        # Waiting holds everything up: not for one that is bad while the rest passes.
        if self.passed and self.failures <= FAILURES_IN_PASSING and (batch.events > 1 or worked):
            return Fate.ASIDE
        return Fate.WAIT

    @property
    def all_refused(self) -> bool:
        """True when the server refuses whatever it gets."""
        return self.refusals > REFUSALS_TO_HOLD

    def blamed(self, batch: Batch) -> bool:
        """Tell whether others passed since a batch, or the one that it was cut from, first failed."""
        return self.passed > batch.doubted_at

    def doubted(self, batch: Batch) -> bool:
        """Tell whether a batch is under suspicion, so that it is worth asking whether the server works."""
        return self.blamed(batch) or (batch.events > 1 and batch.failed_at > batch.doubted_at)

    def _certain(self, batch: Batch) -> bool:
        """Tell whether a batch is bad beyond doubt."""
        return self.blamed(batch) and batch.failures >= FAILURES_TO_BURY

    def _count_failure(self, batch: Batch) -> bool:
        """Count failures between which the server worked; True if it did since the last one."""
        worked = self.worked > batch.failed_at >= self.failed
        if batch.doubted_at == math.inf:
            batch.doubted_at = self.sent
        batch.failures = batch.failures + 1 if worked else 1
        batch.failed_at = self.sent
        return worked


class Suspects:
    """Batches that failed without a reason and were put aside, by the moments when they may go."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, Batch]] = []  # a heap: not before, order, batch
        self._order = itertools.count()  # a batch cannot be compared
        self._bytes = 0

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._waiting)

    @property
    def many(self) -> bool:
        """True when it is time to try one before anything fresh."""
        return len(self._waiting) > MAX_SUSPECTS

    @property
    def heavy(self) -> bool:
        """True when they keep so much in memory that nothing fresh can be read."""
        return self._bytes > MOST_BYTES

    def add(self, not_before: float, batch: Batch) -> None:
        """Put a batch aside until a moment, monotonic seconds."""
        heapq.heappush(self._waiting, (not_before, next(self._order), batch))
        self._bytes += batch.weight

    def due(self, now: float) -> bool:
        """Tell whether the time of one has come."""
        return bool(self._waiting) and self._waiting[0][0] <= now

    def pop(self) -> Batch:
        """Take the one that may go first."""
        batch = heapq.heappop(self._waiting)[2]
        self._bytes -= batch.weight
        return batch

    def wait(self, now: float) -> float | None:
        """Return the seconds until one may go; None when there is none."""
        return max(_SOONEST, self._waiting[0][0] - now) if self._waiting else None

    def hasten(self) -> None:
        """Let all of them go now, in the order in which they would have."""
        self._waiting = [(-math.inf, place, batch) for place, (*_, batch) in enumerate(sorted(self._waiting))]

    def halve(self) -> Sequence[Batch]:
        """Take the smallest that can be halved, and return its halves: what breaks it is found soonest."""
        found = min(
            (item for item in self._waiting if item[2].events > 1),
            key=lambda item: item[2].events,
            default=None,
        )
        if found is None:
            return ()
        self._waiting.remove(found)
        heapq.heapify(self._waiting)
        self._bytes -= found[2].weight
        return found[2].halves()
