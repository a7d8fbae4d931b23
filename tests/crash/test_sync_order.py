"""An ack promises that its events survive a power cut: held against the system calls of a real daemon.

The daemon runs under strace while several producers write to it, its server is away and
comes back, and its database checkpoints. It is killed, started again and stopped. The
recording says what was written, synced, answered, in which order, and what a power
cut at any moment would have left.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

import pytest
from support import trace
from support.processes import PATIENCE, Line, Product, wait_until

from agent.queue.ballast import MOST_BYTES
from agent.queue.disk import DiskQueue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.needs("strace")

CUTS = 80
SHM = "cache.db-shm"


@dataclass
class Producer:
    """What one producer writes: its lines, and how many it writes at once before it waits for their ack."""

    name: str
    count: int
    size: int
    at_once: int = 1
    lines: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        chance = random.Random(self.name)
        for number in range(self.count):
            # Nothing that the queue could compress: what is written is to be much.
            event = {
                "name": "usage",
                "external_customer_id": "c",
                "external_id": f"{self.name}/{number}",
                "more": chance.randbytes(self.size // 2).hex(),
            }
            self.lines.append(json.dumps(event).encode() + b"\n")

    def run(self, socket: Path) -> None:
        line = Line(socket)
        for start in range(0, self.count, self.at_once):
            some = self.lines[start : start + self.at_once]
            line.send(b"".join(some))
            line.acked(start + len(some))
        line.close()


@dataclass(frozen=True)
class Ack:
    """An ack that was sent: where in the recording, and how many lines of which producer it covers.

    `received` is where the last of these lines was there.
    """

    position: int
    producer: str
    lines: int
    received: int


@dataclass
class Recording:
    """A daemon's lives, from its first start on an empty disk over `kill -9` to its end by SIGTERM."""

    root: Path
    queue: Path
    moments: list[trace.Moment]
    acks: list[Ack]
    delivered: dict[str, float]  # when the server received an event, Unix seconds, by external id

    @property
    def database(self) -> str:
        return str(self.queue / "cache.db")

    @property
    def log(self) -> str:
        return str(self.queue / "cache.db-wal")

    def replayed(self) -> Iterator[tuple[int, trace.Call, bool, trace.Disk]]:
        """Yield each moment and the disk as it is just before it."""
        disk = trace.Disk(self.root)
        for position, moment in enumerate(self.moments):
            yield position, moment.call, moment.ended, disk
            disk.play(moment)

    def emptied(self) -> list[int]:
        """Return where the log is removed, or written from its start again: what was in it is gone."""
        found = []
        for position, moment in enumerate(self.moments):
            call = moment.call
            if moment.ended or call.path != self.log:
                continue
            if (call.name, call.words[-1:]) in (("pwrite64", ["0"]), ("ftruncate", ["0"]), ("unlink", [])):
                found.append(position)
        return found[1:]  # the first one begins it


class RecordedProduct(Product):
    """A product whose daemon runs under strace."""

    def __init__(self, directory: Path, **settings: object) -> None:
        super().__init__(directory, **settings)
        self.traces: list[Path] = []

    def start_recorded(self) -> None:
        self.traces.append(self.directory / f"trace-{len(self.traces)}")
        command = [*trace.recorder(self.traces[-1]), sys.executable, "-m", "agent", "run"]
        self.daemon = subprocess.Popen(command, env=self.environ, text=True)
        self._processes = [*getattr(self, "_processes", []), self.daemon]
        wait_until(self._takes_connections, what="the daemon's socket")

    def end_recorded(self, number: int) -> None:
        os.kill(int((self.queue / "lock").read_text()), number)
        assert self.daemon is not None
        self.daemon.wait(PATIENCE)

    def produce(self, *producers: Producer) -> None:
        threads = [threading.Thread(target=producer.run, args=(self.socket,)) for producer in producers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recording]:
    directory = tmp_path_factory.mktemp("recorded")
    product = RecordedProduct(
        directory, flush_interval="0.05", max_batch_events="50", shutdown_timeout="0.1", log_level="error"
    )
    product.queue = directory / "new" / "deep" / "queue"
    product.set(queue_dir=product.queue)
    early = [
        *(Producer(f"careful-{number}", 60, 200) for number in range(3)),
        Producer("bursts", 600, 1000, at_once=40),
        Producer("large", 6, 200_000),
    ]
    late = [
        *(Producer(f"late-{number}", 40, 2000) for number in range(3)),
        Producer("late-bursts", 700, 3000, at_once=100),
    ]
    last = [Producer("last", 20, 300), Producer("last-burst", 50, 300, at_once=50)]
    try:
        product.start_recorded()
        product.produce(*early)
        product.end_recorded(signal.SIGKILL)
        product.start_recorded()
        product.start_emulator()
        product.produce(*late)
        flushed = product.run("flush", "--timeout", "30")
        assert flushed.returncode == 0, flushed.stdout
        delivered = {
            event["external_id"]: datetime.fromisoformat(event["received_at"]).timestamp()
            for event in product.stored()
        }
        product.stop_emulator()
        product.produce(*last)
        product.end_recorded(signal.SIGTERM)
        moments = [moment for output in product.traces for moment in trace.read(output)]
        acks = list(find_acks(moments, {producer.name: producer for producer in (*early, *late, *last)}))
        recording = Recording(directory.resolve(), product.queue.resolve(), moments, acks, delivered)
        assert len(acks) > 100
        assert len(recording.emptied()) >= 5, "there were not enough checkpoints to prove anything"
        yield recording
    finally:
        product.close()


def find_acks(moments: list[trace.Moment], producers: dict[str, Producer]) -> Iterator[Ack]:
    """Yield all acks that cover lines, in order."""
    owners: dict[str, Producer] = {}
    received: dict[str, list[tuple[int, int]]] = {}  # by socket: bytes so far, and where
    for position, moment in enumerate(moments):
        call = moment.call
        if call.name == "recvfrom" and moment.ended and call.data.startswith(b'{"name": "usage"'):
            name = call.data.partition(b'"external_id": "')[2].partition(b"/")[0].decode()
            owners.setdefault(call.path, producers[name])
        if call.name == "recvfrom" and moment.ended and call.path in owners:
            so_far = received.setdefault(call.path, [(0, 0)])
            so_far.append((so_far[-1][0] + (call.result or 0), position))
        if call.name in trace.SENDS and not moment.ended and call.data.startswith(b'{"ack":'):
            lines = json.loads(call.data.splitlines()[-1])["ack"]
            if lines:
                owner = owners[call.path]
                needed = sum(map(len, owner.lines[:lines]))
                there = next(where for size, where in received[call.path] if size >= needed)
                yield Ack(position, owner.name, lines, there)


def test_the_recording_has_every_write(recording: Recording) -> None:
    disk = trace.Disk(recording.root)
    for moment in recording.moments:
        disk.play(moment)

    recorded = {path: content for path, content in disk.after().items() if not path.endswith(SHM)}

    files = [path for path in recording.queue.iterdir() if path.name != SHM]
    assert recorded == {str(path): path.read_bytes() for path in files}


def test_no_ack_is_sent_while_anything_of_the_queue_is_not_synced(recording: Recording) -> None:
    acks = {ack.position for ack in recording.acks}
    for position, _, _, disk in recording.replayed():
        if position in acks:
            assert not disk.unsynced(recording.log)
            assert not disk.unsynced(recording.database)


def test_every_ack_follows_a_synced_write_of_the_lines_that_it_covers(recording: Recording) -> None:
    writes, syncs = [], []  # where they began; where they began and ended
    began: dict[int, int] = {}
    for position, call, ended, _ in recording.replayed():
        if call.path != recording.log:
            continue
        if call.name in trace.WRITES and not ended:
            writes.append(position)
        elif call.name in trace.SYNCS and not ended:
            began[id(call)] = position
        elif call.name in trace.SYNCS:
            syncs.append((began[id(call)], position))

    for ack in recording.acks:
        covering = [write for write in writes if ack.received < write < ack.position]
        assert covering, f"{ack} was sent before anything was written"
        assert any(covering[-1] < start and end < ack.position for start, end in syncs), ack


def test_new_directories_and_files_are_synced_by_name_before_the_first_ack(recording: Recording) -> None:
    first = recording.acks[0].position
    disk = next(disk for position, _, _, disk in recording.replayed() if position == first)

    unsynced = disk.unsynced_names()

    made = {recording.queue, *recording.queue.parents} - {recording.root}
    assert not unsynced & {*map(str, made), recording.database, recording.log}


def test_the_ballast_takes_its_room_before_the_first_ack_and_is_not_given_back_while_there_is_some(
    recording: Recording,
) -> None:
    """Room that is promised and not written is no room."""
    ballast = str(recording.queue / "ballast")
    calls = [
        (position, call)
        for position, call, ended, _ in recording.replayed()
        if ended and call.path == ballast
    ]
    written = [position for position, call in calls if call.name in trace.WRITES]
    synced = [position for position, call in calls if call.name in trace.SYNCS]

    assert sum(call.result or 0 for _, call in calls if call.name in trace.WRITES) == MOST_BYTES
    assert written[-1] < synced[-1] < recording.acks[0].position
    assert not [call for _, call in calls if call.name in ("ftruncate", "truncate")]


def test_a_checkpoint_writes_to_the_database_only_what_is_synced_in_the_log(recording: Recording) -> None:
    checkpointed = 0
    for position, call, ended, disk in recording.replayed():
        if position < recording.acks[0].position or ended or call.path != recording.database:
            continue
        if call.name in (*trace.WRITES, "ftruncate"):
            checkpointed += 1
            assert not disk.unsynced(recording.log), f"a page was written too early: {position}"
    assert checkpointed > 500, "too little was checkpointed to prove anything"


def test_the_log_is_emptied_only_when_the_database_is_synced(recording: Recording) -> None:
    emptied = set(recording.emptied())
    for position, _, _, disk in recording.replayed():
        if position in emptied:
            assert not disk.unsynced(recording.database), f"the log was emptied too early: {position}"


@pytest.mark.parametrize("left", ["nothing", "any part"])
def test_after_a_power_cut_every_acknowledged_event_is_in_the_queue_or_was_delivered(
    recording: Recording, tmp_path: Path, left: str
) -> None:
    chance = random.Random(left)
    cuts = choose_cuts(recording, chance)
    acks = {ack.position: ack for ack in recording.acks}
    acked: set[str] = set()
    for position, call, _, disk in recording.replayed():
        if position in cuts:
            files = disk.after_power_cut(chance if left == "any part" else None)
            directory = tmp_path / str(position)
            pending = open_after_power_cut(recording, files, directory)
            for event in acked - pending:
                delivered = recording.delivered.get(event)
                assert delivered is not None, f"{event} is lost by a power cut at {position}"
                assert delivered < call.time, f"{event} is away at {position}, and was delivered later"
        if position in acks:
            ack = acks[position]
            acked.update(f"{ack.producer}/{number}" for number in range(ack.lines))


def choose_cuts(recording: Recording, chance: random.Random) -> set[int]:
    """Return moments for power cuts: anywhere, just behind acks, and in and around checkpoints."""
    everywhere = range(len(recording.moments))
    behind_acks = [ack.position + 1 for ack in recording.acks]
    pages = [
        position
        for position in range(recording.acks[0].position, len(recording.moments))
        if recording.moments[position].call.path == recording.database
    ]
    emptied = [position + more for position in recording.emptied() for more in range(4)]
    return {
        cut for where in (everywhere, behind_acks, pages, emptied) for cut in chance.sample(where, CUTS // 4)
    }


def open_after_power_cut(recording: Recording, files: dict[str, bytes], directory: Path) -> set[str]:
    """Return the events that are pending in what a power cut left; it must be whole and balance."""
    directory.mkdir(mode=0o700)
    for path, content in files.items():
        if path.startswith(f"{recording.queue}/") and not path.endswith(SHM):
            (directory / path.removeprefix(f"{recording.queue}/")).write_bytes(content)
    queue = DiskQueue(directory)
    try:
        books = queue.books()
        chunks = [queue.get(key) for key in range(queue.first_key(), books.next_key)]
    finally:
        queue.close()
    events = [line for chunk in chunks if chunk is not None for line in chunk.lines.split(b"\n")]
    assert books.pending == len(events), "the books do not balance"
    with sqlite3.connect(directory / "cache.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()
    return {json.loads(line)["external_id"] for line in events}
