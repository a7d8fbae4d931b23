"""Sees whether the daemon's threads live: each look pokes them, and the next finds out who moved.

A thread that has nothing to do moves when it is poked, so one that does not move is stuck,
be it in a deadlock or in a system call. What counts is looks, not seconds: a process that
was suspended, or that gets no processor, finds its threads as late as itself.
"""

from __future__ import annotations

import sys
import threading
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

UNWELL_LOOKS = 4
STUCK_LOOKS = 24


class Watched(Protocol):
    """A thread's owner."""

    beat: float
    """When the thread moved last."""

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        ...

    def poke(self) -> None:
        """Make the thread move."""
        ...


@dataclass(slots=True)
class _Pulse:
    beat: float
    missed: int = 0


class Watch:
    """Watches threads by their names.

    Args:
        threads: their owners.
        stuck_looks: after so many looks without a move, a thread is given up.
    """

    def __init__(self, threads: Mapping[str, Watched], stuck_looks: int = STUCK_LOOKS) -> None:
        self._threads = threads
        self._stuck_looks = stuck_looks
        self._pulses = {name: _Pulse(thread.beat) for name, thread in threads.items()}

    def look(self) -> None:
        """See who has moved since the last look, and poke everybody."""
        for name, thread in self._threads.items():
            pulse = self._pulses[name]
            if thread.beat != pulse.beat or getattr(thread, "patient", False):
                pulse.beat, pulse.missed = thread.beat, 0
            else:
                pulse.missed += 1
            thread.poke()

    def unwell(self) -> str | None:
        """Return which thread does not move, though it may yet; None when all do."""
        return self._find(min(UNWELL_LOOKS, self._stuck_looks))

    def lost(self) -> str | None:
        """Return which thread is dead or stuck for good; None when none is."""
        return self._find(self._stuck_looks)

    def _find(self, looks: int) -> str | None:
        for name, thread in self._threads.items():
            if not thread.alive:
                return f"the {name} thread has died"
            if self._pulses[name].missed >= looks:
                return f"the {name} thread is stuck{_where(name)}"
        return None


def _where(name: str) -> str:
    """Return where in the code a thread is, without any value of it."""
    for thread in threading.enumerate():
        frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001  # the only way to see it
        if thread.name == name and frame is not None:
            calls = traceback.extract_stack(frame)[-4:]
            return " in " + " > ".join(f"{call.name} ({call.filename}:{call.lineno})" for call in calls)
    return ""
