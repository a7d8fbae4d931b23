"""`agent top`: a live view in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.cli._common import add_config, add_json, load_settings, print_json, seconds

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from pathlib import Path

DESCRIPTION = (
    "Shows how the running daemon does: rates, queue, delivery, sources, recent refusals. It keeps to the "
    "screen and goes on until q or Ctrl-C; where output is no terminal, it shows one picture and ends."
)
EPILOG = """\
examples:
  agent top
  agent top --interval 10s
  agent top --once | mail -s agent me@example.com

exit codes: 0 shown; 1 no daemon runs; 2 wrong usage or settings
"""

_ENTER, _LEAVE = "\033[?1049h\033[?25l", "\033[?25h\033[?1049l"
_HOME, _TO_END_OF_LINE, _TO_END = "\033[H", "\033[K", "\033[J"
_BOLD, _RED, _PLAIN = "\033[1m", "\033[1;31m", "\033[0m"
_ONCE_SIZE = (80, 24)
_FIRST_LOOK = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument(
        "--interval",
        type=_interval,
        default=2.0,
        metavar="S",
        help="how often to look, in seconds or as 500ms, 2s, 1m (default: 2)",
    )
    parser.add_argument("--once", action="store_true", help="show one picture and end")
    add_config(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Show it until told to stop."""
    import sys

    settings = load_settings(args)
    path = settings.api_socket_path
    first = _overview(path)
    if first is None:
        from agent.errors import DaemonError

        raise DaemonError(
            "watch the daemon", str(path), "no daemon answers there", "start one with `agent run`"
        )
    if args.json:
        print_json(first)
    elif args.once or not (sys.stdin.isatty() and sys.stdout.isatty()):
        _once(path, first)
    else:
        _live(path, first, args.interval)
    return 0


def _interval(text: str) -> float:
    """Read the interval; not so short that looking costs more than the work."""
    return max(0.2, seconds(text))


def _overview(path: Path) -> dict[str, Any] | None:
    from agent.daemon import call

    return call(path, "GET", "/overview", timeout=5)


def _once(path: Path, first: dict[str, Any]) -> None:
    """Print one picture; rates need a second look."""
    import threading

    from agent.clock import SystemClock
    from agent.picture import picture

    clock = SystemClock()
    began = clock.monotonic()
    clock.wait(threading.Event(), _FIRST_LOOK)
    now = _overview(path) or first
    print("\n".join(picture(now, first, clock.monotonic() - began, *_ONCE_SIZE)))


def _live(path: Path, first: dict[str, Any], interval: float) -> None:
    """Draw again and again on the terminal's other screen, until q."""
    import os
    import select
    import sys

    from agent.clock import SystemClock
    from agent.errors import DaemonError
    from agent.picture import picture, troubled

    clock = SystemClock()
    before: dict[str, Any] | None = None
    now: dict[str, Any] | None = first
    looked = last = clock.monotonic()
    with _screen():
        while True:
            width, height = os.get_terminal_size()
            if now is None:
                lines, alarm = ["the daemon does not answer: it may be starting again"], True
            else:
                lines = picture(now, before, looked - last, width, height)
                alarm = troubled(now)
            _draw(lines, alarm=alarm, note=f"every {interval:g} s; q ends it"[:width], height=height)
            ready, _, _ = select.select([sys.stdin], [], [], _FIRST_LOOK if before is None else interval)
            # An empty read is the end of the terminal.
            if ready and os.read(sys.stdin.fileno(), 64)[:1] in (b"q", b"Q", b"\x03", b"\x04", b""):
                return
            last, before = looked, now
            try:
                now, looked = _overview(path), clock.monotonic()
            except DaemonError:
                now = None


def _draw(lines: list[str], *, alarm: bool, note: str, height: int) -> None:
    """Write over what is there: nothing is cleared first, so nothing flickers."""
    import os
    import sys

    colours = "NO_COLOR" not in os.environ
    style = (_RED if alarm else _BOLD) if colours else ""
    head = f"{style}{lines[0]}{_PLAIN if style else ''}"
    shown = [head, *lines[1:], *[""] * (height - 1 - len(lines)), note]
    sys.stdout.write(_HOME + f"{_TO_END_OF_LINE}\n".join(shown[:height]) + _TO_END_OF_LINE + _TO_END)
    sys.stdout.flush()


def _screen() -> Any:
    """Within the block, the terminal is ours; afterwards it is as it was, whatever happens."""
    from contextlib import contextmanager

    @contextmanager
    def ours() -> Iterator[None]:
        import signal
        import sys
        import termios
        import tty

        def end(*_: object) -> None:
            raise KeyboardInterrupt

        was = termios.tcgetattr(sys.stdin)
        # SIGINT, too: a program that a script starts in the background begins with ignoring it.
        signal.signal(signal.SIGINT, end)
        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGHUP, end)
        signal.signal(signal.SIGWINCH, lambda *_: None)  # the next picture has the new size
        tty.setcbreak(sys.stdin)
        sys.stdout.write(_ENTER)
        try:
            yield
        except KeyboardInterrupt:
            pass
        finally:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, was)
            sys.stdout.write(_LEAVE)
            sys.stdout.flush()

    return ours()
