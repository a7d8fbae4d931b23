"""What is counted while the agent works: distributions, and who gave and got what. Pure.

Nothing here is done per event: a group of lines, a request, a batch is one observation.
Each distribution is written by one thread; whoever reads sees some moment of it. All of
it begins with the process; the books, which survive it, are the queue's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agent.refusal import Refusal

REFUSALS_AT_ONCE = 3
_REFUSALS_KEPT = 50


class Histogram:
    """A distribution, as Prometheus has it: so many at or below each bound.

    Args:
        bounds: increasing; what is above the last one is counted, too.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, *bounds: float) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def quantile(self, share: float) -> float | None:
        """Return the bound that so much is at or below; None when nothing was counted."""
        counts = list(self.counts)
        wanted = share * sum(counts)
        seen = 0
        for bound, count in zip((*self.bounds, self.bounds[-1]), counts, strict=True):
            seen += count
            if count and seen >= wanted:
                return bound
        return None


@dataclass(slots=True)
class Tally:
    """What one kind of source gave: events that were taken, and lines that were refused."""

    accepted: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class RecentRefusal:
    """Refusals that are alike, the last of them.

    Attributes:
        at: Unix seconds.
        source: the kind of source.
        type: the stable word.
        loc: where in the event.
        msg: for people; holds nothing of the event.
        count: how many there were in a row.
    """

    at: float
    source: str
    type: str
    loc: tuple[str | int, ...]
    msg: str
    count: int = 1


@dataclass(slots=True)
class Meters:
    """All of it.

    Attributes:
        ack: seconds from when lines were handed to the writer until they were durable.
        batch: events in a request.
        request: seconds that a request took.
        age: seconds from arrival to the end at Polar, of the oldest event of each batch,
            counted for all of its events.
        requests: how many ended with each status, or with which kind of no answer.
        sources: by kind of source.
        refusals: the latest.
    """

    ack: Histogram = field(
        default_factory=lambda: Histogram(
            0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30
        )
    )
    batch: Histogram = field(
        default_factory=lambda: Histogram(1, 5, 10, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 20_000)
    )
    request: Histogram = field(
        default_factory=lambda: Histogram(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
    )
    age: Histogram = field(
        default_factory=lambda: Histogram(0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 21_600, 86_400)
    )
    requests: dict[str, int] = field(default_factory=dict)
    sources: dict[str, Tally] = field(default_factory=dict)
    refusals: deque[RecentRefusal] = field(default_factory=lambda: deque(maxlen=_REFUSALS_KEPT))

    def took(self, source: str, accepted: int, refused: int, seconds: float) -> None:
        """Count what one source gave at once, when it is durable."""
        self.ack.observe(seconds)
        tally = self.sources.get(source)
        if tally is None:
            tally = self.sources[source] = Tally()
        tally.accepted += accepted
        tally.refused += refused

    def answered(self, result: str, events: int, seconds: float) -> None:
        """Count a request that ended.

        Args:
            result: the status, or the kind of no answer.
            events: how many it carried.
            seconds: how long it took.
        """
        self.requests[result] = self.requests.get(result, 0) + 1
        self.request.observe(seconds)
        if events:
            self.batch.observe(events)

    def refuse(self, source: str, refusals: Iterable[Refusal], at: float) -> None:
        """Note refusals; of many at once only the first few."""
        for number, why in enumerate(refusals):
            if number == REFUSALS_AT_ONCE:
                return
            self._note(RecentRefusal(at, source, why.type, why.loc, why.msg))

    def _note(self, new: RecentRefusal) -> None:
        last = self.refusals[-1] if self.refusals else None
        if last is not None and replace(last, at=new.at, count=1) == new:
            self.refusals[-1] = replace(new, count=last.count + 1)
        else:
            self.refusals.append(new)


def latest(refusals: Sequence[RecentRefusal]) -> list[dict[str, object]]:
    """Return refusals as documents, the newest first."""
    return [
        {
            "at": round(one.at, 3),
            "source": one.source,
            "type": one.type,
            "loc": list(one.loc),
            "msg": one.msg,
            "count": one.count,
        }
        for one in reversed(list(refusals))
    ]
