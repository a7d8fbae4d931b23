"""How tailed files are shown to people and programs."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from agent.errors import reason_of
from agent.tail.recognition import State
from agent.tail.tailed import Tailed, key_of, shown

if TYPE_CHECKING:
    from agent.queue import Checkpoint

_COUNTED_BYTES = 8 << 20
_PIECE_BYTES = 64 * 1024


def first_seen(pattern: str) -> str:
    """Return the id of the checkpoint that says: the files of this pattern were looked for before."""
    return f"table-{blake2b(pattern.encode('utf-8', 'surrogateescape'), digest_size=8).hexdigest()}"


def nothing_read(place: str) -> str:
    """Return the id of the checkpoint that says: a file was at this place, and had no line yet."""
    return f"place-{blake2b(place.encode(), digest_size=8).hexdigest()}"


def document(tailed: Tailed, before: Checkpoint | None = None) -> dict[str, Any]:
    """Return how a file stands.

    Args:
        tailed: the file.
        before: what is known of its inode, for one that cannot be opened.
    """
    at = tailed.at or before
    size = _size_now(tailed)
    lag = _lag(tailed, at, size)
    offset, line = (0, 0) if at is None else (at.offset, at.line)
    if tailed.problem:
        state = "unreadable"
    elif tailed.copy_of:
        state = "copy"
    elif tailed.state is State.AWAY:
        state = "rotated"
    else:
        state = "waiting" if tailed.waiting else "live"
    return {
        "path": shown(tailed.path),
        "state": state,
        "identity": at.id if at is not None else tailed.copy_of or None,
        "device": tailed.key.device,
        "inode": tailed.key.inode,
        "offset": offset,
        "line": line,
        "size": size,
        "lag_bytes": lag,
        "lag_lines": lag_lines(tailed.path, offset, lag, line),
        "last_line": _moment(at.last_line_at) if at is not None else None,
        "refused": at.refused if at is not None else 0,
        "problem": tailed.problem or None,
    }


def _lag(tailed: Tailed, at: Checkpoint | None, size: int) -> int | None:
    """Return how many bytes are not read; None when that cannot be told."""
    if tailed.copy_of:
        return 0
    if at is None:
        return None if tailed.problem or tailed.waiting else size
    # One that is closed is closed because it was quiet.
    compressed = tailed.path.endswith(".gz") if tailed.file is None else tailed.file.compressed
    if compressed:
        return 0 if at.done else None
    return max(0, size - at.offset)


def _size_now(tailed: Tailed) -> int:
    """Return a file's size: while the queue is full nobody looks at it, and it grows."""
    try:
        status = os.stat(tailed.path)  # noqa: PTH116
    except OSError:
        return max(0, tailed.size)
    return status.st_size if key_of(status) == tailed.key else max(0, tailed.size)


def remembered(at: Checkpoint) -> dict[str, Any]:
    """Return the same of a file as its checkpoint alone tells it, while no daemon runs."""
    problem = None
    size = at.offset
    try:
        status = os.stat(at.path)  # noqa: PTH116
        if (status.st_dev, status.st_ino) == (at.device, at.inode):
            size = status.st_size
        else:
            problem = "another file is there now"
    except OSError as error:
        problem = reason_of(error)
    compressed = at.path.endswith(".gz")
    lag = None if compressed or problem else max(0, size - at.offset)
    return {
        "path": at.path,
        "state": "rotated" if problem else "live",
        "identity": at.id,
        "device": at.device,
        "inode": at.inode,
        "offset": at.offset,
        "line": at.line,
        "size": size,
        "lag_bytes": lag,
        "lag_lines": lag_lines(at.path, at.offset, lag, at.line),
        "last_line": _moment(at.last_line_at),
        "refused": at.refused,
        "problem": problem,
    }


def lag_lines(path: str, offset: int, lag: int | None, line: int | None) -> int | None:
    """Return how many lines are not read: counted where they are few, else by the length of those before."""
    if not lag:
        return lag
    if lag > _COUNTED_BYTES:
        return round(lag * line / offset) if line and offset else None
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            file.seek(offset)
            count = 0
            while lag > 0 and (piece := file.read(min(lag, _PIECE_BYTES))):
                count += piece.count(b"\n")
                lag -= len(piece)
            return count
    except OSError:
        return None


def _moment(unix_seconds: float | None) -> str | None:
    """Return a moment as RFC 3339, UTC, to the millisecond."""
    if unix_seconds is None:
        return None
    moment = datetime.fromtimestamp(unix_seconds, UTC).isoformat(timespec="milliseconds")
    return moment.replace("+00:00", "Z")
