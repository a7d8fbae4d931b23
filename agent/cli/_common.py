"""What several commands share: options, settings, tables, JSON on stdout."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from agent.settings import Settings


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add `--config`, which every command has."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="settings file, TOML (default: $POLAR_AGENT_CONFIG, else /etc/polar-agent/agent.toml)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`, for commands that print data."""
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")


def seconds(text: str) -> float:
    """Read an option that is a length of time: `1.5`, `500ms`, `2s`, `1m`."""
    from agent.units import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def load_settings(args: argparse.Namespace) -> Settings:
    """Load the settings for a command; raises UsageError with what to mend."""
    from agent.settings import load

    return load(config=args.config)


def note(text: str) -> None:
    """Tell people something behind what was printed so far; standard output is for the data alone."""
    print(end="", flush=True)
    print(text, file=sys.stderr)


@contextlib.contextmanager
def private_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that events are to be written to, for its owner only: they are nobody else's business.

    Raises:
        UsageError: there can be none.
        AgentError: it does not take all of them.
    """
    from agent.errors import AgentError, UsageError, hint_of, reason_of

    try:
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError("write the events", str(path), reason_of(error), "name another file") from error
    try:
        with os.fdopen(opened, "wb") as file:
            yield file
    except OSError as error:
        raise AgentError("write the events", str(path), reason_of(error), hint_of(error)) from error


def print_json(document: Any) -> None:
    """Print one JSON document on stdout."""
    json.dump(document, sys.stdout, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None)
    sys.stdout.write("\n")


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, right: Iterable[int] = ()) -> str:
    """Return rows as aligned text columns under their headings.

    Args:
        headings: one for each column.
        rows: cells; None shows as ``-``.
        right: the columns (from 0) that are aligned to the right.
    """
    cells = [list(headings), *(["-" if cell is None else _plain(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    flush_right = set(right)
    lines = []
    for row in cells:
        line = "  ".join(
            cell.rjust(width) if column in flush_right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append(line.rstrip())
    return "\n".join(lines)


def _plain(cell: object) -> str:
    """Return a cell's text without control characters: what producers wrote must not steer a terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(cell))
