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
        since: when the state became what it is, Unix seconds; sending and idle count as one.
        batch_events: the most events that a request has now.
        tried: the newest demand for haste that had its try; see `Flusher.hurry`.
    """

    state: str = "idle"
    last_error: str | None = None
    last_success: float | None = None
    next_attempt_in: float | None = None
    held: int = 0
    requests: int = 0
    since: float | None = None
    batch_events: int | None = None
    tried: int = 0


WELL = ("idle", "sending")
"""Nothing is wrong."""


def since(before: Delivery, state: str, now: float) -> float:
    """Return since when delivery stands as it does.

    Args:
        before: how it stood until now.
        state: the word for how it stands.
        now: Unix seconds.
    """
    same = state == before.state or (state in WELL and before.state in WELL)
    return before.since if same and before.since is not None else now


def state_of(pace: Pace, in_flight: int) -> str:
    """Return the word for how delivery stands."""
    if pace.held:
        return "blocked"
    if pace.throttled:
        return "throttled"
    if pace.failures:
        return "retrying"
    return "sending" if in_flight else "idle"
