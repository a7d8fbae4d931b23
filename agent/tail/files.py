"""The files that are there, or were and are not read to their end; those of them that are open."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

from agent.errors import reason_of
from agent.logs import get
from agent.tail.open_file import NotAFileError, open_file
from agent.tail.recognition import State
from agent.tail.tailed import Key, Tailed, key_of, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

_SHARE_OF_DESCRIPTORS = 0.5


class Files:
    """Files by their keys, their paths and their identities.

    Attributes:
        by_key: all of them.
        owners: those whose identity is known, by it.
        warm: the keys of those that may have to be looked at often.
        polled: some files are watched by nobody.
    """

    def __init__(self) -> None:
        self.by_key: dict[Key, Tailed] = {}
        self.owners: dict[str, Tailed] = {}
        self.warm: dict[Key, None] = {}
        self.polled = True
        self._by_path: dict[str, tuple[Key, ...]] = {}
        self._open_files = 0
        self._log = get("tail")
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most_open = max(64, int(min(limit, 1 << 20) * _SHARE_OF_DESCRIPTORS))

    def close(self) -> None:
        """Let go of all files."""
        for tailed in self.by_key.values():
            tailed.close()

    # -- opening -------------------------------------------------------------------------

    def open(self, tailed: Tailed) -> bool:
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
            self.trouble(tailed, reason_of(error))
            return False
        if key_of(file.status()) != tailed.key:
            file.close()  # another one took its place in this moment
            return False
        self._open_files += 1
        if self._open_files > self._most_open:
            self._close_some()
        tailed.file = file
        self.over(tailed)
        return True

    def shut(self, tailed: Tailed) -> None:
        """Close a file, if it is open."""
        if tailed.file is not None:
            tailed.close()
            self._open_files -= 1

    def _close_some(self) -> None:
        """Close files that were quiet for longest; they are opened again when they change."""
        quiet = [
            one
            for one in self.by_key.values()
            if one.file is not None and one.state is State.LIVE and one.at is not None and not one.lag
        ]
        quiet.sort(key=lambda one: one.changed)
        for one in quiet[: max(1, self._most_open // 8)]:
            self.shut(one)

    def drop(self, tailed: Tailed) -> None:
        """Close a file and leave it."""
        self.shut(tailed)
        self.by_key.pop(tailed.key, None)
        if tailed.at is not None:
            self.owners.pop(tailed.at.id, None)

    def trouble(self, tailed: Tailed, reason: str) -> None:
        """Note that a file cannot be read; it is tried again."""
        if tailed.problem != reason:
            self._log.warning("cannot read a file", path=shown(tailed.path), reason=reason)
        tailed.problem = reason

    def over(self, tailed: Tailed) -> None:
        """Note that a file can be read."""
        if tailed.problem:
            self._log.info("a file can be read again", path=shown(tailed.path))
        tailed.problem = ""

    def set_watched(self, directories: set[str]) -> None:
        """Note which directories are watched."""
        self.polled = False
        for tailed in self.by_key.values():
            tailed.polled = os.path.dirname(tailed.target) not in directories  # noqa: PTH120
            self.polled = self.polled or tailed.polled

    def at(self, path: str) -> Sequence[Key]:
        """Return the files at a path, as of the last scan."""
        return self._by_path.get(path, ())

    def away(self) -> list[Key]:
        """Return the files that are at no matched path."""
        return [key for key, tailed in self.by_key.items() if tailed.state is State.AWAY]

    def hot(self, since: float) -> list[Key]:
        """Return the files that are to be looked at often."""
        for key in list(self.warm):
            tailed = self.by_key.get(key)
            if tailed is None or not _is_hot(tailed, since):
                del self.warm[key]
        return list(self.warm)

    def note_places(self) -> set[str]:
        """Note which files are at which paths; return the directories that those are in which are tailed."""
        self._by_path = {}
        for key, tailed in self.by_key.items():
            for path in {tailed.path, tailed.target}:
                self._by_path[path] = (*self._by_path.get(path, ()), key)
        return {
            os.path.dirname(tailed.target)  # noqa: PTH120
            for tailed in self.by_key.values()
            if tailed.state is State.LIVE
        }


def _is_hot(tailed: Tailed, since: float) -> bool:
    """Tell whether a file is to be looked at often."""
    if tailed.state is State.AWAY or tailed.waiting:
        return True
    return tailed.polled and tailed.changed >= since
