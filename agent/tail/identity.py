"""Which file is which, and the ids that follow from it. Pure.

Version 1 of the contract (`docs/tail.md`); what it says must never change, or lines that
are read again would be billed again:

- The fingerprint of a file is the BLAKE2b hash, 8 bytes long, of its first line without the
  newline, or of its first 1024 bytes where the line is longer.
- The identity is the fingerprint in hexadecimal digits, a hyphen, and the generation: 0 for
  the first file with this fingerprint, 1 for the next one that is no copy of it, and so on.
- The id of a line is ``t1-<identity>-<offset>-<content>``: where the line begins, in bytes from the
  beginning of the file, decimal; and the CRC-32 of the line without blanks at its ends, 8
  hexadecimal digits. A byte order mark belongs to the blanks.

Neither path nor device nor inode are part of it: a file that was renamed, copied, compressed
or carried to another machine has the same lines.
"""

from __future__ import annotations

import re
import struct
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate, repeat
from pathlib import PurePath
from typing import TYPE_CHECKING

import msgspec
from zlib_ng.zlib_ng import crc32

from agent.ids import Ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.stamp import Cut

FIRST_BYTES = 1024
HEAD_BYTES = 4096
HEAD_LINES = 16
TAIL_BYTES = 1024
BOM = b"\xef\xbb\xbf"

_VERSION = b"t1"
_TELLING_LINES = 4
# What rotation puts into a name: .1, -20261124, .2026-11-24T10_00, .20261124-101010; and .gz.
_SUFFIX = re.compile(r"[._-]\d[\d._:T-]*")
_DATE = re.compile(r"[._-]\d{4}-?\d\d-?\d\d[\d._:T-]*")
_ROTATED = re.compile(r"[._-]\d[\d._:T-]*(?=\.|$)")


def fingerprint(head: bytes, *, whole: bool = False) -> str | None:
    """Return the fingerprint of a file by its first bytes; None when these are not enough yet.

    Args:
        head: at least `FIRST_BYTES`, or all that there is.
        whole: nothing will be added any more.
    """
    first = head[:FIRST_BYTES]
    end = first.find(b"\n")
    if end < 0 and len(first) < FIRST_BYTES and not (whole and first):
        return None
    return blake2b(first if end < 0 else first[:end], digest_size=8).hexdigest()


def identity(of_fingerprint: str, generation: int) -> str:
    """Return the identity of a file."""
    return f"{of_fingerprint}-{generation}"


def fingerprint_of(of_identity: str) -> str:
    """Return the fingerprint in an identity."""
    return of_identity.partition("-")[0]


def next_generation(fingerprint: str, known: Sequence[str]) -> int:
    """Return the generation of a new file with this fingerprint; `known` are identities."""
    return max(
        (int(one.partition("-")[2]) + 1 for one in known if fingerprint_of(one) == fingerprint), default=0
    )


def line_id(of_identity: str, offset: int, line: bytes) -> bytes:
    """Return the id of one line, which has no blanks at its ends."""
    return b"%b-%b-%d-%08x" % (_VERSION, of_identity.encode(), offset, crc32(line))


def line_ids(of_identity: str, offset: int, whole: Cut) -> Ids:
    """Return the ids of lines that follow one another, each with nothing but a newline behind it.

    Args:
        of_identity: of their file.
        offset: of the first one.
        whole: the lines.
    """
    count = whole.count
    starts = list(accumulate(map(len, whole.lines), initial=offset))[:count]
    crcs = map(crc32, repeat(b"}"), map(crc32, whole.bodies))
    # The digits of all numbers at once: formatting each takes as long as the rest of it.
    offsets = msgspec.json.encode(starts)[1:-1].split(b",")
    contents = struct.pack(f">{count}I", *crcs).hex(",", 4).encode().split(b",")
    return Ids([b"%b-%b-" % (_VERSION, of_identity.encode()), b"-"], [offsets, contents])


def head_lines(head: bytes) -> tuple[int, ...]:
    """Return the CRC-32 of each of a file's first lines, as far as they are there and complete.

    Args:
        head: its first `HEAD_BYTES`, or all that there is.
    """
    lines = head[:HEAD_BYTES].split(b"\n")
    complete = lines[:-1] or [line for line in lines if len(line) >= FIRST_BYTES]
    return tuple(crc32(line[:FIRST_BYTES]) for line in complete[:HEAD_LINES])


def is_timed(head: bytes) -> bool:
    """Tell whether the first line carries what no other file's would: a time or an id of its own."""
    first = head[:FIRST_BYTES].partition(b"\n")[0]
    return b'"timestamp"' in first or b'"external_id"' in first


def is_telling(head: Sequence[int], *, timed: bool) -> bool:
    """Tell whether another file that begins with these lines can only be a copy.

    It is so where the first carries a time or an id of its own, or where several are there and no two
    are equal. Lines that are all alike prove nothing: every file of their writer looks like that.
    """
    return bool(head) and (timed or (len(head) >= _TELLING_LINES and len(set(head)) == len(head)))


@lru_cache(4096)
def family(path: str) -> tuple[str, str]:
    """Return a file's directory, and its name without what rotation and compression put into it."""
    pure = PurePath(path)
    name = pure.name.removesuffix(".gz")
    bare = _ROTATED.sub("", name)
    return str(pure.parent), bare or name


def is_rotated(path: str) -> bool:
    """Tell whether a path looks like one that rotation gives."""
    return family(path)[1] != PurePath(path).name


def comes_of(path: str, original: str) -> bool:
    """Tell whether a path is one that rotation gives to files that were at another one before."""
    (directory, name), pure = (str(PurePath(path).parent), PurePath(path).name), PurePath(original)
    if directory != str(pure.parent):
        return False
    rest = name.removesuffix(".gz")
    if rest.startswith(pure.name):
        return _SUFFIX.fullmatch(rest[len(pure.name) :]) is not None
    middle = rest.removeprefix(pure.stem).removesuffix(pure.suffix)
    return f"{pure.stem}{middle}{pure.suffix}" == rest and _DATE.fullmatch(middle) is not None


def same_family(path: str, other: str) -> bool:
    """Tell whether one may have come of the other by rotation: in its directory, or in one below."""
    (directory, name), (other_directory, other_name) = family(path), family(other)
    if name != other_name:
        return False
    first, second = PurePath(directory), PurePath(other_directory)
    return first == second or first in second.parents or second in first.parents
