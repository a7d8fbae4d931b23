"""Who is at the other end of a Unix socket, and whether it may write to us."""

from __future__ import annotations

import grp
import pwd
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.errors import UsageError
from agent.logs import get

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_CREDENTIALS = struct.Struct("3i")
_SO_PEERCRED = getattr(socket, "SO_PEERCRED", None)
_MOST_TOLD = 1000
_SO_PEERGROUPS = 59  # Linux 4.13; not in Python's socket module


@dataclass(frozen=True, slots=True)
class Peer:
    """A process that connected."""

    pid: int
    uid: int
    gids: frozenset[int]


def can_tell() -> bool:
    """Tell whether this system says who connects."""
    return _SO_PEERCRED is not None


def peer_of(connection: socket.socket) -> Peer:
    """Return who connected, as the kernel noted it at that moment (Linux)."""
    if _SO_PEERCRED is None:
        raise OSError("this system does not tell who connects")
    packed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(packed)
    try:
        groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 65_536)
    except OSError:
        groups = b""
    more = struct.unpack(f"{len(groups) // 4}I", groups)
    return Peer(pid, uid, frozenset((gid, *more)))


class AllowList:
    """Lets some users and groups in; everyone whom the socket's mode lets in when it is empty.

    Args:
        users: names or numbers.
        groups: names or numbers.

    Raises:
        UsageError: one of them does not exist, or this system cannot tell who connects.
    """

    def __init__(self, users: Sequence[str], groups: Sequence[str]) -> None:
        self._numbers = (
            frozenset(_number("allowed_users", name, lambda n: pwd.getpwnam(n).pw_uid) for name in users),
            frozenset(_number("allowed_groups", name, lambda n: grp.getgrnam(n).gr_gid) for name in groups),
        )
        if not self.everyone and _SO_PEERCRED is None:
            raise UsageError(
                "limit who may connect",
                "allowed_users, allowed_groups",
                "this system does not tell who connects",
                "leave them out and use socket_mode and socket_group",
            )

    def become(self, other: AllowList) -> None:
        """Let in from now on whom another list lets in."""
        self._numbers = other._numbers  # in one step: other threads ask meanwhile

    @property
    def everyone(self) -> bool:
        """True when nobody is kept out."""
        return not any(self._numbers)

    def allows(self, peer: Peer) -> bool:
        """Tell whether `peer` may connect."""
        uids, gids = self._numbers
        return not (uids or gids) or peer.uid in uids or not gids.isdisjoint(peer.gids)


class Door:
    """Asks who comes in at one socket; counts those who may not, and logs the first one of each user.

    Args:
        allows: whether somebody may.
        name: which socket, for the log.
    """

    def __init__(self, allows: Callable[[Peer], bool], name: str) -> None:
        self._allows = allows
        self._name = name
        self._log = get("peers")
        self._told: set[int] = set()
        self.refused = 0

    def admits(self, peer: Peer) -> bool:
        """Tell whether `peer` may come in."""
        if self._allows(peer):
            return True
        self.refused += 1
        if peer.uid not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add(peer.uid)
            self._log.warning(
                "somebody who is not on the list wants to connect",
                socket=self._name,
                uid=peer.uid,
                pid=peer.pid,
                hint="allowed_users and allowed_groups are the list",
            )
        return False


def _number(setting: str, name: str, look_up: Callable[[str], int]) -> int:
    """Return the number of a user or group given by name or number."""
    if name.isdecimal():
        return int(name)
    try:
        return look_up(name)
    except KeyError as error:
        raise UsageError("limit who may connect", setting, f"there is no {name!r} on this system") from error
