"""Putting dead letters back on their way, as they are or mended. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from agent import chunk
from agent.queue import Change, Chunk, DeadLetter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent.event import Checker


@dataclass(slots=True)
class Revival:
    """What a retry of dead letters comes to.

    Attributes:
        change: what to commit.
        refused: the letters that cannot go back, with the reason: what they hold now is
            refused by our own check.
    """

    change: Change = field(default_factory=Change)
    refused: list[tuple[int, str]] = field(default_factory=list)


def revive(
    letters: Iterable[DeadLetter], edits: Mapping[int, bytes], checker: Checker, now: float, arrived_ms: int
) -> Revival:
    """Prepare the retry of dead letters under their own external ids.

    Args:
        letters: what to retry.
        edits: new lines for some of them, by number.
        checker: as for producers: what it refuses would only come back.
        now: Unix time in seconds by the server's clock.
        arrived_ms: the time of arrival to write, Unix milliseconds.
    """
    revival = Revival()
    lines: list[bytes] = []
    revived: list[int] = []
    held: list[Chunk] = []
    for letter in letters:
        line = edits.get(letter.id)
        line = letter.event.encode() if line is None else _with_id(line, letter.external_id)
        checked = checker.check([line.replace(b"\n", b" ") + b"\n"], now)
        if checked.accepted != 1:
            why = checked.fates[0].refused
            where = ".".join(map(str, why[0][1].loc)) if why else ""
            reason = f"{where}: {why[0][1].msg}" if why else "not one JSON object"
            revival.refused.append((letter.id, reason.removeprefix(": ")))
            continue
        revived.append(letter.id)
        lines.extend(line for line, _ in checked.groups)
        for due_ms, held_line in checked.held:
            held.append(Chunk(held_line, 1, arrived_ms, due_ms))
    revival.change.revived = revived
    revival.change.requeued = [*chunk.pack(((line, 1) for line in lines), arrived_ms), *held]
    return revival


def _with_id(line: bytes, external_id: str) -> bytes:
    """Give a mended line the id that its letter had, where it has none of its own."""
    try:
        members = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return line  # the check will say what is wrong with it
    if bytes(members.get("external_id", b"null")) in (b"null", b'""'):
        members["external_id"] = msgspec.Raw(msgspec.json.encode(external_id))
        return msgspec.json.encode(members)
    return line
