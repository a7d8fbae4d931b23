"""What the process beside the daemon does, see `agent.tail.helper`: it checks and stamps lines.

It imports little, so that it takes little memory.
"""

from __future__ import annotations

import contextlib
import mmap
import signal
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from agent.event import Checker
from agent.guess import Guess
from agent.process import keep_freed_memory
from agent.shape import Shapes
from agent.stamp import cut
from agent.tail.filling import Filling
from agent.tail.identity import line_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from agent.ids import Ids
    from agent.stamp import Cut

SLOTS = 2
"""So many pieces are on their way: one waits while another is checked."""
SLOT_BYTES = 2 << 20
"""Of memory for a piece on its way there and back."""
SHARED_BYTES = SLOTS * SLOT_BYTES


class Lines(msgspec.Struct, array_like=True):
    """What to check: where it is, so many bytes of lines; in which table's file, where in it, and when.

    The last is not there for a time that is known, see `agent.guess`.
    """

    start: int
    size: int
    table: int
    identity: str
    offset: int
    now: float
    guess: float | None = None


class Stamped(msgspec.Struct, array_like=True):
    """What came of it: where each group ends, with its count; the ids behind them end where `ids` says.

    Without groups: something is in doubt.
    """

    groups: list[tuple[int, int]]
    ids: int = 0


class Answer(NamedTuple):
    """Lines that are fine.

    Attributes:
        groups: the lines stamped, joined by newlines, with their count.
        own: the `external_id` of each line that carries one.
    """

    groups: list[tuple[bytes, int]]
    own: list[str]


class _OwnIds:
    """Takes the place of `agent.seen`: writes down which ids are asked for."""

    def __init__(self) -> None:
        self.ids: Sequence[str] = ()

    def enter(self, ids: Sequence[str], block: bytes) -> bool:
        """Take them for new; the daemon knows better."""
        del block
        self.ids = ids
        return True

    def first_repeat(self, ids: Iterable[str]) -> int:
        """Say that none is known."""
        del ids
        return -1

    def repeats(self, identity: str, line: bytes) -> bool | None:
        """Say that it is not known."""
        del identity, line
        return None


def slot(number: int) -> slice:
    """Return the place in the shared memory of the piece with this number."""
    start = number % SLOTS * SLOT_BYTES
    return slice(start, start + SLOT_BYTES)


class Checking:
    """What the process does, apart from its connection.

    Args:
        defaults: those of each table.
    """

    def __init__(self, defaults: Sequence[dict[str, Any]]) -> None:
        self._tables = [(Checker(shapes=Shapes()), Filling(one)) for one in defaults]

    def check(self, table: int, identity: str, offset: int, lines: bytes, now: float) -> Answer | None:
        """Do what `Helper.check` says."""
        answer = self._check(*self._tables[table], partial(line_ids, identity, offset), lines, now)
        if answer is None:
            # The daemon will find out whether these lines are bad or of another shape; here the next tell.
            self._tables[table][0].shapes.trusted = False
        return answer

    def _check(
        self, checker: Checker, filling: Filling, ids: Callable[[Cut], Ids], lines: bytes, now: float
    ) -> Answer | None:
        """Do what `check` says."""
        own = _OwnIds()
        if not filling:
            checked = checker.check_block(lines, now, ids, own)
        else:
            whole = cut(lines)
            filled = None if whole is None else filling.block(whole)
            if whole is None or filled is None:
                return None
            # Ids follow from lines as they stand in the file.
            checked = checker.check_block(filled, now, lambda _: ids(whole), own)
            if own.ids:
                return None  # the daemon remembers lines with their defaults in them
        return None if checked is None else Answer(checked.groups, list(own.ids))


def serve(connection: socket.socket, memory: mmap.mmap) -> None:
    """Answer until nobody asks any more."""
    checking = Checking(msgspec.json.decode(connection.recv(1 << 20), type=list[dict[str, Any]]))
    connection.send(b"\1")
    while asked := connection.recv(1 << 16):
        work = msgspec.msgpack.decode(asked, type=Lines)
        lines = memory[work.start : work.start + work.size]
        now = work.now if work.guess is None else Guess(work.now, work.guess)
        answer = checking.check(work.table, work.identity, work.offset, lines, now)
        connection.send(msgspec.msgpack.encode(_told(answer, memory, work.start)))


def _told(answer: Answer | None, memory: mmap.mmap, start: int) -> Stamped:
    """Put an answer where the daemon finds it, and say where; nothing where there is no room for it."""
    stamped = Stamped([])
    if answer is None:
        return stamped
    own = msgspec.json.encode(answer.own) if answer.own else b""
    if sum(len(lines) for lines, _ in answer.groups) + len(own) > SLOT_BYTES:
        return stamped
    end = start
    for lines, count in answer.groups:
        memory[end : end + len(lines)] = lines
        end += len(lines)
        stamped.groups.append((end, count))
    stamped.ids = end + len(own)
    memory[end : stamped.ids] = own
    return stamped


def main() -> None:
    """Serve the daemon that started this process, and end with it, not before."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    keep_freed_memory()
    shared, connected = map(int, sys.argv[1:])
    with contextlib.suppress(ConnectionError), socket.socket(fileno=connected) as connection:
        serve(connection, mmap.mmap(shared, SHARED_BYTES))


if __name__ == "__main__":
    main()
