"""A queue in memory, for tests: the same contract, durable for as long as the process lives."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import msgspec

from agent.errors import QueueError
from agent.queue import Books, Change, Checkpoint, Chunk, DeadLetter, replace_books

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


class MemoryQueue:
    """Holds everything in three dictionaries."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunks: dict[int, Chunk] = {}
        self._dead: dict[int, DeadLetter] = {}
        self._checkpoints: dict[str, Checkpoint] = {}
        self._books = Books()

    def commit(self, change: Change) -> Sequence[int]:
        """Apply `change` whole; return the keys of its new chunks.

        Raises:
            QueueError: it names a chunk or a dead letter that is not there; nothing was applied.
        """
        with self._lock:
            self._check(change)
            books = change.count(self._books)
            key, dead = books.next_key, books.next_dead
            keys = []
            for new in (*change.appends, *change.requeued):
                self._chunks[key] = new
                keys.append(key)
                key += 1
            for settlement in change.settlements:
                if settlement.damaged:
                    continue  # memory does not rot: the chunk stays
                if settlement.rest is None:
                    del self._chunks[settlement.key]
                else:
                    self._chunks[settlement.key] = settlement.rest
            for letter in change.buried:
                self._dead[dead] = msgspec.structs.replace(letter, id=dead)
                dead += 1
            for number in (*change.revived, *change.purged):
                del self._dead[number]
            self._checkpoints.update((checkpoint.id, checkpoint) for checkpoint in change.checkpoints)
            for name in change.forgotten:
                self._checkpoints.pop(name, None)
            size = sum(len(chunk.lines) for chunk in self._chunks.values())
            self._books = replace_books(books, next_key=key, next_dead=dead, bytes=size)
            return keys

    def _check(self, change: Change) -> None:
        """Refuse a change that names what is not there, or not there any more after its own beginning."""
        ended: set[int] = set()
        for settlement in change.settlements:
            if settlement.key not in self._chunks or settlement.key in ended:
                raise QueueError("write the queue", "memory", f"there is no chunk {settlement.key}")
            if settlement.rest is None and not settlement.damaged:
                ended.add(settlement.key)
        gone: set[int] = set()
        for number in (*change.revived, *change.purged):
            if number not in self._dead or number in gone:
                raise QueueError("write the queue", "memory", f"there is no dead letter {number}")
            gone.add(number)

    def books(self) -> Books:
        """Return the books as of the last commit."""
        return self._books

    def first_key(self) -> int:
        """Return the key of the oldest chunk, or of the next one when there is none."""
        with self._lock:
            return min(self._chunks, default=self._books.next_key)

    def get(self, key: int) -> Chunk | None:
        """Return the chunk of `key`, or None when it is settled."""
        return self._chunks.get(key)

    def dead_letters(self, ids: Iterable[int] | None = None) -> Iterator[DeadLetter]:
        """Yield the dead letters of these numbers, or all, oldest first."""
        with self._lock:
            wanted = sorted(self._dead if ids is None else set(ids) & set(self._dead))
            letters = [self._dead[number] for number in wanted]
        yield from letters

    def checkpoints(self) -> list[Checkpoint]:
        """Return all checkpoints, in order of their ids."""
        with self._lock:
            return [self._checkpoints[name] for name in sorted(self._checkpoints)]

    def audit(self) -> bool:
        """Tell that nothing had to be mended."""
        return False

    def recover(self, *, short: bool = False) -> None:
        """Do nothing: memory is always ready."""
        del short

    def close(self) -> None:
        """Let go of everything."""
