"""Where the events of a queue are meant to go: they are sent nowhere else."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import msgspec

from agent.errors import UsageError
from agent.polar_json import parse_json

if TYPE_CHECKING:
    from pathlib import Path

    from agent.queue import Books, Chunk

_PERSONAL_HINT = "use a personal token until the queue is empty, or choose another queue_dir"
_ORGANIZATION_HINT = "use a token of the organization until the queue is empty, or choose another queue_dir"


class _Destined(msgspec.Struct):
    """What an event says of whom it is for."""

    organization_id: object = None


_read_event = msgspec.json.Decoder(_Destined).decode


def names_organization(event: bytes) -> bool | None:
    """Tell whether an event names its organization, as Polar wants of a personal token, and of no other.

    None where it is no event at all: then the server is to say so.
    """
    with contextlib.suppress(msgspec.MsgspecError):
        return _read_event(event).organization_id is not None
    with contextlib.suppress(ValueError):
        read = parse_json(event.decode())  # which takes `NaN`, as the server does
        if isinstance(read, dict):
            return read.get("organization_id") is not None
    return None


def refuse_other_token(directory: Path, oldest: Chunk | None, *, personal: bool) -> None:
    """See that no event goes out with a kind of token that it was not taken for: Polar would refuse each.

    New events would be taken for this token, and one queue can be sent with one kind alone.

    Args:
        directory: of the queue.
        oldest: its oldest events; None when there are none.
        personal: the token is a person's, not an organization's.

    Raises:
        UsageError: events for the other kind of token are there, and what to do.
    """
    if oldest is None or (not personal) not in map(names_organization, oldest.lines.split(b"\n")):
        return
    meant, given = "a personal", "an organization's"
    if personal:
        meant, given = given, meant
    raise UsageError(
        "use the queue",
        str(directory),
        f"its events were taken for {meant} token, and this is {given}: Polar would refuse them",
        _ORGANIZATION_HINT if personal else _PERSONAL_HINT,
    )


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
