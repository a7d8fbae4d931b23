"""A trouble that comes and goes is told once, and its end once it has lasted."""

from __future__ import annotations

from agent.notice import Notice


def test_a_trouble_is_told_once_however_often_it_is_noted() -> None:
    notice = Notice()

    assert [notice.wrong() for _ in range(3)] == [True, False, False]


def test_what_was_never_wrong_has_no_end_to_be_told() -> None:
    assert [Notice().well(now) for now in (0.0, 10.0, 1000.0)] == [False] * 3


def test_the_end_is_told_once_when_it_has_lasted_ten_seconds() -> None:
    notice = Notice()
    notice.wrong()

    assert [notice.well(now) for now in (100.0, 109.9, 110.0, 120.0)] == [False, False, True, False]


def test_a_trouble_that_comes_back_within_ten_seconds_is_the_same_one() -> None:
    notice = Notice()
    notice.wrong()
    notice.well(100.0)

    assert not notice.wrong()

    assert [notice.well(now) for now in (105.0, 114.9, 115.0)] == [False, False, True]


def test_a_trouble_after_its_end_was_told_is_news() -> None:
    notice = Notice()
    notice.wrong()
    notice.well(0.0)
    notice.well(10.0)

    assert notice.wrong()
    assert not notice.well(11.0), "the end of the one before does not count"
