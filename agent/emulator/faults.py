"""What goes wrong on purpose: set by `PUT /_emulator/faults`, rolled for each ingest request."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_Share = Annotated[float, Field(ge=0, le=1)]
_Status = Annotated[int, Field(ge=200, le=599)]


class Faults(BaseModel):
    """The faults, all off by default; an unknown key is an error.

    Attributes:
        status: what the `share` of ingest requests gets instead of being served.
        share: which share that is; all of them unless said.
        retry_after: the `Retry-After` header of those, and of a 429 over the rate limit.
        latency_ms: how much later every request below /v1 is looked at.
        reset_share: share of ingest requests whose connection breaks before anything is stored.
        lose_answer_share: share of ingest requests that are stored, then the connection breaks.
        requests_per_minute: in place of the rate limit that the emulator was started with.
        clock_offset_seconds: how far its clock is ahead: `date`, stamps, what counts as future.
        poison_external_ids: a batch with one of them gets `poison_status`, and is not stored.
        poison_status: 500 unless said.
        max_events: a batch of more events gets 500; real servers fail at 4,682 metered ones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: _Status | None = None
    share: _Share = 1.0
    retry_after: Annotated[str | None, Field(coerce_numbers_to_str=True)] = None
    latency_ms: Annotated[float, Field(ge=0)] = 0
    reset_share: _Share = 0.0
    lose_answer_share: _Share = 0.0
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    clock_offset_seconds: float = 0.0
    poison_external_ids: frozenset[str] = frozenset()
    poison_status: _Status = 500
    max_events: Annotated[int, Field(ge=0)] | None = None


@dataclass(frozen=True, slots=True)
class Roll:
    """What happens to one ingest request.

    Attributes:
        reset: the connection breaks at once.
        status: it is answered with this, and not served.
        lose_answer: it is served, and the connection breaks in place of the answer.
    """

    reset: bool = False
    status: int | None = None
    lose_answer: bool = False


class Dice:
    """Rolls the faults in force.

    The same faults, set anew, give the same sequence of rolls.
    """

    def __init__(self) -> None:
        self.faults = Faults()
        self._random = random.Random(0)  # noqa: S311 - chance for tests, not for secrets

    def set(self, faults: Faults) -> None:
        """Put other faults in force."""
        self.faults = faults
        self._random = random.Random(0)  # noqa: S311

    def roll(self) -> Roll:
        """Decide what happens to the next ingest request."""
        reset, status, lose = (self._random.random() for _ in range(3))
        faults = self.faults
        return Roll(
            reset=reset < faults.reset_share,
            status=faults.status if status < faults.share else None,
            lose_answer=lose < faults.lose_answer_share,
        )
