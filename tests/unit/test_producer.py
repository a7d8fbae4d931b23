"""What the producer promises before any socket is involved: stamping, and the window."""

import json
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.producer.stamp import stamp
from agent.producer.window import ProtocolError, Refusal, Window

UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
NOW = 1_700_000_000.0


def stamped(block: bytes) -> list[bytes]:
    data, _, count = stamp(block, NOW)
    lines = data.split(b"\n")
    assert lines.pop() == b""
    assert len(lines) == count
    return lines


@pytest.mark.parametrize(
    "line",
    [
        b'{"name":"a"}',
        b'{"name":"a","external_id":null}',
        b'{"external_id":"","name":"a"}',
        b'{"external\\u005fid":null,"name":"a"}',
        b'  {"name":"a"}  ',
        b'{"name":"a"}\r',
        b'{"name":"a", "metadata":{"external_id":"of the customer"} }',
        b'{"name":"\\u00e9"}',
    ],
)
def test_an_event_without_an_id_gets_one(line):
    (new,) = stamped(line + b"\n")
    event = json.loads(new)
    assert UUID7.fullmatch(event["external_id"])
    assert event["name"] == json.loads(line)["name"]


@pytest.mark.parametrize(
    "line",
    [
        b'{"name":"a","external_id":"mine"}',
        b'{"name":"a","external\\u005fid":"mine"}',
        b'{"name":"a","external_id":17}',  # for the daemon to refuse
        b'{"name":"a","metadata":{"n":1e400}}}',
        b"{}",
        b"{ }",
        b"[]",
        b"null",
        b'{"name":"a"} {"name":"b"}',
        b'{"name":',
        b'"name":"b"}',
        b"\xff",
        b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("company", [b"", b'{"name":"b"}\n', b'{"name":"b","external_id":"x"}\n', b"\n"])
def test_what_has_an_id_or_is_no_event_stays_as_it_is(line, company):
    assert stamped(company + line + b"\n")[-1] == line


def test_no_two_events_get_the_same_id():
    block = b"".join(b'{"the number":"%05d"}\n' % number for number in range(20_000))
    ids = [json.loads(line)["external_id"] for line in stamped(block) + stamped(block)]
    assert len(set(ids)) == 40_000


def test_values_keep_their_digits():
    line = b'{"external_id":null,"metadata":{"a":1.0,"b":12345678901234567890123,"c":1e2}}'
    (new,) = stamped(line + b"\n")
    assert b'"metadata":{"a":1.0,"b":12345678901234567890123,"c":1e2}' in new


def test_blank_lines_are_left_out_and_places_tell_where_the_others_stood():
    data, places, count = stamp(b'\n{"external_id":"a"}\n \t\r\n\n{"external_id":"b"}\n', NOW)
    assert data == b'{"external_id":"a"}\n{"external_id":"b"}\n'
    assert (places, count) == ([1, 4], 2)


def test_a_value_that_spans_lines_beside_two_on_one_line_is_not_mistaken_for_two_good_lines():
    block = b'{"a":{}\n,"b":1}\n{"c":1}{"d":1}\n{"e":1}\n'
    *bad, good = stamped(block)
    for line in bad:
        with pytest.raises(msgspec.DecodeError):
            msgspec.json.decode(line)
    assert "external_id" in json.loads(good)


def readable(line: bytes) -> object:
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


pieces = st.sampled_from(
    [b"{", b"}", b'"a":1', b'"external_id":null', b'"external_id":"x"', b",", b"\n", b"\r\n", b" ", b'"a":{}']
)


@given(st.lists(pieces, max_size=30).map(b"".join))
def test_good_lines_stay_good_and_bad_lines_stay_bad(block):
    block += b"\n"
    old = [line for line in block.replace(b"\r\n", b"\n").split(b"\n") if line.strip()]
    new = stamped(block)
    assert len(new) == len(old)
    for before, after in zip(map(readable, old), map(readable, new), strict=True):
        if isinstance(before, dict) and before:
            assert isinstance(after, dict)
            given_id = before.pop("external_id", None)
            new_id = after.pop("external_id")
            assert new_id == given_id or (not given_id and UUID7.fullmatch(new_id))
        assert after == before


def filled(*blocks: tuple[bytes, int]) -> Window:
    window = Window()
    line = 1
    for data, count in blocks:
        window.add(data, count, "file", line, None)
        line += count
    return window


def write_all(window: Window) -> bytes:
    written = b""
    while (data := window.to_write()) is not None:
        written += data
        window.wrote(len(data))
    return written


def test_what_was_written_is_kept_until_it_is_acknowledged():
    window = filled((b"a\nb\n", 2), (b"c\n", 1))
    assert write_all(window) == b"a\nb\nc\n"
    assert (window.sent, window.acknowledged, window.held_bytes) == (3, 0, 6)
    assert window.acknowledge(2)
    assert (window.acknowledged, window.held_bytes) == (2, 2)
    assert window.acknowledge(3)
    assert (window.held_bytes, bool(window)) == (0, False)


def test_a_new_connection_begins_at_the_first_line_that_was_not_acknowledged():
    window = filled((b"a\nb\nc\n", 3), (b"d\n", 1))
    write_all(window)
    window.acknowledge(1)
    window.rewind()
    assert write_all(window) == b"b\nc\nd\n"
    assert window.sent == 4
    assert window.acknowledge(3)  # of this connection
    assert window.acknowledged == 4


def test_a_block_that_was_half_written_is_written_from_its_start_on_a_new_connection():
    window = filled((b"a\nb\n", 2))
    window.wrote(3)
    assert window.sent == 0
    window.rewind()
    assert write_all(window) == b"a\nb\n"


def test_an_ack_that_repeats_is_no_news():
    window = filled((b"a\nb\n", 2))
    write_all(window)
    assert window.acknowledge(1)
    assert not window.acknowledge(1)


def test_an_ack_of_lines_that_were_not_written_is_not_believed():
    window = filled((b"a\nb\n", 2), (b"c\n", 1))
    window.wrote(4)
    with pytest.raises(ProtocolError):
        window.acknowledge(3)
    with pytest.raises(ProtocolError):
        window.acknowledge(4)


def test_a_refusal_names_source_and_line():
    window = Window()
    window.add(b"a\n", 1, "one", 1, None)
    window.add(b"b\nc\n", 2, "two", 10, [0, 5])
    write_all(window)
    assert window.refuse(3, {"type": "missing"}) == Refusal("two", 15, {"type": "missing"})
    window.acknowledge(3)
    assert (window.accepted, window.refused) == (2, 1)


def test_a_refusal_that_a_resend_repeats_counts_once():
    window = filled((b"a\nb\n", 2))
    write_all(window)
    assert window.refuse(2, {}) is not None
    window.acknowledge(1)
    window.rewind()
    write_all(window)
    assert window.refuse(1, {}) is None
    window.acknowledge(1)
    assert (window.refused, window.accepted, window.acknowledged) == (1, 1, 2)


@pytest.mark.parametrize("line", [0, 1, 3])
def test_a_refusal_of_a_line_that_is_not_open_is_not_believed(line):
    window = filled((b"a\n", 1), (b"b\n", 1))
    write_all(window)
    window.acknowledge(1)
    with pytest.raises(ProtocolError):
        window.refuse(line, {})


def test_where_sending_would_go_on_is_told():
    window = Window()
    assert window.first_unacknowledged() is None
    window.add(b"a\nb\nc\n", 3, "file", 7, [0, 2, 3])
    write_all(window)
    window.acknowledge(1)
    assert window.first_unacknowledged() == ("file", 9)
