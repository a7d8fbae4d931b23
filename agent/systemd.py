"""What systemd is told, and what it hands over: sd_notify(3) and sd_listen_fds(3), without a library.

Without systemd, or in a unit that asks for neither, all of this does nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

FIRST_PASSED = 3
"""The first passed descriptor, as `SD_LISTEN_FDS_START`."""

_MOST_STATUS = 400
_END_SECONDS = 2.0  # for the end of the process itself


class Notifier:
    """Tells systemd how the daemon stands; failing to costs nothing but the message.

    Args:
        environ: where `NOTIFY_SOCKET` and `WATCHDOG_USEC` stand.
        pid: this process.
    """

    def __init__(self, environ: Mapping[str, str], pid: int) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_seconds = _watchdog(environ, pid) if self._address else None
        """Within how many seconds `alive` must be called again; None when nobody watches."""

    def ready(self, status: str) -> None:
        """Say that the daemon serves, for the first time or after a reload."""
        self._send("READY=1", _status(status))

    def reloading(self) -> None:
        """Say that new settings are being loaded; `ready` ends it."""
        # The same clock as systemd's: CLOCK_MONOTONIC, microseconds.
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}", "STATUS=loading the settings")

    def stopping(self, seconds: float) -> None:
        """Say that the daemon is about to end, within so many seconds, whatever the unit allows."""
        self._send(
            "STOPPING=1",
            f"EXTEND_TIMEOUT_USEC={round((seconds + _END_SECONDS) * 1_000_000)}",
            "STATUS=delivering what is queued, then stopping",
        )

    def alive(self, status: str) -> None:
        """Say that all is well, and how it stands; only for who has looked."""
        if self.watchdog_seconds is None:
            self._send(_status(status))
        else:
            self._send("WATCHDOG=1", _status(status))

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(lines).encode(), self._address)


def passed_sockets(environ: MutableMapping[str, str], pid: int) -> list[socket.socket]:
    """Return the sockets that systemd listens on for us; only the first call gets them.

    Args:
        environ: where `LISTEN_PID` and `LISTEN_FDS` stand; they are removed, so that no child takes them.
        pid: this process.
    """
    meant_for, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if meant_for != str(pid) or not count.isdecimal():
        return []
    sockets = []
    for number in range(FIRST_PASSED, FIRST_PASSED + int(count)):
        os.set_inheritable(number, False)
        try:
            sockets.append(socket.socket(fileno=number))
        except OSError:
            continue  # something that is no socket: not for us
    return sockets


def _address(text: str) -> str | None:
    """Return where to send; None when there is nowhere."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else None


def _watchdog(environ: Mapping[str, str], pid: int) -> float | None:
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    micros = environ.get("WATCHDOG_USEC", "")
    return int(micros) / 1_000_000 if micros.isdecimal() and int(micros) else None


def _status(text: str) -> str:
    return "STATUS=" + text.replace("\n", " ")[:_MOST_STATUS]
