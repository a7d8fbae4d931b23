"""Requests that others make with the agent's token, inside its rate budget.

Who reads back asks for a place; the flusher's thread, which alone keeps the budget,
gives places out. While events wait, guests and batches take turns: reading must not keep
what is to be billed from leaving.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.clock import Clock
    from agent.pace import Pace

_MOST_WAITING = 256


class Guests:
    """Those who wait for a place.

    Args:
        clock: for waiting.
        wake: set when somebody asks.
    """

    def __init__(self, clock: Clock, wake: threading.Event) -> None:
        self._clock = clock
        self._wake = wake
        self._waiting: deque[threading.Event] = deque()
        self._served_at = -1  # how many requests of our own had gone out when the last guest was served

    def __bool__(self) -> bool:
        """Tell whether anybody waits."""
        return bool(self._waiting)

    def ask(self, seconds: float) -> bool:
        """Wait for a place; from any thread. False when there is none in time."""
        if len(self._waiting) >= _MOST_WAITING:
            return False
        place = threading.Event()
        self._waiting.append(place)
        self._wake.set()
        if self._clock.wait(place, seconds):
            return True
        try:
            self._waiting.remove(place)
        except ValueError:
            return True  # it was given at the last moment, and counts as used
        return False

    def serve(self, pace: Pace, now: float, sent: int, *, waits: bool) -> float | None:
        """Give out the places that there are; in the flusher's thread.

        Args:
            pace: the budget.
            now: monotonic seconds.
            sent: how many requests of our own have gone out so far.
            waits: events wait to be sent.

        Returns:
            The seconds until there may be another place; None when nobody waits for one.
        """
        while self._waiting:
            wait = pace.wait_for_guest(now)
            if wait > 0:
                return wait
            if waits and pace.scarce and not pace.probing and self._served_at == sent:
                return None  # it is a batch's turn; when that is gone, this is asked again
            try:
                place = self._waiting.popleft()
            except IndexError:
                break  # who waited has just given up
            pace.take(now)
            self._served_at = sent
            place.set()
        return None
