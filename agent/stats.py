"""One picture of the agent, from which every view is made: status, JSON, and what comes after."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from agent import __version__
from agent.meters import latest
from agent.skew import HINT, in_words
from agent.units import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from agent.flusher import Delivery
    from agent.meters import Meters
    from agent.process import Process
    from agent.queue import Books


STALLED_SECONDS = 300.0
"""Events that wait longer, with no success since, are not being delivered."""


@dataclass(frozen=True, slots=True)
class Detail:
    """What only a running daemon can tell.

    Attributes:
        sick: why it must be started again; None when all threads move.
        unready: why no event can be made durable now; None when it can.
        stalled: why events are not being delivered; None when they are, or none waits.
        meters: what was counted since the start.
        connections: programs that are connected, by socket.
        peers_refused: connections of users who are not on the list, by socket.
        queue_max_bytes: the setting.
        clock_offset: seconds that Polar's clock is ahead.
        process: what the process takes.
        started_at: Unix seconds.
    """

    sick: str | None
    unready: str | None
    stalled: str | None
    meters: Meters
    connections: Mapping[str, int]
    peers_refused: Mapping[str, int]
    queue_max_bytes: int
    clock_offset: float
    process: Process
    started_at: float

    def health(self) -> dict[str, Any]:
        """Return whether the agent lives, takes events and delivers them, and why not."""
        return {
            "live": self.sick is None,
            "ready": self.unready is None,
            "delivering": self.stalled is None,
            "reasons": [why for why in (self.sick, self.unready, self.stalled) if why],
        }


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
        detail: what only a running daemon can tell.
    """

    path: Path
    books: Books
    oldest_age: float | None
    delivery: Delivery
    pid: int | None = None
    uptime: float | None = None
    detail: Detail | None = None

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
                "since": None if delivery.since is None else moment(delivery.since),
                "batch_events": delivery.batch_events,
                "delivering": self._delivering,
            },
        }

    def notes(self) -> list[str]:
        """Return what is no trouble of delivery and an operator should know all the same."""
        if self.detail is None:
            return []
        notes = []
        skew = in_words(self.detail.clock_offset)
        if skew is not None:
            notes.append(f"{skew}; {HINT}")
        if self.delivery.held:
            rows = counted(self.delivery.held, "row")
            verb = "waits" if self.delivery.held == 1 else "wait"
            notes.append(f"{rows} of events {verb} until their timestamps have passed by Polar's clock")
        return notes

    @property
    def _delivering(self) -> bool | None:
        """Whether events get away, or none waits; None when the daemon that knows was not asked."""
        if self.pid is None:
            return False
        return None if self.detail is None else self.detail.stalled is None

    def overview(self, history: Mapping[str, Sequence[float]]) -> dict[str, Any]:
        """Return everything, for `agent top` and the status page.

        Args:
            history: samples of the last hour, by column.
        """
        detail = self.detail
        assert detail is not None  # noqa: S101  # only a daemon is asked
        meters = detail.meters
        return {
            **self.document(),
            "health": detail.health(),
            "sources": {
                name: {"accepted": tally.accepted, "refused": tally.refused}
                for name, tally in sorted(dict(meters.sources).items())
            },
            "connections": dict(detail.connections),
            "peers_refused": dict(detail.peers_refused),
            "requests": dict(sorted(dict(meters.requests).items())),
            "latency": {
                name: {"p50": histogram.quantile(0.5), "p99": histogram.quantile(0.99)}
                for name, histogram in (("ack", meters.ack), ("request", meters.request), ("age", meters.age))
            },
            "refusals": latest(meters.refusals),
            "memory_bytes": detail.process.memory_bytes,
            "cpu_seconds": round(detail.process.cpu_seconds, 3),
            "history": history,
        }


def stalled(books: Books, oldest_age: float | None, delivery: Delivery, now: float) -> str | None:
    """Return why events are not being delivered; None when they are, or none waits.

    Args:
        books: the ledger.
        oldest_age: seconds that the oldest pending event has waited.
        delivery: how delivery stands.
        now: Unix seconds.
    """
    if not books.pending:
        return None
    if delivery.state == "blocked":
        return delivery.last_error or "delivery is blocked"
    last = delivery.last_success
    quiet = last is None or now - last > STALLED_SECONDS
    if quiet and oldest_age is not None and oldest_age > STALLED_SECONDS:
        trouble = f": {delivery.last_error}" if delivery.last_error else ""
        return f"the oldest event has waited {oldest_age:.0f} s, and nothing was delivered lately{trouble}"
    return None


def moment(unix_seconds: float) -> str:
    """Return a moment as RFC 3339, UTC, to the millisecond."""
    return datetime.fromtimestamp(unix_seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
