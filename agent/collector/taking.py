"""Checks the lines of many producers in one call, hands them to the writer, and answers each producer.

The answers: `{"ack":N}` once the first N non-blank lines of a connection are settled with us, and
`{"line":N,"error":{…}}` for each refused one, before the ack that covers it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from agent import refusal
from agent.collector.connection import MAX_WAITING_ANSWERS, Connection
from agent.event import Checked, Checker, Fate
from agent.seen import identity_of
from agent.writer import Append, Writer

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.clock import Clock
    from agent.framing import Segment
    from agent.meters import Meters
    from agent.seen import Seen


@dataclass(slots=True)
class Gathered:
    """Lines of many connections, in order of reading.

    Attributes:
        segments: the lines.
        owners: whose each of them is.
        size: bytes.
        patient: nobody waits for an ack.
    """

    segments: list[Segment]
    owners: list[Connection]
    size: int = 0
    patient: bool = True


class Taking:
    """See the module.

    Args:
        checker: what is taken and what is refused.
        seen: what came lately.
        writer: where accepted lines go.
        meters: where refusals are noted.
        clock: for the time of refusals.
        server_now: Unix time in seconds by the server's clock.
        wake: called in the writer's thread when there is something in `attention`.

    Attributes:
        attention: connections that were answered and have to be looked at again.
    """

    def __init__(
        self,
        checker: Checker,
        seen: Seen,
        writer: Writer,
        meters: Meters,
        clock: Clock,
        *,
        server_now: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        self._checker = checker
        self._seen = seen
        self._writer = writer
        self._meters = meters
        self._clock = clock
        self._server_now = server_now
        self._wake = wake
        self.attention: deque[Connection] = deque()

    def submit(self, gathered: Gathered) -> None:
        """Check gathered lines and hand them to the writer."""
        with self._writer.order:
            self._submit_in_order(gathered)

    def _submit_in_order(self, gathered: Gathered) -> None:
        """Do the work of `submit`, alone among all sources."""
        drops = self._writer.drops
        full = self._writer.full if drops else None
        seen = None if full else self._seen  # what is dropped may come again
        checked = self._checker.check(gathered.segments, self._server_now(), seen)
        refused, dropped = checked.refused, 0
        if full:
            dropped = checked.accepted
            checked = refuse_all(checked, full)
        if refused:
            reasons = (why for fate in checked.fates for _, why in fate.refused)
            self._meters.refuse("socket", reasons, self._clock.wall())
        for owner, fate in zip(gathered.owners, checked.fates, strict=True):
            owner.learn(fate.lines, len(fate.refused))
        first = {owner: owner.lines for owner in gathered.owners}
        settled = answers_to(gathered.owners, checked, first)
        for owner, acked, _ in settled:
            owner.lines = acked
            owner.begin()
        append = Append(
            checked.groups,
            checked.held,
            refused=refused,
            dropped=dropped,
            done=lambda durable: self._settled(settled, durable),
            patient=gathered.patient,
            repeated=checked.repeated,
        )
        if drops:
            append.overflow = partial(self._overflow, settled, gathered.owners, checked, first)
        self._writer.append(append)

    def _overflow(
        self,
        settled: list[tuple[Connection, int, bytes]],
        owners: list[Connection],
        checked: Checked,
        first: dict[Connection, int],
        reason: str,
    ) -> None:
        """Refuse what was taken and finds no room after all; runs in the writer's thread."""
        settled[:] = answers_to(owners, refuse_all(checked, reason), first)
        lines = [line for group, _ in checked.groups for line in group.split(b"\n")]
        self._seen.forget(identity_of(line) for line in (*lines, *(line for _, line in checked.held)))

    def _settled(self, settled: list[tuple[Connection, int, bytes]], durable: bool) -> None:
        """Answer the producers of one group of lines; runs in the writer's thread."""
        look = False
        for connection, acked, answers in settled:
            if not durable:
                connection.abandon()
            elif connection.end(acked, answers):
                self.attention.append(connection)
                look = True
        if look:
            self._wake()


def answers_to(
    owners: list[Connection], checked: Checked, first: dict[Connection, int]
) -> list[tuple[Connection, int, bytes]]:
    """Return what to answer to whom: its last line, and the refusals.

    Args:
        owners: of each segment.
        checked: the outcome, a fate for each segment.
        first: how many lines each owner had sent before.
    """
    answers: dict[Connection, tuple[int, bytearray]] = {}
    for owner, fate in zip(owners, checked.fates, strict=True):
        lines, known = answers.get(owner) or (first[owner], bytearray())
        for number, why in fate.refused:
            if len(known) > MAX_WAITING_ANSWERS:
                break  # the connection would drop them
            known += why.answer(lines + number)
        answers[owner] = (lines + fate.lines, known)
    return [(owner, lines, bytes(known)) for owner, (lines, known) in answers.items()]


def refuse_all(checked: Checked, reason: str) -> Checked:
    """Return the outcome with every fine line refused: there is no room, and the operator chose to drop."""
    full = refusal.queue_full(f"{reason}; dropped, as when_full says")
    fates = []
    for fate in checked.fates:
        refused = dict(fate.refused)
        fates.append(Fate(fate.lines, [(n, refused.get(n, full)) for n in range(1, fate.lines + 1)]))
    return Checked([], [], fates)
