"""The pages of a damaged database, read without SQLite. The format: sqlite.org/fileformat2.html.

A row of the queue is a cell of a leaf of a b-tree: its first bytes stand in the leaf, the
rest on a chain of overflow pages. The leaves are found by what they look like, so that
nothing that leads to them need be whole; a row that no leaf leads to any more is found
by the pattern that diskcache gives to all of its rows.

A page has several versions where the write-ahead log holds some: the newest one counts.
Where that one is damaged, older ones are asked, too; whether what comes of it is a row as it
was written is for its checksum to say.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from agent.queue import wal
from agent.queue.raw import RawFile

if TYPE_CHECKING:
    from collections.abc import Container, Iterator
    from pathlib import Path

_LEAF = 13
_INDEX_LEAF = 10
_INNER = (2, 5)
_BLOCK = 256
# The types of a row's columns from `raw` to `filename`, as diskcache writes them.
_PATTERN = bytes((9, 7, 0, 7, 8, 0, 8, 9, 0))
_BEFORE_PATTERN = 3  # the length of the header, the types of rowid and key
_COLUMNS = 12
_KEY, _VALUE = 1, 11
_INT_SIZES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 8: 0, 9: 0}
_SIZES = {0: 0, 7: 8, **_INT_SIZES}
_MOST_PAGES = 1 << 24
_EVERY = range(_MOST_PAGES)
_PARENT_OF_OVERFLOW = (3, 4)


class Version(NamedTuple):
    """One state of a page.

    Attributes:
        file: where it stands.
        offset: and at which byte.
        certain: that it is one of this page: else it is damaged, and its number may be what is.
        final: it is as it was written, and all that was written after it is known.
        newest: it may be newer than those before it.
    """

    file: RawFile
    offset: int
    certain: bool
    final: bool
    newest: bool = False


class Cell(NamedTuple):
    """The part of a row that stands in its leaf.

    Attributes:
        key: of the row.
        local: its bytes in the leaf.
        size: of the whole row.
        value_at: where its value begins.
        overflow: the page on which it goes on; 0 when it does not.
    """

    key: int | str
    local: bytes
    size: int
    value_at: int
    overflow: int


@dataclass(frozen=True, slots=True)
class Leaf:
    """What stands on a page that may be a leaf.

    Attributes:
        cells: rows of the queue.
        whole: they are all that stand there: it points to nothing else, or is no leaf at all.
    """

    cells: list[Cell]
    whole: bool


class Pages:
    """All that is left of a database in a directory.

    Attributes:
        missing: how many pages were committed to the log and are cut off its end, as far as known.
    """

    def __init__(self, directory: Path, seen: wal.Glance) -> None:
        self._database = RawFile(directory / "cache.db")
        self._log = RawFile(directory / "cache.db-wal")
        log = wal.read(directory / "cache.db-wal", seen, self._told_page_size())
        self.page_size = log.page_size
        self.missing = log.missing
        self._known = all(frame.sound for frame in log.frames if frame.current) and not log.missing
        # The database may have what is damaged in the log, and be newer than the rest of it.
        self._in_order = self._known or all(frame.copied is not None for frame in log.frames if frame.current)
        pages = log.pages if self._known else 0
        there = -(-self._database.size // self.page_size)
        self._in_database = min(there, pages or there)
        told = int.from_bytes(self._database.read(28, 4), "big")
        # Of a page that the database gave up there are none but old states.
        self._existing = pages or max(there, told)
        self._newer: dict[int, list[Version]] = defaultdict(list)
        self._older: dict[int, list[Version]] = defaultdict(list)
        self._strays: list[Version] = []
        for frame in reversed(log.frames):
            # Without the index, a state that the database has can be told by nothing but its place.
            newer = frame.current and not frame.copied
            final = newer and frame.sound and (self._known or frame.copied is False)
            version = Version(self._log, frame.offset, frame.sound, final)
            if newer and 0 < frame.page <= (pages or _MOST_PAGES):
                self._newer[frame.page].append(version)
            elif newer and not frame.sound:
                self._strays.append(version)
            elif 0 < frame.page <= self._existing:
                self._older[frame.page].append(version)

    @property
    def unreadable(self) -> int:
        """How often the disk refused to read."""
        return self._database.unreadable + self._log.unreadable

    def close(self) -> None:
        """Let go of the files."""
        self._database.close()
        self._log.close()

    def versions(self, number: int) -> list[Version]:
        """Return the states of a page, the newest first; of page 0, those of which the number is lost."""
        if number == 0:
            return self._strays
        versions = list(self._newer.get(number, ()))
        if 0 < number <= self._in_database:
            place = (number - 1) * self.page_size
            versions.append(
                Version(self._database, place, certain=True, final=False, newest=not self._in_order)
            )
        return versions + self._older.get(number, [])

    def leaves(self) -> Iterator[int]:
        """Yield the numbers of the pages that may hold rows."""
        yield from sorted(self._newer.keys() | self._older.keys() | {0})
        size = self.page_size
        for first in range(0, self._in_database, _BLOCK):
            count = min(_BLOCK, self._in_database - first)
            block = self._database.read(first * size, count * size)
            found = {place for place in range(count) if block[place * size] == _LEAF}
            at = block.find(_PATTERN)
            while at >= 0:
                found.add(at // size)
                at = block.find(_PATTERN, at + 1)
            for place in sorted(found):
                number = first + place + 1
                if number not in self._newer and number not in self._older:
                    yield number

    def leaf(self, number: int, version: Version) -> Leaf:
        """Return what stands on a page."""
        page = self._page(version)
        if page[0] != _LEAF and (self._is_branch(page) or self._is_overflow(number)):
            return Leaf([], whole=True)
        cells, whole = _listed(page)
        if not whole:
            known = {cell.key for cell in cells}
            cells += [cell for cell in _looked_for(page) if cell.key not in known]
        return Leaf(cells, whole)

    def values(self, cell: Cell) -> Iterator[bytes]:
        """Yield what the value of a row may be, the likeliest first: one for each way to follow its chain.

        The first takes the newest version of each page. Where there are others, the next one takes
        what the database has; then one page after the other is taken as the log had it before, and as
        the database has it; and the last one takes an older version of all, also where a damaged one
        leads nowhere.
        """
        path, forks = self._follow(cell)
        yield _joined(cell, path)
        if not forks:
            return
        for older, copied in (
            ((), _EVERY),
            *(way for place in forks for way in (({place}, ()), ((), {place}))),
            (_EVERY, ()),
        ):
            other, _ = self._follow(cell, older, copied)
            if other != path:
                yield _joined(cell, other)

    def _follow(
        self, cell: Cell, older: Container[int] = (), copied: Container[int] = ()
    ) -> tuple[list[bytes], list[int]]:
        """Return the pieces of a row beyond its leaf, and the places among them that have older versions.

        Args:
            cell: the row.
            older: the places where the version before the newest one is to be taken.
            copied: the places where that of the database is.
        """
        pieces: list[bytes] = []
        forks = []
        following, missing = cell.overflow, cell.size - len(cell.local)
        seen: set[int] = set()
        while following not in seen and missing > 0:
            seen.add(following)
            place, versions = len(pieces), self.versions(following)
            if not versions:
                break
            if len(versions) > 1:
                forks.append(place)
            version = versions[1 if place in older and len(versions) > 1 else 0]
            if place in copied:
                version = next((one for one in versions if one.file is self._database), version)
            page = self._page(version)
            following = int.from_bytes(page[:4], "big")
            pieces.append(page[4:])
            missing -= len(page) - 4
        return pieces, forks

    def _page(self, version: Version) -> bytes:
        """Return the bytes of a page."""
        return version.file.read(version.offset, self.page_size)

    def _is_branch(self, page: bytes) -> bool:
        """Tell whether a page is one of the others that trees have."""
        if page[0] in _INNER:
            return 0 < int.from_bytes(page[8:12], "big") <= self._existing
        return page[0] == _INDEX_LEAF and _PATTERN not in page

    def _is_overflow(self, number: int) -> bool:
        """Tell whether the database's map of its pages says that this is one of a chain."""
        each = self.page_size // 5 + 1
        of = (number - 2) // each * each + 2
        versions = self.versions(of)
        if number <= of or not versions or not self._known:
            return False
        return self._page(versions[0])[(number - of - 1) * 5] in _PARENT_OF_OVERFLOW

    def _told_page_size(self) -> int:
        """Return the page size that the database tells; unless that is damaged, what it always is."""
        told = int.from_bytes(self._database.read(16, 2), "big")
        size = 65536 if told == 1 else told
        # The second page is the map of the pages, and says first that the third is a root.
        believed = wal.is_page_size(size) and self._database.read(size, 5) == b"\1\0\0\0\0"
        return size if believed else wal.PAGE_SIZE


def _joined(cell: Cell, pieces: list[bytes]) -> bytes:
    """Return the value of a row, as far as its pieces go."""
    return b"".join((cell.local, *pieces))[cell.value_at : cell.size]


def _listed(page: bytes) -> tuple[list[Cell], bool]:
    """Return the rows that a leaf points to, and whether it is a leaf of nothing but rows."""
    if page[0] != _LEAF:
        return [], False
    count = int.from_bytes(page[3:5], "big")
    cells: dict[int | str, Cell] = {}
    for place in range(8, min(8 + 2 * count, len(page) - 1), 2):
        start = int.from_bytes(page[place : place + 2], "big")
        _, start = _varint(page, start)  # the row's size
        _, start = _varint(page, start)
        cell = _cell(page, start)
        if cell is not None:
            cells[cell.key] = cell
    return list(cells.values()), 0 < count == len(cells)


def _looked_for(page: bytes) -> Iterator[Cell]:
    """Yield what looks like a row on a page."""
    at = page.find(_PATTERN)
    while at >= 0:
        cell = _cell(page, at - _BEFORE_PATTERN)
        if cell is not None:
            yield cell
        at = page.find(_PATTERN, at + 1)


def _cell(page: bytes, start: int) -> Cell | None:
    """Return the row whose record begins at `start` of a leaf; None when it is none of the queue's.

    A record is a header (its length and the types of the columns), then the columns. Nothing else is
    asked of it: whether its value is what was written is for the checksum to say.
    """
    length, at = _varint(page, start)
    types: list[int] = []
    for _ in range(_COLUMNS):
        kind, at = _varint(page, at)
        types.append(kind)
    if at != start + length:
        return None
    sizes = [_SIZES.get(kind, max(0, kind - 12) // 2) for kind in types]
    size = length + sum(sizes)
    local = _local_size(size, len(page))
    end = start + local
    key_at = start + length + sizes[0]
    key = _key(types[_KEY], page[key_at : key_at + sizes[_KEY]])
    if key is None:
        return None
    overflow = int.from_bytes(page[end : end + 4], "big") if local < size else 0
    return Cell(key, page[start:end], size, size - sizes[_VALUE], overflow)


def _key(kind: int, data: bytes) -> int | str | None:
    """Return the key of a row; None when the queue has no such keys."""
    if kind in (8, 9):
        return kind - 8
    if kind in _INT_SIZES:
        return int.from_bytes(data, "big", signed=True)
    if kind > 12 and kind % 2 and data.isascii():
        return data.decode()
    return None


def _local_size(size: int, page_size: int) -> int:
    """Return how many bytes of a row stand in its leaf."""
    if size <= page_size - 35:
        return size
    least = (page_size - 12) * 32 // 255 - 23
    local = least + (size - least) % (page_size - 4)
    return local if local <= page_size - 35 else least


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at a place and the place behind it; zeros where the data ends."""
    value = 0
    for place in range(at, at + 8):
        byte = data[place] if place < len(data) else 0
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, place + 1
    return value << 8 | (data[at + 8] if at + 8 < len(data) else 0), at + 9
