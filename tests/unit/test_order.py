"""Asking what came before and handing on to the writer are one step of each source, alone among all."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from support.clock import NOON
from support.processes import Line, wait_until

from agent.clock import SystemClock
from agent.collector.peers import AllowList
from agent.collector.sockets import listen
from agent.collector.unix import Collector
from agent.event import Checker
from agent.seen import Seen

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from agent.writer import Append

LINE = b'{"name":"n","external_customer_id":"c","external_id":"a"}\n'


class Order:
    """A lock that notes what is done, and whether it is held then."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.notes: list[str] = []

    def note(self, what: str) -> None:
        self.notes.append(what if self.lock.locked() else f"{what} out of order")

    def __enter__(self) -> None:
        self.lock.acquire()
        self.notes.append("in")

    def __exit__(self, *_: object) -> None:
        self.notes.append("out")
        self.lock.release()


class Watched(Seen):
    def __init__(self, order: Order) -> None:
        super().__init__()
        self.order = order

    def enter(self, ids: Sequence[str], block: bytes) -> bool:
        self.order.note("asked")
        return super().enter(ids, block)


def test_the_collector_lets_nobody_between_asking_and_appending(tmp_path: Path) -> None:
    """Else a repeat could be committed, and acknowledged, before its first."""
    order = Order()
    appended: list[Append] = []

    def append(one: Append) -> None:
        order.note("appended")
        appended.append(one)

    writer: Any = SimpleNamespace(
        order=order, append=append, full=None, drops=False, wait_for_room=lambda _: True
    )
    collector = Collector(
        listen(tmp_path / "s", mode=0o600),
        Checker(),
        Watched(order),
        writer,
        SystemClock(),
        server_now=lambda: NOON,
        max_line_bytes=1024,
        max_connections=1,
        allowed=AllowList([], []),
    )
    collector.start()
    line = Line(tmp_path / "s")
    line.send(LINE)
    wait_until(lambda: appended)
    collector.stop()
    line.close()
    collector.close()

    assert order.notes == ["in", "asked", "appended", "out"]
