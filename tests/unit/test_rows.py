"""The rows beside the chunks: nothing is taken for a record that was not written, whole, under its key."""

from __future__ import annotations

import msgspec
import pytest

from agent.queue import Books, DeadLetter
from agent.queue.rows import BOOKS, DEAD, DamagedRowError, numbered, seal, unseal

BOOKS_OF_SOME = Books(accepted=12, delivered=7, bytes=345, next_key=9)


def test_a_record_comes_back_as_it_was_sealed() -> None:
    assert unseal(BOOKS, seal(BOOKS, BOOKS_OF_SOME), Books) == BOOKS_OF_SOME


def test_any_flipped_bit_is_noticed() -> None:
    """Of the seal as well: a row without one is taken for one of format 1, and nothing checks it."""
    row = seal(BOOKS, BOOKS_OF_SOME)

    for place in range(8 * len(row)):
        flipped = bytearray(row)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(DamagedRowError):
            unseal(BOOKS, bytes(flipped), Books)


def test_a_row_that_is_cut_short_is_noticed() -> None:
    row = seal(BOOKS, BOOKS_OF_SOME)

    for length in range(len(row)):
        with pytest.raises(DamagedRowError):
            unseal(BOOKS, row[:length], Books)


def test_a_row_that_stands_under_the_key_of_another_one_is_noticed() -> None:
    with pytest.raises(DamagedRowError):
        unseal(numbered(DEAD, 2), seal(numbered(DEAD, 1), BOOKS_OF_SOME), Books)


@pytest.mark.parametrize("row", [None, 1, 1.5, "text", b"", b"null", b"[]", b"\xff", b'{"event":"\xff"}'])
def test_what_never_was_a_row_is_refused(row: object) -> None:
    with pytest.raises(DamagedRowError):
        unseal(numbered(DEAD, 1), row, DeadLetter)


def test_a_row_of_format_1_is_read_though_it_has_no_seal() -> None:
    row = msgspec.json.encode({"accepted": 3, "next_key": 4})

    assert unseal(BOOKS, row, Books) == Books(accepted=3, next_key=4)


def test_members_that_a_later_version_added_under_its_seal_are_passed_over() -> None:
    class Later(msgspec.Struct):
        accepted: int = 3
        invented: str = "later"

    assert unseal(BOOKS, seal(BOOKS, Later()), Books) == Books(accepted=3)
