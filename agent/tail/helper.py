"""A process beside the daemon that checks and stamps the lines of large files.

Python lets one thread of a process compute at a time. While much is to be read, most of the work
is to check and to stamp it, and that needs nothing but the lines: so a second processor does it,
while the daemon reads on, writes and delivers. All that decides what becomes of an event, its
place in the queue and its checkpoint stay with the daemon.

The lines go through memory that both share, as do the stamped ones on their way back; beside it, small
messages over a socket say what is where. Where lines are in doubt, or the process ends, the
daemon checks them itself: what comes of them is the same.

Linux alone has such memory without a name, and it takes two processors to gain by it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agent.guess import Guess
from agent.logs import get
from agent.tail import checking
from agent.tail.checking import SHARED_BYTES, SLOT_BYTES, SLOTS, Answer, Lines, Stamped, slot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.clock import Clock
    from agent.tail import Table

_LEAST_BYTES = 64 * 1024
_MOST_BYTES = SLOT_BYTES // 4
"""Stamped, the shortest lines take almost four times the room."""
_LARGE_BYTES = 512 * 1024
"""Who reads blocks of less keeps up."""
_BACKLOG_BYTES = 16 << 20
"""So much is read at a stretch before it is worth a process."""
_IDLE_SECONDS = 30.0
_ANSWER_SECONDS = 3.0  # a piece takes milliseconds; producers at the socket may be waiting meanwhile
_FIRST_PAUSE = 60.0
_LONGEST_PAUSE = 3600.0
_END_SECONDS = 2.0


class Helper:
    """The daemon's side; everything happens in one thread.

    Args:
        tables: of the settings.
        clock: for how long there was nothing to do.
        backlog_bytes: see `_BACKLOG_BYTES`.
    """

    def __init__(self, tables: Sequence[Table], clock: Clock, *, backlog_bytes: int = _BACKLOG_BYTES) -> None:
        self._defaults = [dict(table.defaults) for table in tables]
        self._clock = clock
        self._backlog_bytes = backlog_bytes
        self._read = 0  # bytes at a stretch
        self._used_at = 0.0
        self._not_before = 0.0
        self._pause = _FIRST_PAUSE
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._memory: mmap.mmap | None = None
        self._ready = False
        self._asked = self._answered = 0
        self._log = get("tail")

    @property
    def pid(self) -> int | None:
        """The process, while there is one."""
        return None if self._process is None else self._process.pid

    def note(self, size: int) -> None:
        """Note that so many bytes were read at once: where it goes on like that, start the process."""
        if size < _LARGE_BYTES:
            return
        now = self._clock.monotonic()
        self._used_at = now
        self._read += size
        if self._process is None and self._read >= self._backlog_bytes and now >= self._not_before:
            self._read = 0
            if is_possible():
                self._start()

    def ask(self, table: int, identity: str, offset: int, lines: bytes, now: float) -> int | None:
        """Have whole lines checked and stamped while something else is done.

        Args:
            table: the number of their file's.
            identity: of their file.
            offset: where they begin in it.
            lines: joined by newlines.
            now: Unix time in seconds by the server's clock.

        Returns:
            What to ask `answer` for; None when there is no process, or too few lines or too many.
        """
        if not _LEAST_BYTES <= len(lines) <= _MOST_BYTES or not self._is_ready():
            return None
        if self._asked - self._answered == SLOTS:
            self._receive()
        place = slot(self._asked)
        guess = now.stamp if isinstance(now, Guess) else None
        work = Lines(place.start, len(lines), table, identity, offset, float(now), guess)
        try:
            if self._memory is None or self._socket is None:
                return None
            self._memory[place.start : place.start + len(lines)] = lines
            self._socket.send(msgspec.msgpack.encode(work))
        except OSError as error:
            self._give_up(error)
            return None
        self._asked += 1
        return self._asked

    def answer(self, ticket: int) -> Answer | None:
        """Return what came of lines; None when something is in doubt, or the answer is lost.

        Args:
            ticket: what `ask` returned; others that are older are not asked for any more.
        """
        answer = None
        while self._answered < min(ticket, self._asked):
            answer = self._receive()
        return answer

    def _receive(self) -> Answer | None:
        """Take the next answer."""
        if self._memory is None or self._socket is None:
            return None
        memory, start = self._memory, slot(self._answered).start
        try:
            stamped = msgspec.msgpack.decode(self._socket.recv(1 << 16), type=Stamped)
        except (OSError, msgspec.MsgspecError) as error:
            self._give_up(error)
            return None
        self._answered += 1
        groups = []
        for end, count in stamped.groups:
            groups.append((memory[start:end], count))
            start = end
        if not groups:
            return None
        return Answer(groups, msgspec.json.decode(memory[start : stamped.ids] or b"[]", type=list[str]))

    def rest(self) -> None:
        """End the process if there was nothing to do for it for a while."""
        if self._clock.monotonic() - self._used_at < _IDLE_SECONDS:
            return
        self._read = 0
        if self._process is not None:
            self._pause = _FIRST_PAUSE
            self.close()

    def close(self) -> None:
        """End the process, which ends when nobody is there to ask it."""
        process, self._process, self._ready = self._process, None, False
        if self._socket is not None:
            self._socket.close()
        if self._memory is not None:
            self._memory.close()
        self._socket = self._memory = None
        self._answered = self._asked
        if process is not None:
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self) -> None:
        """Start the process, without waiting until it is ready."""
        with contextlib.ExitStack() as stack:
            try:
                shared = os.memfd_create("lines", os.MFD_CLOEXEC)
                stack.callback(os.close, shared)
                os.ftruncate(shared, SHARED_BYTES)
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                stack.callback(theirs.close)
                self._socket = ours
                self._memory = mmap.mmap(shared, SHARED_BYTES)
                handed = (shared, theirs.fileno())
                self._process = subprocess.Popen(  # noqa: S603 - our own module
                    [sys.executable, "-P", "-m", checking.__name__, *map(str, handed)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=_environment(),
                    pass_fds=handed,
                )
                ours.settimeout(_ANSWER_SECONDS)
                ours.send(msgspec.json.encode(self._defaults))
            except OSError as error:
                self._give_up(error)

    def _is_ready(self) -> bool:
        """Tell whether the process is there and has said that it listens."""
        if self._ready or self._socket is None:
            return self._ready
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)
        if not waiting.poll(0):
            return False
        try:
            self._ready = bool(self._socket.recv(1))
        except OSError as error:
            self._give_up(error)
            return False
        if not self._ready:
            self._give_up(ConnectionResetError("it ended"))
        return self._ready

    def _give_up(self, error: Exception) -> None:
        """Go on without the process, for a while."""
        process = self._process
        if process is not None:
            process.kill()
        self.close()
        ended = None if process is None else process.returncode
        self._read = 0
        self._not_before = self._clock.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._log.warning(
            "the process that helps reading large files is lost; nothing else is, they are read without it",
            reason=str(error) or type(error).__name__,
            exit_code=ended,
        )


def is_possible() -> bool:
    """Tell whether a second process can help."""
    try:
        return hasattr(os, "memfd_create") and len(os.sched_getaffinity(0)) > 1 and bool(sys.executable)
    except OSError:  # a filter of system calls
        return False


def _environment() -> dict[str, str]:
    """Return the environment for the process: without settings and tokens, with the way to our modules."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith("POLAR_")}
    return ours | {"PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in sys.path)}
