"""`agent tail`: how far tailed files are read, and how to have one read again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.cli._common import add_config, add_json, load_settings, note, print_json, table

if TYPE_CHECKING:
    import argparse

    from agent.settings import Settings

DESCRIPTION = (
    "Shows how far the files of [[tail]] are read, with and without a daemon; or sets a file back, so that "
    "it is read again. Lines that are read again have the ids that they had: Polar knows them as duplicates."
)
EPILOG = """\
examples:
  agent tail status
  agent tail reset /var/log/app/usage.log

exit codes: 0 done; 1 a file cannot be read, or the path is not known; 2 wrong usage or settings
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    status = verbs.add_parser("status", help="show each file: how far it is read, and what is left")
    reset = verbs.add_parser("reset", help="have a file read again from its beginning")
    reset.add_argument("path", metavar="PATH", help="the file, as `agent tail status` shows it")
    reset.add_argument(
        "--to",
        choices=("beginning", "end"),
        default="beginning",
        help="where to read on: `end` passes over what is there (default: beginning)",
    )
    for verb in (status, reset):
        add_config(verb)
        add_json(verb)


def run(args: argparse.Namespace) -> int:
    """Do what the verb says."""
    settings = load_settings(args)
    return _status(args, settings) if args.verb == "status" else _reset(args, settings)


def read(settings: Settings) -> dict[str, Any]:
    """Return how far files are read: from the daemon, else from the queue."""
    from agent.daemon import call

    answer = call(settings.api_socket_path, "GET", "/status", timeout=10)
    if answer is None:
        return without_daemon(settings)
    if settings.tail and "tail" not in answer:
        note("agent tail: the daemon that runs was started without [[tail]]; restart it")
    return answer.get("tail") or {"paused": None, "files": [], "problems": []}


def without_daemon(settings: Settings) -> dict[str, Any]:
    """Return how far files are read as the queue has it."""
    from agent.queue.look import is_there
    from agent.queue.reader import DiskReader
    from agent.tail.report import remembered

    files: list[dict[str, Any]] = []
    if is_there(settings.queue_dir):
        reader = DiskReader(settings.queue_dir)
        try:
            files = [remembered(at) for at in reader.checkpoints() if at.inode and not at.done]
        finally:
            reader.close()
    return {"paused": None, "files": files, "problems": []}


def _status(args: argparse.Namespace, settings: Settings) -> int:
    document = read(settings)
    if args.json:
        print_json(document)
    else:
        print(_text(document, [table.path for table in settings.tail]))
    return int(bool(document["problems"]) or any(file["state"] == "unreadable" for file in document["files"]))


def _text(document: dict[str, Any], patterns: list[str]) -> str:
    """Return the status for people, of files that these patterns name."""
    lines = []
    if document["paused"]:
        lines.append(f"PAUSED    {document['paused']}")
    lines += [f"PROBLEM   {problem['path']}: {problem['reason']}" for problem in document["problems"]]
    rows = [
        (
            file["path"],
            file["state"] if not file["problem"] else f"{file['state']}: {file['problem']}",
            file["offset"],
            file["size"],
            file["lag_bytes"],
            file["lag_lines"],
            file["refused"],
            file["last_line"],
        )
        for file in document["files"]
    ]
    if rows:
        headings = ("PATH", "STATE", "OFFSET", "SIZE", "LAG BYTES", "LAG LINES", "REFUSED", "LAST LINE")
        lines.append(table(headings, rows, right=(2, 3, 4, 5, 6)))
    elif not document["problems"]:
        why = f"none is there yet of {', '.join(patterns)}" if patterns else "the settings have no [[tail]]"
        lines.append(f"no file is tailed: {why}")
    return "\n".join(lines)


def _reset(args: argparse.Namespace, settings: Settings) -> int:
    from agent.daemon import call

    path = str(Path(args.path).absolute())
    answer = call(settings.api_socket_path, "POST", "/tail/reset", {"path": path, "to": args.to})
    if answer is None:
        answer = {"reset": _reset_here(settings, path, args.to)}
    if args.json:
        print_json(answer)
    elif answer["reset"]:
        end = "on from its end: what it holds now is passed over"
        again = "again from its beginning: what Polar has of it counts as duplicates"
        print(f"{path} is read {end if args.to == 'end' else again}")
    if not answer["reset"]:
        unread = ", or cannot be read" if args.to == "end" else ""
        note(f"agent tail reset: {path} is not known{unread}; see `agent tail status`")
    return 0 if answer["reset"] else 1


def _reset_here(settings: Settings, path: str, to: str) -> list[str]:
    """Change the checkpoint where no daemon runs."""
    from agent import logs
    from agent.clock import SystemClock
    from agent.errors import UsageError
    from agent.pipeline import Pipeline
    from agent.queue import Change
    from agent.tail.block import rewound

    if to == "end":
        raise UsageError(
            "go to the end of a file", path, "no daemon runs that could read it", "start it first"
        )
    logs.configure("error", settings.log_format)
    pipeline = Pipeline(settings, SystemClock())
    pipeline.writer.start()
    try:
        found = [rewound(at) for at in pipeline.queue.checkpoints() if at.path == path and at.inode]
        if found:
            pipeline.writer.apply(Change(checkpoints=found))
        return [at.path for at in found]
    finally:
        pipeline.stop()
