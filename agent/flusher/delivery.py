"""How delivery stands, for whoever asks. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.pace import Pace


@dataclass(frozen=True, slots=True)
class Delivery:
    """How delivery stands, for status; one immutable picture.

    Attributes:
        state: idle, sending, retrying, throttled or blocked.
        last_error: the last trouble, while it lasts or until something was delivered since.
        last_success: when Polar last took a batch, Unix seconds.
        next_attempt_in: seconds until the next request, while one is waited for.
        held: chunks and events that wait for their own time.
        requests: requests made so far.
    """

    state: str = "idle"
    last_error: str | None = None
    last_success: float | None = None
    next_attempt_in: float | None = None
    held: int = 0
    requests: int = 0


def state_of(pace: Pace, in_flight: int) -> str:
    """Return the word for how delivery stands."""
    if pace.held:
        return "blocked"
    if pace.throttled:
        return "throttled"
    if pace.failures:
        return "retrying"
    return "sending" if in_flight else "idle"
