"""The socket protocol, to the letter, against a real daemon."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.processes import PATIENCE, Line, Product, balanced, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

GOOD = {"name": "usage", "external_customer_id": "c"}
BAD = {"name": "usage"}


@pytest.fixture
def daemon(product: Product) -> Product:
    """A daemon whose server is away: what it takes stays in its queue."""
    product.set(max_line_bytes=1024)
    product.start_daemon()
    return product


@pytest.fixture
def line(daemon: Product) -> Iterator[Line]:
    """One producer's connection."""
    line = Line(daemon.socket)
    yield line
    line.close()


def pending(product: Product) -> int:
    return product.status()["queue"]["events"]


def test_an_event_is_acknowledged_by_its_number(line: Line) -> None:
    line.send(GOOD)

    assert line.answer() == {"ack": 1}


def test_acks_count_all_lines_of_the_connection(line: Line) -> None:
    line.send(GOOD)
    line.acked(1)

    line.send(GOOD, GOOD)

    assert line.acked(3) == []


def test_a_refused_line_is_named_before_the_ack_that_covers_it(line: Line) -> None:
    line.send(GOOD, BAD, GOOD)

    refused, ack = line.answer(), line.answer()

    assert (refused["line"], refused["error"]["type"], refused["error"]["loc"]) == (
        2,
        "missing",
        ["external_customer_id"],
    )
    assert refused["error"]["msg"]
    assert ack == {"ack": 3}


def test_the_example_of_the_protocol_as_it_stands(line: Line) -> None:
    line.send(
        b'{"name":"ai_usage","external_customer_id":"cus_1","metadata":{"tokens":77}}\n{"name":"ai_usage"}\n'
    )
    line.half_close()

    answers = line.answers()

    assert [answer.get("line", answer.get("ack")) for answer in answers] == [2, 2]


def test_blank_lines_are_not_counted(line: Line) -> None:
    line.send(b"\n  \n\r\n", GOOD, b"\n", BAD, b"\t\n")

    refused = line.acked(2)

    assert [answer["line"] for answer in refused] == [2]


def test_a_carriage_return_before_the_newline_is_no_part_of_the_event(line: Line, daemon: Product) -> None:
    line.send(json.dumps(GOOD).encode() + b"\r\n" + json.dumps(GOOD).encode() + b"\r\n")

    assert line.acked(2) == []
    assert pending(daemon) == 2


def test_half_closing_ends_the_last_line_and_brings_the_final_ack(line: Line) -> None:
    line.send(GOOD, json.dumps(GOOD).encode())
    line.half_close()

    assert line.answers()[-1] == {"ack": 2}


def test_a_connection_that_says_nothing_gets_a_final_ack_of_nothing(line: Line) -> None:
    line.half_close()

    assert line.answers() == [{"ack": 0}]


def test_a_line_may_come_one_byte_at_a_time(line: Line) -> None:
    for byte in json.dumps(GOOD).encode() + b"\n":
        line.send(bytes([byte]))

    assert line.answer() == {"ack": 1}


def test_a_producer_that_stops_in_mid_line_gets_no_ack_for_it(line: Line, daemon: Product) -> None:
    line.send(GOOD, b'{"name":"us')
    assert line.acked(1) == []

    assert line.silent()
    assert pending(daemon) == 1


def test_what_a_producer_wrote_completely_is_taken_although_it_closes_at_once(
    line: Line, daemon: Product
) -> None:
    line.send(*[GOOD] * 100)
    line.close()

    wait_until(lambda: pending(daemon) == 100, what="100 pending events")


def test_an_overlong_line_is_refused_and_the_connection_goes_on(line: Line, daemon: Product) -> None:
    long = GOOD | {"metadata": {f"k{n}": "v" * 100 for n in range(20)}}
    line.send(GOOD, long, GOOD, b"x" * 300_000, b"y\n", GOOD)

    refused = line.acked(5)

    assert [(answer["line"], answer["error"]["type"]) for answer in refused] == [
        (2, "too_long"),
        (4, "too_long"),
    ]
    assert pending(daemon) == 3


def test_a_line_of_exactly_the_longest_length_is_taken(line: Line) -> None:
    event = json.dumps(GOOD | {"x": ""}).encode()
    padded = event.replace(b'"x": ""', b'"x": "' + b"p" * (1024 - len(event)) + b'"')
    line.send(padded + b"\r\n", padded.replace(b"p", b"pp", 1) + b"\n")

    refused = line.acked(2)

    assert [answer["line"] for answer in refused] == [2]


@pytest.mark.parametrize(
    ("text", "kind", "loc"),
    [
        (b"not json", "json_invalid", []),
        (b"[]", "json_invalid", []),
        (b"{}{}", "json_invalid", []),
        (b'\xef\xbb\xbf{"name":"a","external_customer_id":"c"}', "json_invalid", []),
        (b'{"name":"\xff","external_customer_id":"c"}', "json_invalid", []),
        (b'{"external_customer_id":"c"}', "missing", ["name"]),
        (b'{"name":"a"}', "missing", ["external_customer_id"]),
        (b'{"name":7,"external_customer_id":"c"}', "string_type", ["name"]),
        (b'{"name":"%s","external_customer_id":"c"}' % (b"n" * 129), "string_too_long", ["name"]),
        (b'{"name":"a","external_customer_id":null}', "string_type", ["external_customer_id"]),
        (b'{"name":"a","customer_id":"x"}', "uuid_parsing", ["customer_id"]),
        (
            b'{"name":"a","external_customer_id":"c","organization_id":"x"}',
            "uuid_parsing",
            ["organization_id"],
        ),
        (
            b'{"name":"a","external_customer_id":"c","organization_id":"92ddcaf5-fd7c-41a5-85a1-a31b062516b6"}',
            "not_allowed",
            ["organization_id"],
        ),
        (b'{"name":"a","external_customer_id":"c","timestamp":null}', "timestamp_invalid", ["timestamp"]),
        (
            b'{"name":"a","external_customer_id":"c","timestamp":"2026-01-01"}',
            "timestamp_invalid",
            ["timestamp"],
        ),
        (
            b'{"name":"a","external_customer_id":"c","timestamp":"2999-01-01T00:00:00Z"}',
            "timestamp_in_future",
            ["timestamp"],
        ),
        (
            b'{"name":"a","external_customer_id":"c","timestamp":"0001-01-01T00:00:00+14:00"}',
            "timestamp_invalid",
            ["timestamp"],
        ),
        (
            b'{"name":"a","external_customer_id":"c","metadata":{"k":null}}',
            "metadata_value",
            ["metadata", "k"],
        ),
        (b'{"name":"a","external_customer_id":"c","metadata":{"k":""}}', "metadata_value", ["metadata", "k"]),
        (b'{"name":"a","external_customer_id":"c","metadata":{"k":{}}}', "metadata_value", ["metadata", "k"]),
        (b'{"name":"a","external_customer_id":"c","metadata":[]}', "dict_type", ["metadata"]),
        (b'{"name":"a","external_customer_id":"c","metadata":{"k":NaN}}', "metadata_value", None),
        (b'{"name":"a","external_customer_id":"c","metadata":{"k":1e400}}', "metadata_value", None),
        (b'{"name":"a","external_customer_id":"c","metadata":{"k":"\\ud800"}}', None, None),
        (b'{"name":"a\\u0000","external_customer_id":"c"}', "invalid_characters", ["name"]),
        (
            b'{"name":"a","external_customer_id":"c","metadata":{"_cost":5}}',
            "dict_type",
            ["metadata", "_cost"],
        ),
        (
            b'{"name":"a","external_customer_id":"c","metadata":{"_llm":{"vendor":"v"}}}',
            "missing",
            ["metadata", "_llm", "model"],
        ),
    ],
)
def test_a_bad_event_is_refused_with_a_stable_type_and_its_neighbours_are_taken(
    line: Line, daemon: Product, text: bytes, kind: str | None, loc: list[str] | None
) -> None:
    line.send(GOOD, text + b"\n", GOOD)

    (refused,) = line.acked(3)

    assert refused["line"] == 2
    if kind is not None:
        assert refused["error"]["type"] == kind
    if loc is not None:
        assert refused["error"]["loc"] == loc
    assert pending(daemon) == 2


def test_an_answer_never_repeats_what_the_producer_wrote(line: Line) -> None:
    line.send({"name": ["s3cret"], "external_customer_id": "c"}, b'{"name": s3cret}\n')

    assert "s3cret" not in json.dumps(line.acked(2))


def test_a_producer_that_never_reads_blocks_no_one(line: Line, daemon: Product) -> None:
    for _ in range(50):
        line.send(BAD | {"pad": "p" * 100}, *[BAD] * 2000)

    reader = Line(daemon.socket)
    reader.send(GOOD)

    assert reader.answer() == {"ack": 1}
    reader.close()
    assert wait_until(lambda: daemon.polled()["ledger"]["refused"] == 50 * 2001)


def test_a_thousand_producers_at_once_are_all_served(product: Product) -> None:
    product.start_daemon()
    lines = [Line(product.socket) for _ in range(1000)]
    for number, one in enumerate(lines):
        one.send(GOOD | {"external_id": f"e{number}"})

    assert all(one.acked(1) == [] for one in lines)

    for one in lines:
        one.close()
    status = product.status()
    assert status["ledger"]["accepted"] == 1000
    assert balanced(status)


def test_more_producers_than_allowed_wait_until_others_leave(product: Product) -> None:
    product.set(max_connections=2)
    product.start_daemon()
    first, second, third = (Line(product.socket) for _ in range(3))
    for one in (first, second):
        one.send(GOOD)
        one.acked(1)
    third.send(GOOD)
    assert third.silent()

    first.close()

    assert third.acked(1) == []
    second.close()
    third.close()


def test_the_socket_has_the_mode_that_was_asked_for(product: Product) -> None:
    product.set(socket_mode="0622")
    product.start_daemon()

    assert stat.S_IMODE(product.socket.stat().st_mode) == 0o622


def test_a_stale_socket_file_is_replaced(product: Product) -> None:
    product.start_daemon()
    product.stop_daemon(signal.SIGKILL)
    assert product.socket.exists()

    product.start_daemon()

    one = Line(product.socket)
    one.send(GOOD)
    assert one.answer() == {"ack": 1}
    one.close()


def test_a_socket_that_another_daemon_answers_on_is_left_alone(product: Product, tmp_path: Path) -> None:
    product.start_daemon()
    first = product.daemon
    product.set(queue_dir=tmp_path / "other-queue")

    second = product.run("run")

    assert second.returncode == 1
    assert "another process listens there" in second.stderr
    assert first is not None
    assert first.poll() is None
    one = Line(product.socket)
    one.send(GOOD)
    assert one.answer() == {"ack": 1}
    one.close()


def test_a_file_that_is_no_socket_is_never_removed(product: Product) -> None:
    product.socket.write_text("precious")

    done = product.run("run")

    assert done.returncode == 1
    assert "not a socket" in done.stderr
    assert product.socket.read_text() == "precious"


def test_stopping_acknowledges_what_was_received_and_removes_the_socket(product: Product) -> None:
    product.set(shutdown_timeout="0.2")
    product.start_daemon()
    one = Line(product.socket)
    one.send(*[GOOD] * 500)

    assert product.stop_daemon() == 0

    answers = one.answers()
    one.close()
    assert answers[-1] == {"ack": 500}
    assert product.status()["queue"]["events"] == 500
    assert not product.socket.exists()


def test_an_event_of_the_near_future_is_held_until_its_time(product: Product) -> None:
    product.start_emulator()
    product.start_daemon()
    one = Line(product.socket)
    for lines, seconds in ((2, 1.5), (4, 6.0), (6, 24.0)):  # a busy machine needs longer than the first
        soon = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()

        one.send(GOOD | {"external_id": soon, "timestamp": soon}, GOOD | {"external_id": f"now {lines}"})

        assert one.acked(lines) == []
        stored = wait_until(lambda: [e for e in [*product.stored()] if e["external_id"] == f"now {lines}"])  # noqa: B023
        if stored[0]["received_at"] < soon:
            break
    assert stored[0]["received_at"] < soon
    late = wait_until(lambda: [e for e in [*product.stored()] if e["external_id"] == soon])
    assert late[0]["timestamp"] == soon
    assert product.status()["queue"]["dead"] == 0
    one.close()


def test_only_users_on_the_list_may_send(product: Product) -> None:
    somebody_else = os.geteuid() + 1
    product.set(allowed_users=somebody_else)
    product.start_daemon(wait=False)
    wait_until(product.socket.exists)

    with socket.socket(socket.AF_UNIX) as stranger:
        wait_until(lambda: stranger.connect_ex(str(product.socket)) == 0)
        assert stranger.recv(1) == b""


def cpu_seconds(pid: int) -> float:
    """Return what a process has used of the processor so far."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def test_without_a_free_descriptor_new_producers_wait_and_that_is_told_once(product: Product) -> None:
    product.prefix = ["sh", "-c", 'ulimit -S -n 100; exec "$@"', "sh"]
    product.start_daemon()
    daemon = product
    pid = wait_until(lambda: daemon.polled()["daemon"]["pid"], what="a daemon that runs")
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    assert limits[0] == limits[1], "it takes fewer than the system allows"
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    line = Line(daemon.socket)
    line.send(GOOD)
    wait_until(lambda: "cannot take connections" in daemon.log.read_text(), what="a message")
    began = cpu_seconds(pid)
    line.sock.settimeout(1.5)  # it tries every second
    with pytest.raises(TimeoutError):
        line.answer()
    assert cpu_seconds(pid) - began < 0.1, "it tries without a pause"
    line.sock.settimeout(PATIENCE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)

    line.acked(1)
    line.close()

    log = daemon.log.read_text()
    assert log.count("cannot take connections") == 1
    assert "LimitNOFILE" in log
