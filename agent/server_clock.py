"""What the time is at Polar, learned from the `Date` headers of its answers.

Polar refuses a timestamp that is ahead of its own clock, if only by a millisecond, so
our clock being wrong must not matter. A `Date` header is cut to the second, so each
answer gives an interval; their intersection becomes narrow. Within it, our own clock
is believed; outside, its beginning is, so that a clock that is wrong makes no stamps that
are ahead. All is kept against elapsed time: a local clock that is set does no harm, nor does a sleep.

Before the first answer, the time is a guess: what is stamped by it is corrected later, see
`agent.guess`. It goes by our clock as it stood at the start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.guess import Guess

if TYPE_CHECKING:
    from agent.clock import Clock

MOST_LEAD = 3600.0


class ServerClock:
    """The server's wall clock as far as it is known; any thread may ask."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ours = clock.wall() - clock.elapsed()
        self._bounds: tuple[float, float] | None = None  # of server time minus elapsed time

    def now(self) -> float:
        """Return Unix time in seconds by the server's clock; before any answer came, a guess by ours."""
        wall, bounds = self._clock.wall(), self._bounds
        elapsed = self._clock.elapsed()
        if bounds is None:
            return Guess(wall, elapsed + self._ours)
        ours = wall - elapsed
        return elapsed + (ours if bounds[0] <= ours <= bounds[1] else bounds[0])

    @property
    def offset(self) -> float:
        """How far the server is ahead of us, seconds."""
        return self.now() - self._clock.wall()

    @property
    def correction(self) -> float | None:
        """What to add to a stamp that was guessed, seconds; None while the server's time is not known."""
        bounds = self._bounds
        if bounds is None:
            return None
        return 0.0 if bounds[0] <= self._ours <= bounds[1] else bounds[0] - self._ours

    @property
    def lead(self) -> float:
        """How far programs here may be ahead of the server because our clock is, seconds; an hour at most.

        A clock that is more than that ahead is plainly wrong, and so is what is stamped by it.
        """
        return min(max(0.0, -self.offset), MOST_LEAD)

    def learn(self, server_time: float, sent_at: float, answered_at: float) -> None:
        """Take one answer into account.

        Args:
            server_time: its `Date` header, Unix seconds.
            sent_at: when the request went out, monotonic seconds.
            answered_at: when the answer was there.
        """
        asleep = self._clock.elapsed() - self._clock.monotonic()
        low, high = server_time - (answered_at + asleep), server_time + 1 - (sent_at + asleep)
        known = self._bounds
        if known is not None:
            both = (max(low, known[0]), min(high, known[1]))
            if both[0] <= both[1]:
                self._bounds = both
                return
            # One of the clocks was set, or they drifted apart: what was known is no longer true.
        self._bounds = (low, high)
