"""All of SQLite's log was lost, and not counted, where its first commit was damaged and its index gone.

SQLite then takes nothing of the log, and makes an index that says so: nothing is in the log, all of
it is in the database. That was believed.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from support.damage import INDEX, LOG, copy, reports, write
from support.queues import chunk_of, pending

from agent.queue import Change
from agent.queue.disk import DiskQueue

if TYPE_CHECKING:
    from pathlib import Path


def test_what_stands_behind_a_first_commit_that_is_damaged_is_rescued(tmp_path: Path) -> None:
    names = [f"event-{number}" for number in range(5)]
    with closing(DiskQueue(tmp_path / "live")) as queue:
        for name in names:
            queue.commit(Change(appends=[chunk_of(name)]))
        killed = copy(tmp_path / "live", tmp_path / "killed")
    (killed / INDEX).unlink()
    write(killed / LOG, 32 + 24, bytes(4096))

    with closing(DiskQueue(killed)) as queue:
        assert pending(queue) == names

    assert len(reports(killed)) == 1
