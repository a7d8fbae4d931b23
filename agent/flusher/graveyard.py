"""Where dead letters go, and what happens when there is no place for more.

Their number is bounded, and none is ever dropped for that: at the bound further bad
events wait, pending, and are buried as soon as there is room. All others go on. Only
when so many wait that memory would grow, nothing is sent any more until somebody has
retried or purged some.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from agent.flusher.letters import dead_letters
from agent.logs import get

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.batch import Batch
    from agent.clock import Clock
    from agent.queue import DeadLetter, Queue
    from agent.verdict import Fault
    from agent.writer import Writer

LOOK_SECONDS = 1.0
"""How often to look for room, while something waits."""
WARN_SHARE = 0.8
_CALM_SHARE = 0.7
_MOST_WAITING_BYTES = 16 << 20
HINT = "see `agent dead list`; then retry, or export and purge, or raise max_dead_letters"


class Graveyard:
    """Buries events.

    Args:
        store: counts the dead letters.
        writer: where settlements go.
        clock: for the time of death.
        most: how many dead letters are kept.
    """

    def __init__(self, store: Queue, writer: Writer, clock: Clock, most: int) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock
        self.most = most
        self._log = get("flusher")
        self._waiting: deque[tuple[Batch, list[DeadLetter]]] = deque()
        self._waiting_bytes = 0
        self._handed = 0  # to the writer, and perhaps not in the books yet
        self._warned = False
        self._full = False

    def __bool__(self) -> bool:
        """Tell whether events wait for room."""
        return bool(self._waiting)

    @property
    def crowded(self) -> bool:
        """True when so much waits that nothing more can be sent."""
        return self._waiting_bytes > _MOST_WAITING_BYTES

    @property
    def trouble(self) -> str | None:
        """Say what is wrong, and what to do; None when there is room."""
        if not self._waiting:
            return None
        events = sum(len(letters) for _, letters in self._waiting)
        return f"{events} refused events find no place among {self.most} dead letters; {HINT}"

    @property
    def room(self) -> int:
        """How many more dead letters may be made; from any thread."""
        return max(0, self.most - self._store.books().dead - self._handed)

    def bury(self, batch: Batch, faults: Sequence[Fault], status: int) -> None:
        """Make dead letters of a whole batch, as soon as there is room for them."""
        letters = dead_letters(batch, faults, status, self._clock.wall())
        self._waiting.append((batch, letters))
        self._waiting_bytes += batch.weight
        self.work()

    def work(self) -> None:
        """Bury what waits, as far as there is room."""
        if not self._writer.settling:
            self._handed = 0
        dead = self._store.books().dead + self._handed
        while self._waiting and dead < self.most:
            batch, letters = self._waiting.popleft()
            self._waiting_bytes -= batch.weight
            room = self.most - dead
            if room < len(letters):
                rest = batch.choose(range(room, len(letters)))
                self._waiting.appendleft((rest, letters[room:]))
                self._waiting_bytes += rest.weight
                batch, letters = batch.choose(range(room)), letters[:room]
            self._writer.settle(batch.settlements(dead=letters))
            self._handed += len(letters)
            dead += len(letters)
            self._log.warning(
                "events became dead letters",
                count=len(letters),
                status=letters[0].status,
                batch=batch.id,
                reason=letters[0].reason,
                hint="see `agent dead list`",
            )
        self._watch(dead)

    def _watch(self, dead: int) -> None:
        """Warn before there is no room, and tell when there is none; a line when that changes."""
        full = bool(self._waiting)
        if full and not self._full:
            self._log.error("there is no room for more dead letters: refused events wait", hint=HINT)
        elif self._full and not full:
            self._log.info("there is room for dead letters again")
        self._full = full
        if dead >= WARN_SHARE * self.most and not self._warned:
            self._warned = True
            self._log.warning("many dead letters", dead=dead, max_dead_letters=self.most, hint=HINT)
        elif dead < _CALM_SHARE * self.most:
            self._warned = False
