"""Checks and stamps events: segments of lines in; accepted lines and refusals out. Pure.

Two checks agree on what Polar takes. The quick one (`agent.quick`) reads a whole
block in one call and can only say «all of these are fine»; what it cannot prove
goes, line by line, to the full one (`agent.refusal`), which runs the models that
Polar itself uses and gives the verdict with its reason.

A line that a producer wrote is kept as it is, digit for digit; what it lacks
(`external_id`, `timestamp`) is written in before its closing brace.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import repeat
from operator import attrgetter, is_
from typing import TYPE_CHECKING

import msgspec

from agent import quick
from agent.chunk import MAX_EVENTS
from agent.framing import Segment, _TooLong
from agent.ids import suffixes, uuid7_block, uuid7_prefix
from agent.refusal import Facts, Refusal, external_id_conflict, full_check, too_long

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent.seen import Seen

_BLANK = b" \t\r\n"
_ids_of = attrgetter("external_id")
_times_of = attrgetter("timestamp")


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

    def check(self, segments: Sequence[Segment], now: float, seen: Seen | None = None) -> Checked:
        """Check and stamp every line of `segments`.

        Args:
            segments: what `agent.framing` made, of one connection or of many.
            now: Unix time in seconds by the server's clock.
            seen: what came lately; what is accepted is entered there, so it must go to the writer.
        """
        if not self.personal_token:
            checked = _check_whole(segments, now, seen)
            if checked is not None:
                return checked
        return self._line_by_line(segments, now, seen)

    def _line_by_line(self, segments: Sequence[Segment], now: float, seen: Seen | None) -> Checked:
        """Check each line on its own: somewhere is one that the quick check could not prove."""
        right_now = datetime.fromtimestamp(now, UTC)
        latest = right_now + timedelta(seconds=self.future_tolerance)
        stamper = _Stamper(now)
        due: list[bytes] = []
        held: list[tuple[int, bytes]] = []
        fates: list[Fate] = []
        repeated = 0
        for segment in segments:
            fate = Fate(0)
            fates.append(fate)
            if isinstance(segment, _TooLong):
                fate.lines = 1
                fate.refused.append((1, too_long(self.max_line_bytes)))
                continue
            for raw in segment.split(b"\n"):
                line = raw.strip(_BLANK)
                if not line:
                    continue
                fate.lines += 1
                facts = self._check_line(line, latest)
                if isinstance(facts, Refusal):
                    fate.refused.append((fate.lines, facts))
                    continue
                repeats = seen.repeats(facts.identity, line) if seen is not None and facts.identity else None
                if repeats is not None:
                    if repeats:
                        repeated += 1
                    else:
                        fate.refused.append((fate.lines, external_id_conflict()))
                    continue
                line = stamper.stamp(line, facts)
                if facts.timestamp is not None and facts.timestamp > right_now:
                    held.append((int(facts.timestamp.timestamp() * 1000) + 1, line))
                else:
                    due.append(line)
        return Checked([(b"\n".join(due), len(due))] if due else [], held, fates, repeated)

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


def _check_whole(segments: Sequence[Segment], now: float, seen: Seen | None) -> Checked | None:
    """Check and stamp everything in a few calls; None if a line needs a closer look."""
    if any(isinstance(segment, _TooLong) for segment in segments):
        return None
    data: bytes = b"".join(segments)  # type: ignore[arg-type]  # checked above
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
    if not (data.startswith(b"{") and data.endswith(b"}\n")):
        return None
    data = data[:-1]
    # In valid JSON these bytes stand only between two lines that are one object each; a line
    # break elsewhere, be it between two members, makes two bad lines of an object.
    parts = data.split(b"}\n{")
    count = len(parts)
    counts = [segment.count(b"\n") for segment in segments]  # type: ignore[union-attr]  # checked above
    if sum(counts) != count:
        return None
    events = quick.check_block(data, count)
    if events is None:
        return None
    groups = _stamp_whole(data, parts, events, now, seen)
    return None if groups is None else Checked(groups, [], [Fate(number) for number in counts])


def _stamp_whole(
    data: bytes, parts: list[bytes], events: list[quick.Event], now: float, seen: Seen | None
) -> list[tuple[bytes, int]] | None:
    """Stamp lines that are fine and return them in groups; None if one may not be due, or came before.

    Args:
        data: the lines.
        parts: the same, cut at the brace, newline and brace between them.
        events: what was read of them.
        now: the time of receipt.
        seen: what came lately.
    """
    count = len(events)
    times = list(map(_times_of, events))
    # That very object: a line may carry an equal time.
    missing_times = sum(map(is_, times, repeat(quick.ABSENT)))
    if missing_times != count and not (quick.earliest_is_safe(times) and max(times).timestamp() <= now):
        return None
    ids = list(map(_ids_of, events))
    absent_ids = ids.count(quick.NO_ID)
    if absent_ids != count and seen is not None and not _all_new(ids, data, seen, some_absent=absent_ids > 0):
        return None
    # All alike and nothing to take out: the usual block, written at once.
    if absent_ids == count and missing_times in (0, count):
        return _write_in(parts, now, with_time=missing_times == count)
    if not missing_times and not absent_ids and all(ids):
        return _groups(data, parts)
    stamper = _Stamper(now)
    lines = [
        stamper.stamp(line, Facts(quick.own_id(event), _time_of(event)))
        for line, event in zip(data.split(b"\n"), events, strict=True)
    ]
    return [(b"\n".join(lines), count)]


def _all_new(ids: list[str | None], data: bytes, seen: Seen, *, some_absent: bool) -> bool:
    """Enter the events that have an id of their own, if all of them are new."""
    own = ids
    if some_absent or not all(ids):
        own = [one for one in ids if one and one != quick.NO_ID]
    return not own or seen.enter(own, data)  # type: ignore[arg-type]  # no None is left


def _shares(count: int) -> Iterator[slice]:
    """Yield slices that share so many lines out evenly to as few chunks as can hold them."""
    chunks = -(-count // MAX_EVENTS)
    for number in range(chunks):
        yield slice(count * number // chunks, count * (number + 1) // chunks)


def _groups(data: bytes, parts: list[bytes]) -> list[tuple[bytes, int]]:
    """Return complete lines in groups.

    Args:
        data: the lines.
        parts: the same, cut at the brace, newline and brace between them.
    """
    if len(parts) <= MAX_EVENTS:
        return [(data, len(parts))]
    parts[0] = parts[0][1:]
    parts[-1] = parts[-1][:-1]
    shares = [parts[share] for share in _shares(len(parts))]
    return [(b"{%b}" % b"}\n{".join(some), len(some)) for some in shares]


def _time_of(event: quick.Event) -> datetime | None:
    """Return the timestamp that the line carries."""
    return None if event.timestamp is quick.ABSENT else event.timestamp


def _write_in(parts: list[bytes], now: float, *, with_time: bool) -> list[tuple[bytes, int]]:
    """Write ids, and times if wanted, into lines that all lack them; return them in groups.

    Args:
        parts: the lines, cut at the brace, newline and brace between them.
        now: the time of receipt.
        with_time: the lines lack a timestamp, too.
    """
    between = b'","timestamp":"%b"}\n{' % iso(now) if with_time else b'"}\n{'
    parts[0] = parts[0][1:]
    parts[-1] = parts[-1][:-1]
    groups = []
    for share in _shares(len(parts)):
        some = parts[share]
        before = b',"external_id":"' + uuid7_prefix(now)
        pieces = [b""] * (2 * len(some))
        pieces[::2] = some
        pieces[1::2] = [before + suffix + between for suffix in suffixes(len(some))]
        groups.append((b"{%b" % b"".join(pieces)[:-2], len(some)))
    return groups


def iso(now: float) -> bytes:
    """Return Unix seconds as RFC 3339 in UTC, cut (never rounded up) to the millisecond."""
    milliseconds = int(now * 1000)
    moment = datetime.fromtimestamp(milliseconds // 1000, UTC)
    return b"%b.%03dZ" % (moment.strftime("%Y-%m-%dT%H:%M:%S").encode(), milliseconds % 1000)


class _Stamper:
    """Stamps lines of which each may lack something else."""

    def __init__(self, now: float) -> None:
        self._now = now
        self._time = iso(now)
        self._ids: list[bytes] = []

    def stamp(self, line: bytes, facts: Facts) -> bytes:
        """Return `line` with an id and a timestamp."""
        added = b""
        if not facts.identity:
            if not self._ids:
                self._ids = uuid7_block(self._now, 256)[::-1]
            if b'"external_id"' in line:
                line = _without(line, "external_id")
            added = b',"external_id":"%b"' % self._ids.pop()
        if facts.timestamp is None:
            if facts.idle_customer_id:
                # Of an event with both ids Polar takes the external one; but with a timestamp, which
                # we are about to add, its choice between its two kinds of event would be the other.
                rest = _without(line, "customer_id")
                added += b',"customer_id":null' if rest is line else b""
                line = rest
            added += b',"timestamp":"%b"' % self._time
        return line[:-1] + added + b"}" if added else line


def _without(line: bytes, name: str) -> bytes:
    """Take a member out of an object, every other value as it was written.

    Where msgspec cannot read the line (`NaN` in a field that Polar ignores), it stays: of
    two members of one name, the later wins with every reader that the server uses.
    """
    try:
        members = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return line
    members.pop(name, None)
    return msgspec.json.encode(members)
