"""Small things to put into queues."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.queue import Books, Checkpoint, Chunk, DeadLetter, Settlement

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agent.queue import Queue


def line(name: object, *, filler: int = 0) -> bytes:
    """Return an event of this external id, made longer by `filler` bytes."""
    more = b',"metadata":{"filler":"%b"}' % (b"x" * filler) if filler else b""
    return b'{"name":"usage","external_customer_id":"c","external_id":"%b"%b}' % (str(name).encode(), more)


def chunk_of(*names: object, arrived: float = 0.0, due: float = 0.0, filler: int = 0) -> Chunk:
    """Return a chunk of events with these external ids; moments in Unix seconds."""
    lines = b"\n".join(line(name, filler=filler) for name in names)
    return Chunk(lines, len(names), int(arrived * 1000), int(due * 1000))


def letter(name: object = "bad", **changes: Any) -> DeadLetter:
    """Return the dead letter of an event with this external id."""
    values = {
        "event": line(name).decode(),
        "external_id": str(name),
        "name": "usage",
        "status": 422,
        "reason": "name: Field required",
        "errors": [{"type": "missing", "loc": ["name"], "msg": "Field required"}],
        "attempts": 1,
        "first_attempt": 1.0,
        "died_at": 2.0,
        "batch": "b1",
    }
    return DeadLetter(**{**values, **changes})


def checkpoint_of(name: str, **changes: Any) -> Checkpoint:
    """Return the checkpoint of a file of this identity."""
    return Checkpoint(
        **{"id": name, "path": "/var/log/app.log", "device": 1, "inode": 2, "head": (1, 2), **changes}
    )


def delivered(key: int, events: int = 1, rest: Chunk | None = None) -> Settlement:
    """Return the settlement of events that Polar stored."""
    return Settlement(key, rest, delivered=events)


def buried(key: int, *names: object, rest: Chunk | None = None) -> Settlement:
    """Return the settlement of events that Polar refuses."""
    return Settlement(key, rest, dead=[letter(name) for name in names])


def chunks(queue: Queue) -> Iterator[tuple[int, Chunk]]:
    """Yield all chunks with their keys, oldest first."""
    for key in range(queue.first_key(), queue.books().next_key):
        chunk = queue.get(key)
        if chunk is not None:
            yield key, chunk


def names(lines: Iterable[bytes] | bytes) -> list[str]:
    """Return the external ids of lines, or of lines joined by newlines."""
    some = lines.split(b"\n") if isinstance(lines, bytes) else lines
    return [line.partition(b'"external_id":"')[2].partition(b'"')[0].decode() for line in some]


def pending(queue: Queue) -> list[str]:
    """Return the external ids of everything that a queue holds, oldest first."""
    return [name for _, chunk in chunks(queue) for name in names(chunk.lines)]


def counts(books: Books) -> dict[str, int]:
    """Return those numbers of the books that are not zero, without sizes and keys."""
    fields = ("accepted", "refused", "delivered", "duplicates", "dead", "dropped", "pending")
    return {name: getattr(books, name) for name in fields if getattr(books, name)}
