"""What signals ask of the daemon.

A handler runs in the middle of whatever the main thread is doing: of waiting for a lock,
say, that the handler would need in order to wake it. So it takes no lock: it counts, and
writes a byte to a pipe that the main thread waits for.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


class Signals:
    """SIGTERM and SIGINT ask for the end, SIGHUP for new settings.

    Attributes:
        stops: how often the end was asked for.
    """

    def __init__(self) -> None:
        self.stops = 0
        self._reload = False
        self._on_terminal = _is_terminal()
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def take_hangups(self) -> None:
        """Take SIGHUP from now on; for the main thread.

        Its default is to end the process, which nobody wants who asks for new settings.
        """
        signal.signal(signal.SIGHUP, self._on_reload)

    def take_stops(self) -> None:
        """Take SIGTERM and SIGINT from now on; for the main thread."""
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)

    def wait(self, seconds: float) -> None:
        """Wait until a signal comes, or for so long."""
        select.select([self._read], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 4096)

    def take_reload(self) -> bool:
        """Tell whether new settings are asked for, once for any number of signals."""
        asked, self._reload = self._reload, False
        if asked and self._on_terminal and not _is_terminal():
            self.stops += 1  # the terminal that it ran in was closed: that is no wish for settings
            return False
        return asked

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.stops += 1
        self.wake()

    def _on_reload(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._reload = True
        self.wake()

    def wake(self) -> None:
        """End a `wait`; any thread may."""
        with contextlib.suppress(BlockingIOError):  # full: then there is enough to wake it
            os.write(self._write, b"\0")


def _is_terminal() -> bool:
    """Tell whether messages go to a terminal that is there."""
    return os.isatty(2)
