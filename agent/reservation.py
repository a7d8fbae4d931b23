"""What one request wants remembered, until it is known whether it stays. Pure.

A source whose events are always kept enters them in `agent.seen` at once. A call over
HTTP can still be turned away after its check: by the disk, or since one of its events is
refused. Were its events entered by then, a repeat on another connection would be
acknowledged with nothing behind it. So they are entered once they are durable; and those of a
tailed file with refused lines once it is known that there is room for these.

Checking a large request takes a second, and no source may hold up the others for so long. So
what is remembered is asked event by event, and in the end whether those answers still stand.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import TYPE_CHECKING

from agent.seen import Seen, identity_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agent.seen import Lasting


class Reservation:
    """The events of one request, beside those that are remembered; asked like `Seen`.

    Args:
        seen: what came lately; only asked, until `keep`.
        order: `Writer.order`, held for each question; None where the caller holds it all the time.
    """

    def __init__(self, seen: Lasting, order: AbstractContextManager[object] | None = None) -> None:
        self._seen = seen
        self._order = order or nullcontext()
        self._repeated: list[str] = []
        self._own = Seen(sys.maxsize)
        self._entered: list[tuple[Sequence[str], bytes]] = []

    def enter(self, ids: Sequence[str], block: bytes) -> bool:
        """Reserve events if every one of them is new; else none, and return False."""
        with self._order:
            known = self._seen.first_repeat(ids) >= 0
        if known or not self._own.enter(ids, block):
            return False
        self._entered.append((ids, block))
        return True

    def first_repeat(self, ids: Iterable[str]) -> int:
        """Return the place of the first id that is known or stood there before; -1 when none is."""
        ids = list(ids)
        with self._order:
            known = self._seen.first_repeat(ids)
        places = known, self._own.first_repeat(ids)
        return min((place for place in places if place >= 0), default=-1)

    def repeats(self, identity: str, line: bytes) -> bool | None:
        """Reserve an event if it is new, and return None; else tell whether it is the same as its first."""
        with self._order:
            same = self._seen.ask(identity, line)
        if same is not None:
            self._repeated.append(identity)
            return same
        same = self._own.repeats(identity, line)
        if same is None:
            self._entered.append(((identity,), line))
        return same

    def stands(self) -> bool:
        """Tell whether all is still as it was answered. Call it with `Writer.order` held.

        Not so, what was new came on another way meanwhile, or what came before was forgotten.
        """
        entered = chain.from_iterable(ids for ids, _ in self._entered)
        return self._seen.first_repeat(entered) < 0 and all(map(self._seen.knows, self._repeated))

    def keep(self) -> None:
        """Have the events remembered: they are durable. Call it with `Writer.order` held."""
        for ids, block in self._entered:
            if not self._seen.enter(ids, block):
                # Some came on another way at the same moment: one of each is remembered.
                for line in block.split(b"\n"):
                    identity = identity_of(line)
                    if identity:
                        self._seen.repeats(identity, line)

    def __bool__(self) -> bool:
        """Tell whether there is anything to remember."""
        return bool(self._entered)
