"""A clock that stands still until a test moves it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import threading

NOON = 1_795_435_200.0
"""2026-11-23T12:00:00Z, when most tests take place."""


class FakeClock:
    """`agent.clock.Clock` without waiting: a wait moves it, and is over at once."""

    def __init__(self, wall: float = NOON, monotonic: float = 1_000.0) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._slept = 0.0

    def wall(self) -> float:
        return self._wall

    def monotonic(self) -> float:
        return self._monotonic

    def elapsed(self) -> float:
        return self._monotonic + self._slept

    def wait(self, event: threading.Event, seconds: float | None) -> bool:
        if not event.is_set() and seconds is not None:
            self.advance(seconds)
        return event.is_set()

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._wall += seconds
        self._monotonic += seconds

    def sleep(self, seconds: float) -> None:
        """Suspend the machine; its monotonic time stands still."""
        self._wall += seconds
        self._slept += seconds

    def set_wall(self, wall: float) -> None:
        """Set the wall clock, as an operator or NTP does; monotonic time takes no notice."""
        self._wall = wall
