"""Checks and stamps events: segments of lines in; accepted lines and refusals out. Pure.

Two checks agree on what Polar takes. The quick one (`agent.quick`, and `agent.shape` for
what it has seen before) reads a whole block in one call and can only say «all of these
are fine»; what it cannot prove goes, line by line, to the full one (`agent.refusal`), which
runs the models that Polar itself uses and gives the verdict with its reason.

A line that a producer wrote is kept as it is, digit for digit; what it lacks
(`external_id`, `timestamp`) is written in before its closing brace.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

from agent import quick
from agent.framing import TOO_LONG, Segment, _TooLong
from agent.refusal import Facts, Refusal, external_id_conflict, full_check, too_long
from agent.shape import Shapes
from agent.stamp import Stamper, cut, groups, write_in

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.reservation import Reservation
    from agent.seen import Seen

    Memory = Seen | Reservation
    """Knows what came lately."""

    Ids = Callable[[int, int], Sequence[bytes]]
    """Gives the ids for lines that carry none, from one line to another; blank lines do not count."""

_BLANK = b" \t\r\n"
_OPEN, _CLOSE = b"{}"
_FEW = 8


@dataclass(slots=True)
class Fate:
    """What became of one segment's lines.

    Attributes:
        lines: how many non-blank lines it had; a line that was too long is one.
        refused: the refused ones by their number in the segment, from 1.
    """

    lines: int
    refused: list[tuple[int, Refusal]] = field(default_factory=list)


@dataclass(slots=True)
class Checked:
    """The outcome for a run of segments.

    Attributes:
        groups: the accepted lines that are due, in order: joined by newlines, with their count;
            none larger than a chunk of the queue, where that costs nothing.
        held: accepted lines that are not due yet, each with its moment in Unix milliseconds.
        fates: one for each segment, in order.
        repeated: how many lines repeat an event that is remembered; these are in neither of the above.
    """

    groups: list[tuple[bytes, int]]
    held: list[tuple[int, bytes]]
    fates: list[Fate]
    repeated: int = 0

    @property
    def lines(self) -> bytes:
        """The accepted lines that are due, joined by newlines."""
        return b"\n".join([lines for lines, _ in self.groups])

    @property
    def count(self) -> int:
        """How many accepted lines are due."""
        return sum(count for _, count in self.groups)

    @property
    def accepted(self) -> int:
        """How many lines were accepted as new events."""
        return self.count + len(self.held)

    @property
    def refused(self) -> int:
        """How many lines were refused."""
        return sum(len(fate.refused) for fate in self.fates)


@dataclass(frozen=True, slots=True)
class Checker:
    """Checks for one destination.

    Args:
        future_tolerance: how far ahead of now a timestamp may be, in seconds; such an
            event is held until it is due.
        personal_token: the token belongs to a person, not to an organization; then Polar
            wants an `organization_id` in every event, and refuses it otherwise.
        max_line_bytes: for the text of the refusal of a line that was too long.
    """

    future_tolerance: float = 60.0
    personal_token: bool = False
    max_line_bytes: int = 256 * 1024
    shapes: Shapes = field(default_factory=Shapes, compare=False, repr=False)

    def check(self, segments: Sequence[Segment], now: float, seen: Memory | None = None) -> Checked:
        """Check and stamp every line of `segments`.

        Args:
            segments: what `agent.framing` made, of one connection or of many.
            now: Unix time in seconds by the server's clock.
            seen: what came lately; what is accepted is entered there, so it must go to the writer.
        """
        if not self.personal_token and TOO_LONG not in segments:
            data: bytes = b"".join(segments)  # type: ignore[arg-type]  # checked above
            if b"\r" in data:
                data = data.replace(b"\r\n", b"\n")
            stamped = self._take(data[:-1], now, seen)
            if not isinstance(stamped, int):
                return Checked(stamped, [], _fates(segments, stamped))
        return self._sift(segments, now, seen)

    def check_block(self, block: bytes, now: float, ids: Ids) -> Checked | None:
        """Check and stamp lines whose ids are given, if they are all fine and regular; else None.

        Regular is a line that begins with its brace and has a newline alone behind the other.
        """
        if self.personal_token:
            return None
        stamped = self._take(block[:-1], now, None, ids)
        if isinstance(stamped, int):
            return None
        return Checked(stamped, [], [Fate(sum(count for _, count in stamped))])

    def check_lines(self, lines: Sequence[bytes], now: float, ids: Ids) -> Checked:
        """Check and stamp lines whose ids are given, none of them blank; each gets a fate of its own."""
        return self._sift(lines, now, None, ids)

    def _take(
        self, data: bytes, now: float, seen: Memory | None, ids: Ids | None = None, first: int = 0
    ) -> list[tuple[bytes, int]] | int:
        """Check and stamp lines in a few calls, the first of them of this number; return them in groups.

        Where one is not fine, or not due, or came before, or may be so, return its place, or -1 if
        that is not known.
        """
        whole = cut(data)
        if whole is None:
            return -1
        found = self._read(data, len(whole.parts))
        if isinstance(found, int):
            return found
        doubt = _first_early_or_late(found, now)
        if doubt is None and seen is not None:
            doubt = _first_repeat(found, data, seen)
        if doubt is not None:
            return doubt
        if found.with_ids is None or found.with_times is None:
            facts = [Facts(quick.own_id(event), _time_of(event)) for event in found.events]
            given = None if ids is None else ids(first, first + len(facts))
            return [Stamper(now).join(data.split(b"\n"), facts, given)]
        if found.with_ids and found.with_times:
            return groups(whole)
        wanted = ids is not None and not found.with_ids
        given = ids(first, first + len(whole.parts)) if ids is not None and wanted else None
        return write_in(whole, now, ids=not found.with_ids, times=not found.with_times, given=given)

    def _read(self, data: bytes, lines: int) -> quick.Found | int:
        """Read lines, all of them fine; else return the place of one in doubt, -1 if that is not known."""
        found = self.shapes.read(data)
        if isinstance(found, int):
            if 0 <= found < lines and self.shapes.trusted:
                return found
        elif len(found.events) == lines:
            return found
        checked = quick.check_block(data, lines)
        if not isinstance(checked, int):
            self.shapes.learn(checked)
        return checked

    def _sift(
        self, segments: Sequence[Segment], now: float, seen: Memory | None, ids: Ids | None = None
    ) -> Checked:
        """Check lines of which some are not fine: those between them together, the others one by one."""
        lines: list[bytes] = []
        starts: list[int] = []
        sifted = Checked([], [], [])
        for segment in segments:
            starts.append(len(lines))
            if isinstance(segment, _TooLong):
                sifted.fates.append(Fate(1, [(1, too_long(self.max_line_bytes))]))
                continue
            lines += [line for raw in segment.split(b"\n") if (line := raw.strip(_BLANK))]
            sifted.fates.append(Fate(len(lines) - starts[-1]))
        odd = [number for number, line in enumerate(lines) if line[0] != _OPEN or line[-1] != _CLOSE]
        odd.append(len(lines))
        stamper = Stamper(now)
        place, size = 0, len(lines)
        run = alone = 0  # lines since the last one refused; lines to look at one by one
        while place < len(lines):
            # Only the full check of a line knows what a personal token asks for.
            size = 1 if alone or self.personal_token else min(size, odd[bisect_left(odd, place)] - place)
            some = lines[place : place + size]
            taken = self._take(b"\n".join(some), now, seen, ids, place) if size > 1 else 0
            if not isinstance(taken, int):
                sifted.groups += taken
                place, run, size = place + size, run + size, 4 * size
            elif taken:
                # Those before the one in doubt; where that is not known, fewer.
                size = taken if taken > 0 else size // 2
            else:
                given = None if ids is None else ids(place, place + 1)[0]
                outcome = self._check_one(lines[place], stamper, sifted, seen, given)
                if outcome is True and size > 1:
                    self.shapes.trusted = False
                place, run, size, alone = place + 1, run + 1, max(size, _FEW), max(0, alone - 1)
                if outcome is not True:
                    # Where many are so, what is read together is read again most of the time.
                    alone = _FEW if run <= _FEW else 0
                    run, size = 0, 2 * run
                if isinstance(outcome, Refusal):
                    number = bisect_right(starts, place - 1) - 1
                    sifted.fates[number].refused.append((place - starts[number], outcome))
        return sifted

    def _check_one(
        self, line: bytes, stamper: Stamper, sifted: Checked, seen: Memory | None, given: bytes | None
    ) -> Refusal | Literal[True] | None:
        """Check one line: return why it is refused, True if added to `sifted`, None if it is a repeat."""
        facts = self._check_line(line, stamper.now + timedelta(seconds=self.future_tolerance))
        if isinstance(facts, Refusal):
            return facts
        repeats = seen.repeats(facts.identity, line) if seen is not None and facts.identity else None
        if repeats is not None:
            sifted.repeated += repeats
            return None if repeats else external_id_conflict()
        stamped = stamper.stamp(line, facts, given)
        if facts.timestamp is not None and facts.timestamp > stamper.now:
            sifted.held.append((int(facts.timestamp.timestamp() * 1000) + 1, stamped))
        else:
            sifted.groups.append((stamped, 1))
        return True

    def _check_line(self, line: bytes, latest: datetime) -> Facts | Refusal:
        """Check one line: quickly where that proves it."""
        if not self.personal_token:
            event = quick.check_line(line) if line.startswith(b"{") and line.endswith(b"}") else None
            if event is not None:
                timestamp = _time_of(event)
                if timestamp is None:
                    return Facts(quick.own_id(event), None)
                if quick.earliest_is_safe([timestamp]) and timestamp <= latest:
                    return Facts(quick.own_id(event), timestamp)
        return full_check(line, latest, personal_token=self.personal_token)


def _first_early_or_late(found: quick.Found, now: float) -> int | None:
    """Return the place of the first event that is not due yet, or from before all time; None if none is."""
    if found.with_times is False:
        return None
    times = list(map(quick.time_of, found.events))
    if quick.earliest_is_safe(times) and max(times).timestamp() <= now:
        return None
    return next(
        place
        for place, time in enumerate(times)
        if not quick.earliest_is_safe([time]) or time.timestamp() > now
    )


def _first_repeat(found: quick.Found, data: bytes, seen: Memory) -> int | None:
    """Enter events as seen; or return the place of the first that was seen before."""
    if found.with_ids is False:
        return None
    ids = list(map(quick.own_id, found.events))
    own = ids if found.with_ids else [one for one in ids if one]
    return seen.first_repeat(ids) if own and not seen.enter(own, data) else None


def _fates(segments: Sequence[Segment], stamped: list[tuple[bytes, int]]) -> list[Fate]:
    """Return what became of segments of which every line was taken."""
    if len(segments) == 1:
        return [Fate(sum(count for _, count in stamped))]
    return [Fate(segment.count(b"\n")) for segment in segments]  # type: ignore[union-attr]  # none too long


def _time_of(event: quick.Event) -> datetime | None:
    """Return the timestamp that the line carries."""
    return None if event.timestamp is quick.ABSENT else event.timestamp
