"""Refused lines of files when there is no room for more dead letters: they wait where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.tails import Desk, line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BAD = b'{"name":"bad"}\n'


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path, max_dead_letters=2)
    yield desk
    desk.close()


def test_a_line_that_would_be_one_too_many_waits_and_nothing_before_it(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(line("a") + BAD + line("b") + BAD + BAD + line("c"))
    desk.settle()

    assert desk.names() == ["a", "b"]
    assert desk.queue.books().dead == 2
    (problem,) = desk.tail.status()["problems"]
    assert problem["path"].endswith("/one")
    assert "max_dead_letters" in problem["reason"]


def test_other_files_go_on(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(3 * BAD + line("a"))
    desk.settle()
    (tmp_path / "two").write_bytes(line("d"))
    desk.settle()

    assert desk.names() == ["d"]


def test_once_there_is_room_the_file_is_read_on_and_each_line_comes_once(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(line("a") + 3 * BAD + line("b") + 3 * BAD + line("c"))
    desk.settle()
    desk.restart()
    desk.settle()
    assert desk.queue.books().dead == 2

    desk.max_dead_letters = 100
    desk.settle()

    assert desk.names() == ["a", "b", "c"]
    letters = list(desk.queue.dead_letters())
    assert [letter.line for letter in letters] == [2, 3, 4, 6, 7, 8]
    assert desk.tail.status()["problems"] == []


def test_what_is_not_committed_yet_counts(desk: Desk, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(2 * BAD)
    desk.look()
    desk.look()
    desk.commit()

    assert desk.queue.books().dead == 2


def test_a_line_that_waits_behind_zeros_keeps_its_number(desk: Desk, tmp_path: Path) -> None:
    desk.max_dead_letters = 0
    (tmp_path / "one").write_bytes(line("a") + b"\0\0\0bad\n" + b"worse\n")
    desk.settle()
    assert desk.names() == ["a"]

    desk.max_dead_letters = 2
    desk.settle()

    assert [letter.line for letter in desk.queue.dead_letters()] == [2, 3]
