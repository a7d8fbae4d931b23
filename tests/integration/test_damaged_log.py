"""SQLite's log and its index, damaged in one place each: what is taken for a loss, and what is not."""

from __future__ import annotations

import dataclasses
import struct
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from support.damage import INDEX, LOG, copy, reports, write
from support.queues import checkpoint_of, chunk_of, pending

from agent.queue import Change, check, look, wal
from agent.queue.disk import DiskQueue
from agent.queue.verify import inspect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HEADER, HEAD, PAGE = 32, 24, 4096
FRAME = HEAD + PAGE
NAMES = [f"event-{number}" for number in range(6)]


def killed(
    tmp_path: Path, names: list[str] = NAMES, *, moved: tuple[int, ...] = ()
) -> tuple[Path, list[int], list[bytes]]:
    """Return a queue as a daemon leaves it that is killed, and how its log grew.

    Args:
        tmp_path: where there is room for it.
        names: of its events; each is a commit.
        moved: after so many commits all of the log is moved to the database, and it begins anew.

    Returns:
        Its directory; how many frames the log had after each commit; what its index was then.
    """
    ends, indexes = [], []
    live = tmp_path / "live"
    with closing(DiskQueue(live)) as queue:
        for number, name in enumerate(names, 1):
            queue.commit(Change(appends=[chunk_of(name)]))
            ends.append(wal.taken(live / INDEX))
            indexes.append((live / INDEX).read_bytes())
            if number in moved:
                queue._backfill._run("PASSIVE")
        return copy(live, tmp_path / "killed"), ends, indexes


def opened(directory: Path) -> list[str]:
    """Return the events that a daemon finds which starts now."""
    with closing(DiskQueue(directory)) as queue:
        return pending(queue)


def frame(number: int) -> int:
    """Return where a frame begins in the log; the first is 1."""
    return HEADER + (number - 1) * FRAME


# -- lost ----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 10, 16, 24], ids=["the magic", "the page size", "the salts", "the sum"])
@pytest.mark.parametrize("index", [True, False], ids=["with the index", "without the index"])
def test_a_log_whose_header_is_damaged_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int, *, index: bool
) -> None:
    monkeypatch.setattr(look, "format_of", lambda _: 0)  # it would wait ten seconds for SQLite
    directory, *_ = killed(tmp_path)
    header = (directory / LOG).read_bytes()[:HEADER]
    write(directory / LOG, place, bytes([header[place] ^ 0x10]))
    if not index:
        (directory / INDEX).unlink()

    assert opened(directory) == NAMES
    assert len(reports(directory)) == 1


def test_a_log_of_which_no_two_frames_are_whole_is_told(tmp_path: Path) -> None:
    directory, ends, _ = killed(tmp_path)
    write(directory / LOG, 0, bytes(HEADER))
    for number in range(1, ends[-1] + 1, 2):
        write(directory / LOG, frame(number), bytes([number]) * HEAD)
    (directory / INDEX).unlink()

    opened(directory)

    assert len(reports(directory)) == 1


def test_an_index_that_is_older_than_the_log_does_not_tell_which_log_it_is(tmp_path: Path) -> None:
    """A power cut may leave one: it is never synced."""
    names = [f"event-{number}" for number in range(12)]
    directory, _, indexes = killed(tmp_path, names, moved=(8,))
    write(directory / LOG, 0, bytes(HEADER))
    (directory / INDEX).write_bytes(indexes[5])

    assert opened(directory) == names


def test_an_older_state_of_a_page_is_taken_where_the_newest_one_is_damaged(tmp_path: Path) -> None:
    directory, ends, _ = killed(tmp_path)
    for number in range(ends[-2] + 1, ends[-1] + 1):
        write(directory / LOG, frame(number) + HEAD, bytes(PAGE))

    assert opened(directory) == NAMES[:-1]


def test_a_frame_that_stands_there_from_the_log_before_is_not_sound(tmp_path: Path) -> None:
    """As where the disk lost writes: its sum goes on from that of the frame before it, which is as old."""
    directory, _, _ = killed(tmp_path, moved=(4,))
    seen = check.glance(directory)

    log = wal.read(directory / LOG, dataclasses.replace(seen, frames=seen.last + 2), PAGE)

    assert [at.sound for at in log.frames[: seen.last + 2]] == [True] * seen.last + [False] * 2


def test_without_its_header_the_newest_state_that_is_whole_counts(tmp_path: Path) -> None:
    with closing(DiskQueue(tmp_path / "live")) as queue:
        for offset in (10, 20):
            queue.commit(Change(checkpoints=[checkpoint_of("f", offset=offset)]))
        directory = copy(tmp_path / "live", tmp_path / "killed")
    write(directory / LOG, 0, bytes(HEADER))

    with closing(DiskQueue(directory)) as queue:
        assert [checkpoint.offset for checkpoint in queue.checkpoints()] == [20]


# -- not lost ------------------------------------------------------------------------------


def test_a_damaged_log_of_which_all_was_moved_is_no_loss(tmp_path: Path) -> None:
    directory, *_ = killed(tmp_path, moved=(len(NAMES),))
    write(directory / LOG, 0, bytes(HEADER))

    assert opened(directory) == NAMES
    assert not reports(directory)


def test_what_a_power_cut_leaves_of_a_commit_that_nobody_was_told_of_is_no_loss(tmp_path: Path) -> None:
    """The index is older than it, or gone; the last frames may come before those in front of them."""
    directory, ends, _ = killed(tmp_path)
    (directory / INDEX).unlink()
    write(directory / LOG, frame(ends[-2] + 1), bytes(FRAME))

    assert opened(directory) == NAMES[:-1]
    assert not reports(directory)


def half_of(index: bytes, *, sound: bool = True, version: int = 0) -> bytes:
    """Return half an index that tells of more frames than there are: its sum holds, or it does not."""
    half = bytearray(index[:48])
    struct.pack_into("=I", half, 16, 5 + struct.unpack_from("=I", half, 16)[0])
    struct.pack_into("=I", half, 0, version + struct.unpack_from("=I", half, 0)[0])
    if sound:
        struct.pack_into("=2I", half, 40, *wal._sum(struct.Struct("=2I"), bytes(half[:40]), (0, 0)))
    return bytes(half)


INDEXES: dict[str, Callable[[list[bytes]], bytes]] = {
    "of the log before": lambda indexes: indexes[3],
    "of which one half is newer": lambda indexes: half_of(indexes[-1]) + indexes[-1][48:],
    "of which the sum is wrong": lambda indexes: half_of(indexes[-1], sound=False) * 2 + indexes[-1][96:],
    "of another version": lambda indexes: half_of(indexes[-1], version=1) * 2 + indexes[-1][96:],
}


@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)
def test_an_index_that_does_not_hold_for_the_log_tells_of_no_loss(
    tmp_path: Path, index: Callable[[list[bytes]], bytes]
) -> None:
    directory, _, indexes = killed(tmp_path, moved=(4,))
    (directory / INDEX).write_bytes(index(indexes))

    assert opened(directory) == NAMES
    assert not reports(directory)


# -- seen from outside -----------------------------------------------------------------------


@pytest.mark.parametrize("place", [8, HEAD + 1000], ids=["the salts", "the page"])
def test_who_verifies_is_told_what_sqlite_will_not_take(tmp_path: Path, place: int) -> None:
    directory, ends, _ = killed(tmp_path)
    at = frame(ends[2]) + place
    write(directory / LOG, at, bytes([(directory / LOG).read_bytes()[at] ^ 1]))

    assert [problem for problem in inspect(directory).problems if "SQLite does not see all" in problem]


@pytest.mark.parametrize("index", [None, bytes(136)], ids=["gone", "zeros"])
def test_an_index_that_nobody_wrote_does_not_tell_that_nothing_waits(
    tmp_path: Path, index: bytes | None
) -> None:
    """By that, the log would never be moved, and would grow."""
    if index is not None:
        (tmp_path / INDEX).write_bytes(index)

    assert wal.Index(tmp_path / INDEX).waiting() is None


def test_the_index_that_has_the_name_now_is_asked(tmp_path: Path) -> None:
    """SQLite makes another file of it when the one that is there was taken away."""
    _, ends, indexes = killed(tmp_path)
    path = tmp_path / INDEX
    path.write_bytes(indexes[0])
    index = wal.Index(path)
    assert index.waiting() == ends[0]

    path.rename(tmp_path / "away")
    path.write_bytes(indexes[-1])

    assert index.waiting() == ends[-1]
