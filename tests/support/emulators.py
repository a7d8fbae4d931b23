"""Starts emulators from a process that has imported everything already, which saves most of the time.

An emulator is no part of what these tests are about, but what the agent talks to. So it is
the command `agent emulator` in a process of its own, as ever, but forked.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from functools import cache
from typing import IO

_READY = "emulator ready"


class EmulatorProcess:
    """One emulator; as `subprocess.Popen` as far as it is needed.

    Args:
        pid: its number.

    Attributes:
        returncode: 0 when it has ended, however it did.
    """

    stdin = stdout = stderr = None

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._process = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Return 0 when it has ended, None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, seconds: float | None = None) -> int:
        """Wait for its end."""
        if self.returncode is None:
            if not select.select([self._process], [], [], seconds)[0]:
                raise subprocess.TimeoutExpired("agent emulator", seconds or 0)
            os.close(self._process)
            self.returncode = 0
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to it, if it has not ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


def start(words: list[str]) -> EmulatorProcess:
    """Start `agent emulator` with these words, and wait until it is ready."""
    forker = _forker()
    assert forker.stdin is not None
    assert forker.stdout is not None
    forker.stdin.write(json.dumps(words) + "\n")
    forker.stdin.flush()
    emulator = EmulatorProcess(int(_next(forker.stdout, "pid ").split()[1]))
    line = _next(forker.stdout, _READY, f"end {emulator.pid}")
    assert line.startswith(_READY), line
    return emulator


def _next(lines: IO[str], *beginnings: str) -> str:
    """Return the next line with one of these beginnings; others are of emulators that nobody waits for."""
    return next(line for line in lines if line.startswith(beginnings))


@cache
def _forker() -> subprocess.Popen[str]:
    """Return the process that starts them; it ends with this one."""
    forker = subprocess.Popen(
        [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(_end, forker)
    return forker


def _end(forker: subprocess.Popen[str]) -> None:
    with forker:
        assert forker.stdin is not None
        forker.stdin.close()


def _fork() -> None:
    """Start an emulator for each line on standard input; tell its number, and what it says at first."""
    from agent.cli import emulator, main  # noqa: F401, PLC0415  # in here alone
    from agent.emulator import server  # noqa: F401, PLC0415

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # they need nobody to wait for them
    while line := sys.stdin.readline():
        if os.fork():
            continue
        os.close(0)
        _say(f"pid {os.getpid()}")
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        code = 1
        try:
            code = main(["emulator", *json.loads(line)])
        finally:
            _say(f"end {os.getpid()}: {code}")
            os._exit(code)


def _say(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    _fork()
