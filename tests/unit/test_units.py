"""Durations and sizes, as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.units import Invalid, counted, format_duration, format_size, parse_duration, parse_size, rough_size


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (2, 2),
        (0.5, 0.5),
        ("2", 2),
        ("2s", 2),
        ("500ms", 0.5),
        ("1m", 60),
        ("1min", 60),
        ("1.5h", 5400),
        ("2 d", 172_800),
        (" .5s ", 0.5),
    ],
)
def test_a_duration_is_read_in_the_ways_people_write_it(written, seconds):
    assert parse_duration(written) == seconds


@pytest.mark.parametrize(
    "written",
    ["", "s", "2 parsecs", "-1", -1, True, None, [], float("nan"), float("inf"), "1e3", "2s3s", "٢s", "1M"],
)
def test_what_is_no_duration_is_refused_with_the_way_to_write_it(written):
    with pytest.raises(Invalid) as caught:
        parse_duration(written)
    assert "500ms" in caught.value.hint


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (262_144, 262_144),
        ("262144", 262_144),
        ("256KiB", 262_144),
        ("256 kib", 262_144),
        ("4GiB", 4 * 2**30),
        ("5MB", 5_000_000),
        ("1.5MiB", 1_572_864),
        ("10 B", 10),
    ],
)
def test_a_size_is_read_in_the_ways_people_write_it(written, size):
    assert parse_size(written) == size


@pytest.mark.parametrize("written", ["", "KiB", "5 K", "1.5", 1.5, "0.1KiB", -1, True, None, "9" * 40])
def test_what_is_no_size_is_refused_with_the_way_to_write_it(written):
    with pytest.raises(Invalid) as caught:
        parse_size(written)
    assert "256KiB" in caught.value.hint


@given(st.integers(min_value=0, max_value=2**60))
def test_a_size_that_was_printed_is_read_back_as_the_same_number(size):
    assert parse_size(format_size(size)) == size


@given(st.floats(min_value=0.001, max_value=1e6))
def test_a_duration_that_was_printed_is_read_back_as_the_same_number(seconds):
    assert parse_duration(format_duration(seconds)) == seconds


def test_a_count_and_its_noun_agree():
    assert [counted(number, "event") for number in (0, 1, 2)] == ["0 events", "1 event", "2 events"]


def test_rough_sizes_are_in_the_largest_unit_that_suits():
    assert [rough_size(size) for size in (5, 2048, 3 << 20, 5 << 30)] == [
        "5 bytes",
        "2 KiB",
        "3 MiB",
        "5.0 GiB",
    ]
