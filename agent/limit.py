"""How many requests a minute the server's rate limit leaves us: found from its 429s, never told. Pure.

What is known for certain is how many requests went through within a minute. A limit by the minute
that let so many through is no lower, unless others use it too or it was changed since. Hence:

- Whoever asks for far more than what goes through in a minute is too fast: the rate is halved, or
  quartered, until both are close; then it stays a little below, and rises slowly, by the same share in
  the same time for everybody, so that those who share a limit come to equal parts of it.
- After some minutes, later each time that it is in vain, half as much again is tried for a minute, and
  kept when it goes through.
- A 429 that comes early at half of what went through before, and again and again, does not come from our
  rate: a gateway in trouble, say. Lowering it further would not help, so that for a while we only wait as
  long as each of them asks. That is tried anew later: the limit may really have become lower.
"""

from __future__ import annotations

import math
import random
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SLOT_SECONDS, _SLOTS = 5.0, 12  # of a minute
_MINUTE = 60.0
_SOON = 5.0
_IDLE_SECONDS = 180.0  # longer than most pauses that a 429 asks for
_BEST_SECONDS = 600.0  # for so long at least, and twice as long at most, the best minute is remembered

_LEAST = 1.0  # requests a minute
_LEAST_UNHURRIED = 1 / 3  # of the budget, while little is to be sent and 429s are cheap or rare:
_CHEAP, _RARE = 10.0, 20  # seconds that they ask for; requests between them
_FAR = 8  # so many times too fast: quartered
_CUT, _LITTLE = 0.7, 0.9  # of what goes through
_NEAR = 0.85  # of what was too much: up to there the rate rises quickly
_QUICKLY, _BRISKLY = 1.02, 1.1  # for each batch that passes
_SLOWLY = 0.02  # requests a minute, for each batch that passes; so from _NEAR it takes 7 minutes
_SMALL = 10.0  # a minute; below, it takes as many batches as at this rate
_EXPECTED = (1 - _NEAR) / _SLOWLY  # requests between two 429s, for each request a minute
_HELD_FIRST, _HELD_LAST = 600.0, 1200.0  # seconds before more is tried; with jitter up to twice as long
_MORE, _KEPT = 1.5, 1.35

_EARLY = 0.5  # of the requests that are expected to pass before the next 429
_OF_BEST = 0.5
_STRANGE, _LOOKED_AT = 4, 6  # 429s that our rate does not explain, of the last ones
_UNMOVED_SECONDS = 900.0
_UNMOVED_MOST = 4.0  # times the best minute


class Minute:
    """Counts requests: of the last minute, and of the best one lately; times are monotonic seconds."""

    def __init__(self) -> None:
        self._slots: deque[int] = deque(maxlen=_SLOTS)
        self._slot = -math.inf
        self._best = [0, 0]  # of the current period, and of the one before
        self._period = 0.0

    def add(self, now: float, count: int) -> None:
        """Count so many requests more."""
        self._roll(now)
        self._slots[-1] += count
        self._best[0] = max(self._best[0], self.count(now))

    def count(self, now: float) -> int:
        """Return how many there were in the last minute."""
        self._roll(now)
        return max(0, sum(self._slots))

    def rate(self, now: float, since: float) -> float:
        """Return the same, reckoned up to a minute when it was not yet one since a moment."""
        return self.count(now) * _MINUTE / min(_MINUTE, max(_SOON, now - since))

    def best(self, now: float) -> int:
        """Return how many there were in the best minute lately."""
        self._roll(now)
        return max(self._best)

    def _roll(self, now: float) -> None:
        """Let what is old go."""
        slot = now // _SLOT_SECONDS
        if self._slot == -math.inf:
            self._period = now
        for _ in range(int(min(slot - self._slot, _SLOTS))):
            self._slots.append(0)
        self._slot = slot
        if now - self._period >= _BEST_SECONDS:
            lately = now - self._period < 2 * _BEST_SECONDS
            self._best = [0, self._best[0] if lately else 0]
            self._period = now


class Limit:
    """The rate that the server allows, as far as it is known; rates are requests a minute.

    Args:
        chance: numbers from 0 to 1 for jitter.
    """

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self.chance = chance
        self._minute = Minute()
        self._now = 0.0
        self._rate = math.inf
        self._too_much = math.inf  # the rate at which the limit was last used up
        self._through = 0  # requests since the last 429
        self._waited_at = -math.inf  # when events last waited for the budget
        self._busy_since = -math.inf  # when they began to
        self._more_at = math.inf  # when more is tried
        self._held = _HELD_FIRST
        self._before: float | None = None  # the rate before that, while it is tried
        self._strange: deque[bool] = deque(maxlen=_LOOKED_AT)
        self._unmoved_until = -math.inf
        self._most = math.inf  # until then

    def of(self, budget: float) -> float:
        """Return the rate that may be used, at most the budget."""
        return min(budget, self._rate)

    def sent(self, now: float) -> None:
        """A request goes out."""
        self._now = now
        if now - self._waited_at > _IDLE_SECONDS:
            self._busy_since = now
        self._minute.add(now, 1)
        self._through += 1

    def waited(self, now: float) -> None:
        """Events wait, and only for the budget."""
        self._waited_at = now

    def passed(self, budget: float) -> None:
        """The server took a batch: ask for more, slowly where it was too much before."""
        if self._rate >= budget:
            return
        near = self._too_much * _NEAR
        if self._now >= self._more_at:
            self._try_more()
        elif self._rate < near:
            self._rate = min(near, self._rate * _QUICKLY)
        else:
            self._rate += _SLOWLY * min(1.0, self._rate / _SMALL)
        if self._now < self._unmoved_until:
            self._rate = min(self._rate, max(self._most, 2 * self._minute.count(self._now)))
        if self._rate >= budget:
            self._forget()

    def refused(self, now: float, budget: float, *, asked: float, again: bool) -> None:
        """A 429 came: see what it says of the rate.

        Args:
            now: monotonic seconds.
            budget: the rate that is never exceeded.
            asked: seconds that it asks to wait.
            again: nothing has passed since the last one.
        """
        self._minute.add(now, -1)
        self._through = max(0, self._through - 1)
        self._now = now
        if again:
            return
        idle = now - self._waited_at > _IDLE_SECONDS  # what there is to send is the bound
        rate, through = self.of(budget), self._through
        minute = self._minute.rate(now, -math.inf if idle else self._busy_since)
        if not through and minute:
            return  # it was on its way with the last one, or is the same trouble still
        self._through = 0
        most_through = max(minute, through)
        if now < self._unmoved_until:
            if most_through >= rate / 4 or now < self._unmoved_until - _UNMOVED_SECONDS + _MINUTE:
                return
            self._unmoved_until = now  # so it is the rate
        if self._before is not None:
            self._rate, self._before = self._before, None
            self._held = min(_HELD_LAST, self._held * 2)
            self._more_at = self._later(now)
            return
        best = self._minute.best(now)
        low = rate <= best * _OF_BEST and most_through >= rate / 2
        self._strange.append(low and through < _EARLY * _EXPECTED * max(rate, _SMALL))
        if sum(self._strange) >= _STRANGE:
            self._stay_unmoved(now, max(rate, best))
            return
        if self._more_at == math.inf:
            self._more_at = self._later(now)
        unhurried = idle and minute < rate / _FAR and (through >= _RARE or asked < _CHEAP)
        least = min(rate, max(_LEAST, budget * _LEAST_UNHURRIED if unhurried else 0.0))
        if most_through < rate / 2:
            self._too_much = max(minute, rate / 2)
            self._rate = max(least, rate / (4 if minute < rate / _FAR else 2))
        else:
            self._too_much = min(most_through, rate)
            cut = _LITTLE if low else _CUT
            self._rate = max(least, rate / 2, min(minute, rate) * cut)

    def _try_more(self) -> None:
        """Go up to half as much again; when so many go through in a minute, that is the rate."""
        if self._before is None:
            self._before = self._rate
        if self._rate < self._before * _MORE:
            self._rate = min(self._before * _MORE, self._rate * _BRISKLY)
        elif self._minute.count(self._now) >= self._before * _KEPT:
            self._before = self._too_much = self._rate
            self._held = _HELD_FIRST

    def _later(self, now: float) -> float:
        """Return when more is to be tried; not all who share a limit at the same time."""
        return now + self._held * (1 + self.chance())

    def _stay_unmoved(self, now: float, rate: float) -> None:
        """It is not our rate: use again what went through before, whatever comes, for a while."""
        self._forget()
        self._unmoved_until = now + _UNMOVED_SECONDS
        self._rate = self._most = rate
        self._strange.clear()

    def _forget(self) -> None:
        """Know of no limit but the budget."""
        self._rate = self._too_much = self._more_at = math.inf
        self._held, self._before = _HELD_FIRST, None
