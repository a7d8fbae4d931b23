"""One picture of the agent, from which every view is made: status, JSON, and what comes after."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from agent import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from agent.flusher import Delivery
    from agent.queue import Books


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How everything stands at one moment.

    Attributes:
        path: the queue's directory.
        books: the ledger.
        oldest_age: seconds since the oldest pending event came; None when none is pending.
        delivery: how delivery stands.
        pid: the daemon's process; None when none runs.
        uptime: seconds since it started; None when none runs.
    """

    path: Path
    books: Books
    oldest_age: float | None
    delivery: Delivery
    pid: int | None = None
    uptime: float | None = None

    def document(self) -> dict[str, Any]:
        """Return the document of `agent status --json`."""
        books, delivery = self.books, self.delivery
        return {
            "version": __version__,
            "daemon": {
                "running": self.pid is not None,
                "pid": self.pid,
                "uptime_seconds": None if self.uptime is None else round(self.uptime, 1),
            },
            "queue": {
                "path": str(self.path),
                "events": books.pending,
                "bytes": books.bytes,
                "oldest_age_seconds": None if self.oldest_age is None else round(self.oldest_age, 3),
                "dead": books.dead,
            },
            "ledger": {
                "accepted": books.accepted,
                "refused": books.refused,
                "delivered": books.delivered,
                "duplicates": books.duplicates,
                "dead": books.dead,
                "dropped": books.dropped,
            },
            "delivery": {
                "state": delivery.state,
                "last_error": delivery.last_error,
                "last_success": None if delivery.last_success is None else moment(delivery.last_success),
                "next_attempt_in_seconds": None
                if delivery.next_attempt_in is None
                else round(delivery.next_attempt_in, 3),
            },
        }


def moment(unix_seconds: float) -> str:
    """Return a moment as RFC 3339, UTC, to the millisecond."""
    return datetime.fromtimestamp(unix_seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
