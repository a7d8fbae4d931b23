"""Durations and sizes: from the ways people write them, and back.

Pure functions. A value that cannot be read raises `Invalid`, which says what is
wrong and how to write it instead.
"""

from __future__ import annotations

import math
import re

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z]*)\s*")
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": 1024 * GIB,
}
_DURATION_HINT = 'write seconds as a number, or with a unit: 2, 0.5, "500ms", "2s", "1m", "1h"'
_SIZE_HINT = 'write bytes as a whole number, or with a unit: 262144, "256KiB", "4GiB", "5MB"'


class Invalid(ValueError):  # noqa: N818 - a verdict on a value; the error for people is UsageError
    """A value cannot be used.

    Args:
        reason: what is wrong, to follow the value: ``"is no duration"``.
        hint: how to write it instead.
    """

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


def parse_duration(value: object) -> float:
    """Return seconds from a number, or from text such as ``"2s"``, ``"500ms"``, ``"1m"``."""
    amount, unit = _quantity(value, "is no duration", _DURATION_HINT)
    scale = _SECONDS.get(unit)
    if scale is None:
        raise Invalid("has a unit that is no unit of time", _DURATION_HINT)
    return amount * scale


def parse_size(value: object) -> int:
    """Return bytes from a number, or from text such as ``"256KiB"``, ``"4GiB"``, ``"5MB"``."""
    amount, unit = _quantity(value, "is no size", _SIZE_HINT)
    scale = _BYTES.get(unit.lower())
    if scale is None:
        raise Invalid("has a unit that is no unit of size", _SIZE_HINT)
    size = amount * scale
    if size != int(size):
        raise Invalid("is no whole number of bytes", _SIZE_HINT)
    return int(size)


def format_duration(seconds: float) -> str:
    """Return a duration for people; `parse_duration` reads it back as the same number."""
    if 0 < seconds < 1 and (seconds * 1000).is_integer() and seconds * 1000 * 0.001 == seconds:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.0f} s" if float(seconds).is_integer() else f"{seconds!r} s"


def format_size(size: int) -> str:
    """Return a size for people; `parse_size` reads it back as the same number."""
    for unit, scale in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size >= scale and size % scale == 0:
            return f"{size // scale} {unit}"
    return f"{size} B"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as `1 event`, `2 events`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def rough_size(count: float) -> str:
    """Return a number of bytes, rounded, in the largest unit that suits it."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _quantity(value: object, reason: str, hint: str) -> tuple[int | float, str]:
    """Split a value into its number and its unit."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value) or value < 0:
            raise Invalid(reason, hint)
        return value, ""
    found = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    # Hundreds of digits would overflow a float, and nothing here is that long.
    if found is None or len(found[1]) > 30:
        raise Invalid(reason, hint)
    return (float(found[1]) if "." in found[1] else int(found[1])), found[2]


def rough_span(seconds: float) -> str:
    """Return a length of time for people, in the largest unit that suits it."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length * 2:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} s"
