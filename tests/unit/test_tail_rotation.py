"""Rotation that the tail did not see happen."""

from __future__ import annotations

import gzip
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from support.tails import Desk, line

from agent.tail import Table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path, Table(str(tmp_path / "app.log")))
    yield desk
    desk.close()


def append(path: Path, *names: str) -> None:
    with path.open("ab") as file:
        file.write(b"".join(map(line, names)))


def test_a_file_that_was_empty_when_the_agent_ended_is_read_where_rotation_put_it(
    desk: Desk, tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    log.touch()
    desk.settle()
    desk.kill()
    append(log, "a", "b")
    log.rename(tmp_path / "app.log.1")
    append(log, "c")

    desk.start()
    desk.settle(20)

    assert sorted(desk.names()) == ["a", "b", "c"]


def test_behind_a_link_rotated_files_are_found_where_the_link_leads(desk: Desk, tmp_path: Path) -> None:
    pod = tmp_path / "pods" / "0.log"
    pod.parent.mkdir()
    append(pod, "a")
    (tmp_path / "app.log").symlink_to(pod)
    desk.settle()
    desk.kill()
    append(pod, "b")
    pod.rename(pod.with_name("0.log.1"))
    append(pod, "c")

    desk.start()
    desk.settle(20)

    assert sorted(desk.names()) == ["a", "b", "c"]


def test_what_was_rotated_before_the_first_look_is_left_alone(desk: Desk, tmp_path: Path) -> None:
    desk.clock.wall = lambda: (tmp_path / "app.log.1").stat().st_mtime + 60  # type: ignore[method-assign]
    append(tmp_path / "app.log.1", "old")
    append(tmp_path / "app.log", "new")

    desk.settle(20)
    desk.restart()
    desk.settle(20)

    assert desk.names() == ["new"]


def test_a_file_is_known_for_good_before_a_line_of_it_is_taken(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    desk = Desk(tmp_path, Table(str(log)), max_bytes=0)
    desk.commit()  # the queue is full: nothing is read for now
    append(log, "a")
    desk.settle()
    assert desk.names() == []
    desk.kill()
    log.rename(tmp_path / "app.log.1")
    append(log, "b")
    desk.max_bytes = 1 << 40

    desk.start()
    desk.settle(20)

    assert sorted(desk.names()) == ["a", "b"]
    desk.close()


def test_a_file_that_is_closed_because_it_was_quiet_can_be_read_again(desk: Desk, tmp_path: Path) -> None:
    append(tmp_path / "app.log", "a")
    desk.settle()
    desk.close_quiet_files()

    assert desk.reset(tmp_path / "app.log") == [str(tmp_path / "app.log")]
    desk.settle(20)

    first, again = desk.events()
    assert first["external_id"] == again["external_id"]


def test_a_new_name_is_found_soon_although_looking_for_names_took_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path)
    scan = desk.tail._shelf.scan

    def slowly(now: float) -> object:
        desk.clock.advance(3.0)
        return scan(now)

    monkeypatch.setattr(desk.tail._shelf, "scan", slowly)
    desk.settle(60)
    append(tmp_path / "new.log", "a")

    desk.settle(15)

    assert desk.names() == ["a"]
    desk.close()


def test_a_server_that_makes_room_now_and_then_is_told_once(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    log = SimpleNamespace(
        warning=lambda text, **_: told.append(text), info=lambda text, **_: told.append(text)
    )
    monkeypatch.setattr(desk.tail, "_log", log)
    for number in range(5):
        append(tmp_path / "app.log", str(number))
        desk.look_while_full()
        desk.settle()
    assert told == ["files are not read for now; nothing is lost"]

    desk.settle(20)

    assert told[1:] == ["files are read again"]
    assert desk.names() == list("01234")


def test_of_a_compressed_file_it_is_not_told_how_much_is_left(tmp_path: Path) -> None:
    packed = tmp_path / "app.log.1.gz"
    packed.write_bytes(gzip.compress(line("a") + line("b")))
    desk = Desk(tmp_path, block_bytes=1, max_line_bytes=50)
    desk.look_while_full()
    assert desk.status()[packed.name]["lag_bytes"] is None

    desk.settle(20)

    assert desk.status()[packed.name]["lag_bytes"] == 0
    desk.close()
