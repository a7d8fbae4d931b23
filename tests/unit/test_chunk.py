"""Rows of the queue: what comes out is what went in, or an error says that it is not."""

import random
import struct
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import chunk
from agent.chunk import MAX_BYTES, MAX_EVENTS, Chunk, DamagedChunkError, NewerChunkError, decode, pack

line = st.binary(min_size=1, max_size=80).map(lambda text: text.replace(b"\n", b" "))
keys = st.integers(0, 2**32 - 1)
milliseconds = st.integers(0, 2**64 - 1)


@st.composite
def chunks(draw):
    """Chunks that are stored as they are, and such that are worth compressing."""
    lines = draw(st.lists(line, min_size=1, max_size=12)) * draw(st.sampled_from([1, 1, 7, 40]))
    return Chunk(b"\n".join(lines), len(lines), draw(milliseconds), draw(milliseconds))


# -- one row ---------------------------------------------------------------------------


@given(chunks(), keys)
def test_a_chunk_survives_the_way_into_a_row_and_back(written, key):
    assert decode(written.encode(key), key) == written


@given(chunks(), keys, keys)
def test_a_row_that_stands_under_the_key_of_another_one_is_noticed(written, key, other):
    if key != other:
        with pytest.raises(DamagedChunkError):
            decode(written.encode(key), other)


@given(chunks(), keys, st.data())
def test_any_flipped_bit_is_noticed(written, key, data):
    row = bytearray(written.encode(key))
    bit = data.draw(st.integers(0, len(row) * 8 - 1))
    row[bit // 8] ^= 1 << bit % 8

    with pytest.raises(DamagedChunkError):
        decode(bytes(row), key)


@given(chunks(), st.data())
def test_a_row_that_is_cut_short_is_noticed(written, data):
    row = written.encode()
    end = data.draw(st.integers(0, len(row) - 1))

    with pytest.raises(DamagedChunkError):
        decode(row[:end])


@given(chunks(), st.binary(min_size=1, max_size=9))
def test_a_row_with_something_behind_it_is_noticed(written, more):
    with pytest.raises(DamagedChunkError):
        decode(written.encode() + more)


@given(st.binary(max_size=200))
def test_bytes_that_were_never_a_chunk_are_refused(row):
    with pytest.raises(DamagedChunkError):
        decode(row)


def row(*, magic=b"PA", version=2, codec=0, size=2, payload=b"{}", key=0):
    """Return a row whose checksum is right, whatever else is wrong with it."""
    head = struct.pack("<2sBBIIQQ", magic, version, codec, 1, size, 0, 0)
    return head + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head, key))) + payload


def test_the_layout_of_a_row_stays_what_it_was():
    """Rows outlive the program that wrote them."""
    assert decode(row(key=7), 7) == Chunk(b"{}", 1)
    assert Chunk(b"{}", 1).encode(7) == row(key=7)


@given(keys)
def test_rows_of_version_1_are_read_though_they_know_no_key(key):
    assert decode(row(version=1), key) == Chunk(b"{}", 1)


@pytest.mark.parametrize("version", [chunk.VERSION + 1, 255])
def test_a_row_of_a_newer_version_is_told_from_a_damaged_one(version):
    with pytest.raises(NewerChunkError, match=str(version)):
        decode(row(version=version))


@pytest.mark.parametrize(
    "wrong",
    [
        {"magic": b"XX"},
        {"size": 3},
        {"size": 1},
        {"codec": 2},
        {"codec": 1, "payload": b"no LZ4 at all"},
        {"codec": 1, "size": 2**32 - 1, "payload": bytes(20)},
    ],
)
def test_a_row_that_was_written_wrong_is_refused_in_spite_of_its_checksum(wrong):
    with pytest.raises(DamagedChunkError):
        decode(row(**wrong))


@given(chunks())
def test_the_first_bytes_of_a_row_tell_how_many_events_it_claims_to_hold(written):
    lines = written.lines.replace(b" ", b"_").replace(b"\n", b"__\n") + b"__"
    row = Chunk(lines, written.count).encode(5)

    assert chunk.claimed_events(row[: chunk.HEAD_BYTES]) == written.count


@given(st.binary(max_size=100))
def test_bytes_that_were_never_a_chunk_claim_no_events(head):
    assert chunk.claimed_events(head) == 0


def test_a_row_that_claims_more_events_than_fit_into_it_is_not_believed():
    assert chunk.claimed_events(row(size=4)) == 1
    assert chunk.claimed_events(row(size=1)) == 0
    assert chunk.claimed_events(row(codec=9)) == 0
    assert chunk.claimed_events(row(magic=b"XX")) == 0


def test_lines_that_repeat_take_less_room_in_a_row():
    lines = b"\n".join([b'{"name":"n","external_customer_id":"c"}'] * 500)

    assert len(Chunk(lines, 500).encode()) < len(lines) / 10


def test_lines_that_cannot_be_compressed_take_no_more_room_than_their_head():
    lines = random.Random(1).randbytes(2000)

    assert len(Chunk(lines, 1).encode()) == len(lines) + 32


# -- packing ---------------------------------------------------------------------------


@st.composite
def groups(draw):
    """Groups of lines: single ones, many short ones, few long ones, one beyond every bound."""
    result = []
    for number in range(draw(st.integers(0, 8))):
        count, size = draw(
            st.sampled_from(
                [(1, 1), (3, 50), (499, 20), (500, 20), (501, 3), (1300, 2), (2, 600_000), (1, MAX_BYTES + 5)]
            )
        )
        lines = [(b"%d.%d " % (number, place)).ljust(size, b"x") for place in range(count)]
        result.append((b"\n".join(lines), count))
    return result


@given(groups())
def test_packing_keeps_every_line_once_and_in_order(packed):
    lines = [line for text, _ in packed for line in text.split(b"\n")]

    assert [line for made in pack(packed, 0) for line in made.lines.split(b"\n")] == lines


@given(groups())
def test_packing_makes_chunks_within_the_bounds_but_for_a_line_that_is_alone(packed):
    for made in pack(packed, 0):
        assert made.count == made.lines.count(b"\n") + 1
        assert made.count <= MAX_EVENTS
        assert len(made.lines) <= MAX_BYTES or made.count == 1


@given(groups())
def test_packing_joins_what_fits(packed):
    """Of two neighbours that both could have been one, there are none but where a group is cut."""
    made = pack([(text, count) for text, count in packed if count < 500 and len(text) < 1000], 0)

    for one, next_one in pairwise(made):
        assert one.count + next_one.count > MAX_EVENTS


def test_packing_nothing_makes_no_chunk():
    assert pack([], 0) == []


def test_packed_chunks_carry_their_time_of_arrival_and_are_due_at_once():
    (made,) = pack([(b"{}\n{}", 2), (b"{}", 1)], 1_795_435_200_123)

    assert made == Chunk(b"{}\n{}\n{}", 3, 1_795_435_200_123, 0)
