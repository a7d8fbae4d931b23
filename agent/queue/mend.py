"""A damaged queue is set aside, and what can be read of it goes into a fresh one.

What happens, in order, so that it can break off anywhere:

1. Everything that can be rescued is written to a database in a directory beside the
   damaged one, and synced. Until then nothing was changed: the next start does it again.
2. That directory is given the name ``rescued-<time>``: from here on there is one outcome.
3. The damaged files move to ``quarantine-<time>``, with a report, and the new database
   takes their place. The next start completes that where it broke off (`finish`).

The books balance afterwards: what they have as pending or dead and was not found is counted
as dropped, and as lost; what was found and they did not know is counted as accepted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from agent.chunk import NewerChunkError
from agent.errors import QueueError
from agent.logs import get
from agent.queue import Books, replace_books
from agent.queue.check import DATABASE, INDEX, JOURNAL, KEPT, LOG, glance, probe
from agent.queue.fault import fault
from agent.queue.raw import sync_directory
from agent.queue.rescue import Rescue
from agent.queue.rows import BOOKS, CHECKPOINT, DEAD, FORMAT, META, Meta, numbered, seal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from agent.queue.hold import Hold
    from agent.queue.wal import Glance

    Fill = Callable[[Path, Iterator[tuple[int | str, bytes]]], None]

QUARANTINE = "quarantine-"
REPORT = "report.json"
_UNFINISHED, _RESCUED = "rescue.tmp", "rescued-"
_WIDEST_GAP = 1_000_000
_STAMP, _STAMP_LENGTH = "%Y%m%dT%H%M%SZ", len("20261123T101500Z")
_FILES = (LOG, INDEX, KEPT, JOURNAL, DATABASE)


class Report(msgspec.Struct, kw_only=True):
    """What became of a damaged queue.

    Attributes:
        found: what was wrong.
        at: when, UTC.
        quarantine: where the old files are.
        chunks_rescued: rows with pending events.
        events_rescued: the events in them.
        dead_letters_rescued: dead letters.
        checkpoints_rescued: checkpoints of tailed files; a file without one is read from its beginning.
        events_lost: events that the books had, dead letters included, and that are gone.
        events_again: events that the books had as settled, and that came back: those that Polar has, it
            knows by their ids.
        damaged_chunks: keys of the chunks that were found and are not what was written.
        damaged_dead_letters: the numbers of dead letters of that kind.
        books: `read`, or `gone`: then nobody knows how many events are.
        log_pages_missing: pages cut off the end of the log; what was in them is in no count.
        unreadable: how often the disk refused to read.
    """

    found: str
    at: str
    quarantine: str
    chunks_rescued: int = 0
    events_rescued: int = 0
    dead_letters_rescued: int = 0
    checkpoints_rescued: int = 0
    events_lost: int = 0
    events_again: int = 0
    damaged_chunks: list[int] = []
    damaged_dead_letters: list[int] = []
    books: str = "read"
    log_pages_missing: int = 0
    unreadable: int = 0


def mend(
    directory: Path,
    found: str,
    seen: Glance,
    *,
    at: float,
    fill: Fill,
    books: Books | None = None,
    held: Hold | None = None,
) -> Report:
    """Put a fresh queue with all that can be rescued in the place of a damaged one.

    Args:
        directory: where it lies; this process holds its lock and uses the database no more.
        found: what is wrong with it.
        seen: what a glance at its log told, before SQLite opened it or while this process had it open.
        at: Unix time in seconds.
        fill: writes rows to a new database in a directory, durably, and leaves one file.
        books: the books where they are known; else the newest copy that can be read.
        held: what a process still has of files that were taken away; else the files are read.

    Raises:
        QueueError: it could not be done, and the damaged files are as they were; or they are
            those of a newer version.
    """
    unfinished = directory / _UNFINISHED
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        name = _free_name(directory, datetime.fromtimestamp(at, UTC))
        report = Report(
            found=found,
            at=datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds"),
            quarantine=str(directory / (QUARANTINE + name)),
        )
        with contextlib.closing(held or Rescue(directory, seen)) as rescue:
            _refuse_newer(rescue.meta, directory)
            fill(unfinished, _rows(rescue, books or rescue.books, report))
        (unfinished / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report)))
        for file in unfinished.iterdir():
            _sync(file)
        sync_directory(unfinished)
        unfinished.rename(directory / (_RESCUED + name))
        _swap(directory, directory / (_RESCUED + name))
    except NewerChunkError as error:
        raise _newer(directory, str(error)) from error
    except OSError as error:
        raise QueueError(
            "rescue the damaged queue",
            str(directory),
            f"{found}; {error.strerror or error}",
            "nothing was changed; it needs as much free space as the queue has taken, and a disk that works",
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _tell(report)
    return report


def finish(directory: Path) -> None:
    """Complete what a process that was killed had begun.

    Raises:
        QueueError: that is not possible.
    """
    try:
        shutil.rmtree(directory / _UNFINISHED, ignore_errors=True)
        for rescued in sorted(directory.glob(_RESCUED + "*")):
            quarantine = directory / rescued.name.replace(_RESCUED, QUARANTINE)
            if not (rescued / DATABASE).exists():
                shutil.rmtree(rescued)
            elif probe(rescued, glance(rescued)) is None:
                _swap(directory, rescued)
                _tell(read_report(quarantine))
            else:
                _undo(directory, rescued)
    except OSError as error:
        raise QueueError(
            "complete the rescue of the queue",
            str(directory),
            error.strerror or str(error),
            "see the disk's health",
        ) from error


def mended_at(directory: Path) -> list[float]:
    """Return when damaged files were set aside, as the names tell; Unix seconds.

    Raises:
        QueueError: the disk does not say.
    """
    moments = []
    try:
        places = list(directory.glob(QUARANTINE + "*"))
    except OSError as error:
        raise fault("look into", directory, error) from error
    for place in places:
        told = place.name.removeprefix(QUARANTINE)[:_STAMP_LENGTH]
        with contextlib.suppress(ValueError):
            moments.append(datetime.strptime(told, _STAMP).replace(tzinfo=UTC).timestamp())
    return moments


def read_report(quarantine: Path) -> Report:
    """Return what was told when files were set aside."""
    try:
        return msgspec.json.decode((quarantine / REPORT).read_bytes(), type=Report)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError):
        return Report(found="unknown: its report cannot be read", at="", quarantine=str(quarantine))


def _refuse_newer(meta: Meta | None, directory: Path) -> None:
    """Leave alone what a newer version wrote."""
    if meta is not None and meta.format > FORMAT:
        raise _newer(directory, f"format {meta.format}; this one reads up to {FORMAT}")


def _newer(directory: Path, reason: str) -> QueueError:
    return QueueError(
        "rescue the damaged queue",
        str(directory),
        f"it was written by a newer version ({reason})",
        "install that version again, or choose another queue_dir",
    )


def _rows(rescue: Rescue | Hold, known: Books | None, report: Report) -> Iterator[tuple[int | str, bytes]]:
    """Yield the rows of the fresh queue; fill in the report."""
    size = last = 0
    next_dead = 1
    for row in rescue.chunks():
        # In format 1 nothing proves a key, and a gap must not keep the flusher busy for ever.
        last = row.key if not last or row.key - last <= _WIDEST_GAP else last + 1
        yield last, row.data
        report.chunks_rescued += 1
        report.events_rescued += row.chunk.count
        size += len(row.data)
    for letter in rescue.dead_letters():
        key = numbered(DEAD, letter.id)
        yield key, seal(key, letter)
        report.dead_letters_rescued += 1
        next_dead = letter.id + 1
    for checkpoint in rescue.checkpoints():
        key = CHECKPOINT + checkpoint.id
        yield key, seal(key, checkpoint)
        report.checkpoints_rescued += 1
    books = known or Books()
    short = books.pending + books.dead - report.events_rescued - report.dead_letters_rescued
    books = replace_books(
        books,
        accepted=books.accepted + max(0, -short),
        dead=report.dead_letters_rescued,
        dropped=books.dropped + max(0, short),
        lost=books.lost + max(0, short),
        bytes=size,
        next_key=max(books.next_key, last + 1),
        next_dead=max(books.next_dead, next_dead),
    )
    report.events_lost = max(0, short)
    report.events_again = max(0, -short) if known else 0
    report.damaged_chunks = rescue.damaged_chunks
    report.damaged_dead_letters = rescue.damaged_letters
    report.books = "read" if known else "gone"
    report.log_pages_missing = rescue.missing
    report.unreadable = rescue.unreadable
    yield BOOKS, seal(BOOKS, books)
    yield META, seal(META, msgspec.structs.replace(rescue.meta or Meta(), format=FORMAT))


def _swap(directory: Path, rescued: Path) -> None:
    """Move the damaged files away and the rescued database in."""
    sync_directory(directory)  # it has its name, whatever comes
    quarantine = directory / rescued.name.replace(_RESCUED, QUARANTINE)
    quarantine.mkdir(mode=0o700, exist_ok=True)
    for name in _FILES:
        _move(directory / name, quarantine)
    _move(rescued / REPORT, quarantine)
    sync_directory(quarantine)
    sync_directory(directory)
    _move(rescued / DATABASE, directory)
    sync_directory(directory)
    shutil.rmtree(rescued)


def _undo(directory: Path, rescued: Path) -> None:
    """Move the damaged files back: what was rescued was damaged, too, before it took their place."""
    quarantine = directory / rescued.name.replace(_RESCUED, QUARANTINE)
    for name in _FILES:
        _move(quarantine / name, directory)
    sync_directory(directory)
    shutil.rmtree(quarantine, ignore_errors=True)
    shutil.rmtree(rescued)
    get("queue").error(
        "what was rescued of the queue is damaged, too: it is rescued again", path=str(directory)
    )


def _move(file: Path, directory: Path) -> None:
    """Move a file, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        file.rename(directory / file.name)


def _sync(file: Path) -> None:
    """Make the bytes of a file durable."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_name(directory: Path, at: datetime) -> str:
    """Return the time as the end of a name that nothing has yet."""
    taken = {path.name for path in directory.iterdir()}
    name = first = at.strftime(_STAMP)
    number = 1
    while QUARANTINE + name in taken or _RESCUED + name in taken:
        number += 1
        name = f"{first}-{number}"
    return name


def _tell(report: Report) -> None:
    """Say loudly what happened."""
    get("queue").error(
        "the queue was damaged: what could be read is rescued",
        **msgspec.structs.asdict(report),
        hint=f"`agent queue export --dir {report.quarantine}` shows what can be read of the old files",
    )
