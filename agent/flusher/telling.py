"""What the log says of delivery: a line when something begins or ends, none while it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.flusher.duplicates import News
from agent.logs import get
from agent.skew import HINT, Skew, in_words
from agent.verdict import Action

if TYPE_CHECKING:
    from agent.batch import Batch
    from agent.clock import Clock
    from agent.verdict import Verdict

_FAILURES_TO_TELL = 3  # in a row
_WAIT_TO_TELL = 10.0


class Telling:
    """Remembers what was told; for the flusher's thread alone.

    Args:
        clock: for how long something lasted.

    Attributes:
        trouble: what is wrong, with what to do; None since a batch was delivered.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._log = get("flusher")
        self._resent, self._strangers = News(), News()
        self._skew = Skew()
        self._told: str | None = None  # the trouble that stands in the log
        self.trouble: str | None = None

    def fails(self, verdict: Verdict, wait: float, failures: int) -> None:
        """Note what is wrong; log it when it changes, unless the next try may mend it.

        Args:
            verdict: what an answer, or none, means.
            wait: seconds until the next try.
            failures: how many there were in a row.
        """
        self.trouble = f"{verdict.reason}; {verdict.hint}" if verdict.hint else verdict.reason
        passing = verdict.action in (Action.RETRY, Action.SPLIT) and failures < _FAILURES_TO_TELL
        if self.trouble != self._told and not (passing and wait < _WAIT_TO_TELL):
            self._told = self.trouble
            tell = self._log.error if verdict.action is Action.HOLD else self._log.warning
            tell(
                "nothing is delivered: events stay in the queue",
                reason=verdict.reason,
                hint=verdict.hint,
                next_attempt_in_seconds=round(wait, 1),
            )

    def works(self, since: float | None, pending: int) -> None:
        """Note that a batch was delivered.

        Args:
            since: when delivery became what it was until now, Unix seconds.
            pending: how many events are left.
        """
        if self._told is not None:
            now = self._clock.wall()
            self._log.info(
                "delivery works again", after_seconds=round(now - (since or now), 1), pending=pending
            )
        self.trouble = self._told = None

    def duplicates(self, batch: Batch, resent: int, strangers: int) -> None:
        """Log where a batch's duplicates come from, when that is news.

        Args:
            batch: what was delivered.
            resent: how many of it this agent may have sent before.
            strangers: how many others Polar had already.
        """
        now = self._clock.monotonic()
        if resent and self._resent.begins(now):
            self._log.info(
                "Polar had events already: they were sent before, and the answer was lost",
                count=resent,
                batch=batch.id,
            )
        if strangers and self._strangers.begins(now):
            self._log.warning(
                "Polar had the ids of events that were never sent from here: it keeps what came first",
                count=strangers,
                batch=batch.id,
                hint="does a producer use an external_id twice, does another agent send the same events,"
                " or was a file read again?",
            )

    def clock(self, offset: float) -> None:
        """Log when this machine's clock begins to differ from Polar's, and when it agrees again.

        Args:
            offset: how far Polar's is ahead, seconds.
        """
        match self._skew.changes(offset):
            case True:
                self._log.warning(f"{in_words(offset)}: our own stamps go by Polar's", hint=HINT)
            case False:
                self._log.info("this machine's clock agrees with Polar's again")
