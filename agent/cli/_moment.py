"""Points in time as people write them on the command line."""

from __future__ import annotations

import argparse
import re
from datetime import UTC, datetime, timedelta

from agent.clock import SystemClock

_AGO = re.compile(r"(\d{1,9})\s*([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604_800}
# RFC 3339, section 5.6; `fromisoformat` alone takes week dates and dates without dashes too.
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d(?::\d\d(?:\.\d+)?)?)([Zz]|[+-]\d\d:\d\d)?")


def moment(text: str) -> str:
    """Return a point in time as RFC 3339, from itself or from how long ago it was."""
    ago = _AGO.fullmatch(text.strip().lower())
    found = _MOMENT.fullmatch(text.strip())
    try:
        if ago is not None:
            now = datetime.fromtimestamp(SystemClock().wall(), UTC)
            then = now - timedelta(seconds=int(ago[1]) * _SECONDS[ago[2]])
            return then.isoformat().replace("+00:00", "Z")
        if found is not None and found[3]:
            day, time, offset = found.groups()
            datetime.fromisoformat(f"{day}T{time}{offset.upper()}")
            return f"{day}T{time}{offset.upper()}"
    except (ValueError, OverflowError):
        pass
    if found is not None and not found[3]:
        raise argparse.ArgumentTypeError(f"{text!r} has no offset from UTC; add Z, or one such as +02:00")
    raise argparse.ArgumentTypeError(
        f"{text!r} is no time; write 30m, 1h or 2d (ago), or RFC 3339 such as 2026-11-23T10:00:00Z"
    )


def unix_seconds(text: str) -> float:
    """Return the same as Unix seconds."""
    return datetime.fromisoformat(moment(text)).timestamp()
