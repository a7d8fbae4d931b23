"""What is kept of an event that Polar refuses for good. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from agent.queue import DeadLetter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.batch import Batch
    from agent.verdict import Fault


class _Named(msgspec.Struct):
    name: str = ""
    external_id: str | None = ""


def dead_letters(batch: Batch, faults: Sequence[Fault], status: int, now: float) -> list[DeadLetter]:
    """Return the dead letters of all events of a batch.

    Args:
        batch: the events.
        faults: what is wrong with each.
        status: the HTTP status of the refusal.
        now: Unix seconds.
    """
    return [_dead_letter(batch.line(index), fault, batch, status, now) for index, fault in enumerate(faults)]


def _dead_letter(line: bytes, fault: Fault, batch: Batch, status: int, now: float) -> DeadLetter:
    """Return the dead letter of one event."""
    try:
        named = msgspec.json.decode(line, type=_Named)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        named = _Named()
    return DeadLetter(
        # Our check lets no other bytes pass than UTF-8; should it ever, they are shown as `\\xff`.
        event=line.decode(errors="backslashreplace"),
        external_id=named.external_id or "",
        name=named.name,
        status=status,
        reason=fault.reason,
        errors=fault.errors,
        attempts=batch.attempts,
        first_attempt=batch.first_attempt,
        died_at=now,
        batch=batch.id,
    )
