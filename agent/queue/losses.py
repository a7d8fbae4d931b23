"""Damage to a queue in use: whether there is any, when it is mended, and how its losses are counted.

What damaged rows held, nobody can tell. But the books have how many events are pending, and
each chunk says how many it holds: what is in no chunk is lost. What was counted as lost and
comes back with a settlement, since somebody had it in hand, is found again.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from agent import chunk
from agent.errors import QueueError
from agent.logs import get
from agent.queue import Books, Change, Settlement, check, replace_books
from agent.queue.mend import mend, mended_at
from agent.queue.store import ERRORS, DamageError, fill, reason

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.clock import Clock
    from agent.queue.hold import Hold
    from agent.queue.wal import Glance

    Row = Callable[[int], bytes | None]

_MOST_MENDS, _SPAN_SECONDS = 3, 3600.0  # a disk that spoils three fresh databases is not to be written to
_MEND_AGAIN_SECONDS = 30.0


class Losses:
    """What damage did to the queue of one directory in the time of this process.

    Args:
        directory: where the database lies.
        clock: for the names of what is set aside.
        may_mend: damage is mended; else it is only told.
        on_damage: called with what is wrong where damage is only told.

    Attributes:
        mends: how many times a fresh database took the place of a damaged one.
        astray: events that were counted as lost, and that somebody may still have in hand.
    """

    def __init__(
        self,
        directory: Path,
        clock: Clock,
        *,
        may_mend: bool = True,
        on_damage: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._may_mend = may_mend
        self._on_damage = on_damage
        self._log = get("queue")
        self._mend_not_before = -math.inf
        self.mends = 0
        self.astray = 0

    def mend(self, found: str, seen: Glance, books: Books | None = None, held: Hold | None = None) -> None:
        """Put a fresh database in the place of the damaged one.

        Args:
            found: what is wrong.
            seen: see `agent.queue.mend.mend`.
            books: where they are known.
            held: what is still to be had of files that were taken away: nowhere else is it, so
                it is kept whatever is wanted of damage.

        Raises:
            DamageError: that is not to be tried now.
            QueueError: it failed; the damaged files are as they were.
        """
        if held is None:
            self._refuse_unless_mending(found)
        now, at = self._clock.monotonic(), self._clock.wall()
        if now < self._mend_not_before:
            raise DamageError(found)
        lately = sum(abs(at - earlier) < _SPAN_SECONDS for earlier in mended_at(self._directory))
        if lately >= _MOST_MENDS:
            raise DamageError(f"{found}; it was rescued {lately} times within an hour")
        try:
            report = mend(self._directory, found, seen, at=at, fill=fill, books=books, held=held)
        except QueueError:
            self._mend_not_before = now + _MEND_AGAIN_SECONDS
            raise
        self.mends += 1
        self.astray += report.events_lost

    def _refuse_unless_mending(self, found: str) -> None:
        """Only tell of damage, where that is wanted."""
        if not self._may_mend:
            self._on_damage(found)
            raise DamageError(found)

    def found(self, books: Books, row: Row) -> str | None:
        """Tell in what the rows, or the ways to them, do not make up the books; None when they do.

        Args:
            books: as of the last commit.
            row: returns the row of a chunk by its key, as the store finds it.
        """
        try:
            found = check.miscounted(self._directory, books)
            astray = [key for key in check.claims(self._directory) if row(key) is None]
        except DamageError as damage:
            return str(damage)
        except ERRORS as error:
            return reason(error) if check.is_damage(error) else None
        return found or (f"there is no way to chunk {astray[0]}" if astray else None)

    def count(self, change: Change, books: Books, row: Row) -> tuple[Change, Books, int]:
        """Return `change` with its losses, the books to count it from, and how many events stay astray.

        What damaged chunks held is what the books have and the other chunks do not. A chunk that
        is gone since the queue was mended, while it was on its way, was counted as lost: its events
        are found again.

        Raises:
            one of `ERRORS`, or DamageError.
        """
        astray, settlements = self.astray, []
        named = {settlement.key for settlement in change.settlements if settlement.damaged}
        damaged = {key for key in named if _is_damaged(key, row(key))}
        lost = 0
        restored: set[int] = set()
        if damaged:
            self._refuse_unless_mending(f"chunk {min(damaged)} is not what was written")
            others = sum(count for key, count in check.claims(self._directory).items() if key not in damaged)
            lost = max(0, books.pending - others)
        for settlement in change.settlements:
            if settlement.damaged and settlement.key not in damaged:
                continue  # it is as it was written after all, or gone
            if settlement.damaged:
                settlements.append(dataclasses.replace(settlement, lost=lost))
                self._log.error("a chunk is damaged: set aside", chunk=settlement.key, events_lost=lost)
                lost = 0
                continue
            if settlement.key not in restored and row(settlement.key) is None:
                restored.add(settlement.key)
                events = _events(settlement)
                found = min(events, astray)
                astray -= found
                books = replace_books(
                    books,
                    accepted=books.accepted + events - found,
                    dropped=books.dropped - found,
                    lost=books.lost - found,
                )
            settlements.append(settlement)
        return dataclasses.replace(change, settlements=settlements), books, astray


def _is_damaged(key: int, row: bytes | None) -> bool:
    """Tell whether a chunk is there and is not what was written."""
    if row is None:
        return False
    try:
        chunk.decode(row, key)
    except chunk.DamagedChunkError:
        return True
    except chunk.NewerChunkError:
        return False
    return False


def _events(settlement: Settlement) -> int:
    """Return how many events a settlement is about, those included that stay."""
    rest = settlement.rest.count if settlement.rest else 0
    return settlement.delivered + settlement.duplicates + len(settlement.dead) + rest
