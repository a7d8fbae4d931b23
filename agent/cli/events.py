"""`agent events`: read events back from Polar."""

from __future__ import annotations

import argparse
import json
import sys
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from agent.cli import _common
from agent.cli._moment import moment
from agent.clock import SystemClock
from agent.errors import UsageError
from agent.listing import EventFilter, NameFilter, pages
from agent.readback import RateLimitedError, Reader
from agent.token import TokenSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from agent.answer import Outcome
    from agent.listing import Event, EventName, Item, Page
    from agent.polar import PolarClient
    from agent.settings import Settings

T = TypeVar("T")

DESCRIPTION = """\
Reads events back from Polar: one by its id, a list by filters, or the names that occur.
An event shows up some seconds after it was delivered. Polar gives no external_id back: find
what was sent by name, customer, metadata and time.
"""

EPILOG = """\
examples:
  agent events list --since 1h --name ai_usage
  agent events list --external-customer-id cus_1 --metadata model=gpt-5 --all --json
  agent events list --since 2026-11-01T00:00:00Z --until 2026-12-01T00:00:00Z --sort timestamp
  agent events get 3745d601-f7f0-4a79-842c-11bff727a5b9
  agent events names --sort -occurrences

The token needs the scope events:read (or events:write). Each page is one request of the
limit that is shared with all your other calls to Polar; a running agent with the same token asks
in its place, within requests_per_minute.
"""

_LIST_LIMIT = 10
_MOST_LIMIT = 100
# Polar asks for 60 s when the limit is reached. Who waits longer than that is better told.
_LONGEST_WAIT = 65.0
_MOST_WAITS = 3
_PLACE_SECONDS = 15.0  # that the daemon may take to find a place for a question
_METADATA_WIDTH = 60


class _Parser(argparse.ArgumentParser):
    """Takes `--sort -timestamp`, too: argparse alone would see two options."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the words of an action."""
        words: list[str] = []
        for word in args or ():
            if words and words[-1] == "--sort" and word.startswith("-"):
                words[-1] = f"--sort={word}"
            else:
                words.append(word)
        return super().parse_known_args(words, namespace)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the three actions and their options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=_Parser)
    raw = argparse.RawDescriptionHelpFormatter

    get = actions.add_parser(
        "get", help="show one event", description="Shows one event.", formatter_class=raw
    )
    get.add_argument("id", metavar="ID", help="Polar's id of the event, a UUID (not the external_id)")

    listing = actions.add_parser(
        "list",
        help="list events, newest first",
        description="Lists events, newest first. Options that are given several times mean: any of these.",
        epilog=EPILOG,
        formatter_class=raw,
    )
    _several(listing, "--name", "NAME", "only events of this name")
    listing.add_argument(
        "--metadata",
        metavar="KEY=VALUE",
        type=_pair,
        action="append",
        default=[],
        help="only events with this metadata; several mean: all of these",
    )
    listing.add_argument(
        "--since", metavar="TIME", type=moment, help="only later ones: RFC 3339, or 30m, 1h, 2d ago"
    )
    listing.add_argument("--until", metavar="TIME", type=moment, help="only earlier ones: likewise")
    _common_filters(listing)
    listing.add_argument(
        "--query", metavar="TEXT", help="only events with this text; needs --organization-id"
    )
    listing.add_argument(
        "--filter",
        metavar="JSON",
        type=_filter,
        help="a filter in Polar's words: "
        '{"conjunction":"and","clauses":[{"property":"name","operator":"eq","value":"x"}]}',
    )
    listing.add_argument("--meter-id", metavar="ID", help="only events that this meter counts")
    listing.add_argument("--parent-id", metavar="ID", help="only children of this event")
    listing.add_argument(
        "--depth", metavar="N", type=int, choices=range(6), help="how many levels of children, 0 to 5"
    )
    _sort(listing, ("timestamp",))
    _paging(listing)

    names = actions.add_parser(
        "names",
        help="list the names that events have",
        description="Lists the names that events have, and how often each occurs.",
        formatter_class=raw,
    )
    _common_filters(names)
    names.add_argument("--query", metavar="TEXT", help="only names with this text")
    _sort(names, ("name", "occurrences", "first_seen", "last_seen"))
    _paging(names)

    for action in (get, listing, names):
        _common.add_config(action)
        _common.add_json(action)


def run(args: argparse.Namespace) -> int:
    """Run one action; returns the exit code."""
    way = _Way(_common.load_settings(args))
    try:
        if args.action == "get":
            return _get(way.reader, args)
        if args.action == "names":
            return _names(way.reader, args)
        return _list(way.reader, args)
    finally:
        way.close()


class _Way:
    """The way to Polar: through the daemon, which keeps the rate budget; straight where none asks for us."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: PolarClient | None = None
        self.reader = Reader(self._ask, settings.server_url)

    def close(self) -> None:
        """Let go."""
        if self._client is not None:
            self._client.close()

    def _ask(self, target: str) -> Outcome:
        """Ask; a daemon that has asked once is not passed over later, but for its end."""
        from agent.asking import mark
        from agent.daemon import ask_polar

        settings = self._settings
        token = _token(settings)
        if self._client is None:
            own = mark(settings.server_url, token())
            patience = settings.request_timeout + _PLACE_SECONDS
            answer = ask_polar(settings.api_socket_path, target, own, timeout=patience)
            if answer is not None:
                return answer
            from agent.polar import PolarClient

            self._client = PolarClient(settings.server_url, token, timeout=settings.request_timeout)
        return self._client.forward(target)


def _get(client: Reader, args: argparse.Namespace) -> int:
    event = _patiently(lambda: client.get_event(args.id))
    if args.json:
        _common.print_json(event.raw)
    else:
        print(_common.table(("FIELD", "VALUE"), _fields(event.raw)))
    return 0


def _list(client: Reader, args: argparse.Namespace) -> int:
    where = EventFilter(
        name=args.name,
        customer_id=args.customer_id,
        external_customer_id=args.external_customer_id,
        organization_id=args.organization_id,
        source=args.source,
        start_timestamp=args.since,
        end_timestamp=args.until,
        metadata=args.metadata,
        filter=args.filter,
        meter_id=args.meter_id,
        query=args.query,
        parent_id=args.parent_id,
        depth=args.depth,
        sorting=args.sort,
    )

    def fetch(number: int) -> Page[Event]:
        return client.list_events(where, page=number, limit=_limit(args))

    def row(event: Event) -> Sequence[object]:
        customer = event.external_customer_id
        return (
            event.timestamp,
            event.name,
            event.customer_id if customer is None else customer,
            _shortened(event.metadata),
            event.id,
        )

    return _show(args, fetch, ("TIMESTAMP", "NAME", "CUSTOMER", "METADATA", "ID"), row, "events")


def _names(client: Reader, args: argparse.Namespace) -> int:
    where = NameFilter(
        customer_id=args.customer_id,
        external_customer_id=args.external_customer_id,
        organization_id=args.organization_id,
        source=args.source,
        query=args.query,
        sorting=args.sort,
    )

    def fetch(number: int) -> Page[EventName]:
        return client.list_names(where, page=number, limit=_limit(args))

    def row(name: EventName) -> Sequence[object]:
        return name.name, name.source, name.occurrences, name.first_seen, name.last_seen

    return _show(
        args, fetch, ("NAME", "SOURCE", "EVENTS", "FIRST SEEN", "LAST SEEN"), row, "names", right=(2,)
    )


def _show(
    args: argparse.Namespace,
    fetch: Callable[[int], Page[Item]],
    headings: Sequence[str],
    row: Callable[[Item], Sequence[object]],
    noun: str,
    *,
    right: Sequence[int] = (),
) -> int:
    """Fetch one page or all, and print what is on them."""
    if args.limit is not None and args.limit > _MOST_LIMIT:
        _common.note(f"Polar gives at most {_MOST_LIMIT} {noun} a page; --all gives all pages")

    def patient(number: int) -> Page[Item]:
        return _patiently(lambda: fetch(number))

    items: list[Item] = []
    total = last = 0
    progress = args.all and sys.stderr.isatty()
    for page in pages(patient, args.page) if args.all else _only(patient(args.page)):
        items.extend(page.items)
        total, last = page.total_count, page.max_page
        if progress:
            print(f"\r{len(items)} of {total} {noun}", end="", file=sys.stderr, flush=True)
    if progress:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    if args.json:
        pagination = {"total_count": total, "max_page": last}
        _common.print_json({"items": [item.raw for item in items], "pagination": pagination})
        return 0
    if items:
        print(_common.table(headings, [row(item) for item in items], right=right))
    more = "" if args.all or args.page >= last else f"; more with --page {args.page + 1}, all with --all"
    _common.note(f"{len(items)} of {total} {noun}{more}")
    return 0


def _only(page: Page[Item]) -> Iterator[Page[Item]]:
    yield page


def _patiently(ask: Callable[[], T]) -> T:
    """Ask, and when Polar wants a short pause, say so, wait and ask again."""
    for _ in range(_MOST_WAITS):
        try:
            return ask()
        except RateLimitedError as error:
            if error.seconds is None or error.seconds > _LONGEST_WAIT:
                raise
            wait = f"{error.seconds:.0f} s"
            _common.note(f"too many requests a minute; Polar asks to wait {wait}: waiting, Ctrl-C ends it")
            SystemClock().wait(threading.Event(), error.seconds)
    return ask()


def _token(settings: Settings) -> Callable[[], str | None]:
    """Return what gives the token; raises UsageError when there is none."""
    source = TokenSource.from_settings(settings)
    problem = source.problem
    if problem is not None:
        reason, _, hint = problem.partition("; ")
        raise UsageError("read from Polar", "access_token", reason, hint)
    return source.current


def _limit(args: argparse.Namespace) -> int:
    """Return the size of a page: all pages at once are fetched with the fewest requests."""
    if args.limit is not None:
        return min(int(args.limit), _MOST_LIMIT)
    return _MOST_LIMIT if args.all else _LIST_LIMIT


def _fields(raw: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Return the rows for one event: what lies one level deeper on rows of its own."""
    rows: list[tuple[str, object]] = []
    for key, value in raw.items():
        if isinstance(value, dict) and value:
            rows.extend((f"{key}.{inner}", _plain(item)) for inner, item in value.items())
        else:
            rows.append((key, _plain(value)))
    return rows


def _plain(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _shortened(metadata: Mapping[str, Any]) -> str:
    """Return metadata in one short cell."""
    text = " ".join(f"{key}={_plain(value)}" for key, value in metadata.items())
    return text if len(text) <= _METADATA_WIDTH else f"{text[: _METADATA_WIDTH - 1]}…"


def _several(parser: argparse.ArgumentParser, flag: str, metavar: str, text: str) -> None:
    parser.add_argument(flag, metavar=metavar, action="append", default=[], help=text)


def _common_filters(parser: argparse.ArgumentParser) -> None:
    _several(parser, "--external-customer-id", "ID", "only events of this customer, by your own id")
    _several(parser, "--customer-id", "ID", "only events of this customer, by Polar's id")
    _several(parser, "--organization-id", "ID", "only this organization (for personal tokens)")
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        choices=("user", "system"),
        help="user: events that were sent; system: those that Polar made itself",
    )


def _sort(parser: argparse.ArgumentParser, keys: Sequence[str]) -> None:
    parser.add_argument(
        "--sort",
        metavar="KEY",
        action="append",
        default=[],
        choices=[f"{sign}{key}" for key in keys for sign in ("", "-")],
        help=f"order by {', '.join(keys)}; -{keys[-1]} turns it around",
    )


def _paging(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--page", metavar="N", type=_positive, default=1, help="the page to begin with (default: 1)"
    )
    parser.add_argument(
        "--limit",
        metavar="N",
        type=_positive,
        help=f"how many on a page, at most {_MOST_LIMIT} (default: {_LIST_LIMIT}; {_MOST_LIMIT} with --all)",
    )
    parser.add_argument("--all", action="store_true", help="all pages")


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return number


def _pair(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is no KEY=VALUE, such as model=gpt-5")
    return key, value


def _filter(text: str) -> str:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise argparse.ArgumentTypeError('is no JSON object, such as {"conjunction":"and","clauses":[…]}')
    return text
