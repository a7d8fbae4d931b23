"""All of a queue, read and checked from outside, whatever its state: at rest, in use, damaged, set aside."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent import chunk
from agent.errors import QueueError, reason_of
from agent.queue import Books, Checkpoint, Chunk, DeadLetter, look
from agent.queue.check import DATABASE, LOG, ODD, SQL_ERRORS, glance, in_one_line, wrong_header
from agent.queue.mend import QUARANTINE, Report, read_report
from agent.queue.rescue import Rescue
from agent.queue.rows import BOOKS, CHECKPOINT, DAMAGED, DEAD, META, DamagedRowError, Meta, number_of, unseal

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from pathlib import Path

_MOST_PROBLEMS = 20
_AT_ONCE = 32  # chunks that are read in one go


@dataclass(slots=True)
class Findings:
    """What is in a queue, and what is wrong with it.

    Attributes:
        meta: its format and destination.
        books: the ledger.
        chunks: rows that hold pending events as they were written.
        events: the events in them.
        dead: dead letters that are what was written.
        set_aside: damaged chunks that were taken out of the way and counted.
        quarantines: what became of earlier damage, the oldest first.
        problems: for people; empty when all is well.
    """

    meta: Meta = field(default_factory=Meta)
    books: Books = field(default_factory=Books)
    chunks: int = 0
    events: int = 0
    dead: int = 0
    set_aside: int = 0
    quarantines: list[Report] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def wrong(self, problem: str) -> None:
        """Note a problem, if there are not too many already."""
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(problem)


def inspect(directory: Path) -> Findings:
    """Read all of a queue, and check it.

    Raises:
        QueueError: it may not be read, or is of a newer version.
    """
    rested = look.rests(directory)
    findings = _inspect(directory)
    if findings.problems and rested and not look.rests(directory):
        findings = _inspect(directory)  # a daemon has begun to write meanwhile
    findings.quarantines = [
        read_report(place) for place in sorted(directory.glob(QUARANTINE + "*")) if place.is_dir()
    ]
    return findings


def _inspect(directory: Path) -> Findings:
    """Read all of a queue as it is now."""
    findings = Findings()
    _refuse_unreadable(directory)
    there = (directory / DATABASE).exists()
    header = wrong_header(directory / DATABASE) if there else f"{DATABASE} is missing"
    if header is not None:
        findings.wrong(header)
    if look.log_is_cut(directory):
        findings.wrong(f"{LOG} is damaged: SQLite does not see all that was committed")
    try:
        with contextlib.closing(look.connect(directory)) as db:
            _inspect_rows(db, findings)
            for (told,) in db.execute(f"PRAGMA integrity_check({_MOST_PROBLEMS})"):
                if told != "ok":
                    findings.wrong(f"SQLite: {in_one_line(told)}")
    except SQL_ERRORS as error:
        findings.wrong(f"SQLite: {error}")
    look.refuse_newer(directory, findings.meta.format)
    books = findings.books
    if books.pending != findings.events:
        findings.wrong(f"the books have {books.pending} events pending, {findings.events} are there")
    if books.dead != findings.dead:
        findings.wrong(f"the books have {books.dead} dead letters, {findings.dead} are there")
    return findings


def _refuse_unreadable(directory: Path) -> None:
    """Tell a file that somebody else may read from one that is damaged."""
    try:
        for name in (DATABASE, LOG):
            with contextlib.suppress(FileNotFoundError), (directory / name).open("rb"):
                pass
    except PermissionError as error:
        raise QueueError(
            "read the queue", str(error.filename), reason_of(error), "run this as the user of the daemon"
        ) from error


def _inspect_rows(db: sqlite3.Connection, findings: Findings) -> None:
    """Read every row, note what is there and what is not as it was written; one statement sees one state."""
    for key, odd, row in db.execute(f"SELECT key, {ODD}, value FROM Cache NOT INDEXED"):  # noqa: S608  # ours
        try:
            _inspect_row(key, None if odd else row, findings)
        except (chunk.DamagedChunkError, chunk.NewerChunkError, DamagedRowError) as error:
            what = f"chunk {key}" if isinstance(key, int) else f"row {key!r}"
            findings.wrong(f"{what}: {error}")


def _inspect_row(key: object, row: bytes | None, findings: Findings) -> None:
    """Read one row; None stands for one that is not as diskcache writes it."""
    if row is None:
        raise DamagedRowError("not as it was written")
    if isinstance(key, int):
        findings.events += chunk.decode(row, key).count
        findings.chunks += 1
    elif key == BOOKS:
        findings.books = unseal(BOOKS, row, Books)
    elif key == META:
        findings.meta = unseal(META, row, Meta)
    elif isinstance(key, str) and number_of(DEAD, key) is not None:
        if unseal(key, row, DeadLetter).id != number_of(DEAD, key):
            raise DamagedRowError("it has the number of another one")
        findings.dead += 1
    elif isinstance(key, str) and key.startswith(CHECKPOINT):
        if unseal(key, row, Checkpoint).id != key.removeprefix(CHECKPOINT):
            raise DamagedRowError("it is that of another file")
    elif isinstance(key, str) and number_of(DAMAGED, key) is not None:
        findings.set_aside += 1
    else:
        raise DamagedRowError("nobody wrote it")


def stored_chunks(directory: Path) -> Iterator[Chunk]:
    """Yield the chunks of a queue without damage, oldest first; of one in use, those that were not sent yet.

    They are read a few at a time, so that whoever takes them slowly does not keep the
    daemon's log from being used anew.

    Raises:
        QueueError: it cannot be read, or there is damage after all.
    """
    rested = look.rests(directory)
    with look.reading(directory), contextlib.closing(look.connect(directory)) as db:
        ((last,),) = db.execute("SELECT max(key) FROM Cache WHERE typeof(key) = 'integer'")
        key, some = 0, "SELECT key, value FROM Cache WHERE key > ? AND key <= ? ORDER BY key LIMIT ?"
        while rows := db.execute(some, (key, last, _AT_ONCE)).fetchall():
            for key, row in rows:  # the next ones come after the last of these
                try:
                    yield chunk.decode(row if isinstance(row, bytes) else b"", key)
                except chunk.NewerChunkError as error:
                    raise look.damaged(directory, f"chunk {key}: {error}") from error
                except chunk.DamagedChunkError as error:
                    raise look.damaged(directory, f"chunk {key} is damaged: {error}") from error
    if rested and not look.rests(directory):
        raise QueueError("read the queue", str(directory), "a daemon has begun to write", "do this again")


def rescued_chunks(directory: Path, problems: list[str]) -> Iterator[Chunk]:
    """Yield the chunks of a damaged queue whose checksums hold, oldest first.

    Args:
        directory: where the database lies.
        problems: gets the chunks that cannot be read.

    Raises:
        QueueError: a chunk is of a newer version.
    """
    try:
        with contextlib.closing(Rescue(directory, glance(directory), outside=True)) as rescue:
            yield from (row.chunk for row in rescue.chunks())
            problems += [f"chunk {key} cannot be read" for key in rescue.damaged_chunks]
    except chunk.NewerChunkError as error:
        raise QueueError("read the queue", str(directory), str(error), "use that version") from error
