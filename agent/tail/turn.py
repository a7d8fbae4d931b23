"""What a file's turn came to."""

from __future__ import annotations

from enum import Enum, auto


class Turn(Enum):
    """What a file's turn came to."""

    NOTHING = auto()
    """There is nothing more to be read for now."""
    MORE = auto()
    """There may be a little more."""
    MUCH_MORE = auto()
    """There is more than a block."""
