"""The paths that are tailed: what is there, and what cannot be looked into."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from agent.errors import reason_of
from agent.logs import get
from agent.queue import Checkpoint
from agent.tail import glob
from agent.tail.report import first_seen
from agent.tail.tailed import Key, key_of, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agent.tail import Table


class Paths:
    """The paths of all `[[tail]]` tables.

    Args:
        tables: of the settings.
        begun: the ids of the checkpoints that say which of them were looked at before.

    Attributes:
        problems: what cannot be looked into, and why.
    """

    def __init__(self, tables: Sequence[Table], begun: Iterable[str]) -> None:
        self._tables = tables
        self._excluded = [glob.excluder(table.exclude) for table in tables]
        self._matching = [glob.excluder([table.path]) for table in tables]
        self._begun = set(begun)
        self.problems: dict[str, str] = {}
        self._log = get("tail")

    def find(self) -> tuple[dict[Key, tuple[list[str], int]], set[str], dict[str, str]]:
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

    def tell(self, problems: dict[str, str]) -> None:
        """Log problems that are new, and those that are over."""
        for path, reason in problems.items():
            if self.problems.get(path) != reason:
                self._log.warning("cannot look for files", path=shown(path), reason=reason)
        for path in self.problems.keys() - problems.keys():
            self._log.info("can look for files again", path=shown(path))
        self.problems = problems

    def starts_at_end(self, table: int) -> bool:
        """Tell whether of the files that this table finds now, only what is added counts."""
        return self._tables[table].start == "end" and first_seen(self._tables[table].path) not in self._begun

    def table_of(self, lost: Checkpoint) -> int | None:
        """Return the number of the table that a file's path belongs to; None when there is none any more."""
        return next((number for number, matches in enumerate(self._matching) if matches(lost.path)), None)

    @property
    def are_new(self) -> bool:
        """True while the files of some table were never looked for."""
        return any(first_seen(table.path) not in self._begun for table in self._tables)

    def begin(self) -> list[Checkpoint]:
        """Return the notes that the files of these tables were looked for: those that come later are new."""
        new = []
        for table in self._tables:
            name = first_seen(table.path)
            if name not in self._begun:
                self._begun.add(name)
                new.append(Checkpoint(id=name, path=shown(table.path), device=0, inode=0))
        return new


class RealPaths:
    """Follows symbolic links of many paths at one moment, those of each directory once."""

    def __init__(self) -> None:
        self._directories: dict[str, str] = {}

    def __call__(self, path: str) -> str:
        """Return an absolute path without symbolic links; itself, where there are none in it."""
        if os.path.islink(path):  # noqa: PTH114
            return os.path.realpath(path)
        directory, _, name = path.rpartition("/")
        real = self._directories.get(directory)
        if real is None:
            real = self._directories[directory] = os.path.realpath(directory or "/")
        # One text for both saves memory.
        return path if real == directory else f"{real.rstrip('/')}/{name}"
