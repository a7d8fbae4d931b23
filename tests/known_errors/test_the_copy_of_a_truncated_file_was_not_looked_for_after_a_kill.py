"""Lines were lost when the agent was killed between noticing that a file was truncated and finding its copy.

The checkpoint said by then that the file was done with.
"""

from __future__ import annotations

import gzip
import os
from typing import TYPE_CHECKING

import pytest
from support.tails import Desk, line

from agent.tail import Table

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("more", [[], ["c"]], ids=["empty", "written anew"])
@pytest.mark.parametrize("killed", [True, False])
def test_the_copy_of_a_truncated_file_is_read_when_it_comes(
    tmp_path: Path, killed: bool, more: list[str]
) -> None:
    log, copy = tmp_path / "app.log", tmp_path / "app.log.1.gz"
    desk = Desk(tmp_path, Table(str(log)))
    log.write_bytes(line("a", timestamp="2026-01-01T00:00:00Z"))
    desk.settle()
    with log.open("ab") as file:
        file.write(line("b", timestamp="2026-01-01T00:00:01Z"))
    packed, times = gzip.compress(log.read_bytes()), log.stat()
    os.truncate(log, 0)
    with log.open("ab") as file:
        file.write(b"".join(line(name, timestamp="2026-01-01T00:00:02Z") for name in more))
    desk.look()
    desk.look()
    desk.commit()
    if killed:
        desk.kill()
    copy.write_bytes(packed)
    os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
    if killed:
        desk.start()
    desk.settle(20)

    assert sorted(desk.names()) == ["a", "b", *more]
    desk.close()
