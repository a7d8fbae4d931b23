"""Finds the files of a pattern, and the directories to be watched for others.

As in a shell: `*`, `?` and `[…]` match within a name and no dot at its beginning; `**` stands for
any number of directories, symbolic links to directories apart, so that it comes to an end.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from fnmatch import translate
from functools import lru_cache
from typing import TYPE_CHECKING

from agent.errors import reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_MAGIC = re.compile(r"[*?\[]")


@dataclass(slots=True)
class Found:
    """What a pattern leads to.

    Attributes:
        paths: of what may be files; some may be gone already, or be directories.
        directories: those in which names were looked for.
        problems: what could not be looked into, and why.
    """

    paths: dict[str, None] = field(default_factory=dict)
    directories: dict[str, None] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


def find(pattern: str) -> Found:
    """Look for everything that an absolute pattern matches."""
    found = Found()
    parts = [part for part in pattern.split("/") if part]
    if parts and parts[-1] == "**":
        parts.append("*")
    _descend("/", parts, found)
    return found


def excluder(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Return a function that tells whether a path is excluded by any of these patterns."""
    split = [_parts(pattern) for pattern in patterns]

    def excluded(path: str) -> bool:
        names = path.strip("/").split("/")
        return any(_matches(parts, names) for parts in split)

    return excluded


def fixed_part(pattern: str) -> str:
    """Return the directory that a pattern begins with, up to its first wildcard."""
    directory = pattern.rpartition("/")[0]
    while _MAGIC.search(directory):
        directory = directory.rpartition("/")[0]
    return directory or "/"


def _parts(pattern: str) -> list[str]:
    """Return the parts of a pattern for whole paths; one that is not absolute fits at any depth."""
    parts = pattern.strip("/").split("/")
    return parts if pattern.startswith("/") else ["**", *parts]


def _matches(parts: list[str], names: list[str]) -> bool:
    """Tell whether the names of a path match the parts of a pattern."""
    if not parts or not names:
        return not names and all(part == "**" for part in parts)
    if parts[0] == "**":
        return _matches(parts[1:], names) or _matches(parts, names[1:])
    return _matcher(parts[0])(names[0]) is not None and _matches(parts[1:], names[1:])


def _descend(base: str, parts: list[str], found: Found) -> None:
    """Follow the rest of a pattern from a directory on."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        _descend(base, rest, found)
        for entry in _entries(base, found):
            if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                _descend(entry.path, parts, found)
    elif _MAGIC.search(part):
        matches = _matcher(part)
        for entry in _entries(base, found):
            if matches(entry.name) and (part.startswith(".") or not entry.name.startswith(".")):
                _arrive(entry.path, rest, found)
    else:
        found.directories[base] = None
        path = os.path.join(base, part)  # noqa: PTH118 - paths are text here, ten thousand at a time
        _arrive(path, rest, found)
        if rest and not os.path.lexists(path):
            found.problems[path] = "no such directory"


def _arrive(path: str, rest: list[str], found: Found) -> None:
    """Take a path, or follow the rest of the pattern from there."""
    if not rest:
        found.paths[path] = None
    elif os.path.isdir(path):  # noqa: PTH112 - see above
        _descend(path, rest, found)


def _entries(directory: str, found: Found) -> list[os.DirEntry[str]]:
    """Return what is in a directory, by name."""
    found.directories[directory] = None
    try:
        with os.scandir(directory) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        found.problems[directory] = reason_of(error)
        return []


@lru_cache(256)
def _matcher(part: str) -> Callable[[str], re.Match[str] | None]:
    return re.compile(translate(part)).match
