"""An external_id that comes again, against a real daemon: acknowledged and counted, or refused."""

from __future__ import annotations

import json
import random
import signal
import threading
from typing import TYPE_CHECKING

import pytest
from support.http import Caller
from support.processes import Line, Product, balanced, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

STRANGER = "5b0a9f0e-3d3e-4a36-9e4c-1d1f5f6a7b8c"  # only Polar can know that there is no such customer


def event(external_id: str, n: int = 0, **more: object) -> dict[str, object]:
    return {
        "name": "usage",
        "external_customer_id": "c",
        "external_id": external_id,
        "metadata": {"n": n},
        **more,
    }


@pytest.fixture
def daemon(product: Product) -> Product:
    """A daemon whose server is away: what it takes stays in its queue."""
    product.start_daemon()
    return product


@pytest.fixture
def line(daemon: Product) -> Iterator[Line]:
    line = Line(daemon.socket)
    yield line
    line.close()


def conflicts(answers: list[dict]) -> list[int]:
    """Return the numbers of the refused lines, all of them refused for this."""
    assert {answer["error"]["type"] for answer in answers} <= {"external_id_conflict"}
    assert all(answer["error"]["loc"] == ["external_id"] for answer in answers)
    return [answer["line"] for answer in answers]


def ledger(product: Product) -> dict[str, int]:
    """Return what is not zero in the books, which must balance."""
    status = product.status()
    assert balanced(status)
    counts = {"pending": status["queue"]["events"], **status["ledger"]}
    return {name: count for name, count in counts.items() if count}


def test_the_same_event_is_acknowledged_counted_and_not_stored_again(line: Line, daemon: Product) -> None:
    line.send(event("a"), event("b"))
    line.acked(2)
    line.send(event("a"), event("b"), event("c"))

    assert line.acked(5) == []
    assert ledger(daemon) == {"accepted": 5, "duplicates": 2, "pending": 3}


def test_another_event_under_the_same_id_is_refused_with_the_reason(line: Line, daemon: Product) -> None:
    line.send(event("a", 1), event("b", 1))
    line.acked(2)
    line.send(event("c", 1), event("a", 2), event("b", 1), event("c", 2))

    assert conflicts(line.acked(6)) == [4, 6]
    assert ledger(daemon) == {"accepted": 4, "duplicates": 1, "refused": 2, "pending": 3}


def test_it_is_known_whichever_connection_it_comes_on(line: Line, daemon: Product) -> None:
    line.send(event("a", 1))
    line.acked(1)
    other = Line(daemon.socket)

    other.send(event("a", 1), event("a", 2))

    assert conflicts(other.acked(2)) == [2]
    other.close()


def test_of_many_who_write_one_id_at_once_one_is_stored(daemon: Product) -> None:
    ids, writers = 50, 8
    lines = [Line(daemon.socket) for _ in range(writers)]
    refused = [0] * writers

    def write(place: int) -> None:
        lines[place].send(*[event(f"e{n}", place % 2) for n in range(ids)])
        refused[place] = len(conflicts(lines[place].acked(ids)))

    threads = [threading.Thread(target=write, args=(place,)) for place in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in lines:
        one.close()

    assert sum(refused) == ids * writers // 2
    assert ledger(daemon) == {
        "accepted": ids * writers // 2,
        "duplicates": ids * (writers // 2 - 1),
        "refused": ids * writers // 2,
        "pending": ids,
    }


def test_a_resend_after_a_broken_connection_is_acknowledged(daemon: Product, line: Line) -> None:
    """As our own producer resends: the same bytes, as many as were not acknowledged."""
    events = [event(f"e{n}", n, timestamp="2026-01-01T00:00:00Z") for n in range(5_000)]
    first = Line(daemon.socket)
    first.send(*events)
    first.close()  # without a look at the acks
    wait_until(lambda: daemon.polled()["queue"]["events"] == 5_000)

    line.send(*events)

    assert line.acked(5_000) == []
    assert ledger(daemon) == {"accepted": 10_000, "duplicates": 5_000, "pending": 5_000}


def test_socket_and_api_know_of_each_other(line: Line, daemon: Product) -> None:
    api = Caller(daemon.directory / "api.sock").wait()
    line.send(event("a", 1))
    line.acked(1)

    answer = api("POST", "/v1/events/ingest", {"events": [event("a", 1), event("b", 1)]})
    refused = api("POST", "/v1/events/ingest", {"events": [event("c", 1), event("a", 2)]})
    line.send(event("b", 1), event("b", 2), event("c", 2))

    assert answer.json() == {"inserted": 1, "duplicates": 1}
    assert refused.status == 422
    assert [one["loc"] for one in refused.json()["detail"]] == [["body", "events", 1, "external_id"]]
    assert conflicts(line.acked(4)) == [3]
    assert ledger(daemon) == {"accepted": 5, "duplicates": 2, "refused": 2, "pending": 3}


def test_agent_send_may_send_a_file_twice(daemon: Product) -> None:
    text = "".join(json.dumps(event(f"e{n}", n)) + "\n" for n in range(2_000))

    for _ in range(2):
        sent = daemon.run("send", "--json", stdin=text)
        assert sent.returncode == 0, sent.stderr
        assert json.loads(sent.stdout)["acknowledged"] == 2_000

    assert ledger(daemon) == {"accepted": 4_000, "duplicates": 2_000, "pending": 2_000}


def test_what_was_acknowledged_as_a_repeat_survives_kill_9(daemon: Product, line: Line) -> None:
    line.send(*[event(f"e{n}", n) for n in range(200)] * 2)
    line.acked(400)

    daemon.stop_daemon(signal.SIGKILL)
    daemon.start_emulator()
    daemon.start_daemon()

    assert daemon.run("flush").returncode == 0
    assert sorted(one["metadata"]["n"] for one in daemon.stored()) == list(range(200))
    assert ledger(daemon) == {"accepted": 400, "duplicates": 200, "delivered": 200}


def test_what_is_still_in_the_queue_is_known_after_a_restart(daemon: Product, line: Line) -> None:
    line.send(event("a", 1), event("b", 1, timestamp="2026-01-01T00:00:00Z"))
    line.acked(2)
    daemon.stop_daemon(signal.SIGKILL)
    daemon.start_daemon()
    again = Line(daemon.socket)

    again.send(event("a", 1), event("b", 1, timestamp="2026-01-01T00:00:00Z"), event("a", 2), event("c", 1))

    assert conflicts(again.acked(4)) == [3]
    assert ledger(daemon) == {"accepted": 5, "duplicates": 2, "refused": 1, "pending": 3}
    again.close()


def test_what_was_delivered_before_a_restart_is_taken_and_polar_tells_that_it_is_a_repeat(
    daemon: Product,
) -> None:
    """What is remembered ends with the process; that a repeat is harmless does not."""
    daemon.start_emulator()
    daemon.run("send", stdin=json.dumps(event("a")) + "\n")
    assert daemon.run("flush").returncode == 0
    daemon.stop_daemon(signal.SIGKILL)
    daemon.start_daemon()

    assert daemon.run("send", stdin=json.dumps(event("a")) + "\n").returncode == 0

    assert daemon.run("flush").returncode == 0
    assert ledger(daemon) == {"accepted": 2, "delivered": 1, "duplicates": 1}


def test_status_tells_where_duplicates_come_from(product: Product) -> None:
    product.start_daemon()
    line = Line(product.socket)
    line.send(event("a"), event("a"))
    line.acked(2)
    product.start_emulator()
    wait_until(lambda: ledger(product).get("delivered") == 1)
    product.faults(lose_answer_share=1)
    line.send(event("b"))
    wait_until(lambda: len(list(product.stored())) == 2)
    product.faults()
    wait_until(lambda: ledger(product).get("duplicates") == 2)
    line.close()
    product.stop_daemon()
    product.start_daemon()
    assert product.run("send", stdin=json.dumps(event("a")) + "\n").returncode == 0
    wait_until(lambda: ledger(product).get("duplicates") == 3)

    text = product.run("status").stdout

    told = "of the duplicates 1 came again at the socket, 1 were our own retries, 1 were at Polar before"
    assert told in text
    assert product.log.read_text().count("never sent from here") == 1


def test_an_event_that_was_dropped_may_come_again(product: Product) -> None:
    product.set(queue_max_bytes="64KiB", max_line_bytes="16KiB", when_full="drop_newest")
    product.start_daemon()
    line = Line(product.socket)
    chance = random.Random(1)  # what it makes does not become much smaller on disk
    fillers = {f"e{n}": {f"k{m}": chance.randbytes(100).hex() for m in range(30)} for n in range(40)}
    number = 0
    dropped = []
    for name, filler in fillers.items():
        number += 1
        line.send(event(name, metadata=filler))
        dropped += [name for answer in line.acked(number) if answer["error"]["type"] == "queue_full"]
    assert dropped
    product.start_emulator()
    assert product.run("flush").returncode == 0

    line.send(event(dropped[0], 2))

    assert line.acked(number + 1) == []
    wait_until(lambda: dropped[0] in {one["external_id"] for one in product.stored()})
    line.close()


def test_a_dead_letter_may_come_again_mended_from_the_producer(product: Product) -> None:
    product.start_emulator()
    product.start_daemon()
    line = Line(product.socket)
    bad = {"name": "usage", "customer_id": STRANGER, "external_id": "a"}
    line.send(bad, event("b"))
    line.acked(2)
    wait_until(lambda: ledger(product).get("dead"))

    line.send(event("a", 5))

    assert line.acked(3) == []
    stored = wait_until(lambda: [one for one in product.stored() if one["external_id"] == "a"])
    assert stored[0]["metadata"] == {"n": 5}
    line.send(event("b", 5))
    assert conflicts(line.acked(4)) == [4]
    line.close()


def test_a_retried_dead_letter_is_known_again(product: Product) -> None:
    product.start_emulator()
    product.start_daemon()
    line = Line(product.socket)
    line.send({"name": "usage", "customer_id": STRANGER, "external_id": "a"})
    line.acked(1)
    wait_until(lambda: ledger(product).get("dead"))
    product.stop_emulator()
    done = product.run("dead", "retry", "--all", "--set", "external_customer_id=c", "--unset", "customer_id")
    assert done.returncode == 0, done.stderr

    line.send(event("a", 1))

    assert conflicts(line.acked(2)) == [2]
    line.close()
