"""`agent dead`: the events that Polar refuses for good, and what to do with them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.cli._common import add_config, add_json, load_settings, print_json, table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from agent.queue import DeadLetter
    from agent.settings import Settings

_CUSTOMERS = {"customer_id", "external_customer_id"}

DESCRIPTION = (
    "Shows, repairs, retries, exports and purges dead letters: events that Polar refused for good. They "
    "are kept on disk, with the reason, until somebody decides."
)
EPILOG = """\
examples:
  agent dead list
  agent dead show 7
  agent dead retry 7 --set external_customer_id=cus_42
  agent dead export dead.ndjson && $EDITOR dead.ndjson && agent dead retry --edited dead.ndjson
  agent dead purge --all

exit codes: 0 done; 1 some could not be retried, or there is no such letter; 2 wrong usage or settings
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    listing = verbs.add_parser("list", help="list dead letters, the oldest first")
    listing.add_argument("--name", help="only events of this name")
    listing.add_argument(
        "--status", type=int, metavar="CODE", help="only those refused with this HTTP status"
    )
    listing.add_argument("--limit", type=int, default=100, metavar="N", help="at most so many (default: 100)")
    show = verbs.add_parser("show", help="show one dead letter whole, with its event")
    show.add_argument("id", type=int, metavar="ID", help="its number, as `agent dead list` shows it")
    retry = verbs.add_parser("retry", help="put dead letters back on their way, under their own external_id")
    _add_choice(retry)
    retry.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="mend a field first; VALUE is JSON, or else text; metadata.KEY=VALUE reaches inside",
    )
    retry.add_argument(
        "--edited",
        type=Path,
        metavar="FILE",
        help="retry the events of this NDJSON file, found by their external_id (see export)",
    )
    export = verbs.add_parser("export", help="write the events as NDJSON, one a line")
    export.add_argument("file", nargs="?", type=Path, metavar="FILE", help="default: standard output")
    purge = verbs.add_parser("purge", help="throw dead letters away; they count as dropped")
    _add_choice(purge)
    for verb in (listing, show, retry, export, purge):
        add_config(verb)
        add_json(verb)


def _add_choice(parser: argparse.ArgumentParser) -> None:
    """Add the choice of letters."""
    parser.add_argument("ids", nargs="*", type=int, metavar="ID", help="their numbers")
    parser.add_argument("--all", action="store_true", help="all of them")


def run(args: argparse.Namespace) -> int:
    """Do what the verb says."""
    settings = load_settings(args)
    code: int = {"list": _list, "show": _show, "retry": _retry, "export": _export, "purge": _purge}[
        args.verb
    ](args, settings)
    return code


def _letters(settings: Settings, ids: list[int] | None = None) -> Iterator[DeadLetter]:
    """Yield the dead letters that are kept."""
    from agent.queue.reader import DiskReader

    if not (settings.queue_dir / "cache.db").exists():
        return
    reader = DiskReader(settings.queue_dir)
    try:
        yield from reader.dead_letters(ids)
    finally:
        reader.close()


def _document(letter: DeadLetter, *, with_event: bool) -> dict[str, Any]:
    """Return a dead letter as JSON shows it."""
    from agent.stats import moment

    document: dict[str, Any] = {
        "id": letter.id,
        "external_id": letter.external_id,
        "name": letter.name,
        "status": letter.status,
        "reason": letter.reason,
        "errors": letter.errors,
        "attempts": letter.attempts,
        "first_attempt": moment(letter.first_attempt),
        "last_attempt": moment(letter.died_at),
        "batch": letter.batch,
    }
    if with_event:
        document["event"] = json.loads(letter.event)
    return document


def _list(args: argparse.Namespace, settings: Settings) -> int:
    from itertools import islice

    wanted = (
        letter
        for letter in _letters(settings)
        if (args.name is None or letter.name == args.name)
        and (args.status is None or letter.status == args.status)
    )
    letters = list(islice(wanted, max(args.limit, 0)))
    if args.json:
        print_json({"items": [_document(letter, with_event=False) for letter in letters]})
    elif not letters:
        print("no dead letters")
    else:
        from agent.stats import moment

        rows = [
            (letter.id, moment(letter.died_at), letter.name, letter.external_id, letter.status, letter.reason)
            for letter in letters
        ]
        print(table(("ID", "SINCE", "NAME", "EXTERNAL ID", "STATUS", "REASON"), rows, right=(0,)))
    return 0


def _show(args: argparse.Namespace, settings: Settings) -> int:
    letter = next(_letters(settings, [args.id]), None)
    if letter is None:
        print(f"agent dead show: there is no dead letter {args.id}; see `agent dead list`", file=sys.stderr)
        return 1
    document = _document(letter, with_event=True)
    if args.json:
        print_json(document)
    else:
        print(json.dumps(document, ensure_ascii=False, indent=2))
    return 0


def _export(args: argparse.Namespace, settings: Settings) -> int:
    letters = _letters(settings)
    if args.json:
        print_json({"items": [_document(letter, with_event=True) for letter in letters]})
        return 0
    if args.file is None:
        for letter in letters:
            print(letter.event)
        return 0
    count = 0
    with args.file.open("w", encoding="utf-8") as file:
        for letter in letters:
            file.write(letter.event + "\n")
            count += 1
    print(f"{count} events written to {args.file}", file=sys.stderr)
    return 0


def _chosen(args: argparse.Namespace) -> list[int] | None:
    """Return the numbers that were given; None for all."""
    from agent.errors import UsageError

    if bool(args.ids) == bool(args.all):
        raise UsageError(
            f"{args.verb} dead letters",
            "the command line",
            "say which ones: their numbers, or --all",
            "see `agent dead list`",
        )
    return None if args.all else args.ids


def _retry(args: argparse.Namespace, settings: Settings) -> int:
    if args.edited is not None:
        edits = _edited(args.edited, settings)
        ids: list[int] | None = sorted(edits)
    else:
        ids = _chosen(args)
        edits = _mended(args.set, settings, ids)
    if ids is not None and not _all_there(args.verb, ids, settings):
        return 1
    answer = _change(
        settings, "retry", {"ids": ids, "edits": {str(key): line for key, line in edits.items()}}
    )
    if args.json:
        print_json(answer)
    else:
        print(f"{answer['retried']} dead letters are on their way again")
        for refused in answer["refused"]:
            print(f"dead letter {refused['id']} would be refused again: {refused['reason']}", file=sys.stderr)
    return 1 if answer["refused"] else 0


def _purge(args: argparse.Namespace, settings: Settings) -> int:
    ids = _chosen(args)
    if ids is not None and not _all_there(args.verb, ids, settings):
        return 1
    answer = _change(settings, "purge", {"ids": ids})
    if args.json:
        print_json(answer)
    else:
        print(f"{answer['purged']} dead letters were thrown away; they count as dropped")
    return 0


def _all_there(verb: str, ids: list[int], settings: Settings) -> bool:
    """Tell whether all of these letters are kept; name those that are not."""
    missing = set(ids) - {letter.id for letter in _letters(settings, ids)}
    for number in sorted(missing):
        print(f"agent dead {verb}: there is no dead letter {number}; see `agent dead list`", file=sys.stderr)
    return not missing


def _change(settings: Settings, verb: str, body: dict[str, Any]) -> dict[str, Any]:
    """Have the daemon do it; do it here when none runs."""
    from agent.daemon import call

    answer = call(settings.api_socket_path, "POST", f"/dead/{verb}", body)
    if answer is not None:
        return answer
    from agent import logs
    from agent.clock import SystemClock
    from agent.operations import purge_dead, retry_dead
    from agent.pipeline import Pipeline

    logs.configure("error", settings.log_format)
    pipeline = Pipeline(settings, SystemClock())
    pipeline.writer.start()
    try:
        action = retry_dead if verb == "retry" else purge_dead
        return action(pipeline, body)
    finally:
        pipeline.stop()


def _mended(changes: list[str], settings: Settings, ids: list[int] | None) -> dict[int, str]:
    """Return the events with the fields of `--set` changed, by number."""
    from agent.errors import UsageError

    fields = []
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or not name:
            raise UsageError(
                "mend the event", change, "must be FIELD=VALUE", "for example --set name=ai_usage"
            )
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        fields.append((name, value))
    if not fields:
        return {}
    edits = {}
    for letter in _letters(settings, ids):
        event = json.loads(letter.event)
        for name, value in fields:
            if name.startswith("metadata."):
                event.setdefault("metadata", {})[name.removeprefix("metadata.")] = value
            else:
                event[name] = value
        names = {name for name, _ in fields}
        if len(names & _CUSTOMERS) == 1:
            # An event has one kind of customer id; with both, Polar may go by the other.
            event = {name: value for name, value in event.items() if name in names or name not in _CUSTOMERS}
        event["external_id"] = letter.external_id
        edits[letter.id] = json.dumps(event, ensure_ascii=False)
    return edits


def _edited(path: Path, settings: Settings) -> dict[int, str]:
    """Return the events of an edited export, by the number of the letter that each belongs to."""
    from agent.errors import UsageError

    numbers = {letter.external_id: letter.id for letter in _letters(settings)}
    edits: dict[int, str] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("read the edited events", str(path), str(error)) from error
    for place, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            external_id = json.loads(line).get("external_id")
        except (ValueError, AttributeError) as error:
            raise UsageError(
                "read the edited events", f"{path}:{place}", f"not a JSON object: {error}"
            ) from error
        if external_id not in numbers:
            raise UsageError(
                "read the edited events",
                f"{path}:{place}",
                f"no dead letter has the external_id {external_id!r}",
                "leave external_id as it was exported",
            )
        edits[numbers[external_id]] = line
    return edits
