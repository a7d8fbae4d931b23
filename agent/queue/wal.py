"""SQLite's write-ahead log and its index, read without SQLite. The formats: sqlite.org/walformat.html.

SQLite believes the log up to the first frame whose checksum does not hold, and says
nothing of what stands behind it: damage in the middle takes the commits after it away
in silence. So this tells how many frames were committed, for a comparison with how
many SQLite took (`glance`, `taken`), and finds the frames behind the damage (`read`).
"""

from __future__ import annotations

import struct
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from agent.queue.raw import RawFile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PAGE_SIZE = 4096
"""What SQLite gives a new database, and so what every queue has."""

_HEADER = struct.Struct(">8I")  # magic, version, page size, checkpoint number, 2 salts, 2 sums
_HEAD = struct.Struct(">2I8s2I")  # page, pages of the database after a commit or 0, salts, 2 sums
_MAGIC = 0x377F0682  # the lowest bit tells the byte order of what is summed
_INDEX = struct.Struct("=3I2BH4I8s2I")  # twice; the byte order is the machine's own
_INDEX_VERSION = 3007000
_COPIED = struct.Struct("=I28xI")  # how many frames are in the database already, how many may be
_MASK = 0xFFFFFFFF
# Where the header cannot tell the byte order of the sums, it is that of almost every machine.
_WORDS = struct.Struct("<2I")
_Sums = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Frame:
    """One page in the log.

    Attributes:
        page: the page's number, as the frame says.
        offset: where the page begins in the file.
        current: it was committed, and is not left over from before the log began anew.
        sound: its checksum holds.
        copied: the database has this state of the page, or a newer one; None when nobody knows, as where
            a move to the database was broken off.
    """

    page: int
    offset: int
    current: bool
    sound: bool
    copied: bool | None


class Log(NamedTuple):
    """What the log holds.

    Attributes:
        page_size: of the pages in it.
        pages: how many pages the database has after the last commit, as it says; 0 when it is not there.
        missing: how many frames were committed and are not in the file, as far as that is known.
        frames: those that are, in order.
    """

    page_size: int
    pages: int
    missing: int
    frames: Sequence[Frame]


@dataclass(frozen=True, slots=True)
class Glance:
    """What can be told of a log before SQLite opens it, which changes the index.

    Attributes:
        frames: so many were committed for certain, as the index says.
        copied: so many of them are in the database already; None when there is no index to tell.
        tried: of so many nobody knows: the index was made anew since, or a move of them did not end.
        commits: the numbers of the frames that say that they end a commit.
        last: the number of the last frame of this log.
        pages: the numbers of the pages that are in it.
        salts: what its frames are marked with, and those of the log before it in the same file are not.
    """

    frames: int
    copied: int | None
    tried: int
    commits: Sequence[int]
    last: int
    pages: frozenset[int]
    salts: bytes

    def lost(self, taken: int) -> bool:
        """Tell whether commits are gone when SQLite has taken so many frames.

        A commit enters the index after it was synced; and what follows a commit was written
        after it was synced. The last commit alone may be what a power cut left of one that nobody
        was told of; it is no loss unless the index knows it.
        """
        committed = self.committed(taken)
        if taken == 0 and self.copied is not None and self.copied >= committed:
            return False  # all of it is in the database already
        return committed > taken

    def committed(self, taken: int) -> int:
        """Return the number of the last frame that was committed, when SQLite has taken so many."""
        behind = [number for number in self.commits if number > taken]
        certain = behind[-1] if behind and behind[0] < self.last else taken
        return max(self.frames, certain)


class _Header(NamedTuple):
    page_size: int
    salts: bytes
    sums: _Sums
    words: struct.Struct


class _Head(NamedTuple):
    page: int
    commit: int
    salts: bytes
    sums: _Sums


class _Index(NamedTuple):
    frames: int
    copied: int
    tried: int
    salts: bytes


def glance(log: Path, index: Path) -> Glance:
    """Look at a log that is not in use."""
    with closing(RawFile(log)) as file:
        header = _read_header(file)
        heads = _read_heads(file, header.page_size if header else PAGE_SIZE)
        known = _read_index(index)
        salts = header.salts if header else _salts_without_header(file, heads, known)
    return _glance(salts, heads, known)


def head(index: Path) -> bytes | None:
    """Return the bytes that say what an index knows of its log; None when they cannot be believed."""
    if _read_index(index) is None:
        return None
    with closing(RawFile(index)) as file:
        return file.read(0, 2 * _INDEX.size + _COPIED.size)


def taken(index: Path) -> int:
    """Tell how many frames SQLite took; to be asked while the database is open."""
    known = _read_index(index)
    return 0 if known is None else known.frames


class Index:
    """The index of a log that this process has open with SQLite.

    SQLite's locks are the process's, and whoever closes any descriptor of a file drops them all: another
    process would then take the index for one that nobody uses, and make it anew. So this one stays open,
    until it is of another file or is needed no more.

    Args:
        path: of the index, which may come and go.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: RawFile | None = None

    def waiting(self) -> int | None:
        """Tell how many frames are not in the database yet; None when the index cannot be believed."""
        if self._file is None or not self._file.is_at(self._path):
            self._close()
            self._file = RawFile(self._path)
        known = _index_in(self._file)
        return None if known is None else max(0, known.frames - known.copied)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __del__(self) -> None:
        """Let go of the file: with the queue, its connections are gone."""
        self._close()


def salts(log: Path) -> bytes:
    """Return what tells this log from the one before it in the same file."""
    with closing(RawFile(log)) as file:
        return file.read(0, _HEADER.size)[16:24]


def takes(log: Path) -> int:
    """Tell how many frames SQLite takes when it opens a log: those up to the last sound commit."""
    last = 0
    with closing(RawFile(log)) as file:
        header = _read_header(file)
        if header is None:
            return 0
        sums = header.sums
        for number, head in enumerate(_read_heads(file, header.page_size), 1):
            start = _HEADER.size + (number - 1) * (_HEAD.size + header.page_size)
            data = memoryview(file.read(start, _HEAD.size + header.page_size))
            sums = _sum(header.words, data[_HEAD.size :], _sum(header.words, data[:8], sums))
            if head.salts != header.salts or sums != head.sums:
                break
            last = number if head.commit else last
    return last


def is_beheaded(log: Path) -> bool:
    """Tell whether a log has a header that cannot be believed, and none that was not written yet.

    SQLite takes nothing of such a log, but who may not write its index is told so only after ten
    seconds, with an error that is of locks.
    """
    with closing(RawFile(log)) as file:
        return _read_header(file) is None and any(file.read(16, 8))


def read(log: Path, seen: Glance, page_size: int) -> Log:
    """Read the whole log; its pages stay in the file.

    Args:
        log: the file, which may be missing or damaged.
        seen: what a glance at it told, before SQLite opened it.
        page_size: to be taken where the log's own header cannot be believed.
    """
    with closing(RawFile(log)) as file:
        header = _read_header(file)
        size = header.page_size if header else page_size
        heads = _read_heads(file, size)
        salts = header.salts if header else seen.salts
        end = seen.committed(seen.frames) if seen.frames else max(seen.commits, default=0)
        words = header.words if header else _WORDS
        sums = header.sums if header else (0, 0)
        frames = []
        for number, head in enumerate(heads, 1):
            start = _HEADER.size + (number - 1) * (_HEAD.size + size)
            sound = False
            if number <= end and head.salts == salts:
                data = memoryview(file.read(start, _HEAD.size + size))
                sound = _sum(words, data[_HEAD.size :], _sum(words, data[:8], sums)) == head.sums
            unknown = seen.copied is None or seen.copied < number <= seen.tried
            copied = None if unknown else number <= (seen.copied or 0)
            frames.append(Frame(head.page, start + _HEAD.size, number <= end, sound, copied))
            sums = head.sums  # each frame's sums go on from those of the one before it
    pages = heads[end - 1].commit if 0 < end <= len(heads) else 0
    return Log(size, pages, max(0, end - len(heads)), frames)


def _read_header(file: RawFile) -> _Header | None:
    """Return the log's header; None when it cannot be believed."""
    data = file.read(0, _HEADER.size)
    magic, _, size, _, _, _, *sums = _HEADER.unpack(data)
    words = struct.Struct(">2I" if magic & 1 else "<2I")
    if magic & ~1 != _MAGIC or _sum(words, data[:24], (0, 0)) != tuple(sums):
        return None
    return _Header(size, data[16:24], (sums[0], sums[1]), words)


def _read_heads(file: RawFile, page_size: int) -> list[_Head]:
    """Return what stands before each page; of the last one, a part may be missing."""
    step = _HEAD.size + page_size
    heads = []
    for offset in range(_HEADER.size, file.size - _HEAD.size, step):
        page, commit, salts, first, second = _HEAD.unpack(file.read(offset, _HEAD.size))
        heads.append(_Head(page, commit, salts, (first, second)))
    return heads


def _glance(salts: bytes, heads: Sequence[_Head], known: _Index | None) -> Glance:
    """Put together what frames and index say of the log with these salts."""
    own = [number for number, head in enumerate(heads, 1) if head.salts == salts]
    # The index may be that of a log that was begun anew since.
    believed = known is not None and known.salts == salts
    return Glance(
        known.frames if known and believed else 0,
        known.copied if known and believed else None,
        known.tried if known and believed else 0,
        commits=[number for number in own if heads[number - 1].commit],
        last=max(own, default=0),
        pages=frozenset(heads[number - 1].page for number in own),
        salts=salts,
    )


def _salts_without_header(file: RawFile, heads: Sequence[_Head], known: _Index | None) -> bytes:
    """Return the salts of a log that cannot tell them itself.

    A log begins anew in the same file, with other salts, and may have left many frames of the one
    before it standing behind its own. Its own come first: their sums show which of them are whole.
    Where none is, the index tells; it may be older than the log, and so is not asked before.
    """
    told = known.salts if known is not None and known.frames else None
    return _first_sound(file, heads) or told or _commonest(heads)


def _first_sound(file: RawFile, heads: Sequence[_Head]) -> bytes | None:
    """Return the salts of the first frame that goes on from the one before it."""
    for number, (before, head) in enumerate(pairwise(heads), 1):
        data = memoryview(file.read(_HEADER.size + number * (_HEAD.size + PAGE_SIZE), _HEAD.size + PAGE_SIZE))
        if head.page and _sum(_WORDS, data[_HEAD.size :], _sum(_WORDS, data[:8], before.sums)) == head.sums:
            return head.salts  # and not zeros, of which the sums hold, too
    return None


def _commonest(heads: Sequence[_Head]) -> bytes:
    """Return the salts that most frames have."""
    counted = Counter(head.salts for head in heads).most_common(1)
    return counted[0][0] if counted else b""


def _read_index(index: Path) -> _Index | None:
    """Return what an index says that is not in use; None when it cannot be believed."""
    with closing(RawFile(index)) as file:
        return _index_in(file)


def _index_in(file: RawFile) -> _Index | None:
    """Return what the index in a file says; None when it cannot be believed."""
    one, two, rest = (file.read(place * _INDEX.size, _INDEX.size) for place in range(3))
    version, _, _, _, _, _, frames, _, _, _, salts, *sums = _INDEX.unpack(one)
    sound = one == two and _sum(struct.Struct("=2I"), one[:-8], (0, 0)) == tuple(sums)
    if not sound or version != _INDEX_VERSION:
        return None
    copied, tried = _COPIED.unpack_from(rest)
    return _Index(frames, copied, tried, salts)


def _sum(words: struct.Struct, data: bytes | memoryview, start: _Sums) -> _Sums:
    """Return SQLite's running sums over `data`."""
    first, second = start
    for one, two in words.iter_unpack(data):
        first = (first + one + second) & _MASK
        second = (second + two + first) & _MASK
    return first, second


def is_page_size(size: int) -> bool:
    """Tell whether a database can have pages of this size."""
    return 512 <= size <= 65536 and not size & (size - 1)
