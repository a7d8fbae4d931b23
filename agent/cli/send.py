"""`agent send`: events from files or standard input to the running daemon.

Files are read in blocks and never held as a whole; lines of a pipe that stays open go
out as they come. Exit code 0 says that every line is durable.
"""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections import deque
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.cli._common import add_config, add_json, load_settings, print_json
from agent.clock import SystemClock
from agent.errors import DaemonError, QueueError, UsageError, reason_of
from agent.framing import Framer
from agent.producer import Producer, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.queue import Checkpoint

DESCRIPTION = (
    "Sends events, one JSON object a line, to the running daemon and waits until they are safe on its "
    "disk. Lines that are refused are named with the reason."
)
EPILOG = """\
examples:
  agent send events.ndjson
  tail -F app.log | agent send
  agent send --file-once /var/log/app/usage.log*

An event without an external_id gets one before it is sent, so that sending it again
after a broken connection cannot bill it twice.

exit codes: 0 every line is durable; 1 some were refused or not acknowledged; 2 wrong usage
"""

STDIN = "-"
READ_BYTES = 1 << 18
LONGEST_LINE = 10 << 20
"""No request to Polar may be longer than this, so no event can be."""
REFUSED_IN_JSON = 1000
TICK = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("files", nargs="*", metavar="FILE", help="NDJSON; none or - for standard input")
    parser.add_argument(
        "--file-once",
        action="store_true",
        help="read whole files, also .gz, and give their lines the ids that [[tail]] gives: what was read "
        "before, by it or by this command, is not billed again",
    )
    parser.add_argument("--socket", metavar="PATH", help="the daemon's socket (default: from the settings)")
    parser.add_argument(
        "--retry-for",
        metavar="SECONDS",
        type=_seconds,
        default=30.0,
        help="how long to wait for a daemon that is away (default: 30; 0 fails at once)",
    )
    add_config(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Send everything; see the module for what the exit code says."""
    files: list[str] = args.files or [STDIN]
    sizes = [_size(name) for name in files]
    if args.file_once:
        _refuse_streams(files, sizes)
    report = _Report(None if None in sizes else sum(filter(None, sizes)), REFUSED_IN_JSON if args.json else 0)
    path: str | Path = args.socket or load_settings(args).socket_path
    producer = Producer(
        path,
        retry_for=args.retry_for,
        on_refused=report.refused,
        on_notice=report.notice,
        on_outage=lambda reason: report.say(f"waiting for the daemon at {path}: {reason}"),
    )
    report.producer = producer
    code = 0
    try:
        producer.connect()
        if args.file_once:
            _send_once(files, producer, report, _checkpoints(args))
        else:
            for name in files:
                _send(name, producer, report)
        while not producer.finish(report.interval):
            report.tick()
    except DaemonError as error:
        report.say(str(error))
        report.error = error.reason
    except KeyboardInterrupt:
        report.say("interrupted")
        report.error = "interrupted"
        code = 130
    finally:
        producer.close()
    report.close()
    if args.json:
        print_json(report.document())
    return code or int(report.error is not None or report.unreadable > 0 or report.refused_count > 0)


def _seconds(text: str) -> float:
    """Return a number of seconds from the command line."""
    with suppress(ValueError):
        if 0 <= (seconds := float(text)) < float("inf"):
            return seconds
    raise argparse.ArgumentTypeError(f"not a number of seconds: {text}")


def _size(name: str) -> int | None:
    """Return how many bytes there are to read, None if that cannot be told.

    Nothing is opened here: a pipe can be opened once only.

    Raises:
        UsageError: it cannot be read; found out for every file before anything is sent.
    """
    if name == STDIN:
        if sys.stdin is None or sys.stdin.closed:
            raise UsageError("read events", "standard input", "it is closed", "name a file")
        status = os.fstat(sys.stdin.fileno())
    else:
        try:
            status = Path(name).stat()
        except OSError as error:
            raise UsageError("read events", name, error.strerror or str(error)) from error
        if stat.S_ISDIR(status.st_mode):
            raise UsageError("read events", name, "it is a directory", f"name its files: agent send {name}/*")
        if not os.access(name, os.R_OK):
            raise UsageError("read events", name, "permission denied")
    return status.st_size if stat.S_ISREG(status.st_mode) else None


@contextmanager
def _opened(name: str) -> Iterator[int]:
    """Open a file for reading, or standard input."""
    if name == STDIN:
        yield sys.stdin.fileno()
        return
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError("read events", name, error.strerror or str(error)) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _send(name: str, producer: Producer, report: _Report) -> None:
    """Feed one file to the producer, as fast as it takes it."""
    source = "stdin" if name == STDIN else name
    if name == STDIN and sys.stdin.isatty():
        report.say("reading events from the terminal, one JSON object a line; end with Ctrl-D")
    framer = Framer(LONGEST_LINE)
    line = 1
    with _opened(name) as descriptor:
        while True:
            while not producer.wait(descriptor, report.interval):
                report.tick()
            data = os.read(descriptor, READ_BYTES)
            for segment in framer.feed(data) if data else framer.finish():
                if isinstance(segment, bytes):
                    line = producer.feed(segment, source, line)
                else:
                    report.too_long(source, line)
                    line += 1
            report.read_bytes += len(data)
            report.tick()
            if not data:
                return


def _refuse_streams(names: list[str], sizes: list[int | None]) -> None:
    """Refuse what cannot be read twice.

    Raises:
        UsageError: one of them is no file.
    """
    for name, size in zip(names, sizes, strict=True):
        if size is None or name == STDIN:
            raise UsageError(
                "read a file once", name, "it is no file", "name files, or leave out --file-once"
            )


def _checkpoints(args: argparse.Namespace) -> list[Checkpoint]:
    """Return what the daemon's queue knows of files, where there is one that we may read."""
    from agent.queue.reader import DiskReader

    try:
        reader = DiskReader(load_settings(args).queue_dir)
    except (QueueError, OSError):
        return []
    try:
        return reader.checkpoints()
    finally:
        reader.close()


def _send_once(names: list[str], producer: Producer, report: _Report, checkpoints: list[Checkpoint]) -> None:
    """Feed whole files to the producer, with the ids that follow from them; go on behind one that is bad."""
    from agent.tail.once import Once

    once = Once(checkpoints, LONGEST_LINE)
    for name in names:
        before = report.read_bytes
        try:
            for piece in once.read(name, report.tick):
                while not producer.wait(None, report.interval):
                    report.tick()
                if piece.lines:
                    producer.feed(piece.lines, name, piece.line, piece.ids)
                else:
                    report.too_long(name, piece.line)
                report.read_bytes = before + piece.read
                report.tick()
        except OSError as error:
            nothing = "" if report.read_bytes > before else "; nothing of it was sent"
            report.cannot_read(name, f"{reason_of(error)}{nothing}")


class _Report:
    """What the person sees, and the JSON document.

    Args:
        total: how many bytes there are to read, None when unknown.
        keep: how many refusals to keep for the document.
    """

    def __init__(self, total: int | None, keep: int) -> None:
        self.producer: Producer | None = None
        self.read_bytes = 0
        self.error: str | None = None
        self.refused_count = 0
        self.unreadable = 0  # files
        self.interval = TICK if sys.stderr.isatty() else None  # of calls to tick
        self._total = total
        self._keep = keep
        self._kept: list[dict[str, Any]] = []
        self._live = self.interval is not None
        self._clock = SystemClock()
        self._started = self._clock.monotonic()
        self._next_tick = self._started + TICK
        self._past: deque[tuple[float, int]] = deque([(self._started, 0)], maxlen=11)
        self._slowed = False

    def tick(self) -> None:
        """Show how far it is, a few times a second, on a terminal only."""
        if not self._live or self.producer is None:
            return
        now = self._clock.monotonic()
        if now < self._next_tick:
            return
        self._next_tick = now + TICK
        window = self.producer.window
        self._past.append((now, window.acknowledged))
        then, before = self._past[0]
        rate = (window.acknowledged - before) / max(now - then, 0.001)
        share = f" · {min(99, 100 * self.read_bytes // self._total)} % read" if self._total else ""
        refused = f" · {self.refused_count:,} refused" if self.refused_count else ""
        sys.stderr.write(f"\r{window.acknowledged:,} acknowledged · {rate:,.0f}/s{share}{refused}\x1b[K")
        sys.stderr.flush()

    def say(self, text: str) -> None:
        """Print a message of this command."""
        self._print(f"agent send: {text}")

    def notice(self, error: dict[str, Any]) -> None:
        """Show, once, that the daemon slows us down."""
        if not self._slowed:
            self._slowed = True
            self.say(f"slowed down by the daemon: {_plain(error.get('msg') or error.get('type'))}")

    def refused(self, refusal: Refusal) -> None:
        """Show a line that was refused."""
        self.refused_count += 1
        error = refusal.error
        loc = error.get("loc")
        place = f" at {'.'.join(map(str, loc))}" if isinstance(loc, list) and loc else ""
        text = f"{refusal.source}:{refusal.line}: {error.get('type')}{place}: {error.get('msg')}"
        self._print(_plain(text))
        if len(self._kept) < self._keep:
            self._kept.append({"file": refusal.source, "line": refusal.line, "error": error})

    def cannot_read(self, name: str, reason: str) -> None:
        """Say that a file could not be read to its end."""
        self.unreadable += 1
        self.say(f"{_plain(name)}: cannot be read to its end: {_plain(reason)}")

    def too_long(self, source: str, line: int) -> None:
        """Refuse a line that no daemon would take, without sending it."""
        msg = f"longer than {LONGEST_LINE} bytes, the most that Polar takes; not sent"
        self.refused(Refusal(source, line, {"type": "too_long", "loc": [], "msg": msg}))

    def close(self) -> None:
        """Say how it ended: always when it was bad, on a terminal also when it was good."""
        assert self.producer is not None  # noqa: S101 - run sets it first
        window = self.producer.window
        seconds = max(self._clock.monotonic() - self._started, 0.001)
        if window.fed == 0 and self.error is not None:
            return  # it did not begin
        if self.error is not None or self.unreadable or self.refused_count:
            text = f"{window.accepted:,} accepted, {self.refused_count:,} refused"
            if (place := window.first_unacknowledged()) is not None:
                text += f"; from {_plain(place[0])}:{place[1]} on nothing is acknowledged"
            elif self.error is not None:
                text += "; the rest was not sent"
            self.say(text)
        elif self._live:
            rate = window.acknowledged / seconds
            self.say(f"{window.accepted:,} accepted in {seconds:.1f} s ({rate:,.0f}/s)")

    def document(self) -> dict[str, Any]:
        """Return the document for `--json`."""
        assert self.producer is not None  # noqa: S101 - run sets it first
        window = self.producer.window
        document: dict[str, Any] = {
            "sent": window.sent,
            "acknowledged": window.acknowledged,
            "accepted": window.accepted,
            "refused": self._kept,
            "refused_count": self.refused_count,
        }
        if self.unreadable:
            document["unreadable_files"] = self.unreadable
        if self.error is not None:
            document["error"] = self.error
        return document

    def _print(self, text: str) -> None:
        """Print on stderr, in the place of the progress line."""
        sys.stderr.write(f"\r\x1b[K{text}\n" if self._live else f"{text}\n")


def _plain(text: object) -> str:
    """Return text without control characters: what others wrote must not steer a terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(text))
