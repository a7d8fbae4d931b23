"""The files that are open: which ones, what each is, and how far each is read.

Everything here happens in the thread of `agent.tail.tail`, and it alone decides when. A file's
checkpoint goes to the writer together with the lines before it, and what is remembered here
is what was handed over: after a kill, the queue's own checkpoints hold.
"""

from __future__ import annotations

import math
import os
import resource
import stat
import sys
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Any
from zlib import crc32

import msgspec

from agent.errors import reason_of
from agent.logs import get
from agent.queue import Checkpoint
from agent.tail import glob
from agent.tail.block import Block, Kind, advance, beginning, next_block, read_bytes, rewound
from agent.tail.identity import (
    HEAD_BYTES,
    TAIL_BYTES,
    comes_of,
    family,
    head_lines,
    is_rotated,
    is_timed,
    same_family,
)
from agent.tail.known import KnownFiles, Standing
from agent.tail.open_file import NotAFileError, open_file
from agent.tail.recognition import Act, Decision, State
from agent.tail.report import document, first_seen, nothing_read
from agent.tail.tailed import Key, Tailed, key_of, shown
from agent.tail.taking import Place, Taken, Taking
from agent.writer import Append

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from agent.clock import Clock
    from agent.event import Checker
    from agent.queue import Queue
    from agent.tail import Table
    from agent.writer import Writer

_CROWDED = "there is no room for more dead letters: refused lines wait in their files"
_CROWDED_HINT = "see `agent dead list`; then retry, or export and purge, or raise max_dead_letters"
_QUIET_SECONDS = 1.0
"""So long must a file be quiet that nobody writes to before it is closed."""
_DOUBTFUL_SECONDS = 60.0
"""The same for one of which nobody can say whether somebody writes to it."""
_SETTLED_SECONDS = 10.0
_CUT_SECONDS = 60.0
"""A copy of what was cut off is made before that; so long may it take until it is noticed."""
_TICK_SECONDS = 0.05  # of the clock that files are stamped with
_SHARE_OF_DESCRIPTORS = 0.5


class Turn(Enum):
    """What a file's turn came to."""

    NOTHING = auto()
    """There is nothing more to be read for now."""
    MORE = auto()
    """There may be a little more."""
    MUCH_MORE = auto()
    """There is more than a block."""


class Shelf:
    """See the module; its arguments are those of `agent.tail.tail.Tail`.

    Attributes:
        files: by their keys.
        directories: in which files are looked for, and those that links lead to.
        taken: bytes read since the start.
        polled: some files are watched by nobody.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        checker: Checker,
        writer: Writer,
        queue: Queue,
        clock: Clock,
        *,
        server_now: Callable[[], float],
        block_bytes: int,
        room_for_letters: Callable[[], int],
    ) -> None:
        self._tables = tables
        self._takings = [Taking(checker, table) for table in tables]
        self._excluded = [glob.excluder(table.exclude) for table in tables]
        self._matching = [glob.excluder([table.path]) for table in tables]
        self._writer = writer
        self._clock = clock
        self._server_now = server_now
        self._room_for_letters = room_for_letters
        self._letters_handed = 0  # to the writer
        self._letters_written = 0  # by it
        self._crowded: dict[Key, str] = {}  # files whose next line would be one dead letter too many
        self._log = get("tail")
        self._max_line_bytes = checker.max_line_bytes
        self._read_bytes = read_bytes(self._max_line_bytes, block_bytes)
        self.files: dict[Key, Tailed] = {}
        self.directories: set[str] = set()
        self.taken = 0
        self.polled = True
        self._warm: dict[Key, None] = {}
        self._open_files = 0
        self._by_path: dict[str, list[Key]] = {}
        self._owners: dict[str, Tailed] = {}
        self._problems: dict[str, str] = {}
        self._noted: set[str] = set()
        checkpoints = queue.checkpoints()
        self._begun = {one.id for one in checkpoints if not one.inode and one.id.startswith("table-")}
        self._known = KnownFiles((one for one in checkpoints if one.id not in self._begun), self._standing)
        for one in self._known.all():
            if not one.inode and not one.done:
                self._known.cut(one.id, clock.monotonic())
        self._scanned = False
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most_open = max(64, int(min(limit, 1 << 20) * _SHARE_OF_DESCRIPTORS))

    def close(self) -> None:
        """Let go of all files."""
        for tailed in self.files.values():
            tailed.close()

    # -- which files there are -----------------------------------------------------------

    def scan(self, now: float) -> list[Key]:
        """Look for files that came, went, or were renamed; return those that may have to be read."""
        seen, directories, problems = self._find()
        self._tell(problems)
        changed, rotated = self._compare(seen, now)
        self._begin_tables()
        self.directories = directories | {
            os.path.dirname(tailed.target)  # noqa: PTH120
            for tailed in self.files.values()
            if tailed.state is State.LIVE
        }
        self._by_path = {}
        for key, tailed in self.files.items():
            for path in {tailed.path, tailed.target}:
                self._by_path.setdefault(path, []).append(key)
        if not self._scanned:
            rotated += self._cut_meanwhile()
        # Those at the paths say first what they are, so that none of them is looked for elsewhere.
        for key in changed:
            self._know(self.files[key])
        # A copy may come up later than its file was truncated.
        rotated += self._known.all_cut() if self._scanned else self._lost()
        rotated += self._read_before()
        self._scanned = True
        if rotated:
            changed.extend(self._look_beside(rotated))
        for given_up in self._known.no_longer_cut(now - _CUT_SECONDS):
            self._known.put(msgspec.structs.replace(given_up, done=True))
            self._persist(msgspec.structs.replace(given_up, done=True))
        forgotten = self._known.superfluous()
        if forgotten:
            self._writer.append(
                Append([], [], 0, 0, _nothing, patient=True, source="tail", forgotten=forgotten)
            )
        return changed

    def _compare(
        self, seen: dict[Key, tuple[list[str], int]], now: float
    ) -> tuple[list[Key], list[Checkpoint]]:
        """Note where known files are now, and open the others, which alone stay in `seen`.

        Returns:
            The keys of files that may have to be read, and the checkpoints of those that went.
        """
        changed: list[Key] = []
        rotated: list[Checkpoint] = []
        for key, tailed in list(self.files.items()):
            was_live = tailed.state is State.LIVE
            changed.extend(self._seen_again(tailed, seen.pop(key, None), now))
            if was_live and tailed.state is State.AWAY:
                # One of which nothing was read yet may have been copied and emptied before it went.
                known = tailed.at or self._known.newest_at(shown(tailed.target))
                rotated += [known] if known is not None else []
        for key, (paths, table) in seen.items():
            tailed = Tailed(key, paths[0], os.path.realpath(paths[0]), table, changed=now)
            tailed.from_end = self._starts_at_end(table)
            self.files[key] = tailed
            self._open(tailed)
            changed.append(key)
        return changed, rotated

    def _find(self) -> tuple[dict[Key, tuple[list[str], int]], set[str], dict[str, str]]:
        """Return the files at matched paths with their tables; the directories; what went wrong."""
        seen: dict[Key, tuple[list[str], int]] = {}
        directories: set[str] = set()
        problems: dict[str, str] = {}
        for number, table in enumerate(self._tables):
            found = glob.find(table.path)
            directories |= found.directories.keys()
            problems |= found.problems
            for path in found.paths:
                if self._excluded[number](path):
                    continue
                try:
                    status = os.stat(path)  # noqa: PTH116
                except FileNotFoundError:
                    continue
                except OSError as error:
                    problems[path] = reason_of(error)
                    continue
                if stat.S_ISREG(status.st_mode):
                    seen.setdefault(key_of(status), ([], number))[0].append(path)
        return seen, directories, problems

    def _seen_again(self, tailed: Tailed, seen: tuple[list[str], int] | None, now: float) -> Iterable[Key]:
        """Note where a known file is now, if it is anywhere."""
        if seen is None:
            if tailed.state is State.LIVE:
                tailed.state = State.AWAY
                tailed.changed = now
                self._warm[tailed.key] = None
                return [tailed.key]
            return []
        paths, tailed.table = seen
        before = tailed.path, tailed.target
        tailed.origin = ""
        if tailed.path not in paths:
            tailed.path = paths[0]
        tailed.target = os.path.realpath(tailed.path)
        moved = before != (tailed.path, tailed.target)
        if moved and tailed.at is not None:
            self._put(tailed, msgspec.structs.replace(tailed.at, **tailed.here), persist=True)
        if moved or tailed.state is not State.LIVE or tailed.problem or tailed.copy_of or tailed.waiting:
            tailed.state = State.LIVE
            return [tailed.key]
        return []

    def _starts_at_end(self, table: int) -> bool:
        return self._tables[table].start == "end" and first_seen(self._tables[table].path) not in self._begun

    def _begin_tables(self) -> None:
        """Remember that the files of all tables were looked for once: those that come later are new."""
        for table in self._tables:
            name = first_seen(table.path)
            if name not in self._begun:
                self._begun.add(name)
                self._persist(Checkpoint(id=name, path=shown(table.path), device=0, inode=0))

    def _tell(self, problems: dict[str, str]) -> None:
        """Log problems that are new, and those that are over."""
        for path, reason in problems.items():
            if self._problems.get(path) != reason:
                self._log.warning("cannot look for files", path=shown(path), reason=reason)
        for path in self._problems.keys() - problems.keys():
            self._log.info("can look for files again", path=shown(path))
        self._problems = problems

    def set_watched(self, directories: set[str]) -> None:
        """Note which directories are watched."""
        self.polled = False
        for tailed in self.files.values():
            tailed.polled = os.path.dirname(tailed.target) not in directories  # noqa: PTH120
            self.polled = self.polled or tailed.polled

    def at(self, path: str) -> list[Key]:
        """Return the files at a path, as of the last scan."""
        return self._by_path.get(path, [])

    def away(self) -> list[Key]:
        """Return the files that are at no matched path."""
        return [key for key, tailed in self.files.items() if tailed.state is State.AWAY]

    def hot(self, since: float) -> list[Key]:
        """Return the files that are to be looked at often."""
        for key in list(self._warm):
            tailed = self.files.get(key)
            if tailed is None or not _is_hot(tailed, since):
                del self._warm[key]
        return list(self._warm)

    # -- what each file is -----------------------------------------------------------------

    def _open(self, tailed: Tailed) -> bool:
        """Open a file, if it is not; tell whether it is open."""
        if tailed.file is not None:
            return True
        try:
            file = open_file(tailed.path)
        except FileNotFoundError:
            return False  # the next scan will tell
        except NotAFileError:
            return False
        except OSError as error:
            self._trouble(tailed, reason_of(error))
            return False
        if key_of(file.status()) != tailed.key:
            file.close()  # another one took its place in this moment
            return False
        self._open_files += 1
        if self._open_files > self._most_open:
            self._close_some()
        tailed.file = file
        self._over(tailed)
        return True

    def _shut(self, tailed: Tailed) -> None:
        """Close a file, if it is open."""
        if tailed.file is not None:
            tailed.close()
            self._open_files -= 1

    def _close_some(self) -> None:
        """Close files that were quiet for longest; they are opened again when they change."""
        quiet = [
            one
            for one in self.files.values()
            if one.file is not None and one.state is State.LIVE and one.at is not None and not one.lag
        ]
        quiet.sort(key=lambda one: one.changed)
        for one in quiet[: max(1, self._most_open // 8)]:
            self._shut(one)

    def _know(self, tailed: Tailed, *, whole: bool = False) -> bool:
        """Find out what a file is, if nobody knows; tell whether it is to be read."""
        if tailed.at is not None:
            return True
        if not self._open(tailed) or tailed.file is None:
            return False
        settled = self._clock.monotonic() - tailed.changed >= _SETTLED_SECONDS
        try:
            decision = self._known.meet(
                shown(tailed.target), tailed.key, tailed.file, settled=settled, whole=whole
            )
        except OSError as error:
            self._trouble(tailed, reason_of(error))
            return False
        tailed.copy_of, tailed.waiting = "", False
        if decision is None:
            tailed.from_end = False  # its first line is still to come
            self._note_empty(tailed)
            return False
        return self._settle(tailed, decision)

    def _settle(self, tailed: Tailed, decision: Decision) -> bool:
        """Do what was decided of a file; tell whether it is to be read."""
        known = decision.known
        here = tailed.here
        if known is not None and tailed.state is State.AWAY:
            # One that is at none of the paths keeps the one by which it was known.
            here |= {"path": known.path, "target": known.target}
        if decision.act is Act.WAIT:
            tailed.waiting = True
            self._warm[tailed.key] = None
        elif decision.act is Act.LEAVE and known is not None:
            tailed.copy_of = known.id
            if self._known.state(known.id) is State.CUT or tailed.key == (known.device, known.inode):
                # From now on it is known by where its copy is.
                self._give_up(known.id)
                self._known.found(known.id)
                self._known.put(msgspec.structs.replace(known, **here, done=True))
                self._persist(msgspec.structs.replace(known, **here, done=True))
        else:
            at = self._new(tailed, decision.identity) if known is None else known
            if decision.act is Act.READ_AGAIN:
                at = rewound(at)
            if known is not None and decision.act is not Act.BRANCH:
                self._give_up(known.id)
                self._known.found(known.id)
            at = msgspec.structs.replace(at, id=decision.identity, **here, done=False)
            if tailed.from_end and known is None:
                at = self._at_end(tailed, at)
            tailed.from_end = False
            self._put(tailed, at, persist=at.offset > 0 or known is not None)
            before = self._known.newest_at(at.place) if known is None and tailed.state is State.LIVE else None
            if before is not None and self._scanned:
                self._look_beside([before])
            return True
        return False

    def _note_empty(self, tailed: Tailed) -> None:
        """Remember since when a file was at a path of which nothing was read yet.

        It has no identity, and so no checkpoint, before its first line. This one says: what comes of this
        path by rotation and was written to later was not read.
        """
        place = shown(tailed.target)
        if tailed.state is State.LIVE and place not in self._noted and self._known.newest_at(place) is None:
            self._noted.add(place)
            note = Checkpoint(
                **{**tailed.here, "device": 0, "inode": 0},
                id=nothing_read(place),
                done=True,
                last_line_at=self._clock.wall(),
                since=self._first_look(tailed),
            )
            self._known.put(note)
            self._persist(note)

    def _give_up(self, identity: str) -> None:
        """Take an identity away from the file that has it now: that one is another file by now."""
        owner = self._owners.pop(identity, None)
        if owner is not None:
            owner.at = None

    def _put(self, tailed: Tailed, at: Checkpoint, *, persist: bool = False) -> None:
        """Note how far a file is read."""
        tailed.at = at
        self._owners[at.id] = tailed
        self._known.put(at)
        if persist:
            self._persist(at)

    def _persist(self, at: Checkpoint) -> None:
        """Hand a checkpoint to the writer by itself."""
        self._writer.append(Append([], [], 0, 0, _nothing, patient=True, source="tail", checkpoint=at))

    def _new(self, tailed: Tailed, identity: str) -> Checkpoint:
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

    def _first_look(self, tailed: Tailed) -> float | None:
        """Return when the place of a file was looked at first; None for one that is at none."""
        if tailed.state is State.AWAY:
            return None
        since = self._known.since(shown(tailed.target))
        return self._clock.wall() if since is None else since

    def _at_end(self, tailed: Tailed, at: Checkpoint) -> Checkpoint:
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
        tailed = self._owners.get(identity)
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
            data = tailed.file.read(at.offset - at.tail_bytes, at.tail_bytes)
        except OSError:
            return Standing(tailed.state, tailed.size)
        cut = next_block(at, data, self._max_line_bytes).kind is Kind.CHANGED
        return Standing(State.CUT if cut else tailed.state, size)

    # -- reading -----------------------------------------------------------------------------

    def turn(self, key: Key) -> Turn:
        """Read the next block of a file."""
        tailed = self.files.get(key)
        if tailed is None:
            return Turn.NOTHING
        if not self._has_changed(tailed) or not self._know(tailed):
            return self._ending(tailed)
        block = None if _is_spent(tailed) else self._next(tailed)
        if block is None:
            return Turn.NOTHING
        if block.kind is Kind.CHANGED:
            self._was_cut(tailed)
            return Turn.MORE
        if block.kind in (Kind.NOTHING, Kind.PARTIAL):
            return self._ending(tailed)
        much = Turn.MUCH_MORE if tailed.lag > 2 * self._read_bytes else Turn.MORE
        return much if self._take(tailed, block) else Turn.NOTHING

    def _has_changed(self, tailed: Tailed) -> bool:
        """Look at a file; tell whether there may be something to read."""
        try:
            status = os.stat(tailed.path) if tailed.file is None else tailed.file.status()  # noqa: PTH116
        except FileNotFoundError:
            return False
        except OSError as error:
            self._trouble(tailed, reason_of(error))
            return False
        if tailed.file is None and key_of(status) != tailed.key:
            return False
        if (status.st_size, status.st_mtime_ns) != (tailed.size, tailed.modified):
            tailed.size, tailed.modified = status.st_size, status.st_mtime_ns
            tailed.changed = self._clock.monotonic()
            self._warm[tailed.key] = None
        return self._open(tailed)

    def _next(self, tailed: Tailed, *, final: bool = False) -> Block | None:
        """Return the next block of a file; None when it cannot be read."""
        at, file = tailed.at, tailed.file
        assert at is not None  # noqa: S101 - it is known
        assert file is not None  # noqa: S101 - it is open
        try:
            data = file.read(at.offset - at.tail_bytes, at.tail_bytes + self._read_bytes)
        except OSError as error:
            self._trouble(tailed, reason_of(error))
            return None
        self._over(tailed)
        return next_block(at, data, self._max_line_bytes, final=final)

    def _take(self, tailed: Tailed, block: Block) -> bool:
        """Hand a block to the writer, with the checkpoint behind it; False when there is no room for it."""
        at, file = tailed.at, tailed.file
        assert at is not None  # noqa: S101 - as above
        assert file is not None  # noqa: S101 - as above
        taking = self._takings[tailed.table]
        place = Place(at.id, at.path, at.offset, at.line)
        wall = self._clock.wall()
        skipping = False
        if block.kind is Kind.LINES:
            lines = block.data if block.data.endswith(b"\n") else block.data + b"\n"
            taken = taking.take(place, lines, now=self._server_now(), wall=wall)
        else:
            taken = Taken(lines=int(block.ended))
            skipping = not block.ended
            if block.kind is Kind.TOO_LONG:
                taken.letters = [taking.too_long(place, block.data, wall=wall)]
        room = self._letters_room() if taken.letters else 0
        if len(taken.letters) > room:
            # The file keeps the line that would be one too many, and what is behind it.
            self._crowd(tailed)
            fitting = (taken.letters[room].offset or 0) - at.offset
            if fitting <= 0:
                return False
            block = beginning(block, file.read(at.offset - at.tail_bytes, at.tail_bytes), fitting)
            taken = taking.take(place, block.data, now=self._server_now(), wall=wall)
        after = advance(at, block, lambda length: file.read(0, length), lines=taken.lines)
        after = msgspec.structs.replace(
            after,
            skipping=skipping,
            refused=at.refused + len(taken.letters),
            last_line_at=wall if taken.events else at.last_line_at,
        )
        if taken.letters and not at.refused:
            self._log.warning("lines of a file are refused: see `agent dead list`", path=at.path)
        self.taken += len(block.data)
        self._put(tailed, after)
        letters = len(taken.letters)
        self._letters_handed += letters
        self._writer.append(
            Append(
                taken.groups,
                taken.held,
                0,
                0,
                partial(self._wrote_letters, letters) if letters else _nothing,
                patient=True,
                source="tail",
                letters=taken.letters,
                checkpoint=after,
            )
        )
        return True

    def uncrowded(self) -> list[Key]:
        """Return the files that waited for room for their dead letters, once there is some."""
        if not self._crowded or not self._letters_room():
            return []
        keys, self._crowded = list(self._crowded), {}
        self._log.info("there is room for dead letters again: files are read on")
        return keys

    def _crowd(self, tailed: Tailed) -> None:
        """Note that a file waits for room for its dead letters."""
        if not self._crowded:
            self._log.error(_CROWDED, path=shown(tailed.path), hint=_CROWDED_HINT)
        self._crowded[tailed.key] = shown(tailed.path)

    def _letters_room(self) -> int:
        """Return how many more dead letters may be made."""
        return max(0, self._room_for_letters() - (self._letters_handed - self._letters_written))

    def _wrote_letters(self, count: int, durable: bool) -> None:
        """Note that dead letters are in the books; in the writer's thread."""
        del durable
        self._letters_written += count

    # -- ends --------------------------------------------------------------------------------

    def _ending(self, tailed: Tailed) -> Turn:
        """A file is read to its end, up to a line without a newline perhaps: see whether that is all."""
        if tailed.state is State.AWAY and (tailed.file is None or (tailed.copy_of and not tailed.waiting)):
            self._drop(tailed)
            return Turn.NOTHING
        if not self._is_complete(tailed):
            return Turn.NOTHING
        # Nobody writes: what is there now is all that there will be.
        if self._know(tailed, whole=True):
            block = self._next(tailed, final=True)
            if block is None:
                return Turn.NOTHING
            if block.kind is not Kind.NOTHING:
                if block.kind is Kind.CHANGED:
                    self._was_cut(tailed)
                elif not self._take(tailed, block):
                    return Turn.NOTHING
                return Turn.MORE
        if tailed.state is State.AWAY or (tailed.file is not None and tailed.file.compressed):
            self._is_done(tailed)
        return Turn.NOTHING

    def _is_complete(self, tailed: Tailed) -> bool:
        """Tell whether nothing will be added to a file, as far as that can be told."""
        file = tailed.file
        if file is None or tailed.copy_of or tailed.waiting:
            return False
        if tailed.state is State.AWAY:
            needed = _QUIET_SECONDS
        elif file.compressed:
            needed = 0.0
        elif is_rotated(shown(tailed.target)):
            needed = _SETTLED_SECONDS
        else:
            return False
        quiet = self._clock.monotonic() - tailed.changed
        if quiet < needed:
            return False
        written = file.is_written()
        return quiet >= _DOUBTFUL_SECONDS if written is None else not written

    def _is_done(self, tailed: Tailed) -> None:
        """Remember that a file is read to its end, and close it."""
        if tailed.at is not None and not tailed.at.done:
            self._put(tailed, msgspec.structs.replace(tailed.at, done=True), persist=True)
        if tailed.state is State.AWAY:
            if tailed.at is not None:
                # Others may have come and gone after it before anybody knew what it is.
                self._look_beside([tailed.at])
            self._drop(tailed)

    def _drop(self, tailed: Tailed) -> None:
        """Close a file and leave it."""
        self._shut(tailed)
        self.files.pop(tailed.key, None)
        if tailed.at is not None:
            self._owners.pop(tailed.at.id, None)

    def _was_cut(self, tailed: Tailed) -> None:
        """A file is not what it was: look for what was not read of it, and take it for another one."""
        old = tailed.at
        assert old is not None  # noqa: S101 - else nobody could tell
        self._cut_off(old)
        self._log.info("a file was truncated or written anew", path=old.path, read=old.offset)
        for other in list(self.files.values()):
            if other.at is None and other is not tailed and same_family(shown(other.target), old.place):
                self._know(other)
        if self._known.state(old.id) is State.CUT:
            self._look_beside([old])
        if self._known.state(old.id) is State.CUT and tailed.size > old.offset:
            self._log.warning("what was not read of it is gone", path=old.path)
        tailed.from_end = False

    def _cut_off(self, old: Checkpoint) -> None:
        """Remember that a file's bytes are not where they were; the file there is another one.

        It is not done with: what was not read of it may be in its copy, also after a kill.
        """
        self._give_up(old.id)
        self._known.cut(old.id, self._clock.monotonic())
        self._known.put(msgspec.structs.replace(old, inode=0))
        self._persist(msgspec.structs.replace(old, inode=0))

    def _cut_meanwhile(self) -> list[Checkpoint]:
        """Find the files that were cut while nobody looked, and return what is known of them."""
        cut = []
        for at in self._known.all():
            tailed = self.files.get(Key(at.device, at.inode))
            if at.done or tailed is None or tailed.file is None:
                continue
            try:
                data = tailed.file.read(at.offset - at.tail_bytes, at.tail_bytes)
            except OSError:
                continue
            if next_block(at, data, self._max_line_bytes).kind is Kind.CHANGED:
                self._cut_off(at)
                cut.append(at)
        return cut

    # -- files that are elsewhere ------------------------------------------------------------

    def _lost(self) -> list[Checkpoint]:
        """Return the files that were not read to their end and are at none of the paths."""
        return [
            one
            for one in self._known.all()
            if not one.done and one.id not in self._owners and self._table_of(one) is not None
        ]

    def _read_before(self) -> list[Checkpoint]:
        """Return what was read last at the paths where rotation may not be seen.

        A file in which nothing was read yet has no checkpoint: neither its rotation while the agent is down
        is seen, nor, of its lines, that they were copied and cut off between two looks. They are found
        by being younger than what was read at this path before.
        """
        if not self._scanned:
            return [one for one in self._known.newest() if self._table_of(one) is not None]
        paths = {
            shown(tailed.target)
            for tailed in self.files.values()
            if tailed.state is State.LIVE and tailed.at is None and not tailed.copy_of
        }
        return [one for one in map(self._known.newest_at, paths) if one is not None]

    def _look_beside(self, lost: Sequence[Checkpoint]) -> list[Key]:
        """Look in their directories for lost files, for copies of them, and for such as came and went unseen.

        Returns:
            The keys of those that were found.
        """
        found = []
        missing: dict[object, list[Checkpoint]] = {}
        for one in lost:
            missing.setdefault(family(one.place), []).append(one)
            missing.setdefault((one.device, one.inode), []).append(one)
        for directory in {os.path.dirname(one.place): None for one in lost}:  # noqa: PTH120
            for path, status in _files_in(directory):
                key = key_of(status)
                if key in self.files:
                    continue
                near = [*missing.get(family(shown(path)), ()), *missing.get(key, ())]
                if any(self._take_up(path, status, one) for one in near):
                    found.append(key)
        return found

    def _take_up(self, path: str, status: os.stat_result, lost: Checkpoint) -> bool:
        """See whether a file has to do with a lost one, and read it if so."""
        key, name = key_of(status), shown(path)
        # What was last written to before anybody looked at this place is no affair of ours.
        successor = comes_of(name, lost.place) or (name == lost.target)
        unseen = successor and status.st_mtime_ns >= self._first_looked_at(lost)
        if not (unseen or key == (lost.device, lost.inode) or same_family(name, lost.place)):
            return False
        tailed = Tailed(
            key, path, path, self._table_of(lost) or 0, State.AWAY, changed=self._clock.monotonic()
        )
        tailed.origin = lost.path
        self.files[key] = tailed
        self._warm[key] = None
        if self._open(tailed) and self._is_wanted(tailed, unseen=unseen):
            return True
        self._drop(tailed)
        return False

    def _first_looked_at(self, lost: Checkpoint) -> float:
        """Return when the place of a file was looked at first, in nanoseconds, by the clock of files."""
        since = self._known.since(lost.place)
        return math.inf if since is None else (since - _TICK_SECONDS) * 1e9

    def _is_wanted(self, tailed: Tailed, *, unseen: bool) -> bool:
        """Find out what a file is that is at none of the paths, and tell whether it has to be read.

        Args:
            tailed: the file.
            unseen: it may be one that was at a path between two looks.
        """
        assert tailed.file is not None  # noqa: S101 - it was just opened
        try:
            decision = self._known.meet(
                shown(tailed.target), tailed.key, tailed.file, settled=False, whole=False
            )
        except OSError:
            return False
        if decision is None:
            return unseen
        if decision.act in (Act.BEGIN, Act.WAIT):
            return unseen and (self._settle(tailed, decision) or tailed.waiting)
        known = decision.known
        if known is not None and known.done and self._known.state(known.id) is not State.CUT:
            return False  # its end was seen
        return self._settle(tailed, decision)

    def _table_of(self, lost: Checkpoint) -> int | None:
        """Return the number of the table that a file's path belongs to; None when there is none any more."""
        return next((number for number, matches in enumerate(self._matching) if matches(lost.path)), None)

    # -- trouble and reports -----------------------------------------------------------------

    def _trouble(self, tailed: Tailed, reason: str) -> None:
        """Note that a file cannot be read; it is tried again."""
        if tailed.problem != reason:
            self._log.warning("cannot read a file", path=shown(tailed.path), reason=reason)
        tailed.problem = reason

    def _over(self, tailed: Tailed) -> None:
        """Note that a file can be read."""
        if tailed.problem:
            self._log.info("a file can be read again", path=shown(tailed.path))
        tailed.problem = ""

    def documents(self) -> list[dict[str, Any]]:
        """Return how each file stands; from any thread."""
        return [document(tailed) for tailed in list(self.files.values())]

    def problem_documents(self) -> list[dict[str, str]]:
        """Return what cannot be looked into; from any thread."""
        problems = [(shown(path), reason) for path, reason in dict(self._problems).items()]
        problems += [(path, f"{_CROWDED}; {_CROWDED_HINT}") for path in dict(self._crowded).values()]
        return [{"path": path, "reason": reason} for path, reason in problems]

    def reset(self, path: str, *, to_end: bool) -> tuple[list[Key], list[str]]:
        """Set a file back to its beginning, or forth to its end; return its keys and paths."""
        keys, paths = [], []
        for key, tailed in self.files.items():
            if (
                path in (tailed.path, shown(tailed.path))
                and tailed.at is not None
                and tailed.file is not None
            ):
                at = rewound(tailed.at)
                if to_end:
                    at = self._at_end(tailed, at)
                self._put(tailed, at, persist=True)
                keys.append(key)
                paths.append(shown(tailed.path))
        for at in self._known.all():
            if at.path == path and at.id not in self._owners and not to_end and at.inode:
                self._known.put(rewound(at))
                self._persist(rewound(at))
                paths.append(at.path)
        return keys, paths


def _files_in(directory: str) -> list[tuple[str, os.stat_result]]:
    """Return the files in a directory; the one that was changed last comes first."""
    try:
        with os.scandir(directory) as entries:
            found = [(entry.path, entry.stat()) for entry in entries if entry.is_file()]
    except OSError:
        return []
    return sorted(found, key=lambda one: one[1].st_mtime_ns, reverse=True)


def _nothing(durable: bool) -> None:
    """Nobody waits: what is not durable when the agent stops is read again."""
    del durable


def _is_spent(tailed: Tailed) -> bool:
    """Tell whether a file is compressed and read to its end."""
    return tailed.file is not None and tailed.file.compressed and tailed.at is not None and tailed.at.done


def _is_hot(tailed: Tailed, since: float) -> bool:
    """Tell whether a file is to be looked at often."""
    if tailed.state is State.AWAY or tailed.waiting:
        return True
    return tailed.polled and tailed.changed >= since
