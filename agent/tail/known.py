"""The files that have a checkpoint: all that is remembered of them, and the recognition of others by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from zlib import crc32

from agent.tail import recognition
from agent.tail.identity import HEAD_BYTES, fingerprint, fingerprint_of, head_lines, is_telling
from agent.tail.open_file import LENGTH_MODULUS
from agent.tail.recognition import Decision, Newcomer, State, recognise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from agent.queue import Checkpoint
    from agent.tail.open_file import OpenFile

_MOST_ALIKE = 64
MOST = 10_000
"""So many files are remembered that are no more there."""


@dataclass(slots=True)
class Standing:
    """How a file that is open stands: its state, and its size in bytes."""

    state: State
    size: int


class KnownFiles:
    """Checkpoints by identity, as of what was handed to the writer.

    Args:
        checkpoints: as the queue has them.
        standing: returns how the open file of an identity stands; None when none is open.
    """

    def __init__(self, checkpoints: Iterable[Checkpoint], standing: Callable[[str], Standing | None]) -> None:
        self._checkpoints: dict[str, Checkpoint] = {}
        self._alike: dict[str, tuple[str, ...]] = {}  # ten thousand sets would be large
        self._newest: dict[str, Checkpoint] = {}
        self._since: dict[str, float] = {}
        self._forgotten: dict[str, float] = {}
        self._cut: dict[str, float] = {}
        self._standing = standing
        for checkpoint in checkpoints:
            self.put(checkpoint)

    def put(self, checkpoint: Checkpoint) -> None:
        """Remember how far a file is read."""
        if checkpoint.id not in self._checkpoints:
            mark = fingerprint_of(checkpoint.id)
            self._alike[mark] = (*self._alike.get(mark, ()), checkpoint.id)
        self._checkpoints[checkpoint.id] = checkpoint
        since = checkpoint.last_line_at if checkpoint.since is None else checkpoint.since
        if since is not None:
            self._since[checkpoint.place] = min(since, self._since.get(checkpoint.place, since))
        newest = self._newest.get(checkpoint.place)
        if checkpoint.last_line_at is not None and (
            newest is None or checkpoint.last_line_at >= (newest.last_line_at or 0.0)
        ):
            self._newest[checkpoint.place] = checkpoint

    def get(self, identity: str) -> Checkpoint | None:
        """Return the checkpoint of a file."""
        return self._checkpoints.get(identity)

    def all(self) -> list[Checkpoint]:
        """Return all checkpoints."""
        return list(self._checkpoints.values())

    def newest(self) -> list[Checkpoint]:
        """Return, of each place, the file that was read last there."""
        return list(self._newest.values())

    def newest_at(self, place: str) -> Checkpoint | None:
        """Return the file that was read last at a place, or the note that none was there yet."""
        return self._newest.get(place)

    def since(self, place: str) -> float | None:
        """Return when a place was looked at first, Unix seconds; None when it was not.

        What is found beside it and was written to later was not read, unless it is known. When its lines
        were taken would not do: of files that are read late, one may be younger than another was read.
        """
        since, forgotten = self._since.get(place), self._forgotten.get(place)
        return since if since is None or forgotten is None else max(since, forgotten)

    def cut(self, identity: str, now: float) -> None:
        """Note that a file's inode has other bytes now."""
        self._cut[identity] = now

    def all_cut(self) -> list[Checkpoint]:
        """Return the files whose bytes are nowhere that is known of."""
        return [self._checkpoints[identity] for identity in self._cut]

    def found(self, identity: str) -> None:
        """Note that the bytes of such a file were found elsewhere."""
        self._cut.pop(identity, None)

    def no_longer_cut(self, before: float) -> list[Checkpoint]:
        """Give up waiting for the bytes of files that were cut before this moment; return these files."""
        given_up = [identity for identity, since in self._cut.items() if since < before]
        for identity in given_up:
            del self._cut[identity]
        return [self._checkpoints[identity] for identity in given_up]

    def state(self, identity: str) -> State:
        """Return how a file stands."""
        standing = self._standing(identity)
        if standing is not None:
            return standing.state
        return State.CUT if identity in self._cut else State.GONE

    def meet(
        self, path: str, key: tuple[int, int], file: OpenFile, *, settled: bool, whole: bool
    ) -> Decision | None:
        """Decide what a file is; None while too little of it is there.

        Args:
            path: where it is, for people.
            key: device and inode.
            file: its bytes.
            settled: it has not changed for a while.
            whole: nothing will be added to it.

        Raises:
            OSError: it cannot be read.
        """
        head = file.read(0, HEAD_BYTES)
        mark = fingerprint(head, whole=whole)
        if mark is None:
            return None
        newcomer = Newcomer(path, *key, mark, compressed=file.compressed, settled=settled)
        size = None if file.compressed else file.status().st_size
        lines, known = head_lines(head), []
        alike = [self._checkpoints[identity] for identity in self._alike.get(mark, ())]
        alike.sort(key=lambda at: at.last_line_at or 0.0, reverse=True)
        for at in alike[:_MOST_ALIKE]:
            identity = at.id
            matches, telling = recognition.compare(at, lines, size, _tail_of(file, at, lines))
            standing = self._standing(identity)
            outgrown = standing is not None and size is not None and size > standing.size
            known.append(
                recognition.Known(at, self.state(identity), matches, telling=telling, outgrown=outgrown)
            )
        return recognise(newcomer, known, self._alike.get(mark, ()))

    def superfluous(self) -> list[str]:
        """Return the identities of files that are not to be remembered any longer, and forget them."""
        if len(self._checkpoints) <= MOST:
            return []
        gone = [one for one in self._checkpoints.values() if one.done and self._standing(one.id) is None]
        gone.sort(key=lambda one: one.last_line_at or 0.0)
        names = [one.id for one in gone[: len(self._checkpoints) - MOST]]
        for name in names:
            one = self._checkpoints.pop(name)
            place = one.place
            # What is forgotten must not be taken for what was never read.
            if one.last_line_at is not None:
                self._forgotten[place] = max(one.last_line_at, self._forgotten.get(place, 0.0))
            if place in self._newest and self._newest[place].id == name:
                del self._newest[place]
            mark = fingerprint_of(name)
            self._alike[mark] = tuple(alike for alike in self._alike[mark] if alike != name)
            self._cut.pop(name, None)
        return names


def _tail_of(file: OpenFile, at: Checkpoint, lines: Sequence[int]) -> int | None:
    """Return the CRC-32 of the bytes where those of `at.tail_crc` would be; None when it is too short."""
    if (
        file.compressed
        and at.done
        and lines == at.head
        and is_telling(at.head, timed=at.timed)
        and file.told_length() == at.offset % LENGTH_MODULUS
    ):
        # Rotated files are met at each rotation: to decompress all of each, every time, keeps others waiting.
        return at.tail_crc
    tail = file.read(at.offset - at.tail_bytes, at.tail_bytes)
    return crc32(tail) if len(tail) == at.tail_bytes else None
