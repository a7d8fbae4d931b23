"""Makes events of a block of a file's lines: what is fine, stamped; what is not, as dead letters. Pure.

There is no producer to tell of a mistake. So a line that is refused becomes a dead letter that
says where it stands; mended, it can be sent from there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from agent.event import Checked, Fate
from agent.queue import DeadLetter
from agent.refusal import Refusal, too_long
from agent.reservation import Reservation
from agent.shape import Shapes
from agent.stamp import cut
from agent.tail.filling import Filling
from agent.tail.identity import BOM, line_id, line_ids

if TYPE_CHECKING:
    from agent.event import Checker
    from agent.seen import Lasting
    from agent.tail import Table
    from agent.tail.helper import Helper

_BLANK = b" \t\r\n"
_MOST_TEXT = 64 * 1024


class Place(NamedTuple):
    """Where a block stands.

    Attributes:
        identity: of its file.
        path: of its file, for people.
        offset: where it begins.
        line: how many lines are before it; None when nobody counted.
    """

    identity: str
    path: str
    offset: int
    line: int | None


@dataclass(slots=True)
class Taken:
    """What became of a block.

    Attributes:
        groups: accepted lines that are due, joined by newlines, with their count.
        held: accepted lines that are not due yet, with their moments in Unix milliseconds.
        letters: the refused lines.
        lines: how many lines the block has, blank ones included.
        repeated: how many of them repeat an event that came lately.
        reserved: events to be remembered once it is sure that they are taken; None when they are.
    """

    groups: list[tuple[bytes, int]] = field(default_factory=list)
    held: list[tuple[int, bytes]] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    lines: int = 0
    repeated: int = 0
    reserved: Reservation | None = None

    @property
    def events(self) -> int:
        """How many lines were not blank."""
        taken = sum(count for _, count in self.groups) + len(self.held)
        return taken + len(self.letters) + self.repeated

    def add(self, more: Taken) -> None:
        """Add what became of the lines behind these, which are surely taken."""
        if more.reserved is not None:
            more.reserved.keep()
        self.groups += more.groups
        self.held += more.held
        self.letters += more.letters
        self.lines += more.lines
        self.repeated += more.repeated


class _Line(NamedTuple):
    """One line that is not blank: its number in the block from 1, where it begins, and its text."""

    number: int
    offset: int
    text: bytes


class Taking:
    """Takes lines of the files of one `[[tail]]`.

    Args:
        checker: what Polar takes and what it refuses.
        table: for its defaults.
        number: of the table.
        helper: takes large pieces off this process; not given for a token that belongs to a person.
    """

    def __init__(self, checker: Checker, table: Table, number: int = 0, helper: Helper | None = None) -> None:
        # What a checker has learned is one thread's own.
        self._checker = replace(checker, shapes=Shapes())
        self._max_line_bytes = checker.max_line_bytes
        self._filling = Filling(table.defaults)
        self._number = number
        self._helper = helper

    def ask(self, identity: str, offset: int, block: bytes, now: float) -> int | None:
        """Have the helper look at lines that will be taken; return the ticket for `take`, if it does."""
        return None if self._helper is None else self._helper.ask(self._number, identity, offset, block, now)

    def take(
        self,
        place: Place,
        block: bytes,
        seen: Lasting,
        *,
        now: float,
        wall: float,
        ticket: int | None = None,
    ) -> Taken:
        """Check and stamp whole lines.

        Args:
            place: where they stand.
            block: the lines, joined by newlines.
            seen: what came lately; what is taken is entered there, or reserved.
            now: Unix time in seconds by the server's clock.
            wall: the same by ours.
            ticket: of the helper that looks at these lines.
        """
        if _all_short(block, self._max_line_bytes):
            checked = self._check_block(place, block, seen, now, ticket)
            if checked is not None:
                return Taken(checked.groups, checked.held, [], checked.count)
        return self._line_by_line(place, block, Reservation(seen), now=now, wall=wall)

    def too_long(self, place: Place, beginning: bytes, *, wall: float) -> DeadLetter:
        """Return the dead letter of a line of which only the beginning was read."""
        return _letter(place, _Line(1, place.offset, beginning), too_long(self._max_line_bytes), wall)

    def _check_block(
        self, place: Place, block: bytes, seen: Lasting, now: float, ticket: int | None
    ) -> Checked | None:
        """Check and stamp lines if they are all fine and regular, and lack the same defaults; else None."""
        if ticket is not None and self._helper is not None:
            answer = self._helper.answer(ticket)
            if answer is None or (answer.own and not seen.enter(answer.own, block)):
                return None
            return Checked(answer.groups, [], [Fate(sum(count for _, count in answer.groups))])
        ids = partial(line_ids, place.identity, place.offset)
        if not self._filling:
            return self._checker.check_block(block, now, ids, seen)
        whole = cut(block)
        filled = None if whole is None else self._filling.block(whole)
        if whole is None or filled is None:
            return None
        # Ids follow from lines as they stand in the file.
        return self._checker.check_block(filled, now, lambda _: ids(whole), seen)

    def _line_by_line(
        self, place: Place, block: bytes, reserved: Reservation, *, now: float, wall: float
    ) -> Taken:
        """Look at each line on its own."""
        taken = Taken(reserved=reserved)
        lines: list[_Line] = []
        refused: list[tuple[_Line, Refusal]] = []
        offset = place.offset
        for number, raw in enumerate(block.split(b"\n"), 1):
            text = raw.removeprefix(BOM) if offset == 0 else raw
            begin = offset
            if raw.startswith(b"\0"):
                # As behind a hole that is met by itself.
                text = raw.lstrip(b"\0")
                begin += len(raw) - len(text)
            text = text.strip(_BLANK)
            if len(text) > self._max_line_bytes:
                refused.append((_Line(number, begin, text), too_long(self._max_line_bytes)))
            elif text:
                lines.append(_Line(number, begin, text))
            offset += len(raw) + 1
            taken.lines = number
        ids = [line_id(place.identity, line.offset, line.text) for line in lines]
        filled = [self._filling.line(line.text) for line in lines]
        checked = self._checker.check_lines(filled, now, ids, reserved)
        taken.groups, taken.held, taken.repeated = checked.groups, checked.held, checked.repeated
        for line, fate in zip(lines, checked.fates, strict=True):
            refused.extend((line, why) for _, why in fate.refused)
        refused.sort(key=lambda item: item[0].offset)
        taken.letters = [_letter(place, line, why, wall) for line, why in refused]
        return taken


def _all_short(block: bytes, most: int) -> bool:
    """Tell, without looking at each line, that none is longer than that."""
    start = 0
    while len(block) - start > most:
        end = block.rfind(b"\n", start, start + most + 1)
        if end < 0:
            return False
        start = end + 1
    return True


def _letter(place: Place, line: _Line, why: Refusal, wall: float) -> DeadLetter:
    """Return the dead letter of a refused line."""
    text = line.text[:_MOST_TEXT]
    own_id, name = _told(text)
    where = ".".join(map(str, why.loc))
    return DeadLetter(
        event=text.decode("utf-8", "backslashreplace"),
        external_id=own_id or line_id(place.identity, line.offset, line.text).decode(),
        name=name,
        status=0,
        reason=f"{where}: {why.msg}" if where else why.msg,
        errors=[{"type": why.type, "loc": list(why.loc), "msg": why.msg}],
        attempts=0,
        first_attempt=wall,
        died_at=wall,
        batch="",
        path=place.path,
        line=None if place.line is None else place.line + line.number,
        offset=line.offset,
    )


def _told(text: bytes) -> tuple[str, str]:
    """Return an event's own id and its name, as far as they can be read; else empty text."""
    try:
        members: Any = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "", ""
    if not isinstance(members, dict):
        return "", ""
    own_id, name = members.get("external_id"), members.get("name")
    return own_id if isinstance(own_id, str) else "", name if isinstance(name, str) else ""
