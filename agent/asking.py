"""How a command that reads from Polar tells the daemon what it would ask with itself. Pure.

The daemon asks in its place, within the rate budget that batches share. That is the same
only where both would use one server and one token.
"""

from __future__ import annotations

import hashlib

MARK_HEADER = "polar-agent-asks-as"


def mark(server: str, token: str | None) -> str:
    """Return what is equal for one server and one token, and tells neither."""
    return hashlib.sha256(f"{server}\n{token or ''}".encode("utf-8", "replace")).hexdigest()
