"""Whether there is room for more events: by the queue's own bound, and by what the disk has left."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from agent.errors import reason_of
from agent.queue.ballast import portion_on
from agent.units import rough_size

if TYPE_CHECKING:
    from pathlib import Path

LOOK_SECONDS = 0.5
_SMALL_DISK_SHARE = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the queue may hold.

    Attributes:
        max_bytes: the most that its rows may take.
        reserve_bytes: what is to stay free on the disk.
        directory: where the queue lies.
        when_full: what becomes of events for which there is no room.
        small_disk: on a disk that is not much larger than the reserve, a quarter of it is reserve
            enough: nobody asked for more.
    """

    max_bytes: int
    reserve_bytes: int
    directory: Path
    when_full: Literal["block", "drop_newest"] = "block"
    small_disk: bool = False


class Capacity:
    """Looks at the disk: now and then, and before what was written since could have filled it.

    Args:
        limits: what makes the queue full; may be changed at any time.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._next_look = 0.0
        self._unseen = 0  # bytes that may still be written before the next look
        self._short: str | None = None
        self.portion = 1 << 20
        """How many bytes of events one transaction may have: at most half of the ballast."""

    def wrote(self, size: int) -> None:
        """Note that so many bytes of events were committed."""
        self._unseen -= size

    def lack(self, stored: int, now: float) -> str | None:
        """Say why there is no room; None when there is.

        Args:
            stored: bytes of the queue's rows.
            now: by the monotonic clock, seconds.
        """
        limits = self.limits
        if stored >= limits.max_bytes:
            most = rough_size(limits.max_bytes)
            return f"the queue holds {rough_size(stored)} of at most {most} (queue_max_bytes)"
        if self._short is not None or now >= self._next_look or self._unseen <= 0:
            self._short = self._look(now)
        return self._short

    def _look(self, now: float) -> str | None:
        """Look at the disk."""
        self._next_look = now + LOOK_SECONDS
        try:
            disk = os.statvfs(self.limits.directory)
        except OSError as error:
            return f"the disk does not tell what it has free: {reason_of(error)}"
        total, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
        self.portion = portion_on(disk)
        reserve = self.limits.reserve_bytes
        if self.limits.small_disk:
            reserve = min(reserve, total // _SMALL_DISK_SHARE)
        least = max(reserve, self.portion)
        # Events are written twice: to the log, and to the database.
        self._unseen = (free - least) // 4
        if free >= least:
            return None
        return (
            f"the disk has {rough_size(free)} free, and the queue leaves {rough_size(least)}: "
            "free some of it, or lower disk_reserve_bytes"
        )
