"""Queue, writer and flusher as they are wired, in one process; threads run only where a test starts them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from support.clock import NOON, FakeClock
from support.queues import chunk_of, counts, line
from support.world import World

from agent import chunk
from agent.answer import Answer, NoAnswer, Outcome
from agent.check import disk
from agent.clock import SystemClock
from agent.errors import UsageError
from agent.pipeline import Drained, Pipeline
from agent.queue import Change, Chunk
from agent.queue.check import LOG
from agent.queue.disk import DiskQueue
from agent.settings import Settings
from agent.writer import Append

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from agent.batch import Body

    Open = Callable[[], Pipeline]

ORGANIZATION, PERSONAL = "polar_oat_x", "polar_pat_x"
FOR_AN_ORGANIZATION = line("a")
FOR_A_PERSON = b'{"organization_id":"0a1b2c3d-0000-4000-8000-000000000001",' + line("a")[1:]
TAKEN = {ORGANIZATION: FOR_AN_ORGANIZATION, PERSONAL: FOR_A_PERSON}
OTHER = {ORGANIZATION: PERSONAL, PERSONAL: ORGANIZATION}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a token in a file, which says ORGANIZATION."""
    (tmp_path / "token").write_text(ORGANIZATION)
    return Settings(
        queue_dir=tmp_path / "queue",
        socket_path=tmp_path / "agent.sock",
        access_token_file=tmp_path / "token",
        disk_reserve_bytes=0,
        flush_interval=0.01,
    )


@pytest.fixture
def token(settings: Settings) -> Path:
    assert settings.access_token_file is not None
    return settings.access_token_file


@pytest.fixture
def start(settings: Settings) -> Iterator[Open]:
    """Makes pipelines; all are stopped at the end."""
    made: list[Pipeline] = []

    def one() -> Pipeline:
        made.append(Pipeline(settings, SystemClock()))
        return made[-1]

    yield one
    for pipeline in made:
        pipeline.stop()


class Way:
    """What the pipeline takes for the way to Polar: keeps what is sent, and says that it is stored.

    Args:
        last: answers come only when it is closed.
    """

    def __init__(self, *, last: bool = False) -> None:
        self.sent: list[bytes] = []
        self.came = threading.Event()
        self.closed = threading.Event()
        if not last:
            self.closed.set()

    def ingest(self, body: Body) -> Outcome:
        self.sent.append(bytes(body))
        self.came.set()
        assert self.closed.wait(20)
        return Answer(200, b'{"inserted":1,"duplicates":0}')

    def forward(self, target: str) -> Outcome:
        return NoAnswer("connect", target)

    def close(self) -> None:
        self.closed.set()


def fill(settings: Settings, *chunks: Chunk) -> None:
    """Put chunks into the queue, as an agent did before."""
    queue = DiskQueue(settings.queue_dir, server=settings.server_url)
    queue.commit(Change(appends=list(chunks)))
    queue.close()


def findings(settings: Settings) -> list[str]:
    """Return how `agent check` finds the queue."""
    return [finding.state for finding in disk.look(settings) if finding.check == "queue"]


# -- the kind of token -------------------------------------------------------------------


@pytest.mark.parametrize("right", TAKEN)
def test_a_queue_that_is_refused_for_its_token_is_let_go(
    settings: Settings, token: Path, start: Open, right: str
) -> None:
    fill(settings, Chunk(TAKEN[right], 1))
    token.write_text(OTHER[right])

    with pytest.raises(UsageError, match="Polar would refuse them"):
        start()

    assert not (settings.queue_dir / LOG).exists(), "it is still open"
    assert findings(settings) == ["failed"]
    token.write_text(right)
    assert start().queue.books().pending == 1


@pytest.mark.parametrize(
    "taken", [FOR_A_PERSON, FOR_AN_ORGANIZATION], ids=["a person's", "an organization's"]
)
def test_without_a_token_a_queue_keeps_events_that_were_taken_for_either_kind(
    settings: Settings, token: Path, start: Open, taken: bytes
) -> None:
    fill(settings, Chunk(taken, 1))
    token.unlink()

    assert findings(settings) == ["ok"]
    assert start().queue.books().pending == 1


BESIDE = {
    "nothing": b"",
    "metadata of that name": b'"metadata":{"organization_id":"x"},',
    "null": b'"organization_id":null,',
}


@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE)
@pytest.mark.parametrize("right", TAKEN)
def test_what_else_an_event_says_does_not_hide_for_whom_it_was_taken(
    settings: Settings, token: Path, right: str, beside: bytes
) -> None:
    fill(settings, Chunk(b"{" + beside + TAKEN[right][1:], 1))

    token.write_text(OTHER[right])
    assert findings(settings) == ["failed"]
    token.write_text(right)
    assert findings(settings) == ["ok"]


def test_events_are_not_sent_with_a_token_that_became_one_of_the_other_kind(token: Path, start: Open) -> None:
    """They are checked for the token that was there at the start."""
    token.write_text(PERSONAL)
    pipeline = start()
    pipeline._client = way = Way()  # type: ignore[assignment]
    pipeline.start()
    token.write_text(ORGANIZATION)
    durable = threading.Event()
    pipeline.writer.append(Append([(FOR_A_PERSON, 1)], [], 0, 0, lambda _: durable.set()))
    assert durable.wait(20)

    looks = iter(range(100))  # so that a flush that does not see it ends, too
    left = pipeline.drain(3_600, give_up=lambda: next(looks, None) is None)

    assert left.remaining == 1
    assert "taken for a person's" in str(left.reason)
    assert way.sent == []


# -- a chunk that cannot be read -----------------------------------------------------------


def test_events_that_only_a_newer_version_reads_keep_nobody_from_the_others(
    settings: Settings, start: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as later:
        later.setattr(chunk, "VERSION", chunk.VERSION + 1)
        fill(settings, chunk_of("a"))

    pipeline = start()

    assert pipeline.oldest_age() is None
    assert pipeline.checker.check([line("b") + b"\n"], NOON, pipeline.seen).accepted == 1


def test_no_more_rows_are_recalled_than_are_read_in_a_moment(
    settings: Settings, start: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(settings, *(chunk_of(n) for n in range(1_002)))
    pipeline = start()
    read, get = [], pipeline.queue.get

    def noted(key: int) -> Chunk | None:
        read.append(key)
        return get(key)

    monkeypatch.setattr(pipeline.queue, "get", noted)

    pipeline.checker.check([line("b") + b"\n"], NOON, pipeline.seen)

    assert read == list(range(1_002, 2, -1))


def test_a_clock_that_was_set_back_makes_no_event_younger_than_now(settings: Settings) -> None:
    fill(settings, chunk_of("a", arrived=NOON + 3_600))
    pipeline = Pipeline(settings, FakeClock())

    assert pipeline.oldest_age() == 0.0
    pipeline.stop()


# -- the end -----------------------------------------------------------------------------


def test_what_is_answered_as_it_stops_is_settled(settings: Settings, start: Open) -> None:
    pipeline = start()
    pipeline._client = way = Way(last=True)  # type: ignore[assignment]
    pipeline.start()
    pipeline.writer.append(Append([(FOR_AN_ORGANIZATION, 1)], [], 0, 0, lambda _: None))
    assert way.came.wait(20)

    pipeline.stop()

    assert counts(pipeline.queue.books()) == {"accepted": 1, "delivered": 1}
    assert not (settings.queue_dir / LOG).exists(), "it is still open"
    start()


def test_after_a_flush_events_are_gathered_again(tmp_path: Path) -> None:
    world = World(tmp_path, settings={"flush_interval": 60})
    (agent,) = world.all

    assert agent._pipeline.drain(0.0) == Drained(0, None)

    world.make(1)
    assert agent.step() == []
    world.close()
