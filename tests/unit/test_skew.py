"""When this machine's clock differs so much that somebody should know."""

import pytest

from agent.skew import Skew, in_words


@pytest.mark.parametrize(
    ("offset", "words"),
    [
        (0.0, None),
        (4.9, None),
        (-4.9, None),
        (5.0, "this machine's clock is 5 s behind Polar's"),
        (-300.4, "this machine's clock is 300 s ahead of Polar's"),
    ],
)
def test_a_difference_is_told_in_words_where_it_matters(offset, words):
    assert in_words(offset) == words


def test_its_beginning_and_its_end_are_news_and_nothing_in_between():
    skew = Skew()

    offsets = [0, 4, -6, -300, 300, 3, 0.5, 4, 0, 7]
    assert [skew.changes(offset) for offset in offsets] == [
        *(None, None, True, None, None, None),
        *(False, None, None, True),
    ]
