"""Files that came up, or that have to be looked for: what each of them is."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

import msgspec

from agent.errors import reason_of
from agent.tail.block import rewound
from agent.tail.identity import comes_of, family, same_family
from agent.tail.open_file import as_it_is_now
from agent.tail.recognition import SETTLED_SECONDS, Act, Decision, State
from agent.tail.tailed import Key, Tailed, key_of, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.clock import Clock
    from agent.queue import Checkpoint
    from agent.tail.files import Files
    from agent.tail.marks import Marks
    from agent.tail.paths import Paths

_TICK_SECONDS = 0.05  # of the clock that files are stamped with


class Arrivals:
    """Finds out which file is which, and finds those that are at none of the paths.

    Attributes:
        scanned: the paths were looked at once since the start.
    """

    def __init__(self, files: Files, paths: Paths, marks: Marks, clock: Clock) -> None:
        self._files = files
        self._paths = paths
        self._marks = marks
        self._clock = clock
        self.scanned = False

    def know(self, tailed: Tailed, *, whole: bool = False) -> bool:
        """Find out what a file is, if nobody knows; tell whether it is to be read."""
        if tailed.at is not None:
            return True
        if not self._files.open(tailed) or tailed.file is None:
            return False
        settled = self._clock.monotonic() - tailed.changed >= SETTLED_SECONDS
        try:
            tailed.file = as_it_is_now(tailed.file)
            decision = self._marks.known.meet(
                shown(tailed.target), tailed.key, tailed.file, settled=settled, whole=whole
            )
        except OSError as error:
            self._files.trouble(tailed, reason_of(error))
            return False
        tailed.copy_of, tailed.waiting = "", False
        if decision is None:
            tailed.from_end = False  # its first line is still to come
            self._marks.note_empty(tailed)
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
            self._files.warm[tailed.key] = None
        elif decision.act is Act.LEAVE and known is not None:
            tailed.copy_of = known.id
            if self._marks.known.state(known.id) is State.CUT or tailed.key == (known.device, known.inode):
                # From now on it is known by where its copy is.
                self._marks.give_up(known.id)
                self._marks.known.found(known.id)
                self._marks.known.put(msgspec.structs.replace(known, **here, done=True))
                self._marks.persist(msgspec.structs.replace(known, **here, done=True))
        else:
            at = self._marks.new(tailed, decision.identity) if known is None else known
            if decision.act is Act.READ_AGAIN:
                at = rewound(at)
            if known is not None and decision.act is not Act.BRANCH:
                self._marks.give_up(known.id)
                self._marks.known.found(known.id)
            at = msgspec.structs.replace(at, id=decision.identity, **here, done=False)
            if tailed.from_end and known is None:
                at = self._marks.at_end(tailed, at)
            tailed.from_end = False
            # Also before a line of it is taken: after a kill it is looked for where rotation put it.
            self._marks.put(tailed, at, persist=True)
            before = (
                self._marks.known.newest_at(at.place)
                if known is None and tailed.state is State.LIVE
                else None
            )
            if before is not None and self.scanned:
                self.look_beside([before])
            return True
        return False

    def lost(self) -> list[Checkpoint]:
        """Return the files that were not read to their end and are at none of the paths."""
        return [
            one
            for one in self._marks.known.all()
            if not one.done and one.id not in self._files.owners and self._paths.table_of(one) is not None
        ]

    def read_before(self) -> list[Checkpoint]:
        """Return what was read last at the paths where rotation may not be seen.

        A file in which nothing was read yet has no checkpoint: neither its rotation while the agent is down
        is seen, nor, of its lines, that they were copied and cut off between two looks. They are found
        by being younger than what was read at this path before.
        """
        if not self.scanned:
            return [one for one in self._marks.known.newest() if self._paths.table_of(one) is not None]
        paths = {
            shown(tailed.target)
            for tailed in self._files.by_key.values()
            if tailed.state is State.LIVE and tailed.at is None and not tailed.copy_of
        }
        return [one for one in map(self._marks.known.newest_at, paths) if one is not None]

    def look_beside(self, lost: Sequence[Checkpoint]) -> list[Key]:
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
                if key in self._files.by_key:
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
            key, path, path, self._paths.table_of(lost) or 0, State.AWAY, changed=self._clock.monotonic()
        )
        tailed.origin = lost.path
        self._files.by_key[key] = tailed
        self._files.warm[key] = None
        if self._files.open(tailed) and self._is_wanted(tailed, unseen=unseen):
            return True
        self._files.drop(tailed)
        return False

    def _first_looked_at(self, lost: Checkpoint) -> float:
        """Return when the place of a file was looked at first, in nanoseconds, by the clock of files."""
        since = self._marks.known.since(lost.place)
        return math.inf if since is None else (since - _TICK_SECONDS) * 1e9

    def _is_wanted(self, tailed: Tailed, *, unseen: bool) -> bool:
        """Find out what a file is that is at none of the paths, and tell whether it has to be read.

        Args:
            tailed: the file.
            unseen: it may be one that was at a path between two looks.
        """
        assert tailed.file is not None  # noqa: S101 - it was just opened
        try:
            decision = self._marks.known.meet(
                shown(tailed.target), tailed.key, tailed.file, settled=False, whole=False
            )
        except OSError:
            return False
        if decision is None:
            return unseen
        if decision.act in (Act.BEGIN, Act.WAIT):
            return unseen and (self._settle(tailed, decision) or tailed.waiting)
        known = decision.known
        if known is not None and known.done and self._marks.known.state(known.id) is not State.CUT:
            return False  # its end was seen
        return self._settle(tailed, decision)


def _files_in(directory: str) -> list[tuple[str, os.stat_result]]:
    """Return the files in a directory; the one that was changed last comes first."""
    try:
        with os.scandir(directory) as entries:
            found = [(entry.path, entry.stat()) for entry in entries if entry.is_file()]
    except OSError:
        return []
    return sorted(found, key=lambda one: one[1].st_mtime_ns, reverse=True)
