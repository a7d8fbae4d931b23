"""Duplicates are told apart: our own retry, or an id that was at Polar before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.delivery import BROKEN, Desk, ok
from support.queues import chunk_of

from agent.answer import Answer, NoAnswer, Outcome
from agent.batch import Batch, Lease
from agent.flusher.duplicates import News, may_be_stored, sent_before

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()


@pytest.mark.parametrize(
    ("outcome", "may"),
    [
        (NoAnswer("broken", ""), True),
        (NoAnswer("timeout", ""), True),
        (NoAnswer("too_large", ""), True),
        (NoAnswer("connect", ""), False),
        (NoAnswer("dns", ""), False),
        (NoAnswer("tls", ""), False),
        (NoAnswer("token", ""), False),
        (Answer(200, b"<html>"), True),
        (Answer(102), True),
        *[(Answer(status), True) for status in (500, 502, 503, 504, 599)],
        *[(Answer(status), False) for status in (307, 400, 401, 403, 404, 408, 413, 422, 425, 429)],
    ],
)
def test_which_answers_leave_open_whether_a_batch_was_stored(outcome: Outcome, may: bool) -> None:
    assert may_be_stored(outcome) is may


def batch_of(*keys: int) -> Batch:
    return Batch("b1", [Lease(key, chunk_of("a", "b")).part() for key in keys])


def test_what_is_left_from_a_run_before_may_have_been_sent_by_it() -> None:
    assert sent_before(batch_of(3, 4), 4, first_key=4) == 2
    assert sent_before(batch_of(3, 4), 1, first_key=4) == 1
    assert sent_before(batch_of(4, 5), 3, first_key=4) == 0


def test_the_parts_of_a_batch_remember_that_its_answer_was_lost() -> None:
    batch = batch_of(7)
    batch.uncertain = True

    assert [sent_before(half, 1, first_key=0) for half in batch.halves()] == [1, 1]


@pytest.mark.parametrize(
    ("first", "resent"),
    [
        (BROKEN, 4),
        (Answer(503), 4),
        (ok(1), 4),
        (Answer(200, b"what a proxy says"), 4),
        (Answer(429), 0),
        (NoAnswer("connect", "refused"), 0),
        (None, 0),
    ],
)
def test_duplicates_after_a_lost_answer_are_our_own_and_others_are_not(
    desk: Desk, first: Outcome | None, resent: int
) -> None:
    desk.put(*"abcd", age=60)
    answers = [ok(0, 4)] if first is None else [first, ok(0, 4)]

    desk.run(lambda _: answers.pop(0))

    books = desk.queue.books()
    assert (books.duplicates, books.resent, books.repeated) == (4, resent, 0)


def test_ids_that_were_there_before_are_told_when_they_begin(
    desk: Desk, capfd: pytest.CaptureFixture
) -> None:
    for n in range(5):
        desk.put(f"e{n}", age=60)
    desk.run(lambda request: ok(0, len(request.names)))

    assert capfd.readouterr().err.count("never sent from here") == 1


def test_duplicates_are_news_again_after_a_while() -> None:
    news = News()

    assert [news.begins(now) for now in (0, 1, 500, 1000, 1601, 1602)] == [
        True,
        False,
        False,
        False,
        True,
        False,
    ]
