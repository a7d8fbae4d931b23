"""Where a duplicate comes from: our own retry, or an id that was at Polar before. Pure.

Polar tells only how many events of a batch it had already. Whether this agent can have
sent them is known here: an earlier request with them ended without a word whether they
were stored; or they are left from a run before, which may have sent them and died before
it could settle. What neither explains was at Polar before we ever sent it: a producer
uses an id twice, or another agent sends the same events. Nothing is billed twice by it;
but where the contents differ, the later one is gone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from agent.answer import NoAnswer, Outcome

if TYPE_CHECKING:
    from agent.batch import Batch

_NEVER_ARRIVED = ("connect", "dns", "tls", "token")
_QUIET_SECONDS = 600.0


def may_be_stored(outcome: Outcome) -> bool:
    """Tell whether the server may have stored a batch that this outcome does not settle.

    A batch is stored whole or not at all, and a 4xx says that it was not.
    """
    if isinstance(outcome, NoAnswer):
        return outcome.kind not in _NEVER_ARRIVED
    return not 300 <= outcome.status < 500


def sent_before(batch: Batch, duplicates: int, first_key: int) -> int:
    """Return how many of a batch's duplicates this agent may have sent before.

    Args:
        batch: what was sent.
        duplicates: how many Polar had.
        first_key: chunks before this one are left from a run before.
    """
    if batch.uncertain:
        return duplicates
    left = sum(len(part.places) for part in batch.parts if part.lease.key < first_key)
    return min(duplicates, left)


class News:
    """Tells when duplicates are worth a line in the log: when they begin, not with each batch."""

    def __init__(self) -> None:
        self._last = -math.inf

    def begins(self, now: float) -> bool:
        """Tell whether this is the first for some time; monotonic seconds."""
        begins = now - self._last > _QUIET_SECONDS
        self._last = now
        return begins
