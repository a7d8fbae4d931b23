"""A world in fast time: agents, the way to the server, and the server, under one fake clock.

An agent is the real pipeline with its queue on disk; the server is the real emulator's
application; between them are neither sockets nor waiting. `World.run` lets time pass until
everything has met its end, and `World.check` compares the books, and every single event that
the emulator has stored, with what was sent.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
import random
import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from agent.answer import Answer, NoAnswer, Outcome
from agent.emulator.app import create_app
from agent.emulator.auth import Token
from agent.emulator.faults import Faults
from agent.emulator.options import Options
from agent.emulator.state import Emulator
from agent.guard import Guard
from agent.pipeline import Pipeline
from agent.queue import Change
from agent.settings import Settings
from agent.writer import Append
from support.clock import FakeClock
from support.delivery import ByHand

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from agent.batch import Body
    from support.delivery import Request

_NUMBER = re.compile(r'"n": ?(\d+)')

TOKEN = "polar_oat_good"
DAY = 86_400.0


class LocalClock:
    """A machine's clock: it may be wrong, and be set."""

    def __init__(self, world: FakeClock, ahead: float) -> None:
        self._world = world
        self.ahead = ahead

    def wall(self) -> float:
        return self._world.wall() + self.ahead

    def monotonic(self) -> float:
        return self._world.monotonic()

    def elapsed(self) -> float:
        return self._world.elapsed()

    def wait(self, event: threading.Event, seconds: float | None) -> bool:
        return self._world.wait(event, seconds)


async def _at_once(function: Callable[..., Any], *args: Any, **_: Any) -> Any:
    """Call what the server would give to another thread: there is but one here."""
    return function(*args)


@dataclass
class Way:
    """What lies between the agents and the server, and answers in its place.

    Attributes:
        outcome: what comes back.
        share: of the requests that it happens to.
        stored: the server has served the request nevertheless.
        seconds: after so long.
    """

    outcome: Outcome
    share: float = 1.0
    stored: bool = False
    seconds: float = 0.0


class _Road:
    """The way of one agent's requests to the server, in place of the HTTP client."""

    def __init__(self, world: World, agent: Agent) -> None:
        self._world = world
        self._agent = agent
        self.took = 0.0
        """How long the last batch was under way, but for the latency."""

    def ingest(self, unmade: Body) -> Outcome:
        world, way, body = self._world, self._world.way, bytes(unmade)
        self.took = 0.0
        if way is None or world.chance.random() >= way.share:
            return world.call("POST", "/v1/events/ingest", self._agent.token, body)
        if way.stored:
            world.call("POST", "/v1/events/ingest", self._agent.token, body)
        self.took = way.seconds
        return way.outcome

    def forward(self, target: str) -> Outcome:
        return self._world.call("GET", target, self._agent.token)

    def close(self) -> None:
        pass


class Agent:
    """One agent with a directory of its own; it can be killed and started again."""

    def __init__(self, world: World, number: int, settings: dict[str, Any]) -> None:
        self._world = world
        self.clock = LocalClock(world.clock, 0.0)
        directory = world.directory / f"agent{number}"
        directory.mkdir()
        self.token_file = directory / "token"
        self.token_file.write_text(TOKEN)
        self._settings = Settings(
            queue_dir=directory / "queue",
            socket_path=directory / "agent.sock",
            access_token_file=self.token_file,
            base_url="http://127.0.0.1:1",
            disk_reserve_bytes=0,
            **{"requests_per_minute": 100_000, **settings},
        )
        self.life = 0
        self._start()

    def _start(self) -> None:
        self._road = _Road(self._world, self)
        self._pipeline = Pipeline(self._settings, self.clock)
        self.queue = self._pipeline.queue
        self._guard = Guard(
            self._road,
            known=lambda: self.queue.organization,
            remember=lambda organization: self.queue.commit(Change(organization=organization)) and None,
            token=self._pipeline.token.current,
            clock=self.clock,
        )
        self.flusher = self._pipeline.flusher
        self.flusher._pace.chance = self._world.chance.random
        self._requests = self.flusher._senders = ByHand(self.clock, self.flusher._wake)
        self.wait: float | None = 0.0
        self.server_clock = self._pipeline.server_clock

    def send(self, events: Iterable[dict[str, Any]]) -> None:
        """Take events as the collector does; all must be fine."""
        lines = b"\n".join(json.dumps(event).encode() for event in events)
        checked = self._pipeline.checker.check([lines], self.server_clock.now())
        assert not checked.refused, checked.fates
        self._pipeline.writer.append(Append(checked.groups, checked.held, 0, 0, lambda _: None))
        self._pipeline.writer.step()

    def smuggle(self, *lines: bytes) -> None:
        """Take lines without any check."""
        self._pipeline.writer.append(Append([(b"\n".join(lines), len(lines))], [], 0, 0, lambda _: None))
        self._pipeline.writer.step()

    def step(self) -> list[Request]:
        """Let it do what it can; return the requests that this brought."""
        self.wait = self.flusher.step()
        self._pipeline.writer.step()
        return self._requests.taken()

    def serve(self, request: Request) -> tuple[Outcome, float]:
        """Let a request go its way; return what comes back, and after how many seconds."""
        return self._guard.ingest(request.unmade), self._road.took

    def answer(self, request: Request, outcome: Outcome) -> None:
        """Let an answer come in."""
        self._requests.answer(request, outcome)

    @property
    def oldest_age(self) -> float:
        """How long its oldest event has waited, seconds."""
        return self._pipeline.oldest_age() or 0.0

    @property
    def token(self) -> str | None:
        return self._pipeline.token.current()

    def kill(self) -> None:
        """End it without any goodbye: what is not committed is gone."""
        self.life += 1
        self.queue.close()
        self._pipeline._lock.release()

    def restart(self) -> None:
        self.kill()
        self._start()


@dataclass
class World:
    """Everything, and what was sent.

    Attributes:
        directory: for the queues.
        seed: of all chance.
        latency: seconds that each answer takes.
        way: what happens to requests on their way, while set.
        dead: numbers of the events that the server is to refuse for good.
        requests: the size of each request that was made, with its answer.
    """

    directory: Path
    agents: int = 1
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    latency: float = 0.05
    way: Way | None = None
    dead: set[int] = field(default_factory=set)
    requests: list[tuple[float, Agent, int, Outcome]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = FakeClock()
        self.chance = random.Random(self.seed)
        self.emulator = Emulator(
            Options(tokens=(Token(TOKEN), Token("other"), Token("mute", frozenset()))), self.clock
        )
        self._app = create_app(self.emulator)
        self._loop = asyncio.Runner()
        self.sent: dict[int, dict[str, Any]] = {}
        self.made: dict[int, float] = {}
        self.all = [Agent(self, number, self.settings) for number in range(self.agents)]
        self._order = itertools.count()
        self._coming: list[tuple[float, int, Agent, int, Request, Outcome]] = []
        self._steps: list[tuple[float, int, Callable[[World], None]]] = []

    def close(self) -> None:
        for agent in self.all:
            agent.kill()
        self._loop.close()
        self.emulator.store.close()

    # -- what happens --------------------------------------------------------------------

    def at(self, seconds: float, *steps: Callable[[World], None]) -> None:
        """Do something at a time of the world, seconds from its beginning."""
        for step in steps:
            heapq.heappush(self._steps, (1000.0 + seconds, next(self._order), step))

    def make(self, count: int, agent: int = 0, **fields: Any) -> None:
        """Have events sent to an agent: of many kinds, each with a number of its own in its metadata."""
        now = self.clock.wall()
        events = []
        for number in range(len(self.sent), len(self.sent) + count):
            event: dict[str, Any] = {
                "name": f"usage{number % 3}",
                "external_customer_id": f"cus_{number % 7}",
            }
            if number % 11 != 3:
                event["external_id"] = f"e{number}"
            if number % 13 == 5:
                event["timestamp"] = now - 3600 - number
            event["metadata"] = {"n": number, "cost": 0.1 + number, "model": "m" * (number % 40 + 1)}
            event.update(fields)
            self.sent[number] = event
            self.made[number] = now
            events.append(event)
        self.all[agent].send(events)

    def smuggle(self, line: bytes, agent: int = 0) -> None:
        """Have an event taken that our own check would refuse; the server must refuse it for good.

        Args:
            line: with NUMBER where its number belongs.
            agent: who takes it.
        """
        number = len(self.sent)
        self.sent[number] = {}
        self.dead.add(number)
        self.all[agent].smuggle(line.replace(b"NUMBER", str(number).encode()))

    def faults(self, **faults: Any) -> None:
        self.emulator.set_faults(Faults(**faults))

    def poison(self, *numbers: int, status: int = 500, **faults: Any) -> None:
        """Have the server fail on these events; they must end as dead letters."""
        self.dead |= set(numbers)
        assert all(number % 11 != 3 for number in numbers), "an event without an id of its own"
        ids = [f"e{number}" for number in numbers]
        self.faults(poison_external_ids=ids, poison_status=status, **faults)

    # -- the run -------------------------------------------------------------------------

    def run(self, *, seconds: float = 7 * DAY, requests: int = 20_000) -> None:
        """Let time pass until nothing is pending and nothing will happen any more."""
        end = self.clock.monotonic() + seconds
        while True:
            now = self.clock.monotonic()
            while self._steps and self._steps[0][0] <= now:
                heapq.heappop(self._steps)[2](self)
            for agent in self.all:
                for request in agent.step():
                    self._arrive(agent, request)
            assert len(self.requests) <= requests, "too many requests"
            if self._deliver(now):
                continue
            pending = sum(agent.queue.books().pending for agent in self.all)
            if not self._steps and not self._coming and not pending:
                return
            moments = [now + agent.wait for agent in self.all if agent.wait is not None]
            moments += [self._coming[0][0]] if self._coming else []
            moments += [self._steps[0][0]] if self._steps else []
            assert moments, f"{pending} events are pending, and all sleep for ever"
            assert now < end, f"{pending} events are pending after {seconds} s"
            self.clock.advance(max(min(moments) - now, 0.001))

    def _arrive(self, agent: Agent, request: Request) -> None:
        """Serve a request; its answer comes later."""
        outcome, took = agent.serve(request)
        now = self.clock.monotonic()
        self.requests.append((now, agent, request.body.count(b'"external_customer_id"'), outcome))
        item = (now + took + self.latency, next(self._order), agent, agent.life, request, outcome)
        heapq.heappush(self._coming, item)

    def _deliver(self, now: float) -> bool:
        """Let the answers come in whose time it is."""
        came = False
        while self._coming and self._coming[0][0] <= now:
            _, _, agent, life, request, outcome = heapq.heappop(self._coming)
            if agent.life == life:
                agent.answer(request, outcome)
                came = True
        return came

    def call(self, method: str, target: str, token: str | None, body: bytes = b"") -> Outcome:
        """Give a request to the emulator's application."""
        if token is None:
            return NoAnswer("token", "there is no access token to send")
        headers = {"authorization": f"Bearer {token}", "polar-version": "2026-04"}
        if body:
            headers |= {"content-type": "application/json", "content-length": str(len(body))}
        path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "http_version": "1.1",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        incoming = iter([{"type": "http.request", "body": body, "more_body": False}])
        outgoing: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return next(incoming, {"type": "http.disconnect"})

        async def send(message: dict[str, Any]) -> None:
            outgoing.append(message)

        with patch("anyio.to_thread.run_sync", _at_once):
            self._loop.run(self._app(scope, receive, send))
        if not outgoing:
            return NoAnswer("broken", "the connection broke: reset")
        answered = {name.decode(): value.decode() for name, value in outgoing[0]["headers"]}
        return Answer(
            outgoing[0]["status"],
            b"".join(message.get("body", b"") for message in outgoing[1:]),
            answered.get("retry-after"),
            parsedate_to_datetime(answered["date"]).timestamp() if "date" in answered else None,
            answered.get("location"),
        )

    # -- the end -------------------------------------------------------------------------

    def stored(self) -> dict[int, dict[str, Any]]:
        """Return what the emulator has stored, by number; nothing may be there twice."""
        result: dict[int, dict[str, Any]] = {}
        for page in self.emulator.store.sent():
            for _, _, text in page:
                event = json.loads(text)
                number = event["metadata"]["n"]
                assert number not in result, f"event {number} was billed twice"
                result[number] = event
        return result

    def check(self) -> None:
        """Compare books, events and dead letters with what was sent."""
        stored = self.stored()
        letters = [letter for agent in self.all for letter in agent.queue.dead_letters()]
        dead = [int(_NUMBER.findall(letter.event)[-1]) for letter in letters]
        assert sorted(dead) == sorted(self.dead)
        assert set(stored) == set(self.sent) - self.dead
        for number, event in stored.items():
            sent = self.sent[number]
            assert {key: event[key] for key in sent} == sent
            assert event.keys() - sent.keys() <= {"external_id", "timestamp"}
        books = [agent.queue.books() for agent in self.all]
        assert sum(one.accepted for one in books) == len(self.sent)
        assert sum(one.dead for one in books) == len(self.dead)
        assert sum(one.delivered + one.duplicates for one in books) == len(stored)
        assert [(one.pending, one.dropped) for one in books] == [(0, 0)] * len(books)

    def off(self) -> dict[int, float]:
        """Return how far each stamp of ours is from the true time, in order of storing."""
        return {
            number: datetime.fromisoformat(event["timestamp"]).timestamp() - self.made[number]
            for number, event in self.stored().items()
            if "timestamp" not in self.sent[number]
        }

    def statuses(self) -> Counter[int]:
        """Return how many requests got which answer; 0 for none."""
        return Counter(
            outcome.status if isinstance(outcome, Answer) else 0 for _, _, _, outcome in self.requests
        )
