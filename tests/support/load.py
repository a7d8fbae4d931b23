"""Producers that keep account of every event: what was written, what acknowledged, what they were told."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Any

from support.processes import Line, wait_until

if TYPE_CHECKING:
    from pathlib import Path

_AT_ONCE = 50


class Load:
    """One producer on a connection of its own; it writes some events, waits for their ack, and goes on.

    Args:
        socket: of the daemon.
        name: its events are called after it.
        filler: how many bytes that cannot be compressed each event has.
    """

    def __init__(self, socket: Path, name: str, *, filler: int = 200) -> None:
        self._line = Line(socket)
        self._name = name
        self._chance = random.Random(name)
        self._filler = filler
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.written: list[str] = []
        self.acked: set[str] = set()
        self.refused: dict[str, str] = {}  # by event: the type of the refusal
        self.told: list[dict[str, Any]] = []  # what was said of no line
        self.broken = False
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._enough.is_set():
                events = [self._event() for _ in range(_AT_ONCE)]
                self._line.send(*events)
                while len(self.acked) < len(self.written):
                    self._take(self._line.answer())
        except (AssertionError, OSError):
            self.broken = True  # whether that may be, the test says
        self._line.close()

    def _event(self) -> dict[str, Any]:
        event_id = f"{self._name}-{len(self.written)}"
        self.written.append(event_id)
        return {
            "name": "usage",
            "external_customer_id": "c",
            "external_id": event_id,
            "more": self._chance.randbytes(self._filler // 2).hex(),
        }

    def _take(self, answer: dict[str, Any]) -> None:
        if "ack" in answer:
            self.acked.update(self.written[: answer["ack"]])
        elif "line" in answer:
            self.refused[self.written[answer["line"] - 1]] = answer["error"]["type"]
        else:
            self.told.append(answer["error"])

    def wait_until_told(self) -> dict[str, Any]:
        """Wait until something is said of no line; return that."""
        return wait_until(lambda: self.told[-1:], what="a word to the producer")[0]

    def give_up(self) -> None:
        """Wait for the end of a connection that the daemon's death has broken."""
        self._enough.set()
        self._thread.join(60)
        assert self.broken

    def go_on(self, events: int = 100) -> None:
        """Wait until so many more are acknowledged."""
        wanted = len(self.acked) + events
        wait_until(lambda: len(self.acked) >= wanted, what="more acks")

    def finish(self) -> None:
        """Write no more, and wait until everything is acknowledged."""
        self._enough.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "the last events are not acknowledged"
        assert not self.broken, "the connection broke"
        assert self.acked == set(self.written)


def assert_all_accounted(
    loads: list[Load], stored: list[dict[str, Any]], status: dict[str, Any], *, dropped: int = 0
) -> None:
    """Compare event by event what was acknowledged with what the server has, and the books with both."""
    assert {type_ for load in loads for type_ in load.refused.values()} <= {"queue_full"}
    taken = [event for load in loads for event in load.written if event not in load.refused]
    ids = [event["external_id"] for event in stored]
    assert sorted(ids) == sorted(taken)
    assert status["ledger"] == {
        "accepted": len(taken) + dropped,
        "refused": 0,
        "delivered": len(taken),
        "duplicates": 0,
        "dead": 0,
        "dropped": dropped,
    }
    assert status["queue"]["events"] == status["queue"]["bytes"] == 0
