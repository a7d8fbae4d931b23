"""Dead letters on the command line: which ones are meant, reading them, showing them.

There may be very many, so they are read as they are needed, and never held as a whole.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeVar

from agent.cli._common import table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator

    from agent.dead import Filter
    from agent.queue import DeadLetter
    from agent.settings import Settings

PAGE = 500
"""So many are shown under one heading, and changed in one transaction."""
_PAGE_BYTES = 4 << 20
T = TypeVar("T")
GROUPS = ("reason", "type", "status", "name", "customer")


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose letters by what they hold; all of them must hold."""
    from agent.cli._moment import unix_seconds

    group = parser.add_argument_group("which ones")
    group.add_argument("--name", help="only events of this name")
    group.add_argument("--status", type=int, metavar="CODE", help="only those refused with this HTTP status")
    group.add_argument(
        "--type", metavar="TYPE", help="only those with an error of this type, such as missing"
    )
    group.add_argument("--reason", metavar="TEXT", help="only those whose reason has this text in it")
    group.add_argument(
        "--external-id", action="append", default=[], metavar="ID", help="only this one; repeatable"
    )
    group.add_argument("--customer", metavar="ID", help="only those of this customer, by either of its ids")
    group.add_argument(
        "--since", type=unix_seconds, metavar="TIME", help="only later ones: RFC 3339, or 30m, 1h, 2d ago"
    )
    group.add_argument("--until", type=unix_seconds, metavar="TIME", help="only earlier ones: likewise")


def filter_of(args: argparse.Namespace) -> Filter:
    """Return what the options say."""
    from agent.dead import Filter

    return Filter(
        args.name,
        args.status,
        args.type,
        args.reason,
        frozenset(args.external_id),
        args.customer,
        args.since,
        args.until,
    )


def read(
    settings: Settings, ids: list[int] | None = None, chosen: Filter | None = None
) -> Iterator[DeadLetter]:
    """Yield the dead letters that are kept now and are meant, the oldest first.

    Args:
        settings: where the queue is.
        ids: their numbers; None for all.
        chosen: what they must hold.
    """
    from agent.queue.look import is_there
    from agent.queue.reader import DiskReader

    if not is_there(settings.queue_dir):
        return
    reader = DiskReader(settings.queue_dir)
    try:
        end = reader.books().next_dead  # what dies while we look is not meant
        for letter in reader.dead_letters(ids):
            if letter.id >= end:
                return
            if chosen is None or chosen.takes(letter):
                yield letter
    finally:
        reader.close()


def pages(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield them some at a time, `PAGE` at most and not too many bytes."""
    page: list[T] = []
    held = 0
    for item in items:
        page.append(item)
        held += size(item)
        if len(page) == PAGE or held >= _PAGE_BYTES:
            yield page
            page, held = [], 0
    if page:
        yield page


def letter_size(letter: DeadLetter) -> int:
    """Return how many characters the event of a letter has."""
    return len(letter.event)


def document(letter: DeadLetter, *, with_event: bool) -> dict[str, Any]:
    """Return a dead letter as JSON shows it."""
    import msgspec

    from agent.stats import moment

    shown: dict[str, Any] = {
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
        "path": letter.path,
        "line": letter.line,
        "offset": letter.offset,
    }
    if with_event:
        try:
            msgspec.json.decode(letter.event)
            shown["event"] = msgspec.Raw(letter.event.encode())  # every digit as it was written
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            shown["event"] = letter.event
    return shown


def to_json(shown: Any, *, pretty: bool = False) -> str:
    """Return a document as JSON text."""
    import msgspec

    text = msgspec.json.encode(shown)
    return (msgspec.json.format(text, indent=2) if pretty else text).decode()


def print_items(items: Iterable[dict[str, Any]]) -> None:
    """Print the document `{"items": […]}` as the items come."""
    out, between = sys.stdout, ""
    out.write('{"items": [')
    for item in items:
        out.write(between + to_json(item))
        between = ",\n"
    out.write("]}\n")


def print_table(letters: Iterator[DeadLetter]) -> int:
    """Print letters as tables of some rows each; return how many they were."""
    from agent.stats import moment

    count = 0
    for page in pages(letters, letter_size):
        rows = [
            (
                letter.id,
                moment(letter.died_at),
                letter.name,
                letter.external_id,
                letter.status,
                letter.reason + _place(letter),
            )
            for letter in page
        ]
        print(table(("ID", "SINCE", "NAME", "EXTERNAL ID", "STATUS", "REASON"), rows, right=(0,)))
        count += len(page)
    return count


def _place(letter: DeadLetter) -> str:
    """Return where in a file a refused line stands; nothing of an event that came another way."""
    if not letter.path:
        return ""
    return f" ({letter.path}" + (f":{letter.line})" if letter.line else f", at byte {letter.offset})")


def count_by(group: str, letters: Iterable[DeadLetter]) -> list[tuple[str, int, int]]:
    """Return what is in common to how many letters, and the number of one of them, most frequent first."""
    from agent.dead import customers_of

    counts: Counter[str] = Counter()
    examples: dict[str, int] = {}
    for letter in letters:
        if group == "customer":
            shared = next(iter(customers_of(letter)), "-")
        elif group == "type":
            shared = str(letter.errors[0].get("type", "-")) if letter.errors else "-"
        else:
            shared = str(getattr(letter, group))
        counts[shared] += 1
        examples.setdefault(shared, letter.id)
    return [(shared, count, examples[shared]) for shared, count in counts.most_common()]
