"""Tells at once when something happens in a directory, where the system can: inotify on Linux.

It saves looking at every file; nothing depends on it. Where there is no inotify, or its watches are
used up, or a file system is shared with other machines (whose writes it does not see), files are
looked at now and then instead.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agent.logs import get

if TYPE_CHECKING:
    from collections.abc import Iterable

_MOUNTS = Path("/proc/self/mountinfo")
_LOCAL = re.compile(
    "bcachefs|btrfs|ext[234]|erofs|f2fs|jfs|nilfs2|overlay|ramfs|reiserfs|squashfs|tmpfs|ubifs|vfat|xfs|zfs"
)


class Event(NamedTuple):
    """Something happened to a name in a directory; to bytes alone, or to the name as well."""

    directory: str
    name: str
    renamed: bool


class Watch:
    """Watches directories.

    Attributes:
        descriptor: becomes readable when something happened; None where nothing can be watched.
    """

    def __init__(self) -> None:
        self.descriptor: int | None = None
        self._numbers: dict[str, int] = {}
        self._directories: dict[int, str] = {}
        self._local: dict[int, bool] = {}
        self._refused = False
        if not sys.platform.startswith("linux"):
            return
        try:
            import inotify_simple  # noqa: PLC0415  # Linux alone has it

            self._library = inotify_simple
            self._inotify = inotify_simple.INotify(nonblocking=True)
        except (ImportError, OSError) as error:
            get("tail").warning("no inotify: files are looked at now and then", reason=str(error))
            return
        flags = inotify_simple.flags
        self._renaming = (
            flags.CREATE
            | flags.MOVED_FROM
            | flags.MOVED_TO
            | flags.DELETE
            | flags.DELETE_SELF
            | flags.MOVE_SELF
        )
        self._mask = self._renaming | flags.MODIFY | flags.CLOSE_WRITE | flags.ATTRIB | flags.ONLYDIR
        self.descriptor = self._inotify.fileno()

    def follow(self, directories: Iterable[str]) -> set[str]:
        """Watch these directories and no others; return those that are watched now."""
        if self.descriptor is None:
            return set()
        wanted = set(directories)
        for directory in self._numbers.keys() - wanted:
            number = self._numbers.pop(directory)
            self._directories.pop(number, None)
            try:
                self._inotify.rm_watch(number)
            except OSError:
                continue  # the directory is gone, and its watch with it
        for directory in sorted(wanted - self._numbers.keys()):
            if self._is_local(directory):
                self._add(directory)
        return set(self._numbers)

    def _add(self, directory: str) -> None:
        """Watch one directory."""
        try:
            number = self._inotify.add_watch(directory, self._mask)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return
        except OSError as error:
            if not self._refused:
                self._refused = True
                get("tail").warning(
                    "cannot watch all directories: files in the others are looked at now and then",
                    reason=error.strerror,
                    hint="raise fs.inotify.max_user_watches",
                )
            return
        # Two names of one directory have one number: the newer one is kept.
        older = self._directories.get(number)
        if older is not None:
            self._numbers.pop(older, None)
        self._numbers[directory] = number
        self._directories[number] = directory

    def events(self) -> tuple[list[Event], bool]:
        """Return what happened, and whether more happened than the system could note."""
        if self.descriptor is None:
            return [], False
        found = []
        overflow = False
        for number, mask, _, name in self._inotify.read(timeout=0):
            if mask & self._library.flags.Q_OVERFLOW:
                overflow = True
            elif mask & self._library.flags.IGNORED:
                directory = self._directories.pop(number, None)
                if directory is not None:
                    self._numbers.pop(directory, None)
                    overflow = True  # it is gone or was unmounted: look around
            elif number in self._directories:
                found.append(Event(self._directories[number], name, bool(mask & self._renaming)))
        return found, overflow

    def _is_local(self, directory: str) -> bool:
        """Tell whether a directory lies on a file system that only this machine writes to."""
        try:
            device = os.stat(directory).st_dev  # noqa: PTH116 - as everywhere here
            if device not in self._local:
                kind = kind_of(_MOUNTS.read_text("utf-8", "replace"), device)
                self._local[device] = _LOCAL.fullmatch(kind) is not None
        except OSError:
            return False
        return self._local[device]

    def close(self) -> None:
        """End all watching."""
        if self.descriptor is not None:
            self._inotify.close()
            self.descriptor = None


def kind_of(mounts: str, device: int) -> str:
    """Return the type of the file system of a device; empty when it is not in the list.

    Args:
        mounts: the text of /proc/self/mountinfo.
        device: as `os.stat` gives it.
    """
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for mount in mounts.splitlines():
        fields, _, rest = mount.partition(" - ")
        if fields.split(" ")[2:3] == [wanted]:
            return rest.split(" ")[0]
    return ""
