"""What an operator may do to a queue, through the daemon or without it. Documents in, documents out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.dead import revive
from agent.queue import Change
from agent.seen import identity_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.pipeline import Pipeline
    from agent.queue import Queue

_AT_ONCE = 500


def retry_dead(pipeline: Pipeline, body: Any) -> dict[str, Any]:
    """Put dead letters back on their way.

    Args:
        pipeline: with its writer running.
        body: `{"ids": [...] or null for all, "edits": {"ID": "line"}}`.

    Raises:
        QueueError: nothing was changed.
        ValueError: the body is not of this form.
    """
    ids = _ids(body)
    revival = revive(
        pipeline.queue.dead_letters(ids),
        _edits(body),
        pipeline.checker,
        pipeline.server_clock.now(),
        int(pipeline.clock.wall() * 1000),
    )
    if revival.change:
        pipeline.writer.apply(revival.change)
        # Not before: a repeat of it would be acknowledged, and what it repeats not be on its way.
        with pipeline.writer.order:
            for requeued in revival.change.requeued:
                for line in requeued.lines.split(b"\n"):
                    pipeline.seen.revive(identity_of(line), line)
    return {
        "retried": len(revival.change.revived),
        "refused": [{"id": number, "reason": reason} for number, reason in revival.refused],
    }


def latest_dead(queue: Queue) -> Iterator[dict[str, Any]]:
    """Yield dead letters, the newest first; without what the event holds.

    Raises:
        QueueError: the store cannot be read.
    """
    above = queue.books().next_dead
    while above > 1:
        below = max(1, above - _AT_ONCE)
        for letter in reversed(list(queue.dead_letters(range(below, above)))):
            yield {
                "id": letter.id,
                "name": letter.name,
                "external_id": letter.external_id,
                "status": letter.status,
                "reason": letter.reason,
                "attempts": letter.attempts,
                "died_at": round(letter.died_at, 3),
            }
        above = below


def purge_dead(pipeline: Pipeline, body: Any) -> dict[str, Any]:
    """Throw dead letters away; they count as dropped.

    Args:
        pipeline: with its writer running.
        body: `{"ids": [...] or null for all}`.

    Raises:
        QueueError: nothing was changed.
        ValueError: the body is not of this form.
    """
    ids = [letter.id for letter in pipeline.queue.dead_letters(_ids(body))]
    if ids:
        pipeline.writer.apply(Change(purged=ids))
    return {"purged": len(ids)}


def _ids(body: Any) -> list[int] | None:
    """Return the numbers that a body names; None for all."""
    if not isinstance(body, dict) or "ids" not in body:
        raise ValueError("the body must be an object with ids")
    ids = body["ids"]
    if ids is None:
        return None
    if not isinstance(ids, list) or not all(type(number) is int for number in ids):
        raise ValueError("ids must be a list of numbers, or null for all")
    return ids


def _edits(body: Any) -> dict[int, bytes]:
    """Return the new lines of a body, by number."""
    edits = body.get("edits") or {}
    if not isinstance(edits, dict) or not all(
        number.isdecimal() and isinstance(line, str) for number, line in edits.items()
    ):
        raise ValueError("edits must be an object of numbers with a line each, as text")
    return {int(number): line.encode() for number, line in edits.items()}
