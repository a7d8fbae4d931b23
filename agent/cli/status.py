"""`agent status`: queue, books, delivery and daemon."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from agent.cli._common import add_config, add_json, load_settings, print_json
from agent.units import counted, rough_size, rough_span

if TYPE_CHECKING:
    import argparse

    from agent.queue import Books
    from agent.settings import Settings

DESCRIPTION = (
    "Shows the queue, the books, how delivery stands and whether the daemon runs; works without it, too."
)
EPILOG = """\
the books always balance: accepted = pending + delivered + duplicates + dead + dropped

exit codes: 0 shown; 1 it cannot be read; 2 wrong usage or settings
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_config(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Show the status."""
    settings = load_settings(args)
    document = read(settings)
    if args.json:
        # What is promised, with a daemon and without; `GET /status` tells more.
        print_json({name: part for name, part in document.items() if name not in ("health", "notes")})
    else:
        print(_text(document, _books(document), settings.max_dead_letters))
    return 0


def _books(document: dict[str, Any]) -> Books:
    """Return the books as the queue has them: with more than `--json` promises."""
    from pathlib import Path

    from agent.errors import QueueError
    from agent.queue import Books
    from agent.queue.reader import DiskReader

    try:
        with closing(DiskReader(Path(document["queue"]["path"]))) as reader:
            return reader.books()
    except QueueError:
        return Books()


def read(settings: Settings) -> dict[str, Any]:
    """Return the status: from the daemon, else from the queue on disk."""
    from agent.daemon import call

    answer = call(settings.api_socket_path, "GET", "/status", timeout=10)
    return _without_daemon(settings) if answer is None else answer


def _without_daemon(settings: Settings) -> dict[str, Any]:
    """Return the status as far as the disk tells it."""
    import time

    from agent.flusher import Delivery
    from agent.lock import holder
    from agent.queue import Books
    from agent.queue.look import is_there
    from agent.queue.reader import DiskReader
    from agent.stats import Snapshot

    books, oldest = Books(), None
    if is_there(settings.queue_dir):
        reader = DiskReader(settings.queue_dir)
        books, oldest = reader.books(), reader.oldest_arrival()
        reader.close()
    age = None if oldest is None else max(0.0, time.time() - oldest)
    document = Snapshot(settings.queue_dir, books, age, Delivery(), holder(settings.queue_dir)).document()
    if settings.tail:
        from agent.cli.tail import without_daemon

        document["tail"] = without_daemon(settings)
    return document


def _text(document: dict[str, Any], books: Books, most_dead: int) -> str:
    """Return the status for people.

    Args:
        document: what `--json` prints.
        books: the same books, with more detail.
        most_dead: how many dead letters are kept at most.
    """
    daemon, queue, ledger, delivery = (document[part] for part in ("daemon", "queue", "ledger", "delivery"))
    if daemon["running"]:
        up = daemon["uptime_seconds"]
        runs = f"runs (process {daemon['pid']}" + (f", for {rough_span(up)})" if up is not None else ")")
    else:
        runs = "does not run"
    oldest = queue["oldest_age_seconds"]
    waits = f", the oldest for {rough_span(oldest)}" if oldest is not None else ""
    state = delivery["state"] if daemon["running"] else "-"
    if daemon["running"] and delivery.get("since"):
        state += f" since {delivery['since']}"
    following = delivery["next_attempt_in_seconds"]
    if following is not None:
        state += f", next attempt in {rough_span(following)}"
    reasons = document.get("health", {}).get("reasons", [])
    lines = [
        f"daemon     {runs}",
        *(f"           {reason}" for reason in reasons if reason != delivery["last_error"]),
        f"queue      {counted(queue['events'], 'event')} pending, {rough_size(queue['bytes'])}{waits}",
        f"           {queue['path']}",
        f"delivery   {state}",
    ]
    if delivery["last_error"]:
        lines.append(f"           {delivery['last_error']}")
    if delivery["last_success"]:
        lines.append(f"           last success {delivery['last_success']}")
    lines += [f"           {note}" for note in document.get("notes", ())]
    ends = " + ".join(f"{ledger[end]} {end}" for end in ("delivered", "duplicates", "dead", "dropped"))
    lines += [
        f"books      {ledger['accepted']} accepted = {queue['events']} pending + {ends}",
        f"           {ledger['refused']} refused at the socket",
    ]
    if books.lost:
        lines.append(f"           {books.lost} of the dropped were lost to damage")
    if books.duplicates:
        strangers = books.duplicates - books.repeated - books.resent
        lines.append(
            f"           of the duplicates {books.repeated} came again at the socket, {books.resent} were our"
            f" own retries, {strangers} were at Polar before"
        )
    if queue["dead"]:
        warning = f" of at most {most_dead}" if queue["dead"] >= 0.8 * most_dead else ""
        lines.append(f"dead       {counted(queue['dead'], 'dead letter')}{warning}: see `agent dead list`")
    return "\n".join([*lines, *_files(document.get("tail"))])


def _files(tail: dict[str, Any] | None) -> list[str]:
    """Return what is to be said of tailed files."""
    if tail is None:
        return []
    files, lag = tail["files"], sum(file["lag_bytes"] or 0 for file in tail["files"])
    trouble = len(tail["problems"]) + sum(file["state"] == "unreadable" for file in files)
    left = f", {rough_size(lag)} to be read" if lag else ""
    look = f"; {counted(trouble, 'problem')}: see `agent tail status`" if trouble else ""
    lines = [f"files      {counted(len(files), 'file')} tailed{left}{look}"]
    return lines + ([f"           not read for now: {tail['paused']}"] if tail["paused"] else [])
