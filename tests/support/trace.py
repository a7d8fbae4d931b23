"""What a process did to its files and sockets, recorded by strace, and what of it a power cut leaves.

`read` turns strace's output into moments in order: each call begins at one and ends at
a later one, or never. `Disk` plays them back and keeps apart what is certain to be on
the disk (synced, names too) from what a power cut may take away, wholly or in part.
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from pathlib import Path

LONGEST_DATA = 8192
"""How much of each buffer is recorded: more than SQLite writes at once."""

WRITES = ("write", "pwrite64", "writev", "pwritev", "pwritev2")
SYNCS = ("fsync", "fdatasync")
SENDS = ("sendto", "sendmsg", "write")
_CUTS = ("ftruncate", "truncate", "fallocate")
_NAMES = (
    "open",
    "openat",
    "creat",
    "mkdir",
    "mkdirat",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
)
_CALLS = (*WRITES, *SYNCS, *_CUTS, *_NAMES, "recvfrom", "sendto", "sendmsg")
_HEX = r"(?:\\x[0-9a-f]{2})*"
_CALL = re.compile(r"(\w+)\((.*)\)\s+= (-?\d+|\?)")
_ARGUMENT = re.compile(rf'"({_HEX})"(\.\.\.)?|<({_HEX})>|([^,"<>]+)')
_UNFINISHED = " <unfinished ...>"
_RESUMED = " resumed>"
_SECTOR = 512


def recorder(output: Path) -> list[str]:
    """Return what to put before a command to have it recorded.

    Raises:
        AssertionError: strace is not there, and without it nothing would be proved.
    """
    assert shutil.which("strace"), "strace is not on this machine; install it: apt-get install strace"
    # Every string in hexadecimal, so that nothing in one looks like syntax.
    how = f"-f --seccomp-bpf -qq -y -ttt -xx -s {LONGEST_DATA} -e signal=none -e trace={','.join(_CALLS)}"
    return ["strace", *how.split(), "-o", str(output), "--"]


@dataclass(slots=True, eq=False)
class Call:
    """One system call.

    Attributes:
        name: which.
        time: when it began, Unix seconds.
        paths: the files and sockets that it names, in order.
        data: its buffer, as far as it was recorded.
        whole: all of the buffer was recorded.
        words: its other arguments, as written.
        result: what it returned; None when it never did.
    """

    name: str
    time: float
    paths: list[str] = field(default_factory=list)
    data: bytes = b""
    whole: bool = True
    words: list[str] = field(default_factory=list)
    result: int | None = None

    @property
    def path(self) -> str:
        """The file or socket that it is about."""
        return self.paths[-1] if self.paths else ""

    def parse(self, arguments: str) -> None:
        """Take the arguments from strace's text."""
        self.paths, self.words, self.data, self.whole = [], [], b"", True
        for string, cut, path, word in _ARGUMENT.findall(arguments):
            if path:
                self.paths.append(os.fsdecode(_bytes(path)))
            elif word:
                self.words += [word.strip()] if word.strip() else []
            elif self.name in _NAMES:
                self.paths.append(posixpath.join(*self.paths[-1:], os.fsdecode(_bytes(string))))
            else:
                self.data += _bytes(string)
                self.whole = self.whole and not cut


@dataclass(frozen=True, slots=True)
class Moment:
    """The beginning or the end of a call."""

    call: Call
    ended: bool


def read(output: Path) -> list[Moment]:
    """Return the recorded calls in order, without those that failed."""
    moments: list[Moment] = []
    begun: dict[str, tuple[str, Call]] = {}
    with output.open(encoding="ascii") as lines:
        for line in lines:
            thread, time, text = line.rstrip("\n").split(None, 2)
            if text.startswith(("+++", "---")):
                continue
            if text.endswith(_UNFINISHED):
                text = text.removesuffix(_UNFINISHED)
                name, _, arguments = text.partition("(")
                call = Call(name, float(time))
                call.parse(arguments)
                begun[thread] = (text, call)
                moments.append(Moment(call, ended=False))
                continue
            if text.startswith("<... "):
                first, call = begun.pop(thread)
                text = first + text.partition(_RESUMED)[2].replace(_UNFINISHED, "")
            else:
                call = Call(text.partition("(")[0], float(time))
                moments.append(Moment(call, ended=False))
            match = _CALL.match(text)
            assert match, f"strace wrote something else than a call: {text[:200]}"
            if match[3] == "?":
                continue  # the process was killed in it
            call.parse(match[2])
            call.result = int(match[3])
            moments.append(Moment(call, ended=True))
    return [moment for moment in moments if moment.call.result is None or moment.call.result >= 0]


def _bytes(string: str) -> bytes:
    return bytes.fromhex(string.replace("\\x", ""))


@dataclass(slots=True, eq=False)
class _Edit:
    """A change of a file's content: data at an offset, or a new size."""

    offset: int
    data: bytes | None
    ended: bool = False

    def apply(self, content: bytearray) -> None:
        """Change `content`."""
        end = self.offset + len(self.data or b"")
        if len(content) < end:
            content.extend(bytes(end - len(content)))
        if self.data is None:
            del content[self.offset :]
        else:
            content[self.offset : end] = self.data

    def torn(self, chance: random.Random) -> list[_Edit]:
        """Return what a power cut may leave of it: nothing, all, or some of its sectors."""
        fate = chance.random()
        if fate < 0.4 or (fate >= 0.8 and self.data is None):
            return []
        if fate < 0.8 or self.data is None:
            return [self]
        end = self.offset + len(self.data)
        borders = [self.offset, *range(self.offset // _SECTOR * _SECTOR + _SECTOR, end, _SECTOR), end]
        sectors = pairwise(borders)
        return [
            _Edit(start, self.data[start - self.offset : stop - self.offset])
            for start, stop in sectors
            if chance.random() < 0.5
        ]


@dataclass(slots=True, eq=False)
class _File:
    """A file's content: what is synced, and what was done to it since."""

    synced: bytearray = field(default_factory=bytearray)
    edits: list[_Edit] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Naming:
    """A name that was given (to a file, or to a directory: None) or taken away."""

    path: str
    given: bool
    file: _File | None = None


class Disk:
    """The files below one directory, which did not exist before the recording.

    Play the moments of a recording in order. Memory that is mapped from files is not
    seen; SQLite's index of its log is, and has to be made anew after a power cut anyway.
    """

    def __init__(self, root: Path) -> None:
        self._root = str(root.resolve())
        self._names: dict[str, _File | None] = {}
        self._synced_names: dict[str, _File | None] = {}
        self._namings: list[_Naming] = []
        self._running: dict[int, list[_Edit]] = {}  # by call: the edits that it makes, or that it syncs
        self._running_names: dict[int, list[_Naming]] = {}
        self._offsets: dict[str, int] = {}  # where the next plain write to a file goes

    def play(self, moment: Moment) -> None:
        """Take one moment into account."""
        call = moment.call
        if call.name in WRITES or call.name in _CUTS:
            self._edit(moment)
        elif call.name in SYNCS:
            self._sync(moment)
        elif call.name in _NAMES and moment.ended:
            self._name(call)

    def unsynced(self, path: str) -> bool:
        """Tell whether a file has content, or a name, that a power cut may take away."""
        file = self._names.get(path)
        if file is not None and file.edits:
            return True
        return any(naming.path == path for naming in self._namings)

    def unsynced_names(self) -> set[str]:
        """Return the names that were given and may be lost."""
        return {naming.path for naming in self._namings if naming.given}

    def after(self) -> dict[str, bytes]:
        """Return all files as the running system shows them."""
        return {
            path: bytes(_content(file, file.edits)) for path, file in self._names.items() if file is not None
        }

    def after_power_cut(self, chance: random.Random | None) -> dict[str, bytes]:
        """Return the files that a power cut leaves.

        Args:
            chance: decides what is left of all that was not synced; None: nothing is.
        """
        names = dict(self._synced_names)
        if chance is not None:
            for naming in self._namings[: chance.randint(0, len(self._namings))]:
                _apply_naming(names, naming)
        left = {}
        for path, file in names.items():
            if file is None or not self._reachable(path, names):
                continue
            edits = [] if chance is None else [some for edit in file.edits for some in edit.torn(chance)]
            left[path] = bytes(_content(file, edits))
        return left

    def _reachable(self, path: str, names: dict[str, _File | None]) -> bool:
        """Tell whether all directories above a path are there."""
        above = posixpath.dirname(path)
        while above != self._root and len(above) > len(self._root):
            if above in self._names and above not in names:
                return False
            above = posixpath.dirname(above)
        return True

    def _ours(self, path: str) -> bool:
        return path.startswith(self._root + "/")

    def _edit(self, moment: Moment) -> None:
        """A write or a change of size begins or ends."""
        call = moment.call
        file = self._names.get(call.path)
        if file is None:
            return  # a socket, a pipe, somebody else's file
        if moment.ended:
            for edit in self._running.pop(id(call)):
                edit.ended = True
            return
        if call.name == "pwrite64":
            edit = _Edit(int(call.words[-1]), call.data)
        elif call.name == "write":
            offset = self._offsets.get(call.path, 0)
            edit = _Edit(offset, call.data)
            self._offsets[call.path] = offset + len(call.data)
        elif call.name == "ftruncate":
            edit = _Edit(int(call.words[-1]), None)
        else:
            raise AssertionError(f"{call.name} of {call.path} is not understood: teach it to this class")
        assert call.whole, f"a write of more than {LONGEST_DATA} bytes was not recorded whole"
        assert call.result in (None, len(call.data)) or edit.data is None, f"a short write of {call.path}"
        file.edits.append(edit)
        self._running[id(call)] = [edit]

    def _sync(self, moment: Moment) -> None:
        """What had ended when a sync began is on the disk when it has ended."""
        call = moment.call
        if not self._ours(call.path) and call.path != self._root:
            return
        file = self._names.get(call.path)
        if not moment.ended:
            self._running[id(call)] = [edit for edit in file.edits if edit.ended] if file is not None else []
            self._running_names[id(call)] = [
                naming for naming in self._namings if posixpath.dirname(naming.path) == call.path
            ]
            return
        edits, namings = self._running.pop(id(call)), self._running_names.pop(id(call))
        if file is not None:
            for edit in edits:
                edit.apply(file.synced)
            done = set(edits)
            file.edits = [edit for edit in file.edits if edit not in done]
        for naming in namings:
            _apply_naming(self._synced_names, naming)
        self._namings = [naming for naming in self._namings if naming not in namings]

    def _name(self, call: Call) -> None:
        """A name was given or taken away."""
        path = call.path
        if not self._ours(path):
            return
        if call.name.startswith("mkdir"):
            self._rename(_Naming(path, given=True))
        elif call.name.startswith("unlink"):
            self._rename(_Naming(path, given=False))
        elif call.name.startswith("rename"):
            old = call.paths[-2]
            self._rename(_Naming(path, given=True, file=self._names[old]))
            self._rename(_Naming(old, given=False))
        else:
            flags = "|".join(call.words)
            assert "O_APPEND" not in flags, f"{path} is opened for appending: teach it to this class"
            self._offsets[path] = 0
            if "O_CREAT" in flags and path not in self._names:
                self._rename(_Naming(path, given=True, file=_File()))
            file = self._names.get(path)
            if "O_TRUNC" in flags and file is not None:
                file.edits.append(_Edit(0, None, ended=True))

    def _rename(self, naming: _Naming) -> None:
        _apply_naming(self._names, naming)
        self._namings.append(naming)


def _apply_naming(names: dict[str, _File | None], naming: _Naming) -> None:
    if naming.given:
        names[naming.path] = naming.file
    else:
        names.pop(naming.path, None)


def _content(file: _File, edits: list[_Edit]) -> bytearray:
    content = bytearray(file.synced)
    for edit in edits:
        edit.apply(content)
    return content
