"""The rate limit of an organization: a count in a window of a minute that the first call opens."""

from __future__ import annotations

WINDOW = 60.0


class RateLimit:
    """Counts calls; time comes in, so that tests need none."""

    def __init__(self) -> None:
        self._opened: float | None = None
        self._calls = 0

    def take(self, now: float, limit: int | None) -> bool:
        """Count one call at `now` (monotonic seconds); False when it is over `limit`."""
        if self._opened is None or now - self._opened >= WINDOW:
            self._opened = now
            self._calls = 0
        self._calls += 1
        return limit is None or self._calls <= limit
