"""`agent demo`: the whole thing on this machine, without any account."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys

from agent.cli._common import print_json
from agent.errors import UsageError

DESCRIPTION = (
    "Shows the whole thing on this machine, without any account: starts an emulator of Polar and the "
    "daemon, has a producer send events (some of them bad), kills the daemon in the middle, reads the "
    "events back, and proves that nothing was lost and nothing stored twice. Leaves nothing behind."
)
EPILOG = """\
exit codes: 0 every acknowledged event is stored exactly once and the books balance; 1 not so
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument(
        "--events", type=_count, default=10_000, metavar="N", help="how many good events (default: 10000)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document on stdout; the story goes to stderr"
    )


def run(args: argparse.Namespace) -> int:
    """Run the demonstration."""
    if importlib.util.find_spec("fastapi") is None:
        raise UsageError(
            "run the demo",
            "the emulator",
            "its libraries are not installed",
            "pip install 'polar-agent[emulator]'",
        )
    from agent.demo import Demo

    story = sys.stderr if args.json else sys.stdout
    with Demo(args.events, lambda line: print(line, file=story, flush=True)) as demo:
        result = demo.run()
    ledger = result.ledger
    if args.json:
        print_json(dataclasses.asdict(result) | {"ok": not result.problems})
    else:
        print()
        print(
            f"sent      {result.sent:>8,} good events, {result.refused} bad lines, 1 for an unknown customer"
        )
        print(f"stored    {result.stored:>8,} events at the emulator")
        print(f"lost      {len(result.lost):>8,}")
        print(f"twice     {len(result.twice):>8,}")
        print(
            f"books     {ledger['accepted']:,} accepted = {ledger['delivered']:,} delivered + "
            f"{ledger['duplicates']:,} duplicates + {ledger['dead']:,} dead + {ledger['dropped']:,} dropped"
        )
        print()
        for problem in result.problems:
            print(f"FAILED: {problem}")
        if not result.problems:
            print("OK: every acknowledged event is stored exactly once, and the books balance.")
    return 1 if result.problems else 0


def _count(text: str) -> int:
    """Return a number of events."""
    try:
        number = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not a number: {text}") from error
    if not 1 <= number <= 10_000_000:
        raise argparse.ArgumentTypeError("must be from 1 to 10,000,000")
    return number
