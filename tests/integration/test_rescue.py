"""What a rescue finds and what it leaves out, with damage to one place each."""

from __future__ import annotations

import contextlib
import errno
import random
import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec
import pytest
from support.clock import FakeClock
from support.damage import DATABASE, INDEX, LOG, copy, fill, reports, write
from support.queues import checkpoint_of, chunk_of, delivered, letter, line, names, pending

from agent import chunk
from agent.errors import QueueError, UsageError
from agent.queue import Change, Chunk, check, losses, wal
from agent.queue.disk import DiskQueue
from agent.queue.mend import read_report
from agent.queue.pages import Cell, Pages
from agent.queue.rescue import Rescue
from agent.queue.rows import BOOKS, CHECKPOINT, DEAD, numbered

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEADER, HEAD, PAGE = 32, 24, 4096
FRAME = HEAD + PAGE
PUT = "UPDATE Cache SET value = ? WHERE key = ?"


def wide(name: object, *, size: int = 700) -> Chunk:
    """Return a chunk that cannot be compressed to less than `size` bytes."""
    filler = random.Random(str(name)).randbytes(size).hex().encode()
    return Chunk(line(name)[:-1] + b',"metadata":{"filler":"%b"}}' % filler, 1, 0)


class Life:
    """A queue whose daemon is killed in the end.

    Attributes:
        queue: while it lives.
        ends: how many frames its log had after each commit.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self.queue = DiskQueue(place / "live")
        self.ends: list[int] = []

    def commit(self, **change: object) -> None:
        self.queue.commit(Change(**change))  # type: ignore[arg-type]
        self.ends.append(wal.taken(self._place / "live" / INDEX))

    def move(self) -> None:
        """Move the log to the database; it begins anew with the next commit."""
        self.queue._backfill._run("PASSIVE")

    def kill(self) -> Path:
        """End it; return its directory."""
        killed = copy(self._place / "live", self._place / "killed")
        self.queue.close()
        return killed


@pytest.fixture
def life(tmp_path: Path) -> Life:
    return Life(tmp_path)


@contextlib.contextmanager
def rescue_of(directory: Path) -> Iterator[Rescue]:
    with closing(Rescue(directory, check.glance(directory))) as rescue:
        yield rescue


def rescued(directory: Path) -> list[str]:
    """Return the events that a rescue brings."""
    with rescue_of(directory) as rescue:
        return [name for row in rescue.chunks() for name in names(row.chunk.lines)]


def frames_of(directory: Path, key: int | str) -> list[int]:
    """Return where in the log the heads of the frames are that hold a row, the oldest first."""
    with closing(Pages(directory, check.glance(directory))) as pages:
        return sorted(
            version.offset - HEAD
            for number in pages.leaves()
            for version in pages.versions(number)
            if version.file is pages._log and key in {cell.key for cell in pages.leaf(number, version).cells}
        )


def chain_of(directory: Path, key: int) -> list[int]:
    """Return the first pages beyond its leaf of a row of 20,000 bytes."""
    with closing(Pages(directory, check.glance(directory))) as pages:
        (cell,) = (
            cell
            for number in pages.leaves()
            for version in pages.versions(number)[:1]
            for cell in pages.leaf(number, version).cells
            if cell.key == key
        )
        chain = [cell.overflow]
        while len(chain) < 5:
            at = pages.versions(chain[-1])[0]
            chain.append(int.from_bytes(at.file.read(at.offset, 4), "big"))
    return chain


# -- without damage ------------------------------------------------------------------------

LIVES = {"killed": (25, ()), "moved": (25, (25,)), "begun anew": (30, (27,)), "long": (110, (50, 109))}


@pytest.mark.parametrize(("commits", "moved"), LIVES.values(), ids=LIVES)
@pytest.mark.parametrize("index", [True, False], ids=["with the index", "without the index"])
def test_of_a_sound_queue_a_rescue_brings_what_is_there_and_nothing_that_was(
    tmp_path: Path, commits: int, moved: tuple[int, ...], *, index: bool
) -> None:
    queue, truth = fill(tmp_path / "live", random.Random(1), commits=commits, moved=moved)
    checkpoints = {checkpoint.id: checkpoint.offset for checkpoint in queue.checkpoints()}
    directory = copy(tmp_path / "live", tmp_path / "killed")
    queue.close()
    if not index:
        (directory / INDEX).unlink()

    with rescue_of(directory) as rescue:
        assert {row.key: row.chunk.lines.split(b"\n") for row in rescue.chunks()} == truth.chunks
        assert {letter.id: letter.event.encode() for letter in rescue.dead_letters()} == truth.dead
        read = {checkpoint.id: checkpoint.offset for checkpoint in rescue.checkpoints()}
        assert rescue.books == truth.books
    assert read.keys() == checkpoints.keys()
    assert all(offset in truth.read[name] for name, offset in read.items())
    if index and not moved:  # else an older state may have been found beside the newest
        assert read == checkpoints


# -- the states of a page --------------------------------------------------------------------


def test_what_is_damaged_in_the_database_is_taken_from_the_log_that_was_moved(life: Life) -> None:
    for number in range(8):
        life.commit(appends=[wide(number)])
    life.commit(appends=[wide("long", size=20_000)])
    life.move()
    directory = life.kill()
    size = (directory / DATABASE).stat().st_size
    write(directory / DATABASE, 4 * PAGE, bytes(size - 4 * PAGE))
    write(directory / LOG, 0, bytes(HEADER))  # so that SQLite gives out nothing of it

    assert rescued(directory) == [*map(str, range(8)), "long"]


def test_a_page_that_is_damaged_in_the_log_is_taken_from_the_database_though_the_log_has_an_older_one(
    life: Life,
) -> None:
    life.commit(appends=[wide("before", size=20_000)])
    life.commit(settlements=[delivered(1)])
    life.commit(appends=[wide("long", size=20_000)])
    life.move()
    directory = life.kill()
    (directory / INDEX).unlink()
    page = chain_of(directory, 2)[1]
    with closing(Pages(directory, check.glance(directory))) as pages:
        newest, older, copied = pages.versions(page)
    assert (newest.file, copied.file) == (older.file, pages._database)
    write(directory / LOG, newest.offset + PAGE // 2, b"other")

    assert rescued(directory) == ["long"]


def test_a_large_row_is_put_together_from_log_and_database(life: Life) -> None:
    life.commit(appends=[wide("long", size=20_000)])
    life.move()
    directory = life.kill()
    (directory / INDEX).unlink()
    chain = chain_of(directory, 1)
    with closing(Pages(directory, check.glance(directory))) as pages:
        in_log = pages.versions(chain[1])[0].offset
    write(directory / LOG, in_log, bytes(PAGE))
    write(directory / DATABASE, (chain[3] - 1) * PAGE, bytes(PAGE))

    assert rescued(directory) == ["long"]


@pytest.mark.parametrize("number", [0, 0xFFFFFFFF], ids=["zeros", "a page that cannot be"])
def test_rows_of_a_page_whose_number_is_damaged_are_found(life: Life, number: int) -> None:
    for name in range(8):
        life.commit(appends=[wide(name)])
    directory = life.kill()
    for place in frames_of(directory, 8):
        write(directory / LOG, place, number.to_bytes(4, "big"))

    assert rescued(directory) == [*map(str, range(8))]


def test_a_page_under_the_number_of_another_one_leaves_that_ones_rows_alone(life: Life) -> None:
    for name in range(8):
        life.commit(appends=[wide(name)])
    directory = life.kill()
    *_, first = frames_of(directory, 1)
    *_, last = frames_of(directory, 8)
    write(directory / LOG, last, (directory / LOG).read_bytes()[first : first + 4])

    assert rescued(directory) == [*map(str, range(8))]


def test_a_damaged_page_that_is_of_this_number_still_tells_what_was_settled(life: Life) -> None:
    for name in range(3):
        life.commit(appends=[wide(name)])
    life.commit(settlements=[delivered(1)])
    directory = life.kill()
    *_, newest = frames_of(directory, 2)
    write(directory / LOG, newest + HEAD + 2000, b"?")  # in the room that nothing has

    assert rescued(directory) == ["1", "2"]


def test_what_a_page_held_before_it_became_a_branch_does_not_come_back(life: Life) -> None:
    for name in range(8):
        life.commit(appends=[wide(name)])
    life.commit(settlements=[delivered(1)])
    life.move()
    directory = life.kill()

    assert rescued(directory) == [*map(str, range(1, 8))]


@pytest.mark.parametrize("outside", [False, True], ids=["at a start", "seen from outside"])
def test_a_state_that_sqlite_would_give_out_does_not_bring_back_what_was_settled_behind_damage(
    life: Life, *, outside: bool
) -> None:
    for name in range(3):
        life.commit(appends=[wide(name)])
    life.commit(appends=[wide("long", size=20_000)])
    life.commit(settlements=[delivered(1)])
    directory = life.kill()
    write(directory / LOG, HEADER + life.ends[2] * FRAME + HEAD + 100, b"?")

    with closing(Rescue(directory, check.glance(directory), outside=outside)) as rescue:
        assert 1 not in [row.key for row in rescue.chunks()]


def test_of_two_states_of_a_chunk_the_one_with_less_in_it_is_newer(life: Life) -> None:
    life.commit(appends=[chunk_of("a", "b", "c")])
    life.commit(settlements=[delivered(1, rest=chunk_of("b", "c"))])
    directory = life.kill()
    first, *_ = frames_of(directory, 1)
    write(directory / LOG, first, bytes(4))

    with closing(DiskQueue(directory)) as queue:
        assert pending(queue) == ["b", "c"]
        books = queue.books()

    assert (books.accepted, books.delivered, books.lost) == (3, 1, 0)


def test_of_two_states_of_a_checkpoint_the_one_that_passes_nothing_over_is_taken(life: Life) -> None:
    life.commit(checkpoints=[checkpoint_of("f", offset=10)])
    life.commit(checkpoints=[checkpoint_of("f", offset=20)])
    directory = life.kill()
    *_, newest = frames_of(directory, f"{CHECKPOINT}f")
    write(directory / LOG, newest, bytes(4))

    with rescue_of(directory) as rescue:
        assert [checkpoint.offset for checkpoint in rescue.checkpoints()] == [10]


# -- rows ------------------------------------------------------------------------------------


def change(directory: Path, statement: str, *values: object) -> None:
    """Change the database past everything."""
    with closing(sqlite3.connect(directory / DATABASE)) as db, db:
        db.execute(statement, values)


@pytest.mark.parametrize("value", ["text", 5, None, b"\xff"])
def test_a_row_that_is_no_chunk_is_told_and_the_others_are_rescued(tmp_path: Path, value: object) -> None:
    with closing(DiskQueue(tmp_path / "queue")) as queue:
        queue.commit(Change(appends=[chunk_of("a"), chunk_of("b"), chunk_of("c")]))
    change(tmp_path / "queue", PUT, value, 2)
    change(tmp_path / "queue", PUT, value, BOOKS)
    change(tmp_path / "queue", "UPDATE Cache SET key = CAST(x'ff' AS TEXT) WHERE key = 1")

    with rescue_of(tmp_path / "queue") as rescue:
        assert [row.key for row in rescue.chunks()] == [3]
        assert rescue.damaged_chunks == [2]
        assert rescue.books is None


def test_records_of_format_1_that_stand_under_another_key_are_not_taken(tmp_path: Path) -> None:
    """Nothing but their numbers tells: they have no checksum."""
    with closing(DiskQueue(tmp_path / "queue")) as queue:
        queue.commit(Change(letters=[letter("a"), letter("b")], checkpoints=[checkpoint_of("f")]))
        (_, second) = queue.dead_letters()
    change(tmp_path / "queue", PUT, msgspec.json.encode(second), numbered(DEAD, 1))
    change(tmp_path / "queue", PUT, msgspec.json.encode(checkpoint_of("g")), f"{CHECKPOINT}f")

    with rescue_of(tmp_path / "queue") as rescue:
        assert [found.id for found in rescue.dead_letters()] == [2]
        assert rescue.damaged_letters == [1]
        assert list(rescue.checkpoints()) == []


@pytest.fixture
def leaf(tmp_path: Path) -> tuple[Path, int]:
    """A queue at rest with three chunks on one page, and where that page begins."""
    directory = tmp_path / "queue"
    with closing(DiskQueue(directory)) as queue:
        for name in range(3):
            queue.commit(Change(appends=[wide(name, size=100)]))
    with closing(Pages(directory, check.glance(directory))) as pages:
        (place,) = (
            version.offset
            for number in pages.leaves()
            for version in pages.versions(number)
            if {1, 2, 3} <= {cell.key for cell in pages.leaf(number, version).cells}
        )
    return directory, place


def test_a_leaf_that_leads_twice_to_one_row_is_searched_for_the_other(leaf: tuple[Path, int]) -> None:
    directory, place = leaf
    page = (directory / DATABASE).read_bytes()[place : place + PAGE]
    count = int.from_bytes(page[3:5], "big")
    write(directory / DATABASE, place + 8 + 2 * (count - 1), page[8 + 2 * (count - 2) :][:2])

    assert rescued(directory) == ["0", "1", "2"]


@pytest.mark.parametrize("kind", [2, 5, 10], ids=["branch of an index", "branch", "leaf of an index"])
def test_a_leaf_that_says_it_is_none_is_searched(leaf: tuple[Path, int], kind: int) -> None:
    directory, place = leaf
    write(directory / DATABASE, place, bytes([kind]))

    assert rescued(directory) == ["0", "1", "2"]


TYPES = bytes((9, 7, 0, 7, 8, 0, 8, 9, 0))
"""What every row has between the type of its key and that of its value."""


def test_a_word_for_a_key_that_is_no_text_any_more_takes_nothing_with_it(directory: Path) -> None:
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")], letters=[letter("b"), letter("c")]))
    data = (directory / DATABASE).read_bytes()
    write(directory / DATABASE, data.index(numbered(DEAD, 1).encode(), data.index(TYPES)), b"\xff")

    with closing(DiskQueue(directory)) as queue:
        assert pending(queue) == ["a"]
        assert [dead.external_id for dead in queue.dead_letters()] == ["b", "c"]


def test_a_chunk_that_is_said_to_be_text_is_rescued_all_the_same(leaf: tuple[Path, int]) -> None:
    """That its checksum holds is enough."""
    directory, place = leaf
    page = (directory / DATABASE).read_bytes()[place : place + PAGE]
    at = page.index(TYPES) + len(TYPES) + 1
    write(directory / DATABASE, place + at, bytes([page[at] | 1]))

    assert rescued(directory) == ["0", "1", "2"]


def test_a_chain_of_pages_that_leads_back_to_itself_has_an_end(life: Life) -> None:
    life.commit(appends=[wide("long", size=20_000)])
    life.move()
    directory = life.kill()
    write(directory / DATABASE, 8 * PAGE, (9).to_bytes(4, "big"))

    with closing(Pages(directory, check.glance(directory))) as pages:
        values = list(pages.values(Cell(1, b"", 64 << 20, 0, 9)))

    assert max(map(len, values)) < 10 * PAGE


# -- what SQL shows ----------------------------------------------------------------------------


@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "with a hole"])
def test_what_the_pages_do_not_show_is_found_by_sql(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, damaged: bool
) -> None:
    """As where a daemon goes on writing while somebody looks: from both ends, and by the index."""
    directory = tmp_path / "queue"
    with closing(DiskQueue(directory)) as queue:
        for name in range(24):
            queue.commit(Change(appends=[wide(name)]))
    with closing(Pages(directory, check.glance(directory))) as pages:
        (hole,) = (
            number
            for number in pages.leaves()
            if number and 12 in {cell.key for cell in pages.leaf(number, pages.versions(number)[0]).cells}
        )
        gone = {cell.key for cell in pages.leaf(hole, pages.versions(hole)[0]).cells} if damaged else set()
    if damaged:
        write(directory / DATABASE, (hole - 1) * PAGE, bytes(PAGE))
    monkeypatch.setattr(Pages, "leaves", lambda _: iter(()))

    assert rescued(directory) == [str(name) for name in range(24) if name + 1 not in gone]


# -- what the new queue says -------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "queue"


def test_keys_and_numbers_go_on_where_they_were(directory: Path) -> None:
    """Somebody may have what ended in hand still: under its key nothing else must come."""
    with closing(DiskQueue(directory)) as queue:
        keys = queue.commit(
            Change(appends=[chunk_of("a"), chunk_of("b")], letters=[letter("c"), letter("d")])
        )
        queue.commit(Change(settlements=[delivered(key) for key in keys], purged=[1, 2]))

        queue._replace("damaged")

        assert queue.commit(Change(appends=[chunk_of("e")], letters=[letter("f")])) == [3]
        assert [dead.id for dead in queue.dead_letters()] == [3]


def test_a_chunk_whose_key_tells_nothing_does_not_make_a_gap_that_takes_for_ever(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In format 1 the checksum does not cover the key."""
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a"), chunk_of("b")]))
        monkeypatch.setattr(chunk, "VERSION", 1)
        older = chunk_of("b").encode(2)
        monkeypatch.undo()
        change(directory, "UPDATE Cache SET key = ?, value = ? WHERE key = 2", 1 << 40, older)

        queue._replace("damaged")

        assert pending(queue) == ["a", "b"]
        assert queue.books().next_key == 3


def test_what_the_books_did_not_know_is_counted_as_accepted(directory: Path) -> None:
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        before = queue._cache.get(BOOKS)
        queue.commit(Change(appends=[chunk_of("b", "c")]))
        queue._cache.set(BOOKS, before)

    with closing(DiskQueue(directory)) as queue:
        assert pending(queue) == ["a", "b", "c"]
        assert (queue.books().accepted, queue.books().pending, queue.books().lost) == (3, 3, 0)

    (report,) = map(read_report, directory.glob("quarantine-*"))
    assert (report.events_again, report.events_lost) == (2, 0)


def test_whom_the_events_are_for_is_rescued_with_them(directory: Path) -> None:
    with closing(DiskQueue(directory, server="https://one")) as queue:
        queue.commit(Change(appends=[chunk_of("a")], organization="ours"))
        queue._replace("damaged")

    with closing(DiskQueue(directory, server="https://one")) as queue:
        assert queue.organization == "ours"
    with pytest.raises(UsageError, match="https://one"):
        DiskQueue(directory, server="https://two")


def test_what_was_set_aside_in_the_same_second_before_stays(directory: Path) -> None:
    with closing(DiskQueue(directory, clock=FakeClock())) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        queue._replace("first")
        queue._replace("second")

    assert sorted(read_report(place).found for place in directory.glob("quarantine-*")) == ["first", "second"]


# -- a rescue that is broken off ---------------------------------------------------------------


def unfinished(directory: Path) -> Path:
    """Leave what a rescue leaves that was killed while it wrote."""
    place = directory / "rescue.tmp"
    place.mkdir()
    (place / DATABASE).write_bytes(b"half of it")
    return place


def test_a_rescue_that_fails_leaves_all_as_it_was_and_takes_no_room(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a", filler=900)]))
    write(directory / DATABASE, PAGE, bytes(2 * PAGE))
    before = (directory / DATABASE).read_bytes()

    def fail(place: Path, _: object) -> None:
        (place / DATABASE).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(losses, "fill", fail)
    with pytest.raises(QueueError, match="No space left on device"):
        DiskQueue(directory)

    assert (directory / DATABASE).read_bytes() == before
    assert not [path for path in directory.iterdir() if path.is_dir()]


def test_what_a_rescue_that_was_killed_left_is_gone_with_the_next_start(directory: Path) -> None:
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
    place = unfinished(directory)

    with closing(DiskQueue(directory)) as queue:
        assert pending(queue) == ["a"]
        assert not place.exists()


def test_what_a_rescue_could_not_remove_does_not_keep_the_next_one_from_working(directory: Path) -> None:
    with closing(DiskQueue(directory)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        unfinished(directory)

        queue._replace("damaged")

        assert pending(queue) == ["a"]


def test_a_rescue_that_was_killed_when_all_was_in_place_is_not_done_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of it holds no database: what is in place is the rescued one."""
    rmtree = shutil.rmtree

    def killed(path: Path, **options: bool) -> None:
        if path.name.startswith("rescued-"):
            raise KeyboardInterrupt
        rmtree(path, **options)

    queue = DiskQueue(directory)
    queue.commit(Change(appends=[chunk_of("a")]))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            queue._replace("damaged")

    with closing(DiskQueue(directory)) as queue:
        assert pending(queue) == ["a"]
    assert len(reports(directory)) == 1
    assert not list(directory.glob("rescued-*"))
