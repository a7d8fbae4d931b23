"""Trials: producers write to a daemon that dies, and then every single event is accounted for.

A trial keeps its own account of each event: whether it was written, whether it was
acknowledged. After each disaster it has the daemon drain its queue, and compares event
by event what was acknowledged with what the server stored, and the books with both.
"""

from __future__ import annotations

import json
import signal
import socket
import threading
import uuid
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent.daemon import call
from agent.queue.reader import DiskReader
from support.failpoints import VARIABLE, Failpoint
from support.processes import PATIENCE, Product, balanced, wait_until

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

    from support.failpoints import Nursery

STRANGER = "5b0a9f0e-3d3e-4a36-9e4c-1d1f5f6a7b8c"
"""A customer that the server does not know: its events become dead letters."""


class Victim(Product):
    """A daemon that can be told where to die, on a server that others use as well.

    Args:
        directory: of its own.
        url: the server's address.
        nursery: what starts it; None: each start is a process of its own.
    """

    def __init__(self, directory: Path, url: str, nursery: Nursery | None, **settings: object) -> None:
        super().__init__(directory, **settings)
        self.url = url
        self.set(base_url=url)
        self.failpoint = Failpoint(directory / "failpoint")
        self.environ[VARIABLE] = str(self.failpoint.path)
        self._nursery = nursery

    def start_daemon(self, *, wait: bool = True) -> None:
        """Start it and, if wanted, wait until it answers."""
        if self._nursery is None:
            super().start_daemon(wait=wait)
            return
        self.daemon = self._nursery.start(self.environ, self.log)
        self._processes = [*getattr(self, "_processes", []), self.daemon]
        if wait:
            wait_until(self._takes_connections, what="the daemon's socket")

    def ask(self, method: str, target: str) -> dict[str, Any]:
        """Call the daemon's API, as soon as it is there."""
        return wait_until(lambda: call(self.directory / "api.sock", method, target, timeout=60))


@dataclass
class _Producer:
    """One connection and what became of its lines."""

    path: Path
    written: list[dict[str, Any]] = field(default_factory=list)
    acked: int = 0
    trouble: str | None = None
    _rest: bytes = b""

    def run(self, groups: Iterator[list[dict[str, Any]]], *, waits: bool) -> None:
        """Write groups of events until there are no more, or the daemon has died.

        Args:
            groups: what to write at once.
            waits: for the acks of one group before it writes the next.
        """
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            with suppress(FileNotFoundError, ConnectionRefusedError):  # it is dead already
                sock.connect(str(self.path))
                try:
                    with suppress(ConnectionError):  # it has died
                        self._write(sock, groups, waits=waits)
                    with suppress(ConnectionError):  # what it said before is still there to be read
                        while self._take(sock.recv(1 << 16)):
                            pass
                except TimeoutError:
                    self.trouble = "nothing comes, and nothing breaks"

    def _write(self, sock: socket.socket, groups: Iterator[list[dict[str, Any]]], *, waits: bool) -> None:
        """Write groups of events; read no answers but those that are waited for."""
        for group in groups:
            self.written += group
            sock.sendall(b"".join(json.dumps(event).encode() + b"\n" for event in group))
            while waits and self.acked < len(self.written):
                if not self._take(sock.recv(1 << 16)):
                    return
        sock.shutdown(socket.SHUT_WR)

    def _take(self, data: bytes) -> bool:
        """Note what the daemon said; False when it has no more to say."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            if "error" in answer:
                self.trouble = line.decode()
            self.acked = answer.get("ack", self.acked)
        return bool(data)


class Trial:
    """Rounds of load, disaster and accounting, on one queue.

    Events with an `external_id` of their own are written again until they are
    acknowledged; those without are written once, whatever happens.

    Args:
        victim: the daemon.
        chance: for all choices.
    """

    def __init__(self, victim: Victim, chance: random.Random) -> None:
        self.victim = victim
        self.chance = chance
        self.name = uuid.uuid4().hex
        self.acked: set[int] = set()
        self.written: Counter[int] = Counter()
        self.bad: set[int] = set()  # those that the server refuses
        self._again: list[dict[str, Any]] = []
        self._next = 0
        self._lock = threading.Lock()
        self.over = threading.Event()
        """Ends the load; set when it has ended."""

    # -- load --------------------------------------------------------------------------

    def load(self, *, producers: int = 3, most: int = 300) -> threading.Thread:
        """Start to write events, from several connections, until `over` is set or all of them broke.

        Args:
            producers: how many connections.
            most: how many events each one writes at most.
        """
        self.over = threading.Event()
        again, self._again = self._again, []
        mine = [_Producer(self.victim.socket) for _ in range(producers)]
        sizes = self.chance.choices([1, 3, 20], k=producers)
        runs = [
            threading.Thread(
                target=producer.run,
                args=(self._groups(again if place == 0 else [], most, sizes[place]),),
                kwargs={"waits": place != 1},
            )
            for place, producer in enumerate(mine)
        ]

        def run() -> None:
            for thread in runs:
                thread.start()
            for thread in runs:
                thread.join()
            for producer in mine:
                self._note(producer)
            self.over.set()

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def _groups(self, again: list[dict[str, Any]], most: int, at_once: int) -> Iterator[list[dict[str, Any]]]:
        """Yield events in groups: some at once, then more every few milliseconds."""
        if again:
            yield again
        made = 0
        while made < most and not self.over.is_set():
            yield [self._event() for _ in range(at_once)]
            made += at_once
            if made >= 10:
                self.over.wait(0.005)

    def _event(self) -> dict[str, Any]:
        """Make an event; every second one brings its own id, a few are such as the server refuses."""
        with self._lock:
            number = self._next
            self._next += 1
        event: dict[str, Any] = {"name": "usage", "metadata": {"n": number, "trial": self.name}}
        if number % 23 == 7:
            event["customer_id"] = STRANGER
            self.bad.add(number)
        else:
            event["external_customer_id"] = f"c{number % 7}"
            if number % 2:
                event["external_id"] = f"{self.name}-{number}"
        return event

    def _note(self, producer: _Producer) -> None:
        """Put a connection's events into the account."""
        assert producer.trouble is None, producer.trouble
        for place, event in enumerate(producer.written):
            number = event["metadata"]["n"]
            self.written[number] += 1
            if place < producer.acked:
                self.acked.add(number)
            elif "external_id" in event:
                self._again.append(event)

    def write_again(self) -> None:
        """Write what has an id of its own until it is acknowledged."""
        if self._again:
            self.load(producers=1, most=0).join()
        assert not self._again, "the daemon runs and does not acknowledge"

    # -- disaster ----------------------------------------------------------------------

    def wait_for_death(self) -> None:
        """Wait until the daemon has killed itself."""
        daemon = self.victim.daemon
        assert daemon is not None
        code = wait_until(daemon.poll, what="the daemon's death")
        assert code == -signal.SIGKILL, f"the daemon ended with {code}:\n{self.victim.log.read_text()}"

    def revive(self) -> None:
        """Start the daemon; it is to live."""
        self.victim.failpoint.disarm()
        self.victim.start_daemon()

    # -- accounting --------------------------------------------------------------------

    def check(self) -> None:
        """Have the daemon take what is not acknowledged yet and drain its queue; account for all."""
        self.write_again()
        drained = self.victim.ask("POST", "/flush?timeout=30")
        assert drained == {"remaining": 0, "reason": None}, f"the queue does not drain: {drained}"
        self.account(self.victim.ask("GET", "/status"), self.stored())

    def stored(self) -> Counter[int]:
        """Return how often the server stored each event of this trial."""
        metadata = (event["metadata"] for event in self.victim.stored())
        return Counter(data["n"] for data in metadata if data["trial"] == self.name)

    def dead(self) -> Counter[int]:
        """Return how often each event is a dead letter."""
        reader = DiskReader(self.victim.queue)
        try:
            return Counter(json.loads(letter.event)["metadata"]["n"] for letter in reader.dead_letters())
        finally:
            reader.close()

    def account(self, status: dict[str, Any], stored: Counter[int]) -> None:
        """Compare what was written and acknowledged with what was stored, and the books with both."""
        dead, ledger = self.dead(), status["ledger"]
        found = stored + dead
        lost, twice = self.acked - set(found), [number for number, count in found.items() if count > 1]
        assert not lost, f"{len(lost)} acknowledged events are lost: {sorted(lost)[:20]}"
        assert not twice, f"{len(twice)} events are there twice: {sorted(twice)[:20]}"
        assert set(found) <= set(self.written), "events are there that nobody wrote"
        assert set(dead) <= self.bad, "events are dead letters that the server takes"
        assert not self.bad & set(stored)
        assert status["queue"]["events"] == status["queue"]["bytes"] == 0
        assert balanced(status)
        assert ledger["dead"] == dead.total()
        assert ledger["dropped"] == ledger["refused"] == 0
        # What was written twice may have been taken twice; the server then has it once.
        repeated = self.written.total() - len(self.written)
        assert found.total() <= ledger["accepted"] <= found.total() + repeated
        assert ledger["duplicates"] + ledger["delivered"] == ledger["accepted"] - ledger["dead"]
