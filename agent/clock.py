"""The only reader of time.

Wall time is Unix seconds (float), for stamps; monotonic time is seconds since
some unknown moment, for waiting. Everything else takes a `Clock`, so that tests
replace waiting by a fake one.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import threading


class Clock(Protocol):
    """What the rest of the agent knows of time."""

    def wall(self) -> float:
        """Return Unix time in seconds."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never run backwards."""
        ...

    def wait(self, event: threading.Event, seconds: float | None) -> bool:
        """Wait until `event` is set or `seconds` are over; True when it is set."""
        ...


class SystemClock:
    """The clock of this machine."""

    def wall(self) -> float:
        """Return Unix time in seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds that never run backwards."""
        return time.monotonic()

    def wait(self, event: threading.Event, seconds: float | None) -> bool:
        """Wait until `event` is set or `seconds` are over; True when it is set."""
        return event.wait(seconds)
