"""The ends of files: read to where nobody writes any more, or cut off."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from agent.logs import get
from agent.tail.block import Kind
from agent.tail.identity import is_rotated, same_family
from agent.tail.marks import is_cut
from agent.tail.recognition import SETTLED_SECONDS, State
from agent.tail.tailed import Key, Tailed, shown
from agent.tail.turn import Turn

if TYPE_CHECKING:
    from agent.clock import Clock
    from agent.queue import Checkpoint
    from agent.tail.arrivals import Arrivals
    from agent.tail.files import Files
    from agent.tail.marks import Marks
    from agent.tail.reading import Reading

_QUIET_SECONDS = 1.0
"""So long must a file be quiet that nobody writes to before it is closed."""
_DOUBTFUL_SECONDS = 60.0
"""The same for one of which nobody can say whether somebody writes to it."""


class Endings:
    """Tells whether a file is read to its end, and what becomes of it then."""

    def __init__(
        self,
        files: Files,
        marks: Marks,
        arrivals: Arrivals,
        reading: Reading,
        clock: Clock,
    ) -> None:
        self._files = files
        self._marks = marks
        self._arrivals = arrivals
        self._reading = reading
        self._clock = clock
        self._log = get("tail")

    def ending(self, tailed: Tailed) -> Turn:
        """A file is read to its end, up to a line without a newline perhaps: see whether that is all."""
        if tailed.state is State.AWAY and (tailed.file is None or (tailed.copy_of and not tailed.waiting)):
            self._files.drop(tailed)
            return Turn.NOTHING
        if not self._is_complete(tailed):
            return Turn.NOTHING
        # Nobody writes: what is there now is all that there will be.
        if self._arrivals.know(tailed, whole=True):
            block = self._reading.next(tailed, final=True)
            if block is None:
                return Turn.NOTHING
            if block.kind is not Kind.NOTHING:
                if block.kind is Kind.CHANGED:
                    self.was_cut(tailed)
                elif not self._reading.take(tailed, block):
                    return Turn.NOTHING
                return Turn.MORE
        if tailed.state is State.AWAY or (tailed.file is not None and tailed.file.compressed):
            self._is_done(tailed)
        return Turn.NOTHING

    def _is_complete(self, tailed: Tailed) -> bool:
        """Tell whether nothing will be added to a file, as far as that can be told."""
        file = tailed.file
        if file is None or tailed.copy_of or tailed.waiting:
            return False
        if tailed.state is State.AWAY:
            needed = _QUIET_SECONDS
        elif file.compressed:
            needed = 0.0
        elif is_rotated(shown(tailed.target)):
            needed = SETTLED_SECONDS
        else:
            return False
        quiet = self._clock.monotonic() - tailed.changed
        if quiet < needed:
            return False
        written = file.is_written()
        return quiet >= _DOUBTFUL_SECONDS if written is None else not written

    def _is_done(self, tailed: Tailed) -> None:
        """Remember that a file is read to its end, and close it."""
        if tailed.at is not None and not tailed.at.done:
            self._marks.put(tailed, msgspec.structs.replace(tailed.at, done=True), persist=True)
        if tailed.state is State.AWAY:
            if tailed.at is not None:
                # Others may have come and gone after it before anybody knew what it is.
                self._arrivals.look_beside([tailed.at])
            self._files.drop(tailed)

    def was_cut(self, tailed: Tailed) -> None:
        """A file is not what it was: look for what was not read of it, and take it for another one."""
        old = tailed.at
        assert old is not None  # noqa: S101 - else nobody could tell
        self._marks.cut_off(old)
        self._log.info("a file was truncated or written anew", path=old.path, read=old.offset)
        for other in list(self._files.by_key.values()):
            if other.at is None and other is not tailed and same_family(shown(other.target), old.place):
                self._arrivals.know(other)
        if self._marks.known.state(old.id) is State.CUT:
            self._arrivals.look_beside([old])
        if self._marks.known.state(old.id) is State.CUT and tailed.size > old.offset:
            self._log.warning("what was not read of it is gone", path=old.path)
        tailed.from_end = False

    def cut_meanwhile(self) -> list[Checkpoint]:
        """Find the files that were cut while nobody looked, and return what is known of them."""
        cut = []
        for at in self._marks.known.all():
            tailed = self._files.by_key.get(Key(at.device, at.inode))
            if at.done or tailed is None or tailed.file is None:
                continue
            try:
                is_other = is_cut(tailed.file, at)
            except OSError:
                continue
            if is_other:
                self._marks.cut_off(at)
                cut.append(at)
        return cut
