"""How fast: the rate budget, back-off, and `Retry-After`. Pure; time comes in as a number.

The server's limit is shared by everything that its customer does, so the agent takes
a part of it. A failure makes all batches wait (full jitter, so that many agents do not
come back at once) and then one goes ahead as a probe; the others follow its success.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from agent.limit import Limit

if TYPE_CHECKING:
    from collections.abc import Callable

_FIRST_DELAY = 0.5
_LONGEST_RETRY_AFTER = 3600.0
_HOLD_SECONDS = 15.0
_LOW = 0.25  # of the budget
_ONE = 0.999  # of a request; whoever kept the wait to the last bit must not wait again for rounding


def backoff(failures: int, longest: float, chance: Callable[[], float] = random.random) -> float:
    """Return how long to wait after so many failures in a row: full jitter, doubling up to `longest`."""
    return chance() * min(longest, _FIRST_DELAY * 2.0 ** min(failures, 30))


def retry_after(value: str | None, now: float) -> float:
    """Return the seconds that a `Retry-After` header asks for; 0 when it makes no sense.

    Args:
        value: the header: seconds, or an HTTP date.
        now: Unix time by the server's clock, for a date.
    """
    if value is None:
        return 0.0
    text = value.strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
            # The old form of an HTTP date names no zone; it is GMT like the others.
            seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now
        except (ValueError, TypeError, OverflowError, OSError):
            return 0.0
    if not math.isfinite(seconds):
        return 0.0
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER)


@dataclass(slots=True)
class Pace:
    """Says when the next request may go out.

    Args:
        requests_per_minute: the budget.
        backoff_max: the longest wait between tries, seconds.
        chance: numbers from 0 to 1 for jitter.
    """

    requests_per_minute: float
    backoff_max: float
    chance: Callable[[], float] = random.random
    failures: int = 0
    resume_at: float = 0.0
    throttled: bool = False
    held: bool = False
    _limit: Limit = field(init=False)
    _tokens: float = 1.0
    _filled_at: float | None = None

    def __post_init__(self) -> None:
        """Begin without knowing the server's limit."""
        self._limit = Limit(self._draw)

    @property
    def probing(self) -> bool:
        """True when only one request may be on its way, until one succeeds."""
        return self.failures > 0 or self.held or self.throttled

    def wait(self, now: float) -> float:
        """Return the seconds until the next request may go out; 0 for at once."""
        return max(self._until_budget(now), self.resume_at - now)

    def wait_for_guest(self, now: float) -> float:
        """Return the seconds until a request of somebody else's may go out, within the same budget.

        Our own failures need not hold it up; that the limit is used up does.
        """
        wait = self._until_budget(now)
        return max(wait, self.resume_at - now) if self.throttled else wait

    @property
    def scarce(self) -> bool:
        """True when the budget is what limits us: then each request should carry all it can."""
        return self._tokens < 2

    @property
    def lowered(self) -> float | None:
        """Requests a minute, when the server's warnings have brought them far down; None when not."""
        rate = self._limit.of(self.requests_per_minute)
        return rate if rate < self.requests_per_minute * _LOW else None

    def take(self, now: float) -> None:
        """Count a request that goes out."""
        self._fill(now)
        self._tokens -= 1
        self._limit.sent(now)

    def lacked(self, now: float) -> None:
        """Note that events wait, when it is the budget that they wait for."""
        if self._until_budget(now) > 0:
            self._limit.waited(now)

    def succeeded(self) -> None:
        """The server took a batch."""
        self.failures = 0
        self.held = self.throttled = False
        self._limit.passed(self.requests_per_minute)

    def failed(self, now: float, asked: float = 0.0) -> float:
        """The server or the way to it is in trouble; return the seconds to wait."""
        self.failures += 1
        delay = max(backoff(self.failures, self.backoff_max, self.chance), asked)
        self.resume_at = max(self.resume_at, now + delay)
        return delay

    def too_fast(self, now: float, asked: float = 0.0) -> float:
        """The server's rate limit is used up; wait, and ask for less from now on."""
        self._limit.refused(now, self.requests_per_minute, asked=asked, again=self.throttled)
        self.throttled = True
        delay = asked or max(1.0, backoff(self.failures + 2, self.backoff_max, self.chance))
        # Others wait for the same moment: come a little later, each by another bit.
        delay += self.chance() * min(5.0, delay / 4)
        self.resume_at = max(self.resume_at, now + delay)
        return delay

    def hold(self, now: float) -> float:
        """Only a person can mend it; look now and then whether they did."""
        self.held = True
        self.resume_at = max(self.resume_at, now + _HOLD_SECONDS)
        return _HOLD_SECONDS

    def retry_now(self) -> None:
        """Forget the waiting: something changed that makes a try worth while."""
        self.resume_at = 0.0

    def _draw(self) -> float:
        return self.chance()

    @property
    def _rate(self) -> float:
        """Requests a second."""
        return self._limit.of(self.requests_per_minute) / 60

    def _until_budget(self, now: float) -> float:
        """Return the seconds until the budget has room for a request."""
        self._fill(now)
        return 0.0 if self._tokens >= _ONE else (1 - self._tokens) / self._rate

    def _fill(self, now: float) -> None:
        """Let the budget grow with time, up to a few seconds' worth."""
        burst = max(1.0, self._rate * 2)
        if self._filled_at is None:
            self._tokens, self._filled_at = burst, now
        self._tokens = min(burst, self._tokens + max(0.0, now - self._filled_at) * self._rate)
        self._filled_at = now
