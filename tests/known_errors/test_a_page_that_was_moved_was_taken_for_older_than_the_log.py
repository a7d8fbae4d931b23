"""Events that were whole in the database were lost, where what is in it was thought to be older than the log.

What was made of the log when its index was gone, or while its pages were being moved, does not say
which of them the database has already. Where the newest state of a page is damaged in the log, the
database may have it; the older one in the log was taken, and what it did not list was left out.
"""

from __future__ import annotations

import random
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from support.damage import INDEX, LOG, copy, reports, write
from support.queues import line, pending

from agent.queue import Change, Chunk, wal
from agent.queue.disk import DiskQueue

if TYPE_CHECKING:
    from pathlib import Path

_FRAME = 24 + 4096
_MOVED_AT = 96  # where the index tells how many frames were moved


def wide_chunk(name: str) -> Chunk:
    """Return a chunk that cannot be compressed to less than 700 bytes: two of them fill a page."""
    filler = random.Random(name).randbytes(700).hex().encode()
    return Chunk(line(name)[:-1] + b',"metadata":{"filler":"%b"}}' % filler, 1, 0)


@pytest.mark.parametrize("tells", ["is gone", "is of a move that was broken off"])
def test_what_is_damaged_in_the_log_is_taken_from_the_database(tmp_path: Path, tells: str) -> None:
    """The index tells what was moved, if it is there and the move has ended."""
    names = [f"event-{number}" for number in range(8)]
    ends = []
    with closing(DiskQueue(tmp_path / "live")) as queue:
        for name in names:
            queue.commit(Change(appends=[wide_chunk(name)]))
            ends.append(wal.taken(tmp_path / "live" / INDEX))
        queue._backfill._run("PASSIVE")
        killed = copy(tmp_path / "live", tmp_path / "killed")
    if tells == "is gone":
        (killed / INDEX).unlink()
    else:
        write(killed / INDEX, _MOVED_AT, bytes(4))
    begin, end = ends[2:4]  # the fourth commit is the last one that writes its page
    write(killed / LOG, 32 + begin * _FRAME, bytes((end - begin) * _FRAME))

    with closing(DiskQueue(killed)) as queue:
        assert pending(queue) == names

    assert len(reports(killed)) == 1
