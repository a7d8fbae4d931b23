"""A program that does not append goes on where it was when its file is truncated: before that are NUL bytes.

They were taken for the beginning of the line behind them, which was refused; where they were longer than
any line may be, the dead letter had nothing but NUL bytes.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support.tails import Desk, line

from agent.tail.once import Once

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("before", [1, 3, 40])
def test_the_event_behind_a_hole_is_taken(tmp_path: Path, before: int) -> None:
    log = tmp_path / "app.log"
    desk = Desk(tmp_path, max_line_bytes=1000)
    with log.open("wb", buffering=0) as file:
        file.write(b"".join(line(number) for number in range(before)))
        desk.settle()
        os.truncate(log, 0)
        file.write(line("a") + b"\0\0\0\n" + b"\0" * 7 + line("b"))
        desk.settle(20)

    assert desk.names() == [*map(str, range(before)), "a", "b"]
    assert desk.queue.books().dead == 0
    desk.close()


@pytest.mark.parametrize("zeros", [1, 7, 5000])
def test_ids_behind_holes_do_not_depend_on_where_blocks_are_cut(tmp_path: Path, zeros: int) -> None:
    hole, log = b"\0" * zeros, tmp_path / "app.log"
    log.write_bytes(
        line("t", timestamp="2026-01-01T00:00:00Z") + (hole + line("a") + line("b") + hole) * 3 + b"\n"
    )
    ids = set()
    for size in (1, 150, 1 << 20):
        desk = Desk(tmp_path, max_line_bytes=100, block_bytes=size)
        desk.settle(20)
        assert desk.queue.books().dead == 0
        ids.add(tuple(event["external_id"] for event in desk.events()))
        desk.close()
    pieces = list(Once([], 100).read(str(log)))
    assert b"\0" not in b"".join(piece.lines for piece in pieces)
    named = [
        (text, name) for one in pieces for text, name in zip(one.lines.split(b"\n"), one.ids, strict=False)
    ]
    ids.add(tuple(name.decode() for text, name in named if text))

    (expected,) = ids
    assert len(set(expected)) == 7


def test_zeros_at_the_end_are_waited_at(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    desk = Desk(tmp_path, max_line_bytes=1000)
    with log.open("wb", buffering=0) as file:
        file.write(line("a"))
        os.truncate(log, 500)
        desk.settle()
        file.write(line("b"))
        desk.settle(20)

    assert desk.names() == ["a", "b"]
    desk.close()
