"""How large batches may be: in events and in bytes, as the answers teach."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.answer import NoAnswer
from agent.batch import OVERHEAD
from agent.ceiling import SMALL_BYTES, Ceiling
from agent.flusher.intake import Room
from agent.logs import get
from agent.verdict import Action

if TYPE_CHECKING:
    from agent.batch import Batch
    from agent.flusher.intake import Options
    from agent.flusher.senders import Result
    from agent.verdict import Verdict

TOO_LARGE = 413


class Sizes:
    """The largest batch that is worth sending; for the flusher's thread alone.

    Args:
        options: the settings.
    """

    def __init__(self, options: Options) -> None:
        self._given = _given(options)
        self._events, self._bytes = _ceilings(options)
        self._log = get("flusher")

    def configure(self, options: Options) -> None:
        """Go by other settings from now on; what was learned of others is forgotten."""
        if _given(options) != self._given:
            self._given = _given(options)
            self._events, self._bytes = _ceilings(options)

    @property
    def works(self) -> int:
        """The most events that a request has now."""
        return self._events.works

    def room(self, now: float) -> Room:
        """Return what the next batch may have; monotonic seconds."""
        return Room(self._events.size(now), self._bytes.size(now) + OVERHEAD)

    def sent(self, batch: Batch) -> None:
        """Note that a batch goes out."""
        self._events.sent(batch.events)
        self._bytes.sent(batch.size - OVERHEAD)

    def untried(self, batch: Batch) -> bool:
        """Tell whether no batch of so many events has passed yet."""
        return self._events.untried(batch.events)

    def learn(self, result: Result, batch: Batch, verdict: Verdict, now: float, *, scarce: bool) -> None:
        """Learn from an answer.

        Args:
            result: when it came.
            batch: what was sent.
            verdict: what the answer means.
            now: monotonic seconds.
            scarce: the rate limit is what holds delivery up.
        """
        of_events = batch.size - OVERHEAD
        ceilings = ((self._events, batch.events), (self._bytes, of_events))
        if verdict.action is Action.SETTLE:
            seconds = result.answered_at - result.sent_at
            for ceiling, size in ceilings:
                ceiling.passed(size, seconds, now, scarce=scarce)
            for cut in batch.passed():
                if self._events.too_much(cut.events, now):
                    self._tell("events", cut.events, self._events)
            return
        unnamed = verdict.suspect or (verdict.action is Action.SPLIT and verdict.status != TOO_LARGE)
        for ceiling, size in ceilings:
            ceiling.failed(size, unnamed=unnamed)
        if isinstance(result.outcome, NoAnswer) and result.outcome.kind == "timeout":
            self._events.timed_out(batch.events)
        elif verdict.status == TOO_LARGE:
            batch.spoil()  # it says nothing of the number of events
            if self._bytes.too_much(of_events, now, sure=True):
                self._tell("bytes", of_events, self._bytes)

    def _tell(self, unit: str, size: int, ceiling: Ceiling) -> None:
        """Log that batches have become smaller."""
        self._log.warning(
            "the server does not take such large batches",
            unit=unit,
            size=size,
            largest_that_works=ceiling.works,
            hint="nothing: they stay smaller, and larger ones are tried again after a while",
        )


def _given(options: Options) -> tuple[float, ...]:
    """Return the settings that what was learned depends on."""
    return (
        options.max_batch_events,
        options.batch_ceiling,
        options.max_batch_bytes,
        options.request_timeout,
    )


def _ceilings(options: Options) -> tuple[Ceiling, Ceiling]:
    """Return how many events, and how many bytes of them, a batch may have; nothing is learned yet."""
    patience = options.request_timeout / 6
    most_bytes = options.max_batch_bytes - OVERHEAD
    return (
        Ceiling(options.max_batch_events, options.batch_ceiling, patience),
        Ceiling(most_bytes, most_bytes, patience, SMALL_BYTES),
    )
