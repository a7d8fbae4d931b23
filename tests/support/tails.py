"""A tail without threads, on a queue that outlives it: every step is taken by the test."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from agent.capacity import Limits
from agent.event import Checker
from agent.queue.memory import MemoryQueue
from agent.seen import Seen
from agent.tail import Table
from agent.tail.tail import Tail
from agent.writer import Writer
from support.clock import FakeClock
from support.queues import chunks

if TYPE_CHECKING:
    from pathlib import Path

    from agent.queue import Queue


class Moments(FakeClock):
    """Waiting is over at once, but the time of day is real: it is compared with that of files.

    Attributes:
        pace: seconds that pass each time somebody asks how late it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pace = 0.0

    def wall(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        self.advance(self.pace)
        return super().monotonic()


class Unwatched:
    """No inotify: everything is found by looking."""

    descriptor = None

    def follow(self, directories: object) -> set[str]:
        del directories
        return set()

    def events(self) -> tuple[list[Any], bool]:
        return [], False

    def close(self) -> None:
        pass


class Desk:
    """A tail, a writer and a queue.

    Args:
        directory: where the files are.
        tables: what is tailed; everything in the directory if not given.
        queue: where lines go.
    """

    def __init__(self, directory: Path, *tables: Table, queue: Queue | None = None, **limits: int) -> None:
        self.directory = directory
        self.tables = tables or (Table(str(directory / "*")),)
        self.queue = queue or MemoryQueue()
        self.max_line_bytes = limits.get("max_line_bytes", 256 * 1024)
        self.max_bytes = limits.get("max_bytes", 1 << 40)
        self.block_bytes = limits.get("block_bytes", 1 << 20)
        self.max_dead_letters = limits.get("max_dead_letters", 1 << 40)
        self.personal_token = bool(limits.get("personal_token"))
        self.clock = Moments()
        self.start()

    def start(self) -> None:
        """Start, as a process does."""
        self.seen = Seen()
        limits = Limits(self.max_bytes, 0, self.directory)
        self.writer = Writer(self.queue, limits, self.clock, on_commit=lambda _: None, on_room=lambda: None)
        self.tail = Tail(
            self.tables,
            Checker(max_line_bytes=self.max_line_bytes, personal_token=self.personal_token),
            self.writer,
            self.queue,
            self.clock,
            seen=self.seen,
            server_now=self.clock.wall,
            queue_max_bytes=self.max_bytes,
            room_for_letters=lambda: self.max_dead_letters - self.queue.books().dead,
            watch=Unwatched(),
            block_bytes=self.block_bytes,
        )

    def kill(self) -> None:
        """End at once: what is not committed is gone."""
        self.tail.close()

    def restart(self) -> None:
        """Be killed and start again."""
        self.kill()
        self.start()

    def look(self) -> None:
        """Read for one step, after a moment; nothing is committed yet."""
        self.clock.advance(0.3)
        self.tail.step(0)

    def look_briefly(self) -> None:
        """The same, but time is over after a block or two."""
        self.clock.pace = 0.04
        self.look()
        self.clock.pace = 0.0

    def look_while_full(self) -> None:
        """The same, but the queue takes nothing: what there is is found, and not read."""
        most, self.tail._most_bytes = self.tail._most_bytes, -1
        self.look()
        self.tail._most_bytes = most

    def commit(self) -> None:
        """Make durable what was read."""
        self.writer.step()

    def settle(self, seconds: float = 2.0) -> None:
        """Let so much time pass, and everything happen that happens in it."""
        for _ in range(int(seconds / 0.3) + 1):
            self.look()
            self.commit()

    def reset(self, path: Path) -> list[str]:
        """Have a file read again."""
        return self.tail._reset(str(path), to_end=False)

    def close_quiet_files(self) -> None:
        """Close them, as is done where too many are open."""
        for tailed in self.tail._shelf.files.by_key.values():
            self.tail._shelf.files.shut(tailed)

    def close(self) -> None:
        self.tail.close()

    # -- what came of it -----------------------------------------------------------------

    def events(self) -> list[dict[str, Any]]:
        """Return what is in the queue, in order."""
        return [json.loads(line) for _, chunk in chunks(self.queue) for line in chunk.lines.split(b"\n")]

    def names(self) -> list[str]:
        """Return the names of the events, in order."""
        return [event["name"] for event in self.events()]

    def status(self) -> dict[str, dict[str, Any]]:
        """Return how each file stands, by the last part of its path."""
        return {file["path"].rpartition("/")[2]: file for file in self.tail.status()["files"]}


def line(name: object, **fields: Any) -> bytes:
    """Return a line with an event of this name."""
    return json.dumps({"name": str(name), "external_customer_id": "c", **fields}).encode() + b"\n"


def append(path: Path, *lines: bytes) -> None:
    """Write to the end of a file, as programs that log do."""
    with path.open("ab") as file:
        file.write(b"".join(lines))
