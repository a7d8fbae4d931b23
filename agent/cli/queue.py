"""`agent queue`: is everything on disk as it was written, and what is in it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from agent.cli._common import add_config, add_json, load_settings, note, print_json, private_file

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from agent.chunk import Chunk
    from agent.queue.verify import Findings

DESCRIPTION = (
    "Checks the queue on disk, and writes out the events that wait in it. Both only read; the daemon may run "
    "meanwhile, or the queue be damaged."
)
EPILOG = """\
examples:
  agent queue verify
  agent queue export pending.ndjson
  agent queue export --dir /var/lib/polar-agent/quarantine-20261123T101500Z > rescued.ndjson

exit codes: 0 all is well; 1 something is damaged, and what; 2 wrong usage or settings
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    verify = verbs.add_parser("verify", help="check every row, SQLite's own structures, and the books")
    export = verbs.add_parser("export", help="write the pending events as NDJSON, one a line")
    export.add_argument("file", nargs="?", type=Path, metavar="FILE", help="default: standard output")
    for verb in (verify, export):
        verb.add_argument(
            "--dir",
            type=Path,
            metavar="PATH",
            help="another queue directory, or one of its quarantine directories (default: queue_dir)",
        )
        add_config(verb)
        add_json(verb)


def run(args: argparse.Namespace) -> int:
    """Do what the verb says."""
    from agent.queue.look import is_there

    directory = load_settings(args).queue_dir if args.dir is None else args.dir.absolute()
    if not is_there(directory):
        from agent.errors import UsageError

        if args.dir is not None:
            raise UsageError(
                "read the queue", str(directory), "there is none", "give the directory of cache.db"
            )
        return _nothing(args, directory)
    return _verify(args, directory) if args.verb == "verify" else _export(args, directory)


def _nothing(args: argparse.Namespace, directory: Path) -> int:
    """Say that no daemon has made a queue yet."""
    from agent.queue.verify import Findings

    if args.verb == "export":
        return _write_out(args, iter(()))
    if args.json:
        print_json(_document(directory, Findings()))
    else:
        print(f"queue      {directory}\nthere is none yet: `agent run` makes it")
    return 0


def _verify(args: argparse.Namespace, directory: Path) -> int:
    from agent.lock import holder
    from agent.queue.verify import inspect

    findings = inspect(directory)
    if args.json:
        print_json(_document(directory, findings))
    else:
        print(_text(directory, findings, holder(directory)))
    return 1 if findings.problems else 0


def _document(directory: Path, findings: Findings) -> dict[str, Any]:
    """Return what was found as JSON shows it."""
    return {
        "ok": not findings.problems,
        "path": str(directory),
        "format": findings.meta.format,
        "server": findings.meta.server,
        "chunks": findings.chunks,
        "events": findings.events,
        "dead": findings.dead,
        "set_aside": findings.set_aside,
        "lost": findings.books.lost,
        "problems": findings.problems,
        "quarantines": [
            {"path": report.quarantine, "found": report.found, "at": report.at, "lost": report.events_lost}
            for report in findings.quarantines
        ],
    }


def _text(directory: Path, findings: Findings, daemon: int | None) -> str:
    """Return what was found for people.

    Args:
        directory: of the queue.
        findings: what was found.
        daemon: the process that uses the queue; None when none does.
    """
    lines = [
        f"queue      {directory}" + (f", in use by process {daemon}" if daemon else ""),
        f"format     {findings.meta.format}, for {findings.meta.server or 'no server yet'}",
        f"pending    {findings.events} events in {findings.chunks} chunks",
        f"dead       {findings.dead} dead letters",
    ]
    if findings.books.lost or findings.set_aside:
        lines.append(
            f"damage     {findings.books.lost} events were lost to damage before; "
            f"{findings.set_aside} damaged chunks are kept"
        )
    lines += [f"set aside  {report.quarantine}: {report.found}" for report in findings.quarantines]
    if not findings.problems:
        return "\n".join([*lines, "all is as it was written, and the books balance"])
    lines += [f"DAMAGED    {problem}" for problem in findings.problems]
    lines.append(
        "           a daemon rescues what can be read when it finds this, or when it starts (`when_damaged`);"
    )
    lines.append("           `agent queue export` writes that out now")
    return "\n".join(lines)


def _export(args: argparse.Namespace, directory: Path) -> int:
    from agent.queue.verify import inspect, rescued_chunks, stored_chunks

    problems = inspect(directory).problems
    chunks = rescued_chunks(directory, problems) if problems else stored_chunks(directory)
    code = _write_out(args, chunks)
    for problem in problems:
        note(f"agent queue export: {problem}")
    return 1 if problems else code


def _write_out(args: argparse.Namespace, chunks: Iterator[Chunk]) -> int:
    """Write events to where they are wanted."""
    if args.file is None:
        _write(chunks, sys.stdout.buffer, as_document=args.json)
        return 0
    with private_file(args.file) as file:
        count = _write(chunks, file, as_document=args.json)
    note(f"{count} events written to {args.file}")
    return 0


def _write(chunks: Iterator[Chunk], file: BinaryIO, *, as_document: bool) -> int:
    """Write events, one a line or as one JSON document, digit for digit as they came; return how many."""
    count = 0
    if as_document:
        file.write(b'{"items":[')
    for chunk in chunks:
        if as_document:
            file.write((b"," if count else b"") + chunk.lines.replace(b"\n", b","))
        else:
            file.write(chunk.lines + b"\n")
        count += chunk.count
    if as_document:
        file.write(b"]}\n")
    file.flush()
    return count
