"""The only reader of time.

Wall time is Unix seconds (float), for stamps; monotonic time is seconds since
some unknown moment, for waiting; elapsed time is the same with the time in it that the
machine has slept, for keeping track of another clock. Everything else takes a `Clock`, so that tests
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

    def elapsed(self) -> float:
        """Return seconds that never run backwards, and go on while the machine is suspended."""
        ...

    def wait(self, event: threading.Event, seconds: float | None) -> bool:
        """Wait until `event` is set or `seconds` are over; True when it is set."""
        ...


_ELAPSED = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class SystemClock:
    """The clock of this machine."""

    def wall(self) -> float:
        """Return Unix time in seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds that never run backwards."""
        return time.monotonic()

    def elapsed(self) -> float:
        """Return seconds that never run backwards, and go on while the machine is suspended."""
        return time.clock_gettime(_ELAPSED)

    def wait(self, event: threading.Event, seconds: float | None) -> bool:
        """Wait until `event` is set or `seconds` are over; True when it is set."""
        return event.wait(seconds)
