"""A file was passed over when it was written before the time at which the one before it was read.

The agent was behind: it read the last lines of one file when others had come and gone already. Killed
when the first was read to its end and before a line of the others was taken, it compared their times
with that of its last reading, and took them for files from before it was there.
"""

from __future__ import annotations

import gzip
import os
import time
from typing import TYPE_CHECKING

import pytest
from support.tails import Desk, line

from agent.tail import Table

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("rotation", ["create", "copytruncate"])
@pytest.mark.parametrize("looks", range(12))
def test_no_kill_while_the_agent_is_behind_costs_a_rotated_file(
    tmp_path: Path, rotation: str, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "app.log"
    desk = Desk(tmp_path, Table(str(log)), max_line_bytes=1000, block_bytes=1)
    now = time.time()

    def write(*names: str, at: float) -> None:
        with log.open("ab") as file:
            file.write(b"".join(line(name, filler="x" * 40) for name in names))
        os.utime(log, (at, at))

    def rotate(at: float) -> None:
        for number in range(4, 0, -1):
            if (older := tmp_path / f"app.log.{number}.gz").exists():
                older.rename(tmp_path / f"app.log.{number + 1}.gz")
        packed = tmp_path / "app.log.1.gz"
        packed.write_bytes(gzip.compress(log.read_bytes()))
        os.utime(packed, (at, at))
        if rotation == "create":
            log.unlink()
            log.touch()
        else:
            os.truncate(log, 0)

    names = [f"{number}-{place}" for number in range(4) for place in range(30)]
    first = iter(range(4))

    def write_more() -> float:
        number = next(first)
        write(*names[30 * number : 30 * number + 30], at=now - 90 + number)
        return now - 90 + number

    with monkeypatch.context() as earlier:
        earlier.setattr(desk.clock, "wall", lambda: now - 100)
        write("first", at=now - 100)
        desk.settle()
    # It reads on in the file that it has open; that this is rotated by now, it has not seen.
    written = write_more()
    desk.look_briefly()
    desk.commit()
    rotate(written)
    for _ in range(3):
        rotate(write_more())
    desk.restart()
    for _ in range(looks):
        desk.look_briefly()
    desk.commit()
    desk.restart()
    desk.settle(20)

    assert sorted(desk.names()) == sorted(["first", *names])
    desk.close()
