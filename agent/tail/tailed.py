"""One file that is tailed, as its thread knows it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from agent.tail.recognition import State

if TYPE_CHECKING:
    from agent.queue import Checkpoint
    from agent.tail.open_file import OpenFile


class Key(NamedTuple):
    """What tells files of one moment apart."""

    device: int
    inode: int


def key_of(status: os.stat_result) -> Key:
    """Return the key of a file."""
    return Key(status.st_dev, status.st_ino)


def shown(path: str) -> str:
    r"""Return a path as text for people and checkpoints; bytes that are no UTF-8 become ``\xNN``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@dataclass(slots=True)
class Tailed:
    """A file.

    Attributes:
        key: its device and inode.
        path: where it is, or was.
        target: the same with all symbolic links followed.
        table: the number of its `[[tail]]`.
        state: LIVE at a matched path, AWAY when it is at none.
        file: None when it is not open.
        at: how far it is read; None while nobody knows which file it is.
        copy_of: the identity of the file that it is a copy of; empty when it is none.
        from_end: it was there at first, and only what is added counts.
        waiting: it may be a copy that is being made.
        origin: the path at which it must have been, when it was found at none that is tailed.
        polled: nobody tells when it changes.
        size: in bytes, when it was looked at last.
        modified: the same for its time of modification, nanoseconds.
        changed: when it was seen to change last, monotonic seconds.
        problem: why it cannot be read; empty when it can.
    """

    key: Key
    path: str
    target: str
    table: int
    state: State = State.LIVE
    file: OpenFile | None = None
    at: Checkpoint | None = None
    copy_of: str = ""
    from_end: bool = False
    waiting: bool = False
    origin: str = ""
    polled: bool = True
    size: int = -1
    modified: int = 0
    changed: float = 0.0
    problem: str = ""

    @property
    def here(self) -> dict[str, Any]:
        """What a checkpoint says of where it is."""
        path, target = self.origin or shown(self.path), shown(self.target)
        return {
            "path": path,
            "target": "" if target == path else target,
            "device": self.key.device,
            "inode": self.key.inode,
        }

    @property
    def lag(self) -> int:
        """Bytes that are not read, as far as they were seen; of a compressed file, 0."""
        return self.lag_at(self.size)

    def lag_at(self, size: int) -> int:
        """Return the same for a size."""
        if self.at is None or self.copy_of or self.file is None or self.file.compressed:
            return 0
        return max(0, size - self.at.offset)

    def close(self) -> None:
        """Let go of the file."""
        if self.file is not None:
            self.file.close()
            self.file = None
