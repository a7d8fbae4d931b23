"""The sockets, who may use them, and the daemon behind them."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import stat
from typing import TYPE_CHECKING, Any

from agent import __version__
from agent.address import split_host_port
from agent.check import Finding, failed, ok, warning
from agent.check.disk import nearest
from agent.collector.peers import AllowList
from agent.daemon import call
from agent.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.settings import Settings

_CONNECT_SECONDS = 5.0


def look(settings: Settings, status: dict[str, Any] | None) -> Iterator[Finding]:
    """Yield what is to be said of the socket and of those who may use it.

    Args:
        settings: all of them.
        status: what the daemon says of itself; None when none answers.
    """
    yield _directory("socket directory", settings.socket_path.parent, running=status is not None)
    yield _socket(settings.socket_path, running=status is not None)
    if settings.socket_owner is not None:
        yield _owner(settings.socket_owner)
    if settings.socket_group is not None:
        yield _group(settings.socket_group)
    if settings.api_listen is not None:
        yield _tcp(settings.api_listen, running=status is not None)
    if settings.allowed_users or settings.allowed_groups:
        yield _allow_list(settings)


def ask_daemon(settings: Settings) -> tuple[dict[str, Any] | None, Finding]:
    """Return what a running daemon says of itself, and what is to be said of that."""
    name, subject = "daemon", str(settings.api_socket_path)
    try:
        status = call(settings.api_socket_path, "GET", "/status", timeout=_CONNECT_SECONDS)
    except AgentError as error:
        return None, failed(name, subject, error.reason, error.hint)
    if status is None:
        return None, ok(name, subject, "no daemon runs with these settings")
    pid, delivery = status["daemon"]["pid"], status["delivery"]
    if status["version"] != __version__:
        message = f"process {pid} runs version {status['version']}, and this is {__version__}"
        return status, warning(name, subject, message, "restart the daemon: what is queued stays")
    if delivery["state"] == "blocked":
        return status, failed(
            name, subject, f"process {pid} cannot deliver: {delivery['last_error']}", "see `agent status`"
        )
    return status, ok(name, subject, f"process {pid} runs; delivery: {delivery['state']}")


def _directory(name: str, directory: Path, *, running: bool) -> Finding:
    """Tell whether the daemon could make its socket there."""
    subject = str(directory)
    place = nearest(directory)
    if running:
        return ok(name, subject, "the daemon has its socket there")
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return ok(name, subject, "can be written" if place == directory else "the agent can make it")
    return failed(
        name, subject, f"this user may not write to {place}", "set socket_path, or change its owner"
    )


def _socket(path: Path, *, running: bool) -> Finding:  # noqa: PLR0911  # one return a reason
    """Tell what is at the socket's place."""
    name, subject = "socket", str(path)
    try:
        mode = path.lstat().st_mode
    except OSError:
        if running:
            mend = "restart the daemon; does something clean that directory up?"
            return failed(name, subject, "the daemon runs, but its socket is gone", mend)
        return ok(name, subject, "is not there yet; the daemon makes it")
    if not stat.S_ISSOCK(mode):
        return failed(name, subject, "something that is not a socket is in its place", "move it away")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_CONNECT_SECONDS)
            probe.connect(subject)
    except PermissionError:
        group = _group_name(path.stat().st_gid)
        mend = f"join its group: usermod -aG {group} USER, then log in again"
        return failed(name, subject, f"this user may not write to it; the group {group} may", mend)
    except ConnectionRefusedError:
        if running:
            return failed(
                name, subject, "the daemon runs, but not on this socket", "is socket_path the daemon's?"
            )
        return ok(name, subject, "is left over from a daemon; the next one replaces it")
    except OSError as error:
        return failed(name, subject, error.strerror or str(error), "see the daemon's log")
    if not running:
        message = "another process listens there, and is no daemon of these settings"
        return failed(name, subject, message, "stop it, or set socket_path and api_socket_path")
    return ok(name, subject, "takes connections")


def _owner(owner: str) -> Finding:
    """Tell whether the socket can be given to its user."""
    name = "socket owner"
    try:
        uid = int(owner) if owner.isdecimal() else pwd.getpwnam(owner).pw_uid
    except KeyError:
        return failed(name, owner, "there is no such user", "create it, or change socket_owner")
    if os.geteuid() not in {0, uid}:
        return failed(name, owner, "only root may give the socket to another user", "leave socket_owner out")
    return ok(name, owner, "exists")


def _group(group: str) -> Finding:
    """Tell whether the socket can be given to its group."""
    name = "socket group"
    try:
        gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        return failed(
            name, group, "there is no such group", f"groupadd --system {group}, or change socket_group"
        )
    if os.geteuid() != 0 and gid not in {os.getegid(), *os.getgroups()}:
        mend = "let the agent's user join it, or change socket_group"
        return failed(name, group, "only root or a member may give the socket to it", mend)
    return ok(name, group, "exists")


def _tcp(address: str, *, running: bool) -> Finding:
    """Tell whether the daemon serves there, or could."""
    name = "api_listen"
    host, port = split_host_port(address)
    try:
        with socket.create_connection((host, port), _CONNECT_SECONDS):
            taken = True
    except ConnectionRefusedError:
        taken = False
    except OSError as error:
        return failed(name, address, error.strerror or str(error), "set api_listen to one of this machine")
    if taken and not running:
        return failed(name, address, "another process listens there", "stop it, or set api_listen")
    if running and not taken:
        return failed(name, address, "the daemon does not serve there", "restart it: api_listen has changed")
    return ok(name, address, "the daemon serves there" if running else "is free")


def _allow_list(settings: Settings) -> Finding:
    """Tell whether all who are allowed exist."""
    name, subject = "allow list", ", ".join((*settings.allowed_users, *settings.allowed_groups))
    try:
        AllowList(settings.allowed_users, settings.allowed_groups)
    except AgentError as error:
        return failed(name, error.subject, error.reason, error.hint or "create it, or correct the setting")
    return ok(name, subject, "all of them exist")


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
