"""Who wants everything delivered now: `agent flush`, and a daemon that stops.

Whoever asks may know more than we do: the server is back, the token was mended. So each
demand is worth one try, and what stands in the way is believed again only after it.
"""

from __future__ import annotations

import threading


class Haste:
    """The demands; `begin` and `end` are for any thread, the rest for the flusher's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = 0
        self._newest = 0
        self._taken_up = 0
        self.tried = 0
        """The newest demand that had its try, or that can have none."""

    @property
    def urgent(self) -> bool:
        """True while anybody waits: nothing is gathered then."""
        return self._open > 0

    def begin(self) -> int:
        """Demand it; return the number of this demand."""
        with self._lock:
            self._open += 1
            self._newest += 1
            return self._newest

    def end(self) -> None:
        """Wait for it no longer."""
        with self._lock:
            self._open -= 1

    def news(self) -> bool:
        """Take up new demands; tell whether there are any."""
        newest = self._newest
        news = newest != self._taken_up
        self._taken_up = newest
        return news

    def done(self) -> None:
        """Note that what was taken up had its try."""
        self.tried = self._taken_up
