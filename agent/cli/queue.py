"""`agent queue`: is everything on disk as it was written, and what is in it."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from agent.cli._common import add_config, add_json, load_settings, print_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from agent.chunk import Chunk
    from agent.queue.check import Findings

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
    directory = load_settings(args).queue_dir if args.dir is None else args.dir.absolute()
    if args.dir is not None and not _holds_a_queue(directory):
        from agent.errors import UsageError

        raise UsageError("read the queue", str(directory), "there is none", "give the directory of cache.db")
    return _verify(args, directory) if args.verb == "verify" else _export(args, directory)


def _holds_a_queue(directory: Path) -> bool:
    """Tell whether there is a queue, or what is left of one."""
    from agent.queue.check import DATABASE, LOG

    return any((directory / name).exists() for name in (DATABASE, LOG))


def _verify(args: argparse.Namespace, directory: Path) -> int:
    from agent.queue.check import Findings, inspect

    findings = inspect(directory) if _holds_a_queue(directory) else Findings()
    if args.json:
        print_json(_document(directory, findings))
    else:
        print(_text(directory, findings))
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
    }


def _text(directory: Path, findings: Findings) -> str:
    """Return what was found for people."""
    lines = [
        f"queue      {directory}",
        f"format     {findings.meta.format}, for {findings.meta.server or 'no server yet'}",
        f"pending    {findings.events} events in {findings.chunks} chunks",
        f"dead       {findings.dead} dead letters",
    ]
    if findings.books.lost or findings.set_aside:
        lines.append(
            f"damage     {findings.books.lost} events were lost to damage before; "
            f"{findings.set_aside} damaged chunks are kept"
        )
    if not findings.problems:
        return "\n".join([*lines, "all is as it was written, and the books balance"])
    lines += [f"DAMAGED    {problem}" for problem in findings.problems]
    lines.append("           the daemon sets it aside and rescues what can be read when it is started again;")
    lines.append("           `agent queue export` writes that out now")
    return "\n".join(lines)


def _export(args: argparse.Namespace, directory: Path) -> int:
    problems: list[str] = []
    chunks = _chunks(directory, problems) if _holds_a_queue(directory) else iter(())
    if args.file is None:
        _write(chunks, sys.stdout.buffer, as_document=args.json)
    else:
        with args.file.open("wb") as file:
            count = _write(chunks, file, as_document=args.json)
        print(f"{count} events written to {args.file}", file=sys.stderr)
    for problem in problems:
        print(f"agent queue export: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _chunks(directory: Path, problems: list[str]) -> Iterator[Chunk]:
    """Yield the pending chunks that are as they were written; note what is wrong with others."""
    import sqlite3

    from agent.chunk import DamagedChunkError, NewerChunkError
    from agent.errors import QueueError
    from agent.queue.check import glance, inspect, stored_chunks
    from agent.queue.rescue import Rescue

    seen = glance(directory)
    problems += inspect(directory).problems
    try:
        if not problems:
            yield from stored_chunks(directory)
            return
        with closing(Rescue(directory, seen)) as rescue:
            yield from (row.chunk for row in rescue.chunks())
            problems += [f"chunk {key} cannot be read" for key in rescue.damaged_chunks]
    except (sqlite3.Error, DamagedChunkError, NewerChunkError) as error:
        raise QueueError("read the queue", str(directory), str(error), "see `agent queue verify`") from error


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
