"""How far each file is read: handed to the writer, and remembered."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING
from zlib import crc32

import msgspec

from agent.queue import Checkpoint
from agent.tail.block import is_changed
from agent.tail.identity import FIRST_BYTES, HEAD_BYTES, TAIL_BYTES, head_lines, is_timed
from agent.tail.known import KnownFiles, Standing
from agent.tail.recognition import State
from agent.tail.report import nothing_read
from agent.tail.tailed import shown
from agent.writer import Append

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.clock import Clock
    from agent.tail.files import Files
    from agent.tail.open_file import OpenFile
    from agent.tail.tailed import Tailed
    from agent.writer import Writer


class Marks:
    """Checkpoints.

    What is remembered is what was handed over; after a kill, the queue's own checkpoints hold.

    Args:
        checkpoints: of files, as the queue has them.
        files: those that are there.
        writer: where checkpoints go.
        clock: for time.
        read_bytes: so much is read at once.

    Attributes:
        known: all files that have a checkpoint.
    """

    def __init__(
        self,
        checkpoints: Iterable[Checkpoint],
        files: Files,
        writer: Writer,
        clock: Clock,
        *,
        read_bytes: int,
    ) -> None:
        self._files = files
        self._writer = writer
        self._clock = clock
        self._read_bytes = read_bytes
        self._noted: set[str] = set()
        self.known = KnownFiles(checkpoints, self._standing)
        for one in self.known.all():
            if not one.inode and not one.done:
                self.known.cut(one.id, clock.monotonic())

    def put(self, tailed: Tailed, at: Checkpoint, *, persist: bool = False) -> None:
        """Note how far a file is read."""
        tailed.at = at
        self._files.owners[at.id] = tailed
        self.known.put(at)
        if persist:
            self.persist(at)

    def persist(self, at: Checkpoint) -> None:
        """Hand a checkpoint to the writer by itself."""
        self._writer.append(Append([], [], 0, 0, nothing, patient=True, source="tail", checkpoint=at))

    def give_up(self, identity: str) -> None:
        """Take an identity away from the file that has it now: that one is another file by now."""
        owner = self._files.owners.pop(identity, None)
        if owner is not None:
            owner.at = None

    def cut_off(self, old: Checkpoint) -> None:
        """Remember that a file's bytes are not where they were; the file there is another one.

        It is not done with: what was not read of it may be in its copy, also after a kill.
        """
        self.give_up(old.id)
        self.known.cut(old.id, self._clock.monotonic())
        self.known.put(msgspec.structs.replace(old, inode=0))
        self.persist(msgspec.structs.replace(old, inode=0))

    def new(self, tailed: Tailed, identity: str) -> Checkpoint:
        """Return the checkpoint of a file of which nothing is read yet."""
        head = b"" if tailed.file is None else tailed.file.read(0, HEAD_BYTES)
        return Checkpoint(
            id=identity,
            **tailed.here,
            # It may be compared with another one before its first line is taken.
            head=head_lines(head),
            timed=is_timed(head),
            since=self._first_look(tailed),
        )

    def note_empty(self, tailed: Tailed) -> None:
        """Remember since when a file was at a path of which nothing was read yet.

        It has no identity, and so no checkpoint, before its first line. This one says: what comes of this
        path by rotation and was written to later was not read.
        """
        place = shown(tailed.target)
        if tailed.state is State.LIVE and place not in self._noted and self.known.newest_at(place) is None:
            self._noted.add(place)
            note = Checkpoint(
                **{**tailed.here, "device": 0, "inode": 0},
                id=nothing_read(place),
                done=True,
                last_line_at=self._clock.wall(),
                since=self._first_look(tailed),
            )
            self.known.put(note)
            self.persist(note)

    def _first_look(self, tailed: Tailed) -> float | None:
        """Return when the place of a file was looked at first; None for one that is at none."""
        if tailed.state is State.AWAY:
            return None
        since = self.known.since(shown(tailed.target))
        return self._clock.wall() if since is None else since

    def at_end(self, tailed: Tailed, at: Checkpoint) -> Checkpoint:
        """Return the checkpoint of a file of which only what comes now counts: behind its last newline."""
        assert tailed.file is not None  # noqa: S101 - it was just read
        if tailed.file.compressed:
            return msgspec.structs.replace(at, done=True, line=None)
        end = size = tailed.file.status().st_size
        while end > 0:
            start = max(0, end - self._read_bytes)
            place = tailed.file.read(start, end - start).rfind(b"\n")
            if place >= 0:
                end = start + place + 1
                break
            end = start
        last = tailed.file.read(max(0, end - TAIL_BYTES), min(end, TAIL_BYTES))
        head = tailed.file.read(0, min(end, HEAD_BYTES))
        return msgspec.structs.replace(
            at,
            offset=end,
            line=tailed.file.read(0, end).count(b"\n") if size <= self._read_bytes else None,
            head=head_lines(head),
            timed=is_timed(head),
            tail_bytes=len(last),
            tail_crc=crc32(last),
        )

    def _standing(self, identity: str) -> Standing | None:
        """Tell how the open file of an identity stands at this moment."""
        tailed = self._files.owners.get(identity)
        if tailed is None or tailed.file is None or tailed.at is None:
            return None if tailed is None else Standing(tailed.state, tailed.size)
        at = tailed.at
        if tailed.file.compressed:
            # Files are compared by the bytes in them; how many those are is known at their end.
            return Standing(tailed.state, at.offset if at.done else sys.maxsize)
        if at.done:
            return Standing(tailed.state, tailed.size)
        try:
            size = tailed.file.status().st_size
            cut = is_cut(tailed.file, at)
        except OSError:
            return Standing(tailed.state, tailed.size)
        return Standing(State.CUT if cut else tailed.state, size)

    def give_up_copies(self, before: float) -> None:
        """Look no longer for the bytes of files that were cut before this moment."""
        for given_up in self.known.no_longer_cut(before):
            self.known.put(msgspec.structs.replace(given_up, done=True))
            self.persist(msgspec.structs.replace(given_up, done=True))

    def forget(self) -> None:
        """Forget files that are long gone, if too many are remembered."""
        forgotten = self.known.superfluous()
        if forgotten:
            self._writer.append(
                Append([], [], 0, 0, nothing, patient=True, source="tail", forgotten=forgotten)
            )


def is_cut(file: OpenFile, at: Checkpoint) -> bool:
    """Tell whether a file is not any more what it was when it was read so far; raises OSError."""
    before, rest = file.read_behind(at.offset, at.tail_bytes, 0 if at.offset else FIRST_BYTES)
    return is_changed(at, before, rest)


def nothing(durable: bool) -> None:
    """Nobody waits: what is not durable when the agent stops is read again."""
    del durable
