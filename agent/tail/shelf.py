"""The files that are tailed: which there are, and what happens to each in its turn.

Everything here happens in the thread of `agent.tail.tail`, and it alone decides when. A file's
checkpoint goes to the writer together with the lines before it, and what is remembered here
is what was handed over: after a kill, the queue's own checkpoints hold. The parts::

    paths ──► arrivals ──► reading ──► endings
              what each    blocks to   done, or
              file is      the writer  cut off
    files: what is open    marks: how far it is read
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from agent.errors import reason_of
from agent.tail.arrivals import Arrivals
from agent.tail.block import Kind, read_bytes, rewound
from agent.tail.endings import Endings
from agent.tail.files import Files
from agent.tail.marks import Marks
from agent.tail.paths import Paths, RealPaths
from agent.tail.reading import Reading
from agent.tail.recognition import State
from agent.tail.report import document
from agent.tail.tailed import Key, Tailed, key_of, shown
from agent.tail.turn import Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from agent.clock import Clock
    from agent.event import Checker
    from agent.queue import Checkpoint, Queue
    from agent.seen import Lasting
    from agent.tail import Table
    from agent.writer import Writer

_CUT_SECONDS = 60.0
"""A copy of what was cut off is made before that; so long may it take until it is noticed."""


class Shelf:
    """See the module; its arguments are those of `agent.tail.tail.Tail`.

    Attributes:
        files: those that are there.
        directories: in which files are looked for, and those that links lead to.
        reading: what was read so far.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        checker: Checker,
        writer: Writer,
        queue: Queue,
        clock: Clock,
        *,
        seen: Lasting,
        server_now: Callable[[], float],
        block_bytes: int,
        room_for_letters: Callable[[], int],
    ) -> None:
        self._clock = clock
        size = read_bytes(checker.max_line_bytes, block_bytes)
        self._read_bytes = size
        self.directories: set[str] = set()
        checkpoints = queue.checkpoints()
        begun = {one.id for one in checkpoints if not one.inode and one.id.startswith("table-")}
        self.files = Files()
        self._paths = Paths(tables, begun)
        self._marks = Marks(
            (one for one in checkpoints if one.id not in begun),
            self.files,
            writer,
            clock,
            read_bytes=size,
        )
        self._arrivals = Arrivals(self.files, self._paths, self._marks, clock)
        self.reading = Reading(
            tables,
            checker,
            self.files,
            self._marks,
            writer=writer,
            seen=seen,
            clock=clock,
            server_now=server_now,
            read_bytes=size,
            room_for_letters=room_for_letters,
        )
        self._endings = Endings(
            self.files,
            self._marks,
            self._arrivals,
            self.reading,
            clock,
        )

    def close(self) -> None:
        """Let go of all files."""
        self.files.close()
        self.reading.close()

    # -- which files there are -----------------------------------------------------------

    @property
    def is_new(self) -> bool:
        """True while some of the paths were never looked at."""
        return self._paths.are_new

    def scan(self, now: float) -> list[Key]:
        """Look for files that came, went, or were renamed; return those that may have to be read."""
        seen, directories, problems = self._paths.find()
        self._paths.tell(problems)
        changed, rotated = self._compare(seen, now)
        for table in self._paths.begin():
            self._marks.persist(table)
        self.directories = directories | self.files.note_places()
        if not self._arrivals.scanned:
            rotated += self._endings.cut_meanwhile()
        # Those at the paths say first what they are, so that none of them is looked for elsewhere.
        for key in changed:
            self._arrivals.know(self.files.by_key[key])
        # A copy may come up later than its file was truncated.
        rotated += self._marks.known.all_cut() if self._arrivals.scanned else self._arrivals.lost()
        rotated += self._arrivals.read_before()
        self._arrivals.scanned = True
        if rotated:
            changed.extend(self._arrivals.look_beside(rotated))
        self._marks.give_up_copies(now - _CUT_SECONDS)
        self._marks.forget()
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
        real_path = RealPaths()
        for key, tailed in list(self.files.by_key.items()):
            was_live = tailed.state is State.LIVE
            changed.extend(self._seen_again(tailed, seen.pop(key, None), real_path, now))
            if was_live and tailed.state is State.AWAY:
                # One of which nothing was read yet may have been copied and emptied before it went.
                known = tailed.at or self._marks.known.newest_at(shown(tailed.target))
                rotated += [known] if known is not None else []
        for key, (paths, table) in seen.items():
            tailed = Tailed(key, paths[0], real_path(paths[0]), table, changed=now)
            tailed.from_end = self._paths.starts_at_end(table)
            self.files.by_key[key] = tailed
            self.files.open(tailed)
            changed.append(key)
        return changed, rotated

    def _seen_again(
        self, tailed: Tailed, seen: tuple[list[str], int] | None, real_path: RealPaths, now: float
    ) -> Iterable[Key]:
        """Note where a known file is now, if it is anywhere."""
        if seen is None:
            if tailed.state is State.LIVE:
                tailed.state = State.AWAY
                tailed.changed = now
                self.files.warm[tailed.key] = None
                return [tailed.key]
            return []
        paths, tailed.table = seen
        before = tailed.path, tailed.target
        tailed.origin = ""
        if tailed.path not in paths:
            tailed.path = paths[0]
        tailed.target = real_path(tailed.path)
        moved = before != (tailed.path, tailed.target)
        if moved and tailed.at is not None:
            self._marks.put(tailed, msgspec.structs.replace(tailed.at, **tailed.here), persist=True)
        if moved or tailed.state is not State.LIVE or tailed.problem or tailed.copy_of or tailed.waiting:
            tailed.state = State.LIVE
            return [tailed.key]
        return []

    # -- reading -------------------------------------------------------------------------

    def turn(self, key: Key) -> Turn:
        """Read the next block of a file."""
        tailed = self.files.by_key.get(key)
        if tailed is None:
            return Turn.NOTHING
        if not self._has_changed(tailed) or not self._arrivals.know(tailed):
            return self._endings.ending(tailed)
        block = None if _is_spent(tailed) else self.reading.next(tailed)
        if block is None:
            return Turn.NOTHING
        if block.kind is Kind.CHANGED:
            self._endings.was_cut(tailed)
            return Turn.MORE
        if block.kind in (Kind.NOTHING, Kind.PARTIAL):
            return self._endings.ending(tailed)
        much = Turn.MUCH_MORE if tailed.lag > 2 * self._read_bytes else Turn.MORE
        return much if self.reading.take(tailed, block) else Turn.NOTHING

    def _has_changed(self, tailed: Tailed) -> bool:
        """Look at a file; tell whether there may be something to read."""
        try:
            status = os.stat(tailed.path) if tailed.file is None else tailed.file.status()  # noqa: PTH116
        except FileNotFoundError:
            return False
        except OSError as error:
            self.files.trouble(tailed, reason_of(error))
            return False
        if tailed.file is None and key_of(status) != tailed.key:
            return False
        if (status.st_size, status.st_mtime_ns) != (tailed.size, tailed.modified):
            tailed.size, tailed.modified = status.st_size, status.st_mtime_ns
            tailed.changed = self._clock.monotonic()
            self.files.warm[tailed.key] = None
        return self.files.open(tailed)

    # -- reports -------------------------------------------------------------------------

    def documents(self) -> list[dict[str, Any]]:
        """Return how each file stands; from any thread."""
        files = list(self.files.by_key.values())
        known: dict[tuple[int, int], Checkpoint] = {}
        if any(tailed.problem and tailed.at is None for tailed in files):
            known = {(at.device, at.inode): at for at in self._marks.known.all() if not at.done}
        return [document(tailed, known.get(tailed.key) if tailed.problem else None) for tailed in files]

    def reset(self, path: str, *, to_end: bool) -> tuple[list[Key], list[str]]:
        """Set a file back to its beginning, or forth to its end; return its keys and paths."""
        keys, paths = [], []
        for key, tailed in self.files.by_key.items():
            # Of many files, quiet ones are closed; the end of one that cannot be opened is not known.
            if (
                path in (tailed.path, shown(tailed.path))
                and tailed.at is not None
                and (self.files.open(tailed) or not to_end)
            ):
                at = rewound(tailed.at)
                if to_end:
                    at = self._marks.at_end(tailed, at)
                self._marks.put(tailed, at, persist=True)
                keys.append(key)
                paths.append(shown(tailed.path))
        for at in self._marks.known.all():
            if at.path == path and at.id not in self.files.owners and not to_end and at.inode:
                self._marks.known.put(rewound(at))
                self._marks.persist(rewound(at))
                paths.append(at.path)
        return keys, paths

    def problem_documents(self) -> list[dict[str, str]]:
        """Return what cannot be looked into; from any thread."""
        problems = [(shown(path), reason) for path, reason in dict(self._paths.problems).items()]
        problems += self.reading.problems()
        return [{"path": path, "reason": reason} for path, reason in problems]


def _is_spent(tailed: Tailed) -> bool:
    """Tell whether a file is compressed and read to its end."""
    return tailed.file is not None and tailed.file.compressed and tailed.at is not None and tailed.at.done
