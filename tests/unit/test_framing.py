"""Cutting a stream of bytes into lines, however the stream comes."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.framing import TOO_LONG, Framer

MAX = 10

streams = st.lists(
    st.sampled_from(
        [b"\n", b"\r\n", b"\r", b"a", b"bcd", b"123456789", b"x" * MAX, b"y" * 25, b"\xff", b" "]
    ),
    max_size=30,
).map(b"".join)


def lines_of(segments):
    """Return single lines without their newlines, and TOO_LONG in its place."""
    lines = []
    for segment in segments:
        if segment is TOO_LONG:
            lines.append(TOO_LONG)
        else:
            assert segment.endswith(b"\n")
            lines += segment[:-1].split(b"\n")
    return lines


def framed(pieces, limit=MAX):
    framer = Framer(limit)
    segments = [segment for piece in pieces for segment in framer.feed(piece)]
    return lines_of(segments + framer.finish())


def expected(stream, limit=MAX):
    """Say what the lines of a stream are, in the plainest way."""
    lines = stream.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [TOO_LONG if len(line.removesuffix(b"\r")) > limit else line for line in lines]


@given(streams)
def test_a_stream_at_once_gives_its_lines(stream):
    assert framed([stream]) == expected(stream)


@given(streams, st.data())
def test_any_split_of_a_stream_gives_the_same_lines(stream, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    assert framed(pieces) == expected(stream)


@given(streams)
def test_a_stream_byte_by_byte_gives_the_same_lines(stream):
    assert framed([bytes([byte]) for byte in stream]) == expected(stream)


@given(streams, st.data())
def test_a_line_is_handed_on_as_soon_as_its_newline_is_there(stream, data):
    end = data.draw(st.integers(0, len(stream)))
    framer = Framer(MAX)

    got = lines_of(framer.feed(stream[:end]))

    assert got == expected(stream[: stream.rfind(b"\n", 0, end) + 1])


def test_whole_lines_come_as_one_block():
    assert Framer(MAX).feed(b"a\nb\n\nc\n") == [b"a\nb\n\nc\n"]


@pytest.mark.parametrize(
    ("stream", "lines"),
    [
        (b"x" * MAX + b"\n", [b"x" * MAX]),
        (b"x" * MAX + b"\r\n", [b"x" * MAX + b"\r"]),
        (b"x" * MAX, [b"x" * MAX]),
        (b"x" * (MAX + 1) + b"\n", [TOO_LONG]),
        (b"x" * (MAX + 1) + b"\r\n", [TOO_LONG]),
        (b"x" * (MAX + 1), [TOO_LONG]),
        (b"x" * MAX + b"\r\r\n", [TOO_LONG]),
    ],
)
def test_the_bound_counts_a_line_without_its_newline(stream, lines):
    assert framed([stream]) == lines
    assert framed([stream[:5], stream[5:]]) == lines


def test_a_line_that_is_too_long_keeps_its_place_among_the_others():
    long = b"y" * 50

    assert framed([b"a\n" + long + b"\nb\n" + long[:20], long + b"\nc\n"]) == [
        b"a",
        TOO_LONG,
        b"b",
        TOO_LONG,
        b"c",
    ]


def test_finish_takes_a_last_line_without_its_newline():
    framer = Framer(MAX)
    framer.feed(b"a\nlast")

    assert framer.finish() == [b"last\n"]


def test_finish_gives_nothing_after_a_whole_line():
    framer = Framer(MAX)
    framer.feed(b"a\n")

    assert framer.finish() == []


def test_finish_gives_the_place_of_a_long_line_whose_end_never_came():
    framer = Framer(MAX)
    framer.feed(b"y" * 50)

    assert framer.finish() == [TOO_LONG]


def test_receiving_nothing_changes_nothing():
    framer = Framer(MAX)

    assert framer.feed(b"") == []
    assert not framer.partial
    assert framer.finish() == []


@pytest.mark.parametrize("begun", [b"a", b"y" * 50])
def test_a_line_is_partial_from_its_first_byte_to_its_newline(begun):
    framer = Framer(MAX)
    assert not framer.partial

    framer.feed(begun)
    assert framer.partial

    framer.feed(b"\n")
    assert not framer.partial


@pytest.mark.parametrize("end", ["newline", "end of the stream"])
def test_a_framer_can_go_on_after_a_line_that_was_too_long(end):
    framer = Framer(MAX)
    framer.feed(b"y" * 50)
    if end == "newline":
        framer.feed(b"\n")
    else:
        framer.finish()

    assert framer.feed(b"a\n") == [b"a\n"]


@pytest.mark.parametrize("piece", [b"yz", b"y" * 1000, b"y" * 70_000])
def test_memory_is_bounded_however_long_a_line_is_and_however_it_comes(piece):
    """At most about the longest line, also when it comes in crumbs."""
    limit = 64 * 1024
    framer = Framer(limit)
    tracemalloc.start()
    try:
        for _ in range(4 * limit // len(piece)):
            framer.feed(bytes(bytearray(piece)))  # a new object each time, as from a socket
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert framer.feed(b"\n") == [TOO_LONG]
    assert peak < 3 * limit
