"""What waits for its own time: Polar takes no event before its timestamp. Pure.

A chunk that is not due is remembered by its key alone, so that any number of them costs
no memory worth the name.
"""

from __future__ import annotations

import heapq
import itertools
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from agent import refusal

if TYPE_CHECKING:
    from agent.batch import Batch

_FAR = datetime(9999, 12, 31, tzinfo=UTC)
_SOONEST = 0.01


class Held:
    """Chunks and batches by the moment when they are due, Unix seconds by the server's clock."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int | Batch]] = []
        self._order = itertools.count()  # a batch cannot be compared

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._heap)

    def add(self, due: float, item: int | Batch) -> None:
        """Keep a chunk, by its key, or a batch."""
        heapq.heappush(self._heap, (due, next(self._order), item))

    def due(self, now: float) -> bool:
        """Tell whether something is due."""
        return bool(self._heap) and self._heap[0][0] <= now

    def pop(self) -> int | Batch:
        """Take what is due first."""
        return heapq.heappop(self._heap)[2]

    def wait(self, now: float) -> float | None:
        """Return the seconds until something is due; None when nothing is held."""
        return max(_SOONEST, self._heap[0][0] - now) if self._heap else None


def due_of(line: bytes, now: float) -> float:
    """Return when an event is due that Polar called too early: when its timestamp has passed, not at once.

    Args:
        line: the event.
        now: Unix seconds by the server's clock.
    """
    due = now + 1.0
    facts = refusal.full_check(line, _FAR)
    if isinstance(facts, refusal.Facts) and facts.timestamp is not None:
        due = max(due, facts.timestamp.timestamp() + 0.001)
    return due
