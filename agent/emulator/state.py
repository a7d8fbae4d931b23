"""What the routes of one emulator share."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Request

from agent.clock import Clock, SystemClock
from agent.emulator.auth import READ, WRITE, Keyring, Token
from agent.emulator.faults import Dice, Faults
from agent.emulator.options import Options
from agent.emulator.ratelimit import RateLimit
from agent.emulator.store import Store

_FOR_EVER = 2**62


@dataclass(slots=True)
class Counts:
    """What happened since the start, to requests below /v1.

    Attributes:
        requests: all of them.
        by_status: how they were answered.
        broken: those whose connection was broken on purpose.
    """

    requests: int = 0
    by_status: Counter[int] = field(default_factory=Counter)
    broken: int = 0


class Emulator:
    """Options, clock, events, tokens, faults and counts of one emulator."""

    def __init__(self, options: Options, clock: Clock | None = None) -> None:
        self.options = options
        self.clock = clock or SystemClock()
        self.store = Store(options.data)
        self.keyring = Keyring(options.tokens)
        self.rate = RateLimit()
        self.dice = Dice()
        self.counts = Counts()
        self.customers = {str(customer.id): customer for customer in options.customers}

    def wall(self) -> float:
        """Return Unix time by the server's clock, which a fault can set ahead or back."""
        return self.clock.wall() + self.dice.faults.clock_offset_seconds

    def now(self) -> datetime:
        """Return the time by the server's clock."""
        return datetime.fromtimestamp(self.wall(), UTC)

    def stored_at(self) -> int:
        """Return when an event is stored, in microseconds since 1970; no fault moves this clock."""
        return int(self.clock.wall() * 1_000_000)

    def readable_until(self) -> int:
        """Return until when an event must have been stored to be read by now."""
        if not self.options.read_delay:
            return _FOR_EVER
        return self.stored_at() - int(self.options.read_delay * 1_000_000)

    def set_faults(self, faults: Faults) -> None:
        """Put these faults in force; the rate limit counts from here."""
        self.dice.set(faults)
        self.rate = RateLimit()

    def take_rate(self) -> bool:
        """Count a call against the organization's limit; False when it is over it."""
        limit = self.dice.faults.requests_per_minute or self.options.requests_per_minute
        return self.rate.take(self.clock.monotonic(), limit)


async def _emulator(request: Request) -> Emulator:
    emulator: Emulator = request.app.state.emulator
    return emulator


State = Annotated[Emulator, Depends(_emulator)]


async def _writer(request: Request, emulator: State) -> Token:
    token = emulator.keyring.find(request.headers.get("authorization"))
    token.require(WRITE)
    return token


async def _reader(request: Request, emulator: State) -> Token:
    token = emulator.keyring.find(request.headers.get("authorization"))
    token.require(WRITE, READ)
    return token


Writer = Annotated[Token, Depends(_writer)]
Reader = Annotated[Token, Depends(_reader)]
