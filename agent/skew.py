"""When this machine's clock differs from Polar's so much that somebody should know. Pure."""

from __future__ import annotations

SKEW_SECONDS = 5.0
"""Less is no trouble: stamps go by Polar's clock, and what is ahead of it is held."""
_AGREES_SECONDS = 2.0
HINT = "synchronize it, with chrony or systemd-timesyncd for instance"


def in_words(offset: float) -> str | None:
    """Return how a clock differs, for people; None when it does not to speak of.

    Args:
        offset: how far Polar's clock is ahead of it, seconds.
    """
    if abs(offset) < SKEW_SECONDS:
        return None
    side = "behind" if offset > 0 else "ahead of"
    return f"this machine's clock is {abs(offset):.0f} s {side} Polar's"


class Skew:
    """Tells when the difference is worth a line in the log: when it begins, and when it is over."""

    def __init__(self) -> None:
        self._differs = False

    def changes(self, offset: float) -> bool | None:
        """Return True when the clocks begin to differ, False when they agree again, else None."""
        differs = abs(offset) >= (_AGREES_SECONDS if self._differs else SKEW_SECONDS)
        if differs == self._differs:
            return None
        self._differs = differs
        return differs
