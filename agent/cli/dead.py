"""`agent dead`: the events that Polar refuses for good, and what to do with them."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.cli import _dead_letters as dead
from agent.cli._common import add_config, add_json, load_settings, note, print_json, private_file, table
from agent.units import counted

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from agent.dead import Edit
    from agent.pipeline import Pipeline
    from agent.queue import DeadLetter
    from agent.settings import Settings

DESCRIPTION = (
    "Shows, repairs, retries, exports and purges dead letters: events that Polar refused for good. They "
    "are kept on disk, with the reason, until somebody decides."
)
EPILOG = """\
examples:
  agent dead list --count-by reason
  agent dead list --since 1h --customer cus_42
  agent dead show 7
  agent dead retry 7 --set external_customer_id=cus_42 --unset parent_id
  agent dead retry 8 --event '{"name": "ai_usage", "external_customer_id": "cus_42"}'
  agent dead retry --type customer_id --name ai_usage
  agent dead export dead.ndjson && $EDITOR dead.ndjson && agent dead retry --from dead.ndjson
  agent dead purge --until 30d

A retried event keeps its external_id. What would only be refused again stays, with the reason.

exit codes: 0 done; 1 some could not be retried, or there is no such letter; 2 wrong usage or settings
"""

_REFUSED_SHOWN = 20
_REFUSED_IN_JSON = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    listing = verbs.add_parser("list", help="list dead letters, the oldest first")
    listing.add_argument(
        "--limit", type=int, default=100, metavar="N", help="at most so many (default: 100; 0: all)"
    )
    listing.add_argument("--count-by", choices=dead.GROUPS, help="count all that have this in common instead")
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
        "--unset", action="append", default=[], metavar="FIELD", help="take a field out first; likewise"
    )
    retry.add_argument(
        "--from",
        "--edited",
        dest="edited",
        type=Path,
        metavar="FILE",
        help="retry the events of this NDJSON file, found by their external_id (see export)",
    )
    retry.add_argument(
        "--event",
        metavar="JSON",
        help="retry one letter with this event in the place of its own, such as of a line that is no JSON",
    )
    export = verbs.add_parser("export", help="write the events as NDJSON, one a line")
    export.add_argument("file", nargs="?", type=Path, metavar="FILE", help="default: standard output")
    purge = verbs.add_parser("purge", help="throw dead letters away; they count as dropped")
    _add_choice(purge)
    purge.add_argument("--yes", action="store_true", help="do not ask on a terminal")
    for verb in (listing, retry, export, purge):
        dead.add_filters(verb)
    for verb in (listing, show, retry, export, purge):
        add_config(verb)
        add_json(verb)


def _add_choice(parser: argparse.ArgumentParser) -> None:
    """Add the choice of letters by number."""
    parser.add_argument("ids", nargs="*", type=int, metavar="ID", help="their numbers")
    parser.add_argument("--all", action="store_true", help="all of them")


def run(args: argparse.Namespace) -> int:
    """Do what the verb says."""
    settings = load_settings(args)
    code: int = {"list": _list, "show": _show, "retry": _retry, "export": _export, "purge": _purge}[
        args.verb
    ](args, settings)
    return code


def _list(args: argparse.Namespace, settings: Settings) -> int:
    letters = dead.read(settings, chosen=dead.filter_of(args))
    if args.count_by:
        groups = dead.count_by(args.count_by, letters)
        if args.json:
            print_json(
                {"items": [{args.count_by: shared, "count": n, "id": one} for shared, n, one in groups]}
            )
        else:
            print(
                table(
                    ("COUNT", "FOR EXAMPLE", args.count_by.upper()),
                    [(n, one, g) for g, n, one in groups],
                    right=(0, 1),
                )
            )
        return 0
    if args.limit > 0:
        letters = islice(letters, args.limit)
    if args.json:
        dead.print_items(dead.document(letter, with_event=False) for letter in letters)
    elif not dead.print_table(letters):
        print("no dead letters")
    return 0


def _show(args: argparse.Namespace, settings: Settings) -> int:
    letter = next(dead.read(settings, [args.id]), None)
    if letter is None:
        note(f"agent dead show: there is no dead letter {args.id}; see `agent dead list`")
        return 1
    print(dead.to_json(dead.document(letter, with_event=True), pretty=not args.json or sys.stdout.isatty()))
    return 0


def _export(args: argparse.Namespace, settings: Settings) -> int:
    letters = dead.read(settings, chosen=dead.filter_of(args))
    if args.json:
        dead.print_items(dead.document(letter, with_event=True) for letter in letters)
        return 0
    count = odd = 0
    with nullcontext() if args.file is None else private_file(args.file) as file:
        for letter in letters:
            line, has_id = _line(letter)
            odd += not has_id
            count += 1
            if file is None:
                print(line)
            else:
                file.write(line.encode() + b"\n")
    if file is not None:
        note(f"{counted(count, 'event')} written to {args.file}")
    if odd:
        note(
            f"{odd} of them are no JSON objects and so have no external_id here:"
            " mend those by `agent dead retry ID --event JSON`"
        )
    return 0


def _line(letter: DeadLetter) -> tuple[str, bool]:
    """Return an event as a line, and whether it has its id, by which `--edited` finds the letter again."""
    from agent.dead import is_object, with_id

    line = letter.event.replace("\n", " ").encode()
    return with_id(line, letter.external_id).decode(), is_object(line)


# -- changes -------------------------------------------------------------------------------


def _retry(args: argparse.Namespace, settings: Settings) -> int:
    edit = _edit(args)
    if args.edited is not None:
        if edit or args.ids or args.all or args.event or dead.filter_of(args):
            raise _usage("retry dead letters", "--from", "the file says which ones, and how they are mended")
        batches = _from_file(args.edited, settings)
    elif args.event is not None:
        if edit or len(args.ids) != 1:
            raise _usage("retry a dead letter", "--event", "goes with the number of one letter, and no --set")
        batches = iter([(args.ids, {str(args.ids[0]): args.event}, [])])
    else:
        batches = _mended(edit, args, settings)
    if args.ids and not _all_there(args, settings):
        return 1
    refusals = _Refusals(quiet=args.json)
    retried = 0
    with _Hands(settings) as change:
        for ids, edits, odd in batches:
            refusals.add(odd)
            if ids:
                answer = change("retry", {"ids": ids, "edits": edits})
                retried += answer["retried"]
                refusals.add(answer["refused"])
    if args.json:
        print_json({"retried": retried, "refused": refusals.kept, "refused_count": refusals.count})
    else:
        refusals.end()
        way = "is on its way" if retried == 1 else "are on their way"
        print(f"{counted(retried, 'dead letter')} {way} again")
    return 1 if refusals.count else 0


class _Refusals:
    """Letters that would be refused again: all are counted, the first ones are told."""

    def __init__(self, *, quiet: bool) -> None:
        self.count = 0
        self.kept: list[dict[str, Any]] = []
        self._quiet = quiet

    def add(self, refused: list[dict[str, Any]]) -> None:
        """Take some more."""
        for one in refused:
            self.count += 1
            if self.count <= _REFUSED_IN_JSON:
                self.kept.append(one)
            if not self._quiet and self.count <= _REFUSED_SHOWN:
                note(f"dead letter {one['id']} would be refused again: {one['reason']}")

    def end(self) -> None:
        """Tell how many were not told."""
        if self.count > _REFUSED_SHOWN:
            note(f"and {self.count - _REFUSED_SHOWN} more would be refused again")


def _purge(args: argparse.Namespace, settings: Settings) -> int:
    letters = _chosen(args, settings)
    if args.ids and not _all_there(args, settings):
        return 1
    if not args.yes and not args.json and sys.stdin.isatty() and sys.stderr.isatty():
        count = sum(1 for _ in _chosen(args, settings))
        sys.stderr.write(f"throw away {count} dead letters, for good? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("nothing was thrown away")
            return 1
    purged = 0
    with _Hands(settings) as change:
        for page in dead.pages(letters, dead.letter_size):
            purged += change("purge", {"ids": [letter.id for letter in page]})["purged"]
    if args.json:
        print_json({"purged": purged})
    else:
        print(f"{purged} dead letters were thrown away; they count as dropped")
    return 0


def _chosen(args: argparse.Namespace, settings: Settings) -> Iterator[Any]:
    """Yield the letters that were chosen: by number, by what they hold, or all."""
    chosen = dead.filter_of(args)
    if args.all == bool(args.ids or chosen):
        raise _usage(
            f"{args.verb} dead letters",
            "the command line",
            "say which ones: numbers or filters, or else --all",
        )
    return dead.read(settings, args.ids or None, chosen)


def _all_there(args: argparse.Namespace, settings: Settings) -> bool:
    """Tell whether all letters that were named by number are kept; name those that are not."""
    missing = set(args.ids) - {letter.id for letter in dead.read(settings, args.ids)}
    for number in sorted(missing):
        note(f"agent dead {args.verb}: there is no dead letter {number}; see `agent dead list`")
    return not missing


def _edit(args: argparse.Namespace) -> Edit:
    """Return what --set and --unset say."""
    from agent.dead import Edit

    sets = {}
    for change in args.set:
        name, equals, text = change.partition("=")
        if not equals or not name:
            raise _usage("mend the event", change, "must be FIELD=VALUE", "for example --set name=ai_usage")
        sets[name] = text
    if "external_id" in {*sets, *args.unset} and (len(args.ids) != 1 or "external_id" in args.unset):
        raise _usage(
            "mend the event",
            "external_id",
            "of several events with one id Polar keeps the first and drops the others in silence",
            "give the number of one letter, and a new id for it",
        )
    return Edit(sets, tuple(args.unset))


_Retry = tuple[list[int], dict[str, str], list[dict[str, Any]]]
"""Numbers of letters to be retried, the new events of some of them, and those that cannot be mended."""


def _mended(edit: Edit, args: argparse.Namespace, settings: Settings) -> Iterator[_Retry]:
    """Return the chosen letters, some at a time, with their events mended."""
    letters = _chosen(args, settings)

    def batches() -> Iterator[_Retry]:
        for page in dead.pages(letters, dead.letter_size):
            edits: dict[str, str] = {}
            odd: list[dict[str, Any]] = []
            for letter in page if edit else ():
                try:
                    edits[str(letter.id)] = edit.apply(letter.event)
                except ValueError as error:
                    odd.append({"id": letter.id, "reason": str(error)})
            unfit = {one["id"] for one in odd}
            yield [letter.id for letter in page if letter.id not in unfit], edits, odd

    return batches()


def _from_file(path: Path, settings: Settings) -> Iterator[_Retry]:
    """Yield the events of an edited export, some at a time, by the numbers of their letters.

    The whole file is looked through first: with a mistake in it, nothing is changed.
    """
    numbers: dict[str, list[int]] = {}
    for letter in dead.read(settings):
        numbers.setdefault(letter.external_id, []).append(letter.id)
    for _ in _lines(path, {name: list(ids) for name, ids in numbers.items()}):
        pass
    for page in dead.pages(_lines(path, numbers), size=lambda item: len(item[1])):
        yield [number for number, _ in page], {str(number): line for number, line in page}, []


def _lines(path: Path, numbers: dict[str, list[int]]) -> Iterator[tuple[int, str]]:
    """Yield the events of a file with the numbers of their letters, which are taken out of `numbers`."""
    import msgspec

    try:
        with path.open(encoding="utf-8") as file:
            for place, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    external_id = msgspec.json.decode(line, type=dict[str, Any]).get("external_id")
                except (msgspec.MsgspecError, RecursionError) as error:
                    raise _usage(
                        "read the edited events",
                        f"{path}:{place}",
                        f"not a JSON object: {error}",
                        "mend that line, or take it out of the file; nothing was retried",
                    ) from error
                left = numbers.get(external_id) if isinstance(external_id, str) else None
                if not left:
                    raise _usage(
                        "read the edited events",
                        f"{path}:{place}",
                        f"no dead letter is left with the external_id {external_id!r}",
                        "leave external_id as it was exported, and each event once",
                    )
                yield left.pop(0), line.rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _usage("read the edited events", str(path), str(error)) from error


def _usage(operation: str, subject: str, reason: str, hint: str = "see `agent dead list`") -> Exception:
    """Return the error for wrong usage."""
    from agent.errors import UsageError

    return UsageError(operation, subject, reason, hint)


class _Hands:
    """Has the daemon change dead letters; does it here when none runs."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pipeline: Pipeline | None = None

    def __enter__(self) -> Callable[[str, dict[str, Any]], dict[str, Any]]:
        """Return the function that changes them, given the verb and its document."""
        return self._change

    def __exit__(self, *_: object) -> None:
        """Let go of the queue."""
        if self._pipeline is not None:
            self._pipeline.stop()

    def _change(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        from agent.daemon import call
        from agent.operations import purge_dead, retry_dead

        if self._pipeline is None:
            answer = call(self._settings.api_socket_path, "POST", f"/dead/{verb}", body)
            if answer is not None:
                return answer
            self._pipeline = self._start()
        return retry_dead(self._pipeline, body) if verb == "retry" else purge_dead(self._pipeline, body)

    def _start(self) -> Pipeline:
        """Open the queue."""
        from agent import logs
        from agent.clock import SystemClock
        from agent.pipeline import Pipeline

        logs.configure("error", self._settings.log_format)
        pipeline = Pipeline(self._settings, SystemClock())
        pipeline.writer.start()
        return pipeline
