"""Queues to be damaged, ways to damage them, and what must be there afterwards.

What outlives damage is told by the bytes that were hit: a row of which none was hit
must be rescued (`untouched`). `drain` takes out of a queue what a flusher would.
"""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.chunk import DamagedChunkError
from agent.queue import Books, Change, Chunk, Settlement, check
from agent.queue.disk import DiskQueue
from agent.queue.pages import Pages
from support.queues import checkpoint_of, letter, line

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Collection
    from pathlib import Path

DATABASE, LOG, INDEX, LOCK = "cache.db", "cache.db-wal", "cache.db-shm", "lock"
BALLAST = ("ballast", "ballast.start", "ballast.name")
FILES = (DATABASE, LOG, INDEX, LOCK, check.KEPT, *BALLAST)
_PAGE = 4096
_ARRIVED = 1_795_435_200_000

Hit = tuple[str, int, int]
"""A file, and the first byte and the one behind the last that are not what they were."""


@dataclass
class Truth:
    """What a queue held before it was damaged.

    Attributes:
        ever: all lines that it ever took.
        chunks: those that are pending, by keys.
        dead: those of the dead letters, by numbers.
        read: how far tailed files were ever said to be read, by ids of checkpoints; the last is what holds.
        places: where each row stands, by keys.
        books: the ledger.
    """

    ever: set[bytes] = field(default_factory=set)
    chunks: dict[int, list[bytes]] = field(default_factory=dict)
    dead: dict[int, bytes] = field(default_factory=dict)
    read: dict[str, list[int]] = field(default_factory=dict)
    places: dict[int | str, list[Hit]] = field(default_factory=dict)
    books: Books = field(default_factory=Books)

    @property
    def pending(self) -> int:
        """How many events were pending."""
        return sum(map(len, self.chunks.values()))


# -- making ------------------------------------------------------------------------------


def fill(
    directory: Path, chance: random.Random, *, commits: int, name: str = "", moved: Collection[int] = ()
) -> tuple[DiskQueue, Truth]:
    """Run a queue for a while: chunks come, shrink and go, and some events die.

    Args:
        directory: of the queue.
        chance: for all choices.
        commits: how long.
        name: what the events' external ids begin with.
        moved: after so many commits all of the log is moved to the database.
    """
    queue, truth = DiskQueue(directory), Truth()
    for number in range(1, commits + 1):
        change, added, dead = Change(), [], []
        for _ in range(chance.choice([1, 1, 2, 4])):
            added.append(_lines(chance, name, len(truth.ever), chance.choice([1, 2, 7, 40, 150])))
            truth.ever.update(added[-1])
            change.appends.append(_chunk(added[-1]))
        for key in chance.sample(sorted(truth.chunks), min(len(truth.chunks), chance.choice([0, 0, 1, 3]))):
            ended = truth.chunks[key][: chance.randint(1, 150)]
            died = ended[: chance.choice([0, 0, 1])]
            rest = truth.chunks.pop(key)[len(ended) :]
            if rest:
                truth.chunks[key] = rest
            change.settlements.append(
                Settlement(
                    key,
                    _chunk(rest) if rest else None,
                    delivered=len(ended) - len(died),
                    dead=[letter(event=event.decode()) for event in died],
                )
            )
            dead += died
        for file in chance.sample(range(12), 2):
            offsets = truth.read.setdefault(f"f{file}-0", [0])
            offsets.append(offsets[-1] + chance.randint(1, 1 << 20))
            change.checkpoints = [*change.checkpoints, checkpoint_of(f"f{file}-0", offset=offsets[-1])]
        first = queue.books().next_dead
        truth.chunks.update(zip(queue.commit(change), added, strict=True))
        truth.dead.update(enumerate(dead, first))
        if number in moved:
            queue._backfill._run("PASSIVE")
    truth.books = queue.books()
    return queue, truth


def _lines(chance: random.Random, name: str, first: int, count: int) -> list[bytes]:
    """Return events of different lengths, which cannot be compressed much."""
    filler = chance.choice([1, 10, 60, 240])
    return [
        line(f"{name}{number}")[:-1] + b',"metadata":{"x":"%b"}}' % chance.randbytes(filler).hex().encode()
        for number in range(first, first + count)
    ]


def _chunk(lines: list[bytes]) -> Chunk:
    return Chunk(b"\n".join(lines), len(lines), _ARRIVED)


def survey(directory: Path, truth: Truth) -> None:
    """Note where the newest state of each row stands; the queue must not be open."""
    with closing(Pages(directory, check.glance(directory))) as pages:
        for number in pages.leaves():
            for version in pages.versions(number)[:1]:
                for cell in pages.leaf(number, version).cells:
                    page = version.file.read(version.offset, _PAGE)
                    places = [(version, page.index(cell.local), len(cell.local) + 4)]
                    following, missing = cell.overflow, cell.size - len(cell.local)
                    while missing > 0:
                        other = pages.versions(following)[0]
                        places.append((other, 0, min(_PAGE, missing + 4)))
                        following = int.from_bytes(other.file.read(other.offset, 4), "big")
                        missing -= _PAGE - 4
                    truth.places[cell.key] = [
                        (
                            LOG if at.file is pages._log else DATABASE,
                            at.offset + start,
                            at.offset + start + size,
                        )
                        for at, start, size in places
                    ]


# -- damaging ----------------------------------------------------------------------------


def truncate(path: Path, chance: random.Random) -> Hit:
    """Cut a file off."""
    size = path.stat().st_size
    keep = chance.randrange(size)
    keep = chance.choice([0, keep, keep, keep // _PAGE * _PAGE])
    with path.open("r+b") as file:
        file.truncate(keep)
    return path.name, keep, size


def zero_pages(path: Path, chance: random.Random) -> Hit:
    """Write zeros over some pages."""
    size = path.stat().st_size
    start = chance.randrange(size) // _PAGE * _PAGE
    return write(path, start, bytes(min(size - start, _PAGE * chance.choice([1, 1, 2, 5]))))


def scribble(path: Path, chance: random.Random) -> Hit:
    """Write nonsense somewhere."""
    size = path.stat().st_size
    start = chance.randrange(size)
    return write(path, start, chance.randbytes(min(size - start, chance.choice([1, 16, 512, 5000]))))


def flip_bit(path: Path, chance: random.Random) -> Hit:
    """Turn one bit round."""
    place = chance.randrange(path.stat().st_size)
    return write(path, place, bytes([path.read_bytes()[place] ^ 1 << chance.randrange(8)]))


KINDS: tuple[Callable[[Path, random.Random], Hit], ...] = (truncate, zero_pages, scribble, flip_bit, flip_bit)


def write(path: Path, place: int, data: bytes) -> Hit:
    """Write something into the middle of a file."""
    with path.open("r+b") as file:
        file.seek(place)
        file.write(data)
    return path.name, place, place + len(data)


def copy(source: Path, target: Path) -> Path:
    """Copy a queue's directory."""
    shutil.copytree(source, target)
    target.chmod(0o700)
    return target


def untouched(truth: Truth, hits: list[Hit]) -> set[int | str]:
    """Return the keys of the rows of which no byte was hit."""

    def hit(places: list[Hit]) -> bool:
        return any(
            name == other and start < other_end and other_start < end
            for name, start, end in places
            for other, other_start, other_end in hits
        )

    return {key for key, places in truth.places.items() if not hit(places)}


# -- what is left ------------------------------------------------------------------------


def drain(queue: DiskQueue) -> list[bytes]:
    """Take everything out of a queue as a flusher does; return the events that it would have sent."""
    sent: list[bytes] = []
    for _ in range(4):  # a queue that has to be searched more often than that is never done
        for key in range(queue.first_key(), queue.books().next_key):
            try:
                chunk = queue.get(key)
            except DamagedChunkError:
                queue.commit(Change(settlements=[Settlement(key, None, damaged=True)]))
                continue
            if chunk is not None:
                sent += chunk.lines.split(b"\n")
                queue.commit(Change(settlements=[Settlement(key, None, delivered=chunk.count)]))
        if not queue.books().pending:
            break
        queue.audit()
    return sent


def reports(directory: Path) -> list[Path]:
    """Return the reports of what was set aside."""
    return sorted(directory.glob("quarantine-*/report.json"))
