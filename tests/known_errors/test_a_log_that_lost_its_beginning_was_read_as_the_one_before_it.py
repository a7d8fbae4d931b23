"""Acknowledged events were lost, and not counted, when the beginning of SQLite's log was damaged.

A log begins anew in the same file, over the one before it. Where its header was gone, most frames
decided which of the two it was: those of the older one, whose events had long been moved.
"""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from support.damage import INDEX, LOG, copy, reports, write
from support.queues import chunk_of, pending

from agent.queue import Change
from agent.queue.disk import DiskQueue

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("index", [True, False], ids=["with the index", "without the index"])
@pytest.mark.parametrize(
    "size", [32, 4096, 8272], ids=["the header", "a block of the disk", "two frames more"]
)
def test_what_was_committed_since_the_log_began_anew_is_rescued(
    tmp_path: Path, size: int, *, index: bool
) -> None:
    names = [f"event-{number}" for number in range(20)]
    with closing(DiskQueue(tmp_path / "live")) as queue:
        for number, name in enumerate(names):
            if number == len(names) - 2:
                queue._backfill._run("PASSIVE")  # all of it is moved: the log begins anew
            queue.commit(Change(appends=[chunk_of(name)]))
        killed = copy(tmp_path / "live", tmp_path / "killed")
    write(killed / LOG, 0, bytes(size))
    if not index:
        (killed / INDEX).unlink()

    with closing(DiskQueue(killed)) as queue:
        assert pending(queue) == names

    (report,) = reports(killed)
    assert json.loads(report.read_text())["events_lost"] == 0
