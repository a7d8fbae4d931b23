"""When to tell of a trouble that comes and goes: once, and of its end once that has lasted."""

from __future__ import annotations

_QUIET_SECONDS = 10.0


class Notice:
    """Keeps account of what was told of one kind of trouble."""

    def __init__(self) -> None:
        self.told = False
        """It was told, and its end was not."""
        self._well_since: float | None = None

    def wrong(self) -> bool:
        """Note that the trouble is there; True when that is to be told."""
        news = not self.told
        self.told = True
        self._well_since = None
        return news

    def well(self, now: float) -> bool:
        """Note that it is not there; True when that is to be told.

        Args:
            now: by the monotonic clock, seconds.
        """
        if not self.told:
            return False
        if self._well_since is None:
            self._well_since = now
        if now - self._well_since < _QUIET_SECONDS:
            return False
        self.told = False
        return True
