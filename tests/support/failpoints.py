"""A daemon that kills itself with SIGKILL at a named step of an event's way.

Nothing of this is in the product: run as a program, this file wraps functions of the
product and then calls its command line. Which step, and at which call of it, stands in a
file (`$FAILPOINT`), so that a daemon that runs can be told, and one that starts.

`Nursery` starts such daemons from a process that has imported everything already, which
takes a tenth of the time: a hundred deaths in seconds.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

VARIABLE = "FAILPOINT"
_IMPORTED_FIRST = ("agent.cli.run", "agent.service", "agent.settings", "agent.api.server", "agent.polar")


@dataclass(frozen=True)
class Step:
    """One step: a call of a function, and whether it is killed before or after it.

    Attributes:
        function: its module and name.
        after: the function has returned.
        counts: tells, from the arguments and the result, whether a call is of this step.
    """

    function: str
    after: bool
    counts: Callable[..., Any] = lambda *_: True


def _answered(stream: Any, *_: Any) -> bool:
    """Wait for the server's answer, and leave it unread."""
    return bool(select.select([stream._socket], [], [], 30)[0])


STEPS = {
    "after receive": Step(
        "agent.collector.unix:Collector._receive", after=True, counts=lambda *args: args[-1] and args[-1][0]
    ),
    "after check": Step("agent.writer:Writer.append", after=False),
    "before commit": Step(
        "agent.queue.disk:DiskQueue.commit", after=False, counts=lambda _, change: change.appends
    ),
    "in the transaction": Step(
        "agent.queue.disk:DiskQueue._apply", after=True, counts=lambda _, change, *__: change.appends
    ),
    "before a row is written": Step("diskcache:Cache.set", after=False),
    "after commit, before ack": Step(
        "agent.queue.disk:DiskQueue.commit", after=True, counts=lambda _, change, __: change.appends
    ),
    "after ack": Step("agent.collector.connection:Connection.end", after=True),
    "before POST": Step("agent.polar:PolarClient.ingest", after=False),
    "after POST was written": Step("agent.network:_Stream.read", after=False),
    "after the server stored": Step("agent.network:_Stream.read", after=False, counts=_answered),
    "after the answer": Step("agent.polar:PolarClient.ingest", after=True),
    "before settle": Step("agent.writer:Writer.settle", after=False),
    "before settle commit": Step(
        "agent.queue.disk:DiskQueue.commit", after=False, counts=lambda _, change: change.settlements
    ),
    "before a row is deleted": Step("diskcache:Cache.delete", after=False),
    "in the settle transaction": Step(
        "agent.queue.disk:DiskQueue._apply", after=True, counts=lambda _, change, *__: change.settlements
    ),
    "after settle commit": Step(
        "agent.queue.disk:DiskQueue.commit", after=True, counts=lambda _, change, __: change.settlements
    ),
    "after settle": Step("agent.flusher:Flusher._settle", after=True),
}
"""The steps of an event's way, in order."""

START_STEPS = {
    "directory made": Step("agent.pipeline:prepare_directory", after=True),
    "queue locked": Step("agent.lock:QueueLock.__init__", after=True),
    "before the store is opened": Step("agent.queue.disk:DiskQueue._open", after=False),
    "store opened": Step("agent.queue.disk:DiskQueue._open", after=True),
    "store described": Step("agent.queue.disk:DiskQueue._check_meta", after=True),
    "threads started": Step("agent.pipeline:Pipeline.start", after=True),
}
"""The steps of a start."""

STOP_STEPS = {
    "no more is received": Step("agent.collector.unix:Collector.stop", after=True),
    "drained": Step("agent.pipeline:Pipeline.drain", after=True),
    "flusher stopped": Step("agent.flusher:Flusher.stop", after=True),
    "all committed": Step("agent.writer:Writer.stop", after=True),
    "store closed": Step("agent.queue.disk:DiskQueue.close", after=True),
}
"""The steps of a stop by SIGTERM."""

MEND_STEPS = {
    "damage found": Step("agent.queue.losses:mend", after=False),
    "rescue begun": Step("agent.queue.store:_some", after=True),
    "all is rescued": Step("agent.queue.losses:fill", after=True),
    "before a file is moved": Step("pathlib:Path.rename", after=False),
    "after a file was moved": Step("pathlib:Path.rename", after=True),
    "queue is mended": Step("agent.queue.losses:mend", after=True),
}
"""The steps of a start with a damaged queue."""


class Failpoint:
    """Tells a daemon where to die."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def arm(self, step: str, call: int = 1) -> None:
        """From now on, the `call`-th call of a step is the last one."""
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps([step, call]))
        new.replace(self.path)

    def disarm(self) -> None:
        """Let it live."""
        self.path.unlink(missing_ok=True)


def install() -> None:
    """Wrap the functions of all steps."""
    calls: dict[tuple[str, int], int] = {}
    wanted = Path(os.environ[VARIABLE])
    steps = STEPS | START_STEPS | STOP_STEPS | MEND_STEPS
    for function in {step.function for step in steps.values()}:
        mine = {name: step for name, step in steps.items() if step.function == function}
        _wrap(function, lambda after, args, mine=mine: _reached(wanted, mine, calls, after=after, args=args))


def _wrap(function: str, reached: Callable[[bool, tuple[Any, ...]], None]) -> None:
    module, _, path = function.partition(":")
    owner: Any = importlib.import_module(module)
    *above, name = path.split(".")
    for part in above:
        owner = getattr(owner, part)
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **options: Any) -> Any:
        reached(False, args)
        result = original(*args, **options)
        reached(True, (*args, result))
        return result

    setattr(owner, name, wrapped)


def _reached(
    wanted: Path, steps: dict[str, Step], calls: dict[tuple[str, int], int], *, after: bool, args: Any
) -> None:
    """Die, if this is the call that was asked for."""
    try:
        name, call = json.loads(wanted.read_bytes())
    except FileNotFoundError:
        return
    step = steps.get(name)
    if step is None or step.after is not after or not step.counts(*args):
        return
    order = (name, wanted.stat().st_ino)
    calls[order] = calls.get(order, 0) + 1
    if calls[order] == call:
        os.kill(os.getpid(), signal.SIGKILL)


class Nursery:
    """A process that starts daemons, one at a time, each by forking itself."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, environ: dict[str, str], log: Path) -> Child:
        """Start `agent run`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([environ, str(log)]) + "\n")
        self._process.stdin.flush()
        return Child(int(self._process.stdout.readline()), self._process.stdout)

    def close(self) -> None:
        """End it; its daemon must have ended."""
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()


class Child:
    """A daemon of a nursery; as `subprocess.Popen` as far as it is needed."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int, ends: Any) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ends = ends

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs."""
        if self.returncode is None and select.select([self._ends], [], [], 0)[0]:
            self.returncode = int(self._ends.readline())
        return self.returncode

    def wait(self, seconds: float | None = None) -> int:
        """Wait for its end and return its exit code."""
        if self.returncode is None:
            if not select.select([self._ends], [], [], seconds)[0]:
                raise subprocess.TimeoutExpired("agent run", seconds or 0)
            self.returncode = int(self._ends.readline())
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to it, if it has not ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


def _nurse() -> None:
    """Start a daemon for each line on standard input; tell its number, and its end."""
    for module in _IMPORTED_FIRST:
        importlib.import_module(module)
    while line := sys.stdin.readline():
        environ, log = json.loads(line)
        child = os.fork()
        if not child:
            os.environ.clear()
            os.environ.update(environ)
            with Path(os.devnull).open("r+b") as null, Path(log).open("ab") as file:
                os.dup2(null.fileno(), 0)
                os.dup2(null.fileno(), 1)
                os.dup2(file.fileno(), 2)
            _main(["run"])
        _tell(child)
        end = os.pidfd_open(child)
        if end not in select.select([sys.stdin, end], [], [])[0]:
            os.kill(child, signal.SIGKILL)  # whoever wanted it is gone
        os.close(end)
        _tell(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _tell(number: int) -> None:
    """Write a number to whoever started the nursery."""
    with suppress(BrokenPipeError):
        os.write(1, b"%d\n" % number)


def _main(words: list[str]) -> None:
    from agent.cli import main  # noqa: PLC0415  # the product comes in only where it is to run

    install()
    code = main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _nurse()
