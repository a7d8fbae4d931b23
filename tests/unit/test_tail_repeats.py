"""Lines of files whose `external_id` came before: the same event again, or another one."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from support.tails import Desk, line

from agent.seen import Seen
from agent.tail.order import InOrder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BAD = b'{"name":"bad"}\n'


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()


def named(name: str, external_id: str) -> bytes:
    return line(name, external_id=external_id)


@pytest.mark.parametrize("among", [b"", BAD], ids=["all fine", "among bad lines"])
def test_another_event_with_an_id_that_came_becomes_a_dead_letter_with_its_place(
    desk: Desk, tmp_path: Path, among: bytes
) -> None:
    (tmp_path / "log").write_bytes(named("a", "1") + among + named("b", "1") + named("c", "2"))
    desk.settle()

    assert desk.names() == ["a", "c"]
    letter = list(desk.queue.dead_letters())[-1]
    assert letter.errors[0]["type"] == "external_id_conflict"
    assert (letter.external_id, letter.name, letter.line) == ("1", "b", 3 if among else 2)
    assert letter.path == str(tmp_path / "log")


@pytest.mark.parametrize("among", [b"", BAD], ids=["all fine", "among bad lines"])
def test_the_same_event_again_is_a_duplicate_and_stored_once(
    desk: Desk, tmp_path: Path, among: bytes
) -> None:
    (tmp_path / "one").write_bytes(named("a", "1") + among)
    desk.settle()
    (tmp_path / "two").write_bytes(named("b", "2") + named("a", "1"))
    desk.settle()

    assert desk.names() == ["a", "b"]
    books = desk.queue.books()
    assert (books.accepted, books.duplicates, books.dead) == (3 + bool(among), 1, bool(among))


def test_what_came_another_way_is_known_and_what_files_hold_is_known_there(
    desk: Desk, tmp_path: Path
) -> None:
    desk.seen.enter(["1"], named("a", "1")[:-1])
    (tmp_path / "log").write_bytes(named("b", "1") + named("c", "2"))
    desk.settle()

    assert desk.names() == ["c"]
    assert [letter.name for letter in desk.queue.dead_letters()] == ["b"]
    assert desk.seen.ask("2", named("c", "2")[:-1]) is True


def test_lines_that_are_read_again_after_a_kill_are_neither_duplicates_nor_conflicts(
    desk: Desk, tmp_path: Path
) -> None:
    (tmp_path / "log").write_bytes(named("a", "1") + BAD + named("b", "2"))
    desk.look()
    desk.look()
    desk.restart()
    desk.settle()

    assert desk.names() == ["a", "b"]
    books = desk.queue.books()
    assert (books.accepted, books.duplicates, books.dead) == (3, 0, 1)


@pytest.mark.parametrize("piece", [1, 1 << 20], ids=["checked one by one", "checked together"])
def test_lines_behind_one_that_waits_for_room_are_not_remembered_before_they_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr("agent.tail.reading._PIECE_BYTES", piece)
    desk = Desk(tmp_path, max_dead_letters=0)
    (tmp_path / "log").write_bytes(named("a", "1") + named("b", "1") + named("c", "2"))
    desk.settle()
    assert desk.names() == ["a"]

    desk.max_dead_letters = 10
    desk.settle()

    assert desk.names() == ["a", "c"]
    books = desk.queue.books()
    assert (books.accepted, books.duplicates, books.dead) == (3, 0, 1)
    desk.close()


def test_from_the_first_question_to_the_end_of_a_block_no_other_source_asks() -> None:
    order = threading.Lock()

    with InOrder(Seen(), order) as seen:
        assert not order.locked()
        seen.ask("a", b"{}")
        assert order.locked()

    assert not order.locked()
