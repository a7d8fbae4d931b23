"""SQLite's locks are the process's: whoever closes any descriptor of such a file drops all that it has there.

To count what is in its log, the queue opened the log's index before each move, and closed it. From then on
any other program that opens the database for writing, as SQLite's own shell or a backup does, took it for
one that nobody uses, and made the index anew under the daemon, which may be using it.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from support.damage import INDEX
from support.queues import chunk_of, delivered

from agent.queue import Change
from agent.queue.disk import DiskQueue

if TYPE_CHECKING:
    from pathlib import Path

# The byte that every connection to a database holds a shared lock of (`UNIX_SHM_DMS` of SQLite).
LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as index:
    fcntl.lockf(index, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 128)
"""


def is_locked(index: Path) -> bool:
    """Tell whether another process finds the index in use."""
    done = subprocess.run([sys.executable, "-c", LOCK, index], capture_output=True, text=True, check=False)
    return "BlockingIOError" in done.stderr


def test_the_database_stays_locked_whatever_the_queue_does(tmp_path: Path) -> None:
    with closing(DiskQueue(tmp_path)) as queue:
        keys = queue.commit(Change(appends=[chunk_of("a"), chunk_of("b")]))
        assert is_locked(tmp_path / INDEX)
        queue._backfill._most = 1  # each commit moves the log, if something is in it

        queue.commit(Change(appends=[chunk_of("c")]))
        queue.commit(Change(settlements=[delivered(keys[0])]))
        queue.recover()
        queue.recover(short=True)
        queue.audit()
        queue.get(queue.first_key())

        assert is_locked(tmp_path / INDEX)
