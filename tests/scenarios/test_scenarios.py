"""What goes wrong on the way to Polar, a few lines each, and random mixtures of it from a seed.

Each scenario arranges faults and lets events come; then time passes until everything has
met its end, and the books and every event that the server has stored are compared with what
was sent (`support.world`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import pytest
from support.clock import NOON
from support.world import TOKEN, Way, World

from agent.answer import Answer, NoAnswer

if TYPE_CHECKING:
    from pathlib import Path

HTML = b"<html><body>Welcome to the airport's network</body></html>"
BROKEN = NoAnswer("broken", "the connection broke: reset")
TIMEOUT = NoAnswer("timeout", "no complete answer within 60 s")

Play = Callable[[World], None]
SCENARIOS: dict[str, tuple[Play, dict[str, Any]]] = {}


def scenario(name: str, **world: Any) -> Callable[[Play], Play]:
    """Register a scenario; its world is made with these fields."""

    def register(play: Play) -> Play:
        assert name not in SCENARIOS
        SCENARIOS[name] = (play, world)
        return play

    return register


# -- steps -------------------------------------------------------------------------------


def events(count: int, agent: int = 0, **fields: Any) -> Play:
    return lambda world: world.make(count, agent, **fields)


def faults(**faults: Any) -> Play:
    return lambda world: world.faults(**faults)


def way(*args: Any, **fields: Any) -> Play:
    def set_way(world: World) -> None:
        world.way = Way(*args, **fields)

    return set_way


def calm(world: World) -> None:
    world.way = None
    world.faults()


def restart(agent: int = 0) -> Play:
    return lambda world: world.all[agent].restart()


def token(text: str, agent: int = 0) -> Play:
    return lambda world: world.all[agent].token_file.write_text(text) and None


def clock(ahead: float, agent: int = 0) -> Play:
    def set_clock(world: World) -> None:
        world.all[agent].clock.ahead = ahead

    return set_clock


def stream(world: World, *, seconds: int = 60, count: int = 20, agent: int = 0, every: int = 1) -> None:
    """Let events come, some each second."""
    for second in range(0, seconds, every):
        world.at(second, events(count, agent))


# -- nothing wrong -----------------------------------------------------------------------


@scenario("nothing goes wrong")
def _(world: World) -> None:
    stream(world)


@scenario("nothing goes wrong with a backlog of many sizes of chunks")
def _(world: World) -> None:
    for count in (1, 2, 700, 1, 1000, 1000, 30, 999, 5):
        world.make(count)


@scenario("the same agent comes and goes", settings={"max_batch_events": 50})
def _(world: World) -> None:
    stream(world)
    for second in range(3, 60, 7):
        world.at(second + 0.03, restart())


# -- an answer to everything, for a while ------------------------------------------------

ANSWERS: dict[str, Any] = {
    **{f"a {status}": Answer(status) for status in (500, 502, 503, 504, 507, 599, 408, 425)},
    **{f"a {status}": Answer(status) for status in (401, 403, 404, 405, 406, 410, 411, 418, 451)},
    **{f"a {status}": Answer(status, b"{}") for status in (100, 103, 201, 202, 204, 206, 304)},
    "a redirect": Answer(307, location="https://elsewhere.example/"),
    "a redirect for ever": Answer(301, location="/v1/events/ingest"),
    "a 400": Answer(400, b'{"detail":"There was an error parsing the body"}'),
    "a 413": Answer(413, b'{"error":"RequestBodyTooLarge"}'),
    "a 422 about the body": Answer(422, b'{"detail":[{"loc":["body"],"type":"missing","msg":"no"}]}'),
    "a 422 that is no JSON": Answer(422, HTML),
    "a 422 about an event that was not sent": Answer(
        422, b'{"detail":[{"loc":["body","events",99999,"name"],"type":"missing","msg":"no"}]}'
    ),
    "a 429": Answer(429),
    "a 429 with seconds": Answer(429, retry_after="7"),
    "a 429 with a date": Answer(429, retry_after=formatdate(NOON + 90, usegmt=True)),
    "a 429 with a date that has passed": Answer(429, retry_after=formatdate(NOON - 90, usegmt=True)),
    "a 429 with a huge number": Answer(429, retry_after="9" * 400),
    "a 429 with a year": Answer(429, retry_after="31536000"),
    "a 429 with a negative number": Answer(429, retry_after="-5"),
    "a 429 with garbage": Answer(429, retry_after="soon"),
    "a 503 with infinity": Answer(503, retry_after="inf"),
    "a 503 with no number": Answer(503, retry_after="nan"),
    "a 200 in HTML": Answer(200, HTML),
    "a 200 that is empty": Answer(200, b""),
    "a 200 without the sums": Answer(200, b"{}"),
    "a 200 with sums of another kind": Answer(200, b'{"inserted":"3","duplicates":true}'),
    "a 200 with a deep body": Answer(200, b"[" * 100_000),
    "no connection": NoAnswer("connect", "connection refused"),
    "no such host": NoAnswer("dns", "name or service not known"),
    "no certificate": NoAnswer("tls", "its certificate cannot be trusted"),
    "a reset": BROKEN,
    "an endless body": NoAnswer("too_large", "the answer is larger than 8 MiB"),
}


def _for_a_while(answer: Any, *, stored: bool) -> Play:
    def play(world: World) -> None:
        world.make(60)
        world.at(1, way(answer, stored=stored))
        world.at(2, events(700))
        world.at(5, events(40))
        world.at(100, calm)

    return play


for _name, _answer in ANSWERS.items():
    scenario(f"{_name} to everything")(_for_a_while(_answer, stored=False))
    if not isinstance(_answer, Answer) or _answer.status not in (200, 400, 413, 422):
        scenario(f"{_name} to what was stored")(_for_a_while(_answer, stored=True))


@scenario("everything is stored and not answered in time")
def _(world: World) -> None:
    world.make(3000)
    world.way = Way(TIMEOUT, stored=True, seconds=60)
    world.at(400, calm)


@scenario("nothing is answered in time")
def _(world: World) -> None:
    world.make(3000)
    world.way = Way(TIMEOUT, seconds=60)
    world.at(400, calm)


@scenario("answers take a byte a second", latency=50)
def _(world: World) -> None:
    world.make(5000)


@scenario("the sums are wrong once")
def _(world: World) -> None:
    world.make(400)
    world.way = Way(Answer(200, b'{"inserted":1,"duplicates":0}'), stored=True)
    world.at(2.02, calm)


# -- poison ------------------------------------------------------------------------------

for _status in (500, 400, 422):

    @scenario(f"one event of many is answered with {_status}")
    def _(world: World, status: int = _status) -> None:
        world.poison(777, status=status)
        stream(world, seconds=40, count=50)

    @scenario(f"some events are answered with {_status}, several in one batch")
    def _(world: World, status: int = _status) -> None:
        world.poison(0, 1, 499, 500, 501, 1200, 1201, 1999, status=status)
        for _ in range(2):
            world.make(1000)
        world.at(60, events(600))
        world.at(120, events(600))

    @scenario(f"an event is answered with {_status} and the agent restarts in the middle")
    def _(world: World, status: int = _status) -> None:
        world.poison(210, status=status)
        stream(world, seconds=60, count=50)
        for moment in (0.5, 2.4, 4.1, 6.2, 9.0):
            world.at(moment, restart())


@scenario("an event is too large for a proxy")
def _(world: World) -> None:
    world.poison(20, status=413)
    stream(world, seconds=5)


@scenario("poison while the server fails at random")
def _(world: World) -> None:
    world.poison(100, 900, status=500, reset_share=0.1, lose_answer_share=0.1)
    stream(world, seconds=120, count=30)


@scenario("a customer that does not exist is named")
def _(world: World) -> None:
    world.make(200)
    world.dead |= {200}
    world.make(1, customer_id="0b9a4e6c-3d3e-4a36-9e4c-1d1f5f6a7b8c", external_customer_id=None)
    del world.sent[200]["external_customer_id"]
    world.make(200)


def _long_id(seed: int) -> bytes:
    """Return an id that does not fit into an index of the database: long, and hard to compress."""
    return random.Random(seed).randbytes(2000).hex().encode()


POISON = {
    "NaN": b'"x":NaN',
    "an infinite number": b'"x":Infinity',
    "a number that overflows": b'"x":1e400',
    "half a surrogate pair": b'"x":"\\ud800"',
    "a NUL": b'"x":"\\u0000"',
    "an integer without end": b'"x":' + b"9" * 5000,
    "bytes that are no text": b'"x":"\xff\xfe"',
    "a nest": b'"x":' + b"[" * 3000 + b"]" * 3000,
    "an empty text": b'"x":""',
}

for _kind, _value in POISON.items():

    @scenario(f"{_kind} passed our check")
    def _(world: World, value: bytes = _value) -> None:
        world.make(300)
        world.smuggle(
            b'{"name":"u","external_customer_id":"c","external_id":"p","metadata":{%b,"n":NUMBER}}' % value
        )
        world.make(300)
        world.at(100, events(100))


@scenario("ids that are too long for an index passed our check")
def _(world: World) -> None:
    for seed, key in enumerate((b"external_id", b"parent_id")):
        world.make(200)
        world.smuggle(
            b'{"name":"u","external_customer_id":"c","%b":"%b","metadata":{"n":NUMBER}}'
            % (key, _long_id(seed))
        )
    world.make(200)
    world.smuggle(
        b'{"name":"u","external_customer_id":"%b","external_id":"p","metadata":{"n":NUMBER}}' % _long_id(7)
    )
    world.at(100, events(100))


@scenario("a moment before the first year passed our check")
def _(world: World) -> None:
    world.make(300)
    world.smuggle(
        b'{"name":"u","external_customer_id":"c","external_id":"p",'
        b'"timestamp":"0001-01-01T00:00:00+14:00","metadata":{"n":NUMBER}}'
    )
    world.at(100, events(100))


# -- size --------------------------------------------------------------------------------

for _most in (1, 7, 300, 1500):

    @scenario(f"the server fails on more than {_most} events")
    def _(world: World, most: int = _most) -> None:
        world.faults(max_events=most)
        for _ in range(3):
            world.make(min(1000, most * 20))


@scenario("the server begins to fail on what it took before")
def _(world: World) -> None:
    for _ in range(6):
        world.make(1000)
    world.at(1, faults(max_events=200))
    for second in range(2, 8):
        world.at(second, events(1000))


# -- losses by chance --------------------------------------------------------------------

for _share in (0.1, 0.3, 0.6):
    scenario(f"{_share:.0%} of the connections break")(
        lambda world, share=_share: (world.faults(reset_share=share), stream(world))[1]
    )
    scenario(f"{_share:.0%} of the answers are lost")(
        lambda world, share=_share: (world.faults(lose_answer_share=share), stream(world))[1]
    )
    scenario(f"{_share:.0%} are answered with 500")(
        lambda world, share=_share: (world.faults(status=500, share=share), stream(world))[1]
    )
    scenario(f"{_share:.0%} are answered with 503")(
        lambda world, share=_share: (world.faults(status=503, share=share), stream(world))[1]
    )


@scenario("all kinds of errors at once, and the agent restarts")
def _(world: World) -> None:
    world.faults(status=500, share=0.15, reset_share=0.1, lose_answer_share=0.1)
    world.way = Way(Answer(429, retry_after="1"), share=0.1)
    stream(world)
    for second in range(5, 60, 9):
        world.at(second + 0.51, restart())


# -- rate --------------------------------------------------------------------------------


@scenario("one agent within a small limit", settings={"requests_per_minute": 36})
def _(world: World) -> None:
    world.faults(requests_per_minute=60)
    stream(world, seconds=300, count=40, every=4)


@scenario("one agent that believes in a limit ten times too high", settings={"requests_per_minute": 300})
def _(world: World) -> None:
    world.faults(requests_per_minute=30, retry_after=None)
    stream(world, seconds=120, count=100, every=3)


# -- clocks ------------------------------------------------------------------------------

for _words, _ahead in {"ahead": 300, "behind": -300, "a day ahead": 86400, "a bit ahead": 0.4}.items():

    @scenario(f"the local clock is {_words}")
    def _(world: World, ahead: float = _ahead) -> None:
        world.all[0].clock.ahead = ahead
        stream(world, seconds=30)
        world.at(15, restart())

    @scenario(f"the local clock jumps {_words} and back")
    def _(world: World, ahead: float = _ahead) -> None:
        stream(world, seconds=60)
        world.at(20.5, clock(ahead))
        world.at(40.5, clock(0))


def stamped_here(count: int) -> Play:
    """Return the step that makes events with the time of the agent's machine, as its programs stamp them."""
    return lambda world: world.make(count, timestamp=world.all[0].clock.wall())


for _words, _ahead in {"ahead": 300, "behind": -300, "an hour ahead": 3599}.items():

    @scenario(f"the local clock is {_words}, and programs stamp by it")
    def _(world: World, ahead: float = _ahead) -> None:
        world.all[0].clock.ahead = ahead
        for second in range(1, 30):
            world.at(second, stamped_here(20), events(5))
        world.at(15, restart())


@scenario("the server's clock goes back")
def _(world: World) -> None:
    stream(world, seconds=60)
    world.at(20.5, faults(clock_offset_seconds=-30))
    world.at(40.5, calm)


@scenario("events that are due later hold no others up")
def _(world: World) -> None:
    world.make(50, timestamp=NOON + 30)
    stream(world, seconds=20)
    world.at(40, events(50, timestamp=NOON + 75))


# -- token -------------------------------------------------------------------------------


@scenario("the token is wrong, then mended")
def _(world: World) -> None:
    token("wrong")(world)
    world.make(1000)
    world.at(120, token(TOKEN))


@scenario("the token is rotated, and the old one ends later")
def _(world: World) -> None:
    stream(world, seconds=60)
    world.at(20.3, token("other"))


@scenario("the token may not write, then another may")
def _(world: World) -> None:
    token("mute")(world)
    stream(world, seconds=20)
    world.at(50, token("other"))


@scenario("the token file is empty for a while")
def _(world: World) -> None:
    stream(world, seconds=60)
    world.at(10, lambda world: world.all[0].token_file.write_text(""))
    world.at(30, token(TOKEN))


@scenario("the token file is gone for a while")
def _(world: World) -> None:
    stream(world, seconds=60)
    world.at(10, lambda world: world.all[0].token_file.unlink())
    world.at(30, token(TOKEN))


# -- several agents ----------------------------------------------------------------------


@scenario("several agents, and the server is down for a while", agents=3)
def _(world: World) -> None:
    for agent in range(3):
        stream(world, agent=agent, seconds=30)
    world.at(5, faults(status=503))
    world.at(25, calm)


@scenario("several agents, one of them restarts all the time", agents=2)
def _(world: World) -> None:
    world.faults(lose_answer_share=0.2)
    for agent in range(2):
        stream(world, agent=agent, seconds=30)
    for second in range(30):
        world.at(second + 0.52, restart())


@pytest.mark.parametrize("name", SCENARIOS)
def test_everything_arrives_once_when(name: str, tmp_path: Path) -> None:
    play, fields = SCENARIOS[name]
    world = World(tmp_path, **fields)
    try:
        play(world)
        world.run()
        world.check()
    finally:
        world.close()


@pytest.mark.parametrize(
    ("agents", "limit", "believed"),
    [(3, 20, 12), (2, 10, 6), (1, 20, 300), (3, 20, 300)],
    ids=["three", "two of a restricted one", "one that believes too much", "three that believe too much"],
)
def test_agents_of_one_organization_share_its_limit(
    agents: int, limit: int, believed: int, tmp_path: Path
) -> None:
    """Each wants more than its part, always; in steady state nobody starves, and few requests are in vain."""
    settings = {"requests_per_minute": believed, "flush_interval": 0.1}
    world = World(tmp_path, agents, settings=settings)
    oldest: list[float] = []

    def look(world: World) -> None:
        oldest.extend(agent.oldest_age for agent in world.all)

    try:
        world.faults(requests_per_minute=limit)
        for agent in range(agents):
            stream(world, agent=agent, seconds=1200, count=5, every=2 if agents == 1 else 4)
        for second in range(400, 1200, 20):
            world.at(second, look)
        world.run()
        world.check()
    finally:
        world.close()

    steady = [request for request in world.requests if 400 < request[0] - 1000 < 1200]
    refused = [request for request in steady if request[3].status == 429]
    assert len(refused) < len(steady) / 20
    assert len(steady) > 0.5 * limit * 800 / 60, "most of the limit is used"
    assert max(oldest) < 180


def test_duplicates_of_what_a_run_before_sent_are_our_own_retries(tmp_path: Path) -> None:
    world = World(tmp_path)
    try:
        world.make(60)
        world.way = Way(BROKEN, stored=True)
        world.at(2.3, restart(), calm)
        world.run()
        world.check()
        books = world.all[0].queue.books()
        assert (books.duplicates, books.resent) == (60, 60)
    finally:
        world.close()


# -- a clock that is wrong from the start ------------------------------------------------


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[World]:
    """A world in which nothing can be reached yet, and whose one agent has just started."""
    world = World(tmp_path)
    world.way = Way(BROKEN)
    yield world
    world.close()


def start_with(world: World, ahead: float) -> None:
    """Start the agent with its clock so far ahead."""
    world.all[0].clock.ahead = ahead
    world.all[0].restart()


def before_the_first_answer(world: World, *steps: Play) -> dict[int, float]:
    """Have events come and things happen while nothing can be reached; return how far each stamp is off."""
    world.at(0, *steps)
    stream(world, seconds=20)
    world.at(30.5, calm)
    world.at(31.5, events(50))
    world.run(seconds=600)
    world.check()
    off = world.off()
    assert list(world.stored()) == sorted(world.sent)
    return off


@pytest.mark.parametrize("ahead", [86_400.0, 300.0])
def test_stamps_of_a_clock_that_was_ahead_from_the_start_are_right_in_the_end(
    lone: World, ahead: float
) -> None:
    """None is held for as long as the clock is ahead, and all are in order."""
    start_with(lone, ahead)

    off = before_the_first_answer(lone)

    assert len(off) > 400
    assert all(-2 <= seconds <= 0 for seconds in off.values())
    assert lone.statuses().keys() == {0, 422, 200}
    assert lone.statuses()[422] == 1


@pytest.mark.parametrize("ahead", [-3600.0, -300.0])
def test_stamps_of_a_clock_that_was_behind_from_the_start_are_right_but_for_those_of_the_first_request(
    lone: World, ahead: float
) -> None:
    start_with(lone, ahead)

    off = before_the_first_answer(lone)

    first = next(size for _, _, size, outcome in lone.requests if isinstance(outcome, Answer))
    wrong = [number for number, seconds in off.items() if not -2 <= seconds <= 0]
    assert all(off[number] == pytest.approx(ahead, abs=0.01) for number in wrong)
    assert wrong == [number for number in range(first) if number in off]
    assert first < 420


@pytest.mark.parametrize("jump", [-3600.0, 86_400.0])
def test_a_clock_that_is_set_before_the_first_answer_changes_no_stamp(lone: World, jump: float) -> None:
    start_with(lone, 0.0)

    off = before_the_first_answer(lone, lambda world: world.at(10.5, clock(jump)))

    assert all(-2 <= seconds <= 0.01 for seconds in off.values())


@pytest.mark.parametrize("mended", [False, True], ids=["the same clock", "a mended clock"])
def test_after_a_kill_before_the_first_answer_no_stamp_is_ahead_and_none_is_held(
    lone: World, mended: bool
) -> None:
    """With a clock that was mended nothing tells how wrong it was: the end of the outage it is, at most."""
    start_with(lone, 86_400.0)

    off = before_the_first_answer(
        lone, lambda world: world.at(25.5, lambda world: start_with(world, 0.0 if mended else 86_400.0))
    )

    assert all(-2 <= seconds <= (40 if mended else 0) for seconds in off.values())


# -- at random ---------------------------------------------------------------------------


def a_fault(chance: random.Random) -> Play:
    """Return something that goes wrong."""
    share = chance.choice([0.1, 0.3, 0.7, 1.0])
    answer = chance.choice(list(ANSWERS.values()))
    stored = chance.random() < 0.5 and not (
        isinstance(answer, Answer) and answer.status in (200, 400, 413, 422)
    )
    return chance.choice(
        [
            faults(status=chance.choice([500, 502, 503, 429, 401, 404, 413]), share=share),
            faults(reset_share=share),
            faults(lose_answer_share=share),
            faults(max_events=chance.choice([1, 20, 400])),
            faults(requests_per_minute=chance.choice([10, 60, 300])),
            faults(clock_offset_seconds=chance.uniform(-60, 60)),
            way(answer, share=share, stored=stored),
            way(TIMEOUT, share=share, stored=stored, seconds=60),
            calm,
        ]
    )


@pytest.mark.parametrize("seed", range(50))
def test_everything_arrives_once_in_a_random_world(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    agents = chance.choice([1, 1, 1, 2, 3])
    settings = {
        "max_in_flight": chance.choice([1, 2, 4]),
        "requests_per_minute": chance.choice([60, 300, 6000]),
    }
    if chance.random() < 0.3:
        settings["max_batch_events"] = chance.choice([1, 10, 100])
    world = World(tmp_path, agents, seed, settings, latency=chance.choice([0.001, 0.1, 3.0]))
    try:
        for _ in range(chance.randrange(3, 12)):
            world.at(chance.uniform(0, 100), events(chance.choice([1, 30, 400]), chance.randrange(agents)))
        for _ in range(chance.randrange(1, 8)):
            world.at(chance.uniform(0, 100), a_fault(chance))
        for _ in range(chance.randrange(3)):
            world.at(chance.uniform(0, 100), restart(chance.randrange(agents)))
        if chance.random() < 0.3:
            world.at(chance.uniform(0, 100), clock(chance.uniform(-400, 400), chance.randrange(agents)))
        world.at(101, calm)
        world.run()
        world.check()
    finally:
        world.close()
