"""The command line: `agent COMMAND …`.

One module per command. A module has `HELP` (one line), `add_arguments(parser)` and
`run(args) -> exit code`; it imports what it needs inside `run`, so that every command
starts as fast as it can. Exit codes: 0 done; 1 it ran, but the result is bad;
2 wrong usage or settings.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import os
import sys
from typing import TYPE_CHECKING

from agent import __version__
from agent.errors import AgentError, hint_of, reason_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

COMMANDS = {
    "run": "run the daemon in the foreground",
    "demo": "show the whole thing on this machine, without any account",
    "send": "send events from files or standard input to the running daemon",
    "flush": "deliver everything that is queued, now",
    "status": "show queue, books, delivery state and daemon",
    "top": "watch the running daemon: rates, queue, delivery, refusals",
    "events": "read events back from Polar",
    "dead": "list, repair, retry, export or purge dead letters",
    "tail": "show how far tailed files are read, or have one read again",
    "check": "check settings, paths, server, token and clock, and say what to mend",
    "config": "show the settings and where each comes from",
    "queue": "check the queue on disk, or write its events out",
    "emulator": "serve a local emulator of Polar's events API",
}

_OUTPUT_REFUSED = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})

EPILOG = """\
exit codes: 0 done; 1 it ran, but the result is bad; 2 wrong usage or settings
start with: agent demo
"""


def build(commands: Collection[str]) -> argparse.ArgumentParser:
    """Build the parser; of these commands the modules are imported, of the others only a line is told."""
    parser = argparse.ArgumentParser(
        prog="agent",
        description="Takes usage events from any program, keeps them safe on disk, and delivers "
        "each one to Polar exactly once.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"polar-agent {__version__}")
    actions = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        sub = actions.add_parser(name, help=text, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name in commands:
            module = importlib.import_module(f"agent.cli.{name}")
            sub.description = module.DESCRIPTION
            sub.epilog = getattr(module, "EPILOG", None)
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in words if word in COMMANDS), None)
    args = build([command] if command else []).parse_args(words)
    try:
        code: int = args.run(args)
        # Here, where a reader that went away can be dealt with; standard output may be closed.
        if sys.stdout is not None:
            sys.stdout.flush()
    except AgentError as error:
        print(f"agent {args.command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`agent … | head`): that is no error of ours.
        _drop_output()
        return 0
    except OSError as error:
        # Of a file that has no name here: what else writes to files says by itself what it could not do.
        if error.errno not in _OUTPUT_REFUSED or error.filename is not None:
            raise
        _drop_output()
        with contextlib.suppress(OSError):  # it may be on the same disk
            refused = AgentError("write the output", "standard output", reason_of(error), hint_of(error))
            print(f"agent {args.command}: {refused}", file=sys.stderr)
        return 1
    return code


def _drop_output() -> None:
    """Write no more to standard output: what is left of it, Python would try once more at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
