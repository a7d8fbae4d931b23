"""Takes what comes next in a file, and hands it to the writer together with the checkpoint behind it."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from agent.errors import reason_of
from agent.logs import get
from agent.tail.block import Block, Kind, advance, beginning, next_block, pieces, skips, wants_head
from agent.tail.helper import Helper
from agent.tail.identity import HEAD_BYTES
from agent.tail.order import InOrder
from agent.tail.tailed import Key, Tailed, shown
from agent.tail.taking import Place, Taken, Taking
from agent.writer import Append

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from agent.clock import Clock
    from agent.event import Checker
    from agent.queue import Checkpoint
    from agent.seen import Lasting
    from agent.tail import Table
    from agent.tail.files import Files
    from agent.tail.marks import Marks
    from agent.writer import Writer

_PIECE_BYTES = 256 * 1024
"""So much is checked at once: what is made of more does not stay in the processor's caches."""
_MOST_IN_FLIGHT = 2 << 20
_CROWDED = "there is no room for more dead letters: refused lines wait in their files"
_CROWDED_HINT = "see `agent dead list`; then retry, or export and purge, or raise max_dead_letters"


class Reading:
    """See the module; most arguments are those of `agent.tail.tail.Tail`.

    Args:
        read_bytes: so much is read at once.

    Attributes:
        taken: bytes read since the start.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        checker: Checker,
        files: Files,
        marks: Marks,
        *,
        writer: Writer,
        seen: Lasting,
        clock: Clock,
        server_now: Callable[[], float],
        read_bytes: int,
        room_for_letters: Callable[[], int],
    ) -> None:
        self._helper = None if checker.personal_token else Helper(tables, clock)
        self._takings = [Taking(checker, table, number, self._helper) for number, table in enumerate(tables)]
        self._files = files
        self._marks = marks
        self._writer = writer
        self._seen = seen
        self._clock = clock
        self._server_now = server_now
        self._max_line_bytes = checker.max_line_bytes
        self._read_bytes = read_bytes
        self._room_for_letters = room_for_letters
        self._letters_handed = 0  # to the writer
        self._letters_written = 0  # by it
        self._bytes_handed = 0
        self._bytes_written = 0
        self._room = threading.Event()
        self._crowded: dict[Key, str] = {}  # files whose next line would be one dead letter too many
        self._log = get("tail")
        self.taken = 0

    def next(self, tailed: Tailed, *, final: bool = False) -> Block | None:
        """Return the next block of a file; None when it cannot be read."""
        at, file = tailed.at, tailed.file
        assert at is not None  # noqa: S101 - it is known
        assert file is not None  # noqa: S101 - it is open
        try:
            before, rest = file.read_behind(at.offset, at.tail_bytes, self._read_bytes)
        except OSError as error:
            self._files.trouble(tailed, reason_of(error))
            return None
        self._files.over(tailed)
        return next_block(at, before, rest, self._max_line_bytes, final=final)

    def take(self, tailed: Tailed, block: Block) -> bool:
        """Hand a block to the writer, with the checkpoint behind it; False when there is no room for it."""
        if self._helper is not None:
            self._helper.note(block.size)
        try:
            with InOrder(self._seen, self._writer.order) as seen:
                return self._take_in_order(tailed, block, seen)
        except OSError as error:
            self._files.trouble(tailed, reason_of(error))
            return False

    def _take_in_order(self, tailed: Tailed, block: Block, seen: InOrder) -> bool:
        """Do what `take` says."""
        at, file = tailed.at, tailed.file
        assert at is not None  # noqa: S101 - as above
        assert file is not None  # noqa: S101 - as above
        # Nothing may fail once events are remembered: lines that are read again would repeat them.
        head = file.read(0, HEAD_BYTES) if wants_head(at) else b""
        place = Place(at.id, at.path, at.offset, at.line)
        taken, wall = Taken(), self._clock.wall()
        skipping = skips(block)
        size = block.size
        if block.kind is Kind.LINES:
            stopped = self._take_lines(taken, tailed.table, place, block.data, seen)
            size = size if stopped is None else stopped
        else:
            taken.lines = int(block.ended)
            if block.kind is Kind.TOO_LONG:
                taken.letters = [self._takings[tailed.table].too_long(place, block.data, wall=wall)]
                size = size if self._letters_room() else 0
        if size < block.size:
            # The file keeps the line that would be one dead letter too many, and what is behind it.
            self._crowd(tailed)
            if not size:
                return False
            block = beginning(block, size)
        after = advance(at, block, head, lines=taken.lines)
        after = msgspec.structs.replace(
            after,
            skipping=skipping,
            refused=at.refused + len(taken.letters),
            last_line_at=wall if taken.events else at.last_line_at,
        )
        if taken.letters and not at.refused:
            self._log.warning("lines of a file are refused: see `agent dead list`", path=at.path)
        self.taken += block.size
        self._marks.put(tailed, after)
        self._hand_over(taken, block.size, after)
        return True

    def _take_lines(self, taken: Taken, table: int, place: Place, lines: bytes, seen: InOrder) -> int | None:
        """Take lines up to one that would be a dead letter too many.

        Returns:
            Where that one begins, from the first on; None when there is none.
        """
        room = self._letters_room()
        taking, now = self._takings[table], self._server_now()
        take = partial(taking.take, now=now, wall=self._clock.wall())
        for start, piece, ticket in _asked_for(taking, place, lines, now):
            line = None if place.line is None else place.line + taken.lines
            here = place._replace(offset=place.offset + start, line=line)
            more = take(here, piece, seen, ticket=ticket)
            left = room - len(taken.letters)
            if len(more.letters) > left:
                fitting = (more.letters[left].offset or 0) - here.offset
                # NUL bytes before it stay with it, so that lines are counted right.
                fitting = piece.rfind(b"\n", 0, fitting) + 1
                if fitting:
                    taken.add(take(here, piece[: fitting - 1], seen))
                return start + fitting
            taken.add(more)
        return None

    def _hand_over(self, taken: Taken, size: int, after: Checkpoint) -> None:
        """Give the writer what became of a block of so many bytes, and the checkpoint behind it."""
        self._letters_handed += len(taken.letters)
        self._bytes_handed += size
        self._writer.append(
            Append(
                taken.groups,
                taken.held,
                0,
                0,
                partial(self._wrote, size, len(taken.letters)),
                patient=True,
                source="tail",
                letters=taken.letters,
                checkpoint=after,
                repeated=taken.repeated,
            )
        )

    def wait_for_room(self, seconds: float) -> bool:
        """Wait until not too much of what was handed over waits for the disk."""
        self._room.clear()
        if self._bytes_handed - self._bytes_written <= _MOST_IN_FLIGHT:
            return True
        return self._clock.wait(self._room, seconds)

    def rest(self) -> None:
        """Give back what only the reading of large files needs, where none was read for a while."""
        if self._helper is not None:
            self._helper.rest()

    def close(self) -> None:
        """End what was started."""
        if self._helper is not None:
            self._helper.close()

    def uncrowded(self) -> list[Key]:
        """Return the files that waited for room for their dead letters, once there is some."""
        if not self._crowded or not self._letters_room():
            return []
        keys, self._crowded = list(self._crowded), {}
        self._log.info("there is room for dead letters again: files are read on")
        return keys

    def _crowd(self, tailed: Tailed) -> None:
        """Note that a file waits for room for its dead letters."""
        if not self._crowded:
            self._log.error(_CROWDED, path=shown(tailed.path), hint=_CROWDED_HINT)
        self._crowded[tailed.key] = shown(tailed.path)

    def _letters_room(self) -> int:
        """Return how many more dead letters may be made."""
        return max(0, self._room_for_letters() - (self._letters_handed - self._letters_written))

    def _wrote(self, size: int, letters: int, durable: bool) -> None:
        """Note that a block is in the books, and its dead letters; in the writer's thread."""
        del durable
        self._letters_written += letters
        self._bytes_written += size
        self._room.set()

    def problems(self) -> list[tuple[str, str]]:
        """Return the paths of files that wait, and why; from any thread."""
        return [(path, f"{_CROWDED}; {_CROWDED_HINT}") for path in dict(self._crowded).values()]


def _asked_for(
    taking: Taking, place: Place, lines: bytes, now: float
) -> Iterator[tuple[int, bytes, int | None]]:
    """Yield pieces: where each begins, its lines, and its ticket. The next one is asked for before."""
    ahead: tuple[int, bytes, int | None] | None = None
    for start, piece in pieces(lines, _PIECE_BYTES):
        ticket = taking.ask(place.identity, place.offset + start, piece, now)
        if ahead is not None:
            yield ahead
        ahead = start, piece, ticket
    if ahead is not None:
        yield ahead
