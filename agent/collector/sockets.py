"""Makes and removes listening Unix sockets, without stepping on anyone's."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import socket
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.address import split_host_port
from agent.errors import AgentError, UsageError, hint_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

BACKLOG = 1024
_NOT_OURS = -1


@dataclass(frozen=True, slots=True)
class BoundSocket:
    """A listening socket and the file that it was bound to."""

    sock: socket.socket
    path: Path
    inode: int

    def close(self) -> None:
        """Stop listening; remove the file if it is still ours."""
        self.sock.close()
        with contextlib.suppress(OSError):
            if self.path.lstat().st_ino == self.inode:
                self.path.unlink()


def adopt(sockets: Iterable[socket.socket], path: Path) -> BoundSocket | None:
    """Return the one of passed sockets that listens at `path`, if one does.

    Its file belongs to whoever passed it: nothing of it is changed, now or at the end.
    """
    for sock in sockets:
        if sock.family == socket.AF_UNIX and sock.getsockname() == str(path):
            sock.setblocking(False)
            return BoundSocket(sock, path, _NOT_OURS)
    return None


def listen(path: Path, *, mode: int, owner: str | None = None, group: str | None = None) -> BoundSocket:
    """Listen on a Unix stream socket at `path`.

    A socket file that no one answers on is replaced; one that another process answers
    on is not; a file that is no socket is never removed.

    Args:
        path: where; its directory is made (0755) when it is not there.
        mode: the permissions of the socket file.
        owner: a user's name or number that the file is given to.
        group: a group's name or number that the file is given to.

    Raises:
        AgentError: it cannot be done, and why.
    """
    subject = str(path)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _make_way(path)
        bound = _bind(path)
        try:
            if owner is not None or group is not None:
                os.chown(
                    path, -1 if owner is None else _user_id(owner), -1 if group is None else _group_id(group)
                )
            path.chmod(mode)
            bound.sock.listen(BACKLOG)
            bound.sock.setblocking(False)
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        hint = hint_of(error) or "set socket_path to a place that you may write"
        if error.errno == errno.EPERM and owner is not None:
            hint = "only root may give the socket to another user: leave socket_owner out"
        elif error.errno == errno.EPERM and group is not None:
            hint = f"only root or a member of {group} may give the socket to that group"
        raise AgentError("listen on the socket", subject, error.strerror or str(error), hint) from error
    return bound


def _bind(path: Path) -> BoundSocket:
    """Bind a socket to a file; nobody may connect before that has its real permissions."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        sock.bind(str(path))
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(umask)
    return BoundSocket(sock, path, path.lstat().st_ino)


def listen_tcp(address: str) -> socket.socket:
    """Listen on a TCP port, not blocking.

    Args:
        address: `HOST:PORT`.

    Raises:
        AgentError: it cannot be done, and why.
    """
    host, port = split_host_port(address)
    sock = None
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(BACKLOG)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise AgentError(
            "listen for HTTP", address, error.strerror or str(error), "set api_listen to another address"
        ) from error
    sock.setblocking(False)
    return sock


def _make_way(path: Path) -> None:
    """Remove a stale socket file; raise when what is there is not one."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise AgentError(
            "listen on the socket",
            str(path),
            "something that is not a socket is in its place",
            "move it away, or set socket_path to another place",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # its queue of connections is full: it lives
    raise AgentError(
        "listen on the socket",
        str(path),
        "another process listens there",
        "stop that daemon, or give this one another socket_path and queue_dir",
    )


def _user_id(user: str) -> int:
    """Return a user's number."""
    if user.isdecimal():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError as error:
        raise UsageError(
            "give the socket to a user", user, "there is no such user", "create it, or change socket_owner"
        ) from error


def _group_id(group: str) -> int:
    """Return a group's number."""
    if group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise UsageError(
            "give the socket to a group", group, "there is no such group", "create it, or change socket_group"
        ) from error
