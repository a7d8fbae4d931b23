"""Where the events of a queue are meant to go: they are sent nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from agent.queue import Books


def refuse_other_server(directory: Path, meant: str, server: str, books: Books) -> None:
    """See that no event goes to a server that it is not meant for.

    Args:
        directory: of the queue.
        meant: the server that the queue was filled for; empty when it does not know.
        server: the server that the settings say; empty when they are not about one.
        books: what the queue holds: dead letters count, since they can be sent again.

    Raises:
        UsageError: events for another server are there, and what to do.
    """
    if not meant or not server or meant == server or not (books.pending or books.dead):
        return
    holds = [f"{books.pending} pending events"] if books.pending else []
    holds += [f"{books.dead} dead letters"] if books.dead else []
    flush = "flush it with the old settings first" if books.pending else ""
    export = "export and purge its dead letters" if books.dead else ""
    raise UsageError(
        "use the queue",
        str(directory),
        f"its events are meant for {meant}, but the settings say {server}; it holds {' and '.join(holds)}",
        f"{' and '.join(filter(None, (flush, export)))}, or choose another queue_dir",
    )
