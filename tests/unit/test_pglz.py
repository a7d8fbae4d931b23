"""The size that PostgreSQL's compression comes to."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.pglz import compressed_size

NO_LIMIT = 10**9


@pytest.mark.parametrize(
    ("length", "size"),
    [
        # One letter, then references to it of up to 273 bytes, in three bytes each,
        # and a control byte for every eight items.
        (1024, 1 + 4 * 3 + 1),
        (1 + 273 * 7, 1 + 7 * 3 + 1),
        (1 + 273 * 8, 1 + 8 * 3 + 2),
        (1_000_000, 1 + 3663 * 3 + 458),
    ],
)
def test_one_letter_repeated_is_one_letter_and_references(length, size):
    assert compressed_size(b"a" * length, NO_LIMIT) == size


def test_a_short_reference_takes_two_bytes():
    """Fourteen bytes, again and again, each time with other bytes between."""
    noise = bytes(range(128, 256))
    data = b"".join(b"abcdefghijklmn" + noise[place : place + 2] for place in range(0, 126, 2))

    assert compressed_size(data, NO_LIMIT) == 14 + 2 * 63 + 2 * 62 + -(-(14 + 2 * 63 + 62) // 8)


# Slow machines take longer than hypothesis allows by default for compressing some KiB.
patient = settings(deadline=None, max_examples=50)


@patient
@given(st.integers(0, 2**32), st.integers(1024, 8000))
def test_random_bytes_are_left_as_they_are(seed, length):
    assert compressed_size(random.Random(seed).randbytes(length), NO_LIMIT) == length


@patient
@given(st.binary(min_size=1024, max_size=4096))
def test_nothing_grows(data):
    assert compressed_size(data, NO_LIMIT) <= len(data)


@patient
@given(st.lists(st.sampled_from([b"usage", b"event", b"customer", b"-"]), min_size=400, max_size=800))
def test_a_limit_changes_nothing_below_it(words):
    data = b"".join(words)
    size = compressed_size(data, NO_LIMIT)

    assert compressed_size(data, size) == size
    assert compressed_size(data, size // 2) > size // 2


def test_it_gives_up_when_the_first_kib_has_no_repeat():
    """Even if all of it comes again later."""
    block = random.Random(3).randbytes(2000)

    assert compressed_size(block * 2, NO_LIMIT) == 4000
    assert compressed_size(b"a" * 64 + block * 2, NO_LIMIT) < 2500


def test_repeats_beyond_the_window_are_not_seen():
    """References reach 4,094 bytes back."""
    block = random.Random(3).randbytes(4096)

    assert compressed_size(b"a" * 64 + block * 2, NO_LIMIT) == 64 + len(block) * 2
    assert compressed_size(b"a" * 64 + block[:3000] * 2, NO_LIMIT) < 3600
