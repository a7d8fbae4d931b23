"""Where the socket and the queue live when no setting says so.

The rules are those of the XDG Base Directory Specification and of systemd's
`RuntimeDirectory=` and `StateDirectory=`: the system's directories where they are
ours, else the user's. Nothing is created here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import UsageError
from agent.units import Invalid

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = "polar-agent"
RUN = Path("/run")
STATE = Path("/var/lib")
SOCKET = "agent.sock"

# `sun_path` of sockaddr_un has 108 bytes on Linux and 104 on macOS and the BSDs, and the
# last one is the terminating zero.
MAX_SOCKET_PATH = 107 if sys.platform == "linux" else 103


def socket_path(environ: Mapping[str, str]) -> Path:
    """Return the default path of the socket that producers write to."""
    system = RUN / NAME
    if _is_ours(system):
        return system / SOCKET
    runtime = _directory(environ, "XDG_RUNTIME_DIR")
    if runtime is not None:
        return runtime / NAME / SOCKET
    if _may_create(system):
        return system / SOCKET
    # Not /tmp: there another user could make the directory first and read every event.
    return _user_state(environ, "socket_path") / SOCKET


def queue_dir(environ: Mapping[str, str]) -> Path:
    """Return the default directory of the queue."""
    system = STATE / NAME
    if _is_ours(system) or _may_create(system):
        return system
    return _user_state(environ, "queue_dir")


def check_socket_path(path: Path) -> Path:
    """Return `path`, or raise `Invalid` when no Unix socket can have it."""
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH:
        raise Invalid(
            f"is {length} bytes long, and a Unix socket's path has at most {MAX_SOCKET_PATH}",
            "choose a shorter path, such as /run/polar-agent/agent.sock",
        )
    return path


def _is_ours(directory: Path) -> bool:
    # os.path's questions: pathlib's raise where a directory on the way may not be searched.
    return os.path.isdir(directory) and os.access(directory, os.W_OK | os.X_OK)  # noqa: PTH112


def _may_create(directory: Path) -> bool:
    return not os.path.exists(directory) and _is_ours(directory.parent)  # noqa: PTH110


def _directory(environ: Mapping[str, str], name: str) -> Path | None:
    """Return a directory of the environment; the specification says to ignore relative ones."""
    value = environ.get(name, "")
    return Path(value) if value.startswith("/") else None


def _user_state(environ: Mapping[str, str], setting: str) -> Path:
    state = _directory(environ, "XDG_STATE_HOME")
    if state is not None:
        return state / NAME
    home = _directory(environ, "HOME")
    if home is None:
        raise UsageError(
            "load the settings",
            setting,
            "has no default here: neither HOME nor an XDG directory is set",
            f"set {setting}, for example in the environment as POLAR_AGENT_{setting.upper()}",
        )
    return home / ".local" / "state" / NAME
