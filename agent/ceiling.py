"""How large a batch may be: what works is used, more is tried with care, too much is remembered. Pure.

Polar fails for ever, with a 500, on a batch with more than 4,681 pairs of an event and a
meter that matches it; it takes between 0.3 and 6 ms for an event, for no reason that
could be seen from outside. So the largest size that works is found, not known:

- A larger batch is tried when one of the size in use was full and answered quickly, and only
  one at a time; it becomes the size in use when its time for each event is no worse.
- A size that fails again and again, with none so large passing, while its pieces pass, is too
  much: a server that fails at random must not be taken for one that fails on large batches.
  What lies between is halved until the bounds are close; the bound is forgotten after a
  while, later each time that it holds.
- Slow answers and time-outs halve the size in use at once; but not when it is so small already that
  it cannot be what makes the answers slow.

A size is a number of events, or as well of bytes.
"""

from __future__ import annotations

MOST_EVENTS = 4681
"""One more, each matched by one meter, and Polar's database refuses the statement."""

_QUICK = 1.0  # seconds; what answers in this time is not strained
_NO_WORSE = 1.5  # times the seconds for each event
_UNHURRIED = 0.25  # seconds; below it the time says nothing of the size
_FULL = 0.75  # of the size in use: chunks go whole, so few batches are full to the last event
_CLOSE = 16  # bounds are close when they differ by less than this part
_STRIKES = 3  # failures, with none so large passing in between, against a size that worked before
_STRIKES_UNTRIED = 2
_REMEMBERED = 32  # failures
_FORGET_FIRST, _FORGET_LAST = 60.0, 3600.0
_STALE_SECONDS = 600.0
_LEAST_BY_TIME = 10  # events that are not answered in time are not too many
SMALL_EVENTS, SMALL_BYTES = 100, 64 << 10
"""So little is not what makes an answer slow: it takes Polar less than a second, a slow line some."""


class Ceiling:
    """The size of batches; times are monotonic seconds.

    Args:
        start: the size to begin with, and to fall back to when it was long not needed.
        most: never more.
        patience: an answer that takes longer is slow, seconds.
        small: no answer is slow for the size when it is no more than this.
    """

    def __init__(self, start: int, most: int, patience: float, small: int = SMALL_EVENTS) -> None:
        self._start = start
        self._most = max(start, most)
        self._patience = patience
        self._small = min(small, start)
        self._works = start
        self._proven = False  # a batch of about that size has passed
        self._limit: int | None = None
        self._last_limit: int | None = None  # forgotten, and not refuted
        self._forget_at = 0.0
        self._memory = _FORGET_FIRST / 2  # doubled each time that a bound is found
        self._failures: list[int] = []  # sizes; none so large passed since
        self._cost: float | None = None  # seconds for each event at the size in use
        self._wanted = False
        self._trying = False
        self._used_at: float | None = None

    @property
    def works(self) -> int:
        """The size in use."""
        return self._works

    @property
    def limit(self) -> int | None:
        """The smallest size that is known to be too much; None when none is."""
        return self._limit

    def size(self, now: float) -> int:
        """Return what the next batch may have."""
        if self._limit is not None and now >= self._forget_at:
            self._limit = None
        if self._used_at is not None and now - self._used_at > _STALE_SECONDS:
            self._used_at = None
            self._works = min(self._works, self._start)
            self._wanted, self._cost = False, None
        return self._next() if self._wanted and not self._trying else self._works

    def sent(self, size: int) -> None:
        """A batch goes out."""
        if size > self._works:
            self._trying = True

    def untried(self, size: int) -> bool:
        """Tell whether a batch is larger than what is known to work."""
        return size > self._works

    def passed(self, size: int, seconds: float, now: float, *, scarce: bool) -> None:
        """The server took a batch.

        Args:
            size: of the batch.
            seconds: until its answer.
            now: the time.
            scarce: requests are scarce: fewer and larger ones are worth some waiting.
        """
        if self._last_limit is not None and size >= self._last_limit:
            self._limit = self._last_limit = None
            self._memory = _FORGET_FIRST / 2
        if self._failures:
            self._failures = [failed for failed in self._failures if failed > size]
        larger = size > self._works
        if larger:
            self._trying = False
        if seconds > self._patience:
            self._wanted = False
            if size > self._small:
                self._shrink(size, self._small)
            return
        if size < self._works * _FULL:
            return
        self._used_at = now
        self._proven = True
        cost = seconds / size
        if larger:
            if self._worse(cost, seconds) and not scarce:
                self._remember(size, now)
                return
            self._works, self._cost = size, cost
        else:
            self._cost = cost if self._cost is None else (self._cost * 3 + cost) / 4
        self._wanted = seconds <= (self._patience / 2 if scarce else _QUICK)

    def failed(self, size: int, *, unnamed: bool) -> None:
        """A batch came back.

        Args:
            size: of the batch.
            unnamed: for no reason that was given, so perhaps for its size.
        """
        self._wanted = False
        if unnamed:
            self._failures = [*self._failures[1 - _REMEMBERED :], size]
        if size > self._works:
            self._trying = False

    def timed_out(self, size: int) -> None:
        """A batch was not answered in time."""
        self.failed(size, unnamed=False)
        self._shrink(size, least=min(_LEAST_BY_TIME, self._start))

    def too_much(self, size: int, now: float, *, sure: bool = False) -> bool:
        """A batch failed and its pieces passed; True when something was learned from it.

        Args:
            size: of the batch.
            now: the time.
            sure: the server said that it is the size.
        """
        if size < 2 or (self._limit is not None and size >= self._limit):
            return False
        needed = _STRIKES_UNTRIED if self.untried(size) else _STRIKES
        strikes = sum(failed >= size for failed in self._failures)
        # Small pieces of something large fail in turn when a server fails at random: no evidence.
        if not sure and (strikes < needed or (self._proven and size * 2 <= self._works)):
            return False
        self._remember(size, now)
        return True

    def _worse(self, cost: float, seconds: float) -> bool:
        return self._cost is not None and seconds > _UNHURRIED and cost > self._cost * _NO_WORSE

    def _remember(self, size: int, now: float) -> None:
        """Note that a size is too much."""
        if self._limit is None:
            self._memory = min(self._memory * 2, _FORGET_LAST)
            self._forget_at = now + self._memory
        self._limit = self._last_limit = size
        self._failures = []
        if size <= self._works:
            self._shrink(size)

    def _shrink(self, size: int, least: int = 1) -> None:
        """Use half of a size from now on, if that is less."""
        self._wanted = False
        self._works = min(self._works, max(least, size // 2))
        self._proven, self._cost = False, None

    def _next(self) -> int:
        """Return the size to try."""
        if self._limit is None:
            return min(self._works * 2, self._most)
        if self._limit - self._works <= max(1, self._works // _CLOSE):
            return self._works
        return min(self._works * 2, (self._works + self._limit) // 2, self._most)
