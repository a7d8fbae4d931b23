"""Who looks for the oldest chunk between a commit and the moment at which the books know of it found damage.

The daemon then set a sound queue aside and copied it, with an alarm; on a busy machine that came
about by itself.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from support.processes import PATIENCE
from support.queues import chunk_of

from agent.queue import Change
from agent.queue.disk import DiskQueue

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


class WantedLock:
    """A lock that tells when somebody else waits for it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.wanted = threading.Event()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.wanted.set()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_reader_between_the_commit_and_the_books_finds_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = DiskQueue(tmp_path)
    lock = WantedLock()
    monkeypatch.setattr(queue, "_write", lock)
    note = queue._names.note
    found: list[int] = []
    reader = threading.Thread(target=lambda: found.append(queue.first_key()))

    def read_meanwhile() -> None:
        note()
        reader.start()
        assert lock.wanted.wait(PATIENCE)

    monkeypatch.setattr(queue._names, "note", read_meanwhile)
    keys = queue.commit(Change(appends=[chunk_of("a")]))
    reader.join(PATIENCE)

    assert found == list(keys)
    assert not list(tmp_path.glob("quarantine*"))
    queue.close()
