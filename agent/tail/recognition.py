"""What a file is that was not seen before, or that is not what it was. Pure.

A file that comes up can be one that is known (after a restart; moved back; compressed), a copy
of one that is still being read, or a new one. Inode numbers are used again, names are handed on, and
files of one writer can begin alike; so each of these is evidence, and `recognise` weighs it:

========================  ==============================  ============================================
its bytes are             the known file is               it is
========================  ==============================  ============================================
the same, same inode      not cut                         that file: read on
shorter, telling, the     done                            the rest of a copy that was known to be
same inode                                                read: leave it
the same, and telling     live                            a copy: leave it
the same, and telling     cut, or no more there           that file, elsewhere: read on
shorter, and telling      live                            a copy, perhaps being made: leave it
shorter, and telling      cut                             its copy, of which all is read: leave it
shorter, and telling      no more there                   an older state: read again under the same ids
the same, not telling     cut, of the same family         its copy (copytruncate): read on
the same, not telling     no more there, same family, and that file: read on
                          it is compressed
shorter, not telling      cut, of the same family         its copy, of which all is read: leave it
alike, not telling        live, same family               perhaps a copy being made: wait a while
anything else                                             new
========================  ==============================  ============================================
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from agent.tail.identity import fingerprint_of, identity, is_telling, next_generation, same_family

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agent.queue import Checkpoint


class Bytes(Enum):
    """How a file's bytes compare with what was read of a known one."""

    SAME = auto()
    """All that was read of the known one is there, as far as the checkpoint can tell."""
    SHORTER = auto()
    """There is less, and that is alike."""
    OTHER = auto()


class State(Enum):
    """How a known file stands."""

    LIVE = auto()
    """At a path that is tailed, and what it was."""
    AWAY = auto()
    """Open, but at none of these paths: it is being read to its end."""
    CUT = auto()
    """Its inode has other bytes now; what was not read of it may be in a copy."""
    GONE = auto()
    """Not open, and at none of these paths."""


class Act(Enum):
    """What to do with a file."""

    READ_ON = auto()
    """It is the known file: go on where its checkpoint says."""
    READ_AGAIN = auto()
    """It is an older state of the known file: begin anew, under the same ids."""
    BRANCH = auto()
    """It was a copy and has gone its own way: go on where the checkpoint says, as a new file."""
    LEAVE = auto()
    """It is a copy of a file that is being read."""
    WAIT = auto()
    """It cannot be told yet."""
    BEGIN = auto()
    """It is new."""


SETTLED_SECONDS = 10.0
"""A file that has not changed for so long is settled."""


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A file that came up.

    Attributes:
        path: where, all symbolic links followed.
        device: of the file system.
        inode: of the file.
        fingerprint: see `agent.tail.identity`.
        compressed: its bytes are read through gzip.
        settled: it has not changed for `SETTLED_SECONDS`.
    """

    path: str
    device: int
    inode: int
    fingerprint: str
    compressed: bool = False
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """A file that has a checkpoint, and how the newcomer's bytes compare with it.

    Attributes:
        checkpoint: how far it is read.
        state: how it stands.
        bytes: how the newcomer's bytes compare.
        telling: those that they have in common are such as only a copy has.
        outgrown: the newcomer is longer than this file is now.
    """

    checkpoint: Checkpoint
    state: State
    bytes: Bytes
    telling: bool = False
    outgrown: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What a newcomer is.

    Attributes:
        act: what to do with it.
        identity: its identity; empty when it is not to be read.
        known: the file that it is, or is a copy of; None when it is new.
    """

    act: Act
    identity: str = ""
    known: Checkpoint | None = None


def compare(
    checkpoint: Checkpoint, head: Sequence[int], size: int | None, tail: int | None
) -> tuple[Bytes, bool]:
    """Compare a file with what was read of a known one that has its fingerprint.

    Args:
        checkpoint: of the known one.
        head: of the other, as `agent.tail.identity.head_lines` gives it.
        size: of the other; None when only `tail` can tell that it is long enough.
        tail: the CRC-32 of its bytes where those of `checkpoint.tail_crc` would be; None when it
            does not reach so far.

    Returns:
        How its bytes compare, and whether those in common are telling.
    """
    common = min(len(head), len(checkpoint.head))
    telling = is_telling(head[:common], timed=checkpoint.timed)
    if tuple(head[:common]) != checkpoint.head[:common]:
        return Bytes.OTHER, False
    if common < len(checkpoint.head) or tail is None or (size is not None and size < checkpoint.offset):
        return Bytes.SHORTER, telling
    return (Bytes.SAME, telling) if tail == checkpoint.tail_crc else (Bytes.OTHER, False)


def recognise(newcomer: Newcomer, known: Sequence[Known], identities: Iterable[str]) -> Decision:
    """Decide what a file is.

    Args:
        newcomer: the file.
        known: the files that have its fingerprint.
        identities: all identities that were ever given, as far as they are remembered.
    """
    alike = [one for one in known if one.bytes is not Bytes.OTHER]
    # Of several, the one that is read farthest; the fresher one of equals.
    alike.sort(key=lambda one: (one.checkpoint.offset, one.checkpoint.last_line_at or 0.0), reverse=True)
    rules = (_same_inode, _by_content, _by_family)
    for rule in rules:
        for one in alike:
            act = rule(newcomer, one)
            if act is not None and act is not Act.BRANCH:
                return Decision(act, one.checkpoint.id, one.checkpoint)
            if act is Act.BRANCH:
                return Decision(act, _fresh(newcomer, known, identities), one.checkpoint)
    return Decision(Act.BEGIN, _fresh(newcomer, known, identities))


def _fresh(newcomer: Newcomer, known: Sequence[Known], identities: Iterable[str]) -> str:
    """Return an identity that no file has."""
    given = [one.checkpoint.id for one in known]
    given += [one for one in identities if fingerprint_of(one) == newcomer.fingerprint]
    return identity(newcomer.fingerprint, next_generation(newcomer.fingerprint, given))


def _same_inode(newcomer: Newcomer, one: Known) -> Act | None:
    """Decide by the inode; that of a file that was cut is no evidence any more."""
    at = one.checkpoint
    if (at.device, at.inode) != (newcomer.device, newcomer.inode) or one.state is State.CUT:
        return None
    if one.bytes is Bytes.SAME:
        return Act.READ_ON
    return Act.LEAVE if at.done and one.telling else None


def _by_content(newcomer: Newcomer, one: Known) -> Act | None:
    """Decide by bytes that only a copy can have."""
    del newcomer
    if not one.telling:
        return None
    if one.state in (State.LIVE, State.AWAY):
        if one.bytes is Bytes.SAME and one.outgrown:
            return Act.BRANCH if one.state is State.LIVE else Act.LEAVE
        return Act.LEAVE
    if one.bytes is Bytes.SAME:
        return Act.READ_ON
    return Act.LEAVE if one.state is State.CUT else Act.READ_AGAIN


def _by_family(newcomer: Newcomer, one: Known) -> Act | None:
    """Decide by bytes that prove little, together with the name and with what became of the known file."""
    at = one.checkpoint
    if one.telling or newcomer.path == at.place or not same_family(newcomer.path, at.place):
        return None
    if one.state is State.CUT:
        return Act.READ_ON if one.bytes is Bytes.SAME else Act.LEAVE
    if one.bytes is Bytes.SAME and newcomer.compressed:
        return Act.READ_ON if one.state is State.GONE else Act.LEAVE
    return Act.WAIT if one.state is State.LIVE and not newcomer.settled else None
