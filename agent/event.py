"""Checks and stamps events: segments of lines in; accepted lines and refusals out. Pure.

Two checks agree on what Polar takes. The quick one (`agent.quick`, and `agent.shape` for
what it has seen before) reads a whole block in one call and can only say «all of these
are fine»; what it cannot prove goes, line by line, to the full one (`agent.refusal`), which
runs the models that Polar itself uses and gives the verdict with its reason.

A line that a producer wrote is kept as it is, digit for digit; what it lacks
(`external_id`, `timestamp`) is written in before its closing brace.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING

from agent import quick
from agent.framing import TOO_LONG, Segment, _TooLong
from agent.ids import Ids, uuid7_ids
from agent.refusal import Facts, Refusal, external_id_conflict, full_check, missing, too_long
from agent.shape import Shapes
from agent.stamp import Stamper, cut, groups, write_in

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.seen import Memory
    from agent.stamp import Cut

    GiveIds = Callable[[Cut], Ids]
    """Gives the ids for lines that carry none; called where there are such lines."""

_BLANK = b" \t\r\n"
_place_of = itemgetter(0)


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
        lead: returns how far this machine's clock is ahead of the server's, by which programs
            stamp their events; so much more they may be ahead.
        personal_token: the token belongs to a person, not to an organization; then Polar
            wants an `organization_id` in every event, and refuses it otherwise.
        max_line_bytes: for the text of the refusal of a line that was too long.
    """

    future_tolerance: float = 60.0
    personal_token: bool = False
    max_line_bytes: int = 256 * 1024
    shapes: Shapes = field(default_factory=Shapes, compare=False, repr=False)
    lead: Callable[[], float] = field(default=lambda: 0.0, compare=False, repr=False)

    def latest(self, now: float) -> datetime:
        """Return the newest timestamp that is taken.

        Args:
            now: Unix time in seconds by the server's clock.
        """
        return datetime.fromtimestamp(now, UTC) + timedelta(seconds=self.future_tolerance + self.lead())

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
            if stamped is not None:
                return Checked(stamped, [], _fates(segments, stamped))
        return self._sift(segments, now, seen)

    def check_block(
        self, block: bytes, now: float, ids: GiveIds, seen: Memory | None = None
    ) -> Checked | None:
        """Check and stamp lines whose ids are given, if they are all fine and regular; else None.

        Regular is a line that begins with one brace and ends with the other.

        Args:
            block: lines joined by newlines.
            now: Unix time in seconds by the server's clock.
            ids: of those that carry none.
            seen: as for `check`.
        """
        if self.personal_token:
            return None
        stamped = self._take(block, now, seen, ids)
        if stamped is None:
            return None
        return Checked(stamped, [], [Fate(sum(count for _, count in stamped))])

    def check_lines(
        self, lines: Sequence[bytes], now: float, ids: Sequence[bytes], seen: Memory | None = None
    ) -> Checked:
        """Check and stamp lines whose ids are given, none of them blank; each gets a fate of its own."""
        return self._sift(lines, now, seen, ids)

    def _take(
        self, data: bytes, now: float, seen: Memory | None, ids: GiveIds | None = None
    ) -> list[tuple[bytes, int]] | None:
        """Check and stamp lines in a few calls; return them in groups.

        None where one is not fine, or not due, or came before, or may be so.
        """
        whole = cut(data)
        if whole is None:
            return None
        found = self._read(data, whole.count)
        if found is None or _first_in_doubt(found, data, now, seen) is not None:
            return None
        return _stamped(whole, found, now, ids)

    def _read(self, data: bytes, lines: int) -> quick.Found | None:
        """Read lines, all of them fine; None where one is in doubt."""
        found = self.shapes.read(data)
        if found is not None and len(found.events) == lines:
            return found
        if self.shapes.trusted:
            return None
        checked = quick.check_block(data, lines)
        if checked is not None:
            self.shapes.learn(checked)
        return checked

    def _sift(
        self,
        segments: Sequence[Segment],
        now: float,
        seen: Memory | None,
        ids: Sequence[bytes] | None = None,
    ) -> Checked:
        """Check lines of which some are not fine: each is read alone, the fine ones stamped together."""
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
        sifting = _Sifting(lines, ids, seen, Stamper(now), now, sifted)
        latest = self.latest(now)
        run: list[int] = []
        each = self._read_each(lines)
        for place, event in enumerate(each.events):
            if event is not None:
                run.append(place)
                continue
            facts = self._judge(lines[place], latest)
            if isinstance(facts, Refusal):
                sifting.refused.append((place, facts))  # which the run goes on behind
                continue
            sifting.take_run(run, each, latest)
            run = []
            sifting.add(place, facts)
        sifting.take_run(run, each, latest)
        for place, why in sorted(sifting.refused, key=_place_of):
            number = bisect_right(starts, place) - 1
            sifted.fates[number].refused.append((place - starts[number] + 1, why))
        return sifted

    def _read_each(self, lines: Sequence[bytes]) -> quick.Found:
        """Read lines one by one, all of them in the same way; None stands for an event that is in doubt."""
        if self.personal_token:
            return quick.Found([None] * len(lines), None, None)
        found = self.shapes.read_each(lines)
        if found is not None:
            # Lines of another shape are rare where the shape is trusted; bad ones are not.
            other = any(
                quick.check_line(line) for line, event in zip(lines, found.events, strict=True) if not event
            )
            if not other:
                return found
            self.shapes.trusted = False
        found = quick.read_each(lines)
        fine = [event for event in found.events if event is not None]
        if fine:
            self.shapes.learn(quick.found_in(fine))
        return found

    def _judge(self, line: bytes, latest: datetime) -> Facts | Refusal:
        """Check one line that the quick check is in doubt about."""
        if not self.personal_token:
            lacking = quick.lacks(line, latest)
            if lacking is not None:
                return missing(lacking)
        return full_check(line, latest, personal_token=self.personal_token)


@dataclass(slots=True)
class _Sifting:
    """Lines that are checked one by one, and what has become of them so far.

    Attributes:
        lines: none of them blank.
        ids: one for each line, for those that carry none.
        seen: what came lately.
        stamper: for single lines.
        now: Unix seconds.
        sifted: where accepted lines go, in order.
        refused: the others by their place.
    """

    lines: list[bytes]
    ids: Sequence[bytes] | None
    seen: Memory | None
    stamper: Stamper
    now: float
    sifted: Checked
    refused: list[tuple[int, Refusal]] = field(default_factory=list)

    def take_run(self, run: Sequence[int], each: quick.Found, latest: datetime) -> None:
        """Take lines at these places, all of them fine: together as far as none came before or is early.

        Those that are in doubt for that are looked at by themselves; where there are many of
        them, fewer are tried together, so that no line is tried more than some five times.
        """
        start, size, since = 0, len(run), 0
        while start < len(run):
            some = run[start : start + size]
            doubt = 0 if size <= 1 else self._take(some, each)
            if doubt is None:
                start, since, size = start + len(some), since + len(some), 4 * size
                continue
            if doubt:
                before = self._take(some[:doubt], each)
                if before is not None:
                    doubt = 0
                start, since = start + doubt, since + doubt
            event = each.events[run[start]]
            time = None if each.with_times is False else _time_of(event)
            own = "" if each.with_ids is False else quick.own_id(event)
            line = self.lines[run[start]]
            if time is not None and not (quick.earliest_is_safe([time]) and time <= latest):
                self._decide(run[start], full_check(line, latest))
                fine = False
            else:
                fine = self.add(run[start], Facts(own, time))
            start += 1
            since = since + 1 if fine else 0
            size = 4 * max(1, size) if fine else max(1, since, doubt)

    def _take(self, some: Sequence[int], each: quick.Found) -> int | None:
        """Take lines together and return None; or return the place among them of one that is in doubt."""
        events = [each.events[place] for place in some]
        if each.with_ids is None or each.with_times is None:
            found = quick.found_in(events)
        else:
            found = quick.Found(events, each.with_ids, each.with_times)
        data = b"\n".join([self.lines[place] for place in some])
        whole = cut(data)
        if whole is None:
            return 0
        # Last, since it enters them as seen: what is not taken now would be a repeat of nothing.
        doubt = _first_in_doubt(found, data, self.now, self.seen)
        if doubt is not None:
            return doubt
        self.sifted.groups += _stamped(whole, found, self.now, self._give(some))
        return None

    def _give(self, some: Sequence[int]) -> GiveIds | None:
        """Return what gives the ids of some lines."""
        ids = self.ids
        return None if ids is None else lambda _: Ids([b""], [[ids[place] for place in some]])

    def _decide(self, place: int, facts: Facts | Refusal) -> None:
        """Add or refuse a line."""
        if isinstance(facts, Refusal):
            self.refused.append((place, facts))
        else:
            self.add(place, facts)

    def add(self, place: int, facts: Facts) -> bool:
        """Add one accepted line, unless it came before; tell whether it was added to those that are due."""
        line, seen, sifted = self.lines[place], self.seen, self.sifted
        repeats = seen.repeats(facts.identity, line) if seen is not None and facts.identity else None
        if repeats is not None:
            sifted.repeated += repeats
            if not repeats:
                self.refused.append((place, external_id_conflict()))
            return False
        given = None if self.ids is None else self.ids[place]
        stamped = self.stamper.stamp(line, facts, given)
        if facts.timestamp is not None and facts.timestamp > self.stamper.now:
            sifted.held.append((int(facts.timestamp.timestamp() * 1000) + 1, stamped))
            return False
        sifted.groups.append((stamped, 1))
        return True


def _stamped(whole: Cut, found: quick.Found, now: float, ids: GiveIds | None) -> list[tuple[bytes, int]]:
    """Return lines with what they lack, in groups; those without ids get new ones if none are given."""
    if found.with_ids is None or found.with_times is None:
        facts = [Facts(quick.own_id(event), _time_of(event)) for event in found.events]
        given = None if ids is None else ids(whole).each()
        return [Stamper(now).join(whole.data.split(b"\n"), facts, given)]
    if found.with_ids and found.with_times:
        return groups(whole)
    if found.with_ids:
        return write_in(whole, now, times=True, ids=None)
    give = partial(uuid7_ids, now) if ids is None else ids(whole).some
    return write_in(whole, now, times=not found.with_times, ids=give)


def _first_in_doubt(found: quick.Found, data: bytes, now: float, seen: Memory | None) -> int | None:
    """Enter events as seen; or return the place of the first that came before, or is early or too old."""
    doubt = _first_early_or_late(found, now)
    if doubt is None and seen is not None:
        doubt = _first_repeat(found, data, seen)
    return doubt


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
