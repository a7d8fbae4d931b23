"""Lines were read twice, under two ids, when a file was truncated between being found and being read.

Nothing was read of it yet, so no bytes before its checkpoint told that it was another one by then: the
new lines were taken under the identity of the old ones, and once more, under their own, in the next copy.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from support.tails import Desk, line

from agent.tail import Table

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("timed", [True, False], ids=["with times", "without"])
def test_each_line_is_taken_once_although_the_queue_was_full_while_files_were_rotated(
    tmp_path: Path, *, timed: bool
) -> None:
    log = tmp_path / "app.log"
    desk = Desk(tmp_path, Table(str(log)))

    def write(*names: str) -> None:
        with log.open("ab") as file:
            for number, name in enumerate(names):
                time = {"timestamp": f"2026-01-01T00:00:0{number}Z"} if timed else {}
                file.write(line(name, **time))

    def rotate() -> None:
        for number in (2, 1):
            if (tmp_path / f"app.log.{number}").exists():
                (tmp_path / f"app.log.{number}").rename(tmp_path / f"app.log.{number + 1}")
        shutil.copy2(log, tmp_path / "app.log.1")
        os.truncate(log, 0)

    write("a", "b")
    desk.look_while_full()
    rotate()
    write("c", "d", "e")
    desk.settle(20)
    rotate()
    write("f")
    desk.settle(20)

    assert sorted(desk.names()) == ["a", "b", "c", "d", "e", "f"]
    desk.close()
