"""The last hour in samples, for small plots; a bounded ring. Pure."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.queue import Books

SAMPLE_SECONDS = 15.0
SAMPLES = 240
COLUMNS = ("at", "accepted", "refused", "delivered", "pending", "bytes", "oldest_age_seconds", "dead")


class History:
    """Samples of the books, oldest first."""

    def __init__(self, samples: int = SAMPLES) -> None:
        self._samples = samples
        self._columns = {name: array("d") for name in COLUMNS}
        self._next = 0.0

    def due(self, monotonic: float) -> bool:
        """Tell whether it is time for a sample; if so, the next one's time begins."""
        if monotonic < self._next:
            return False
        self._next = monotonic + SAMPLE_SECONDS
        return True

    def add(self, at: float, books: Books, oldest_age: float | None) -> None:
        """Take a sample.

        Args:
            at: Unix seconds.
            books: as they are.
            oldest_age: seconds that the oldest pending event has waited.
        """
        row = (
            at,
            books.accepted,
            books.refused,
            books.delivered + books.duplicates,
            books.pending,
            books.bytes,
            oldest_age or 0.0,
            books.dead,
        )
        for column, value in zip(self._columns.values(), row, strict=True):
            column.append(value)
            if len(column) > self._samples:
                del column[0]

    def document(self) -> dict[str, list[float]]:
        """Return the columns by name."""
        columns = {name: list(column) for name, column in self._columns.items()}
        # Another thread may be in the middle of a sample.
        length = min(map(len, columns.values()))
        return {
            name: [round(value, 3) for value in column[-length:]] if length else []
            for name, column in columns.items()
        }
