"""The durable store between collector and flusher, as the rest of the agent sees it.

A queue holds chunks in order of arrival under increasing integer keys, dead letters,
checkpoints of tailed files, and the ledger. It changes in one way only: `commit` applies
one `Change` whole or not at all, and returns once it is durable. So whatever must be true
together (a chunk, the count of accepted events, and how far its file is read; the end of
an event and its place in the ledger) is.

One thread commits; any thread reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import msgspec

from agent.chunk import Chunk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["Books", "Change", "Checkpoint", "Chunk", "DeadLetter", "Queue", "Settlement"]


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """An event that Polar refuses for good, with the reason.

    Attributes:
        id: its number, given by the queue; 0 before that.
        event: the JSON line, as it was sent.
        external_id: the event's idempotency key.
        name: the event's name, for lists.
        status: the HTTP status of the refusal.
        reason: one line for people.
        errors: what the server said of this event: type, location and message, without
            its echo of the data.
        attempts: how many requests carried the event.
        first_attempt: when the first one was made, Unix seconds.
        died_at: when it was given up, Unix seconds.
        batch: the batch that was refused; empty when our own check refused the line (`status` 0).
        path: the tailed file that the line stands in; None when it came otherwise.
        line: the number of the line in that file, from 1; None when nobody counted.
        offset: where the line begins in that file, in bytes.
    """

    event: str
    external_id: str
    name: str
    status: int
    reason: str
    errors: list[dict[str, object]]
    attempts: int
    first_attempt: float
    died_at: float
    batch: str
    path: str | None = None
    line: int | None = None
    offset: int | None = None
    id: int = 0


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    r"""How far a tailed file is read: everything before `offset` is in the queue or beyond it.

    Attributes:
        id: the file's identity, as in the ids of its lines: see `agent.tail.identity`.
        path: where the file was seen last; bytes that are no UTF-8 as ``\xNN``.
        target: what that path led to, where it is or goes through a symbolic link; empty where not.
        device: of the file system.
        inode: of the file.
        offset: bytes read, from the beginning of the file.
        line: lines read, empty ones included; None when reading began somewhere within.
        head: the CRC-32 of each of its first lines: see `agent.tail.identity.head_lines`.
        timed: the first of them carries a time or an id of its own.
        tail_bytes: so many bytes before `offset` are covered by `tail_crc`.
        tail_crc: their CRC-32.
        skipping: `offset` is within a line that is too long; the rest of it is passed over.
        done: it is read to its end, and was closed.
        refused: lines of it that became dead letters.
        last_line_at: when its last line was taken, Unix seconds; None when none was.
        since: when its place was looked at for the first time, Unix seconds; None when that is not known.
    """

    id: str
    path: str
    target: str = ""
    device: int
    inode: int
    offset: int = 0
    line: int | None = 0
    head: tuple[int, ...] = ()
    timed: bool = False
    tail_bytes: int = 0
    tail_crc: int = 0
    skipping: bool = False
    done: bool = False
    refused: int = 0
    last_line_at: float | None = None
    since: float | None = None

    @property
    def place(self) -> str:
        """Where the file itself was, all symbolic links followed."""
        return self.target or self.path


class Books(msgspec.Struct, frozen=True, kw_only=True):
    """The ledger and what belongs to it.

    Always: `accepted = pending + delivered + duplicates + dead + dropped`.

    Attributes:
        accepted: events ever taken.
        refused: lines ever refused; not part of the balance.
        delivered: events that Polar stored for us.
        duplicates: events that Polar had already, and those that repeat an earlier one.
        repeated: those of the duplicates that never went to Polar: they repeat an event that had
            come a moment before.
        resent: those of the duplicates that this agent had sent before, as far as it can tell.
        dead: dead letters; those that are retried or purged leave it again.
        dropped: events dropped by an operator's choice, or lost to damage.
        lost: those of the dropped that were lost to damage.
        bytes: size of the rows that hold pending events.
        next_key: the key of the next chunk.
        next_dead: the number of the next dead letter.
    """

    accepted: int = 0
    refused: int = 0
    delivered: int = 0
    duplicates: int = 0
    repeated: int = 0
    resent: int = 0
    dead: int = 0
    dropped: int = 0
    lost: int = 0
    bytes: int = 0
    next_key: int = 1
    next_dead: int = 1

    @property
    def pending(self) -> int:
        """Events that are still on their way."""
        return self.accepted - self.delivered - self.duplicates - self.dead - self.dropped


@dataclass(frozen=True, slots=True)
class Settlement:
    """The end of some events of one chunk.

    Attributes:
        key: the chunk's key.
        rest: what stays of the chunk; None when nothing does.
        delivered: how many events Polar stored.
        duplicates: how many Polar had already.
        dead: those that it refuses for good.
        damaged: the row was found not to be what was written: it is set aside, its events are lost.
        lost: how many these are; for the store to find out.
        resent: how many of the duplicates this agent had sent before, as far as it can tell.
    """

    key: int
    rest: Chunk | None
    delivered: int = 0
    duplicates: int = 0
    dead: Sequence[DeadLetter] = ()
    damaged: bool = False
    lost: int = 0
    resent: int = 0


@dataclass(slots=True)
class Change:
    """What one transaction does.

    Attributes:
        appends: new chunks; their events are counted as accepted.
        refused: lines refused.
        dropped: events taken and dropped at once, by an operator's choice.
        settlements: ends of events.
        revived: dead letters, by number, whose events are pending again: in `requeued`.
        requeued: chunks that hold the events of `revived`, each as it is or mended.
        purged: dead letters, by number, that an operator throws away.
        letters: events that our own check refuses, of a source without anybody to tell: they
            are counted as accepted, and as dead.
        checkpoints: how far files are read with this; each replaces the one of its id.
        forgotten: checkpoints to be removed, by id; of those that are not there, none is.
        repeated: lines that repeat an event which this change, or one before it, holds.
        organization: what the queue learned of whom its events are for.
    """

    appends: list[Chunk] = field(default_factory=list)
    refused: int = 0
    dropped: int = 0
    settlements: list[Settlement] = field(default_factory=list)
    revived: Sequence[int] = ()
    requeued: Sequence[Chunk] = ()
    purged: Sequence[int] = ()
    letters: Sequence[DeadLetter] = ()
    checkpoints: Sequence[Checkpoint] = ()
    forgotten: Sequence[str] = ()
    repeated: int = 0
    organization: str = ""

    @property
    def buried(self) -> list[DeadLetter]:
        """All new dead letters, in the order in which they get their numbers."""
        return [*(letter for settlement in self.settlements for letter in settlement.dead), *self.letters]

    def __bool__(self) -> bool:
        """Tell whether there is anything to do."""
        return bool(
            self.appends
            or self.refused
            or self.repeated
            or self.dropped
            or self.settlements
            or self.revived
            or self.purged
            or self.letters
            or self.checkpoints
            or self.forgotten
            or self.organization
        )

    def count(self, books: Books) -> Books:
        """Return `books` with the counters of this change; sizes and keys are the store's to add."""
        settled = self.settlements
        dead = len(self.buried)
        stored = sum(chunk.count for chunk in self.appends)
        lost = sum(settlement.lost for settlement in settled)
        return replace_books(
            books,
            accepted=books.accepted + stored + len(self.letters) + self.repeated + self.dropped,
            refused=books.refused + self.refused,
            delivered=books.delivered + sum(settlement.delivered for settlement in settled),
            duplicates=books.duplicates
            + self.repeated
            + sum(settlement.duplicates for settlement in settled),
            repeated=books.repeated + self.repeated,
            resent=books.resent + sum(settlement.resent for settlement in settled),
            dead=books.dead + dead - len(self.revived) - len(self.purged),
            dropped=books.dropped + self.dropped + len(self.purged) + lost,
            lost=books.lost + lost,
        )


def replace_books(books: Books, **changes: int) -> Books:
    """Return `books` with some numbers changed."""
    return msgspec.structs.replace(books, **changes)


class Queue(Protocol):
    """What a store must do; `tests/contract/test_queue.py` holds every store to it."""

    def commit(self, change: Change) -> Sequence[int]:
        """Apply `change` whole and make it durable; return the keys of its new chunks.

        Raises:
            QueueFullError: there is no room on the disk; nothing of it was applied.
            QueueError: nothing of it was applied.
        """
        ...

    def recover(self, *, short: bool = False) -> None:
        """See that the queue is ready for more, with room kept for settling, also after the disk refused.

        Args:
            short: room is wanted: what was taken out is to be given back to the disk now.

        Raises:
            QueueFullError: there is no room to keep.
            QueueError: the disk refuses still.
        """
        ...

    def books(self) -> Books:
        """Return the books as of the last commit."""
        ...

    def first_key(self) -> int:
        """Return the key of the oldest chunk, or of the next one when there is none."""
        ...

    def get(self, key: int) -> Chunk | None:
        """Return the chunk of `key`, or None when it is settled.

        Raises:
            DamagedChunkError: the row is not what was written.
            QueueError: the store cannot be read.
        """
        ...

    def dead_letters(self, ids: Iterable[int] | None = None) -> Iterator[DeadLetter]:
        """Yield the dead letters of these numbers, or all, oldest first."""
        ...

    def checkpoints(self) -> list[Checkpoint]:
        """Return all checkpoints, in order of their ids."""
        ...

    def audit(self) -> bool:
        """Look whether what is there makes up the books, and mend the queue if not; True when that was done.

        Asked when events are pending and none can be found.

        Raises:
            QueueError: it cannot be mended.
        """
        ...

    def close(self) -> None:
        """Let go of the store; each thread that used it does so for itself, when it has done with it."""
        ...
