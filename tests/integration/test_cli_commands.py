"""flush, status, dead, run and the command line itself, against real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from support.processes import PATIENCE, TOKEN, Line, Product, balanced, wait_until
from support.queues import chunk_of, letter

from agent import __version__
from agent.queue import Change
from agent.queue.disk import DiskQueue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GOOD = {"name": "usage", "external_customer_id": "c"}
# Only Polar can know that there is no such customer.
STRANGER = {"name": "usage", "customer_id": "5b0a9f0e-3d3e-4a36-9e4c-1d1f5f6a7b8c", "external_id": "stranger"}


def send(product: Product, *events: object) -> None:
    done = product.run("send", stdin="".join(json.dumps(event) + "\n" for event in events))
    assert done.returncode == 0, done.stderr


# -- flush -------------------------------------------------------------------------------


def test_flush_through_the_daemon_ends_with_0_when_polar_has_everything(product: Product) -> None:
    product.set(flush_interval="1h")
    product.start_emulator()
    product.start_daemon()
    send(product, *[GOOD] * 300)
    assert product.status()["queue"]["events"] == 300

    done = product.run("flush", "--json")

    assert done.returncode == 0
    assert json.loads(done.stdout) == {"empty": True, "remaining": 0, "reason": None}
    assert len(list(product.stored())) == 300


def test_flush_delivers_by_itself_when_no_daemon_runs(product: Product) -> None:
    product.set(shutdown_timeout="0")
    product.start_daemon()
    send(product, *[GOOD] * 1200)
    product.stop_daemon()
    product.start_emulator()

    done = product.run("flush")

    assert done.returncode == 0
    assert "the queue is empty" in done.stdout
    assert len(list(product.stored())) == 1200
    assert product.status()["ledger"]["delivered"] == 1200


@pytest.mark.parametrize("with_daemon", [True, False])
def test_flush_ends_with_1_and_a_reason_when_the_server_is_away_and_leaves_everything(
    product: Product, with_daemon: bool
) -> None:
    product.set(shutdown_timeout="0")
    product.start_daemon()
    send(product, *[GOOD] * 10)
    if not with_daemon:
        product.stop_daemon()

    done = product.run("flush", "--timeout", "1s", "--json")

    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert (answer["empty"], answer["remaining"]) == (False, 10)
    assert "refused" in answer["reason"]
    assert product.status()["queue"]["events"] == 10


def test_flush_says_at_once_that_the_token_is_wrong(product: Product) -> None:
    product.start_emulator("--token", "another")
    product.start_daemon()
    send(product, GOOD)

    done = product.run("flush", "--timeout", "60")

    assert done.returncode == 1
    assert "401" in done.stdout
    assert "POLAR_ACCESS_TOKEN" in done.stdout


def test_flush_of_a_queue_that_never_was_has_nothing_to_do(product: Product) -> None:
    done = product.run("flush", "--json")

    assert done.returncode == 0
    assert json.loads(done.stdout)["empty"] is True
    assert not product.queue.exists()


# -- status ------------------------------------------------------------------------------


def test_status_has_the_promised_shape_with_and_without_a_daemon(product: Product) -> None:
    shape = {
        "version": str,
        "daemon": {"running": bool, "pid": (int, type(None)), "uptime_seconds": (float, type(None))},
        "queue": {
            "path": str,
            "events": int,
            "bytes": int,
            "oldest_age_seconds": (float, type(None)),
            "dead": int,
        },
        "ledger": dict.fromkeys(("accepted", "refused", "delivered", "duplicates", "dead", "dropped"), int),
        "delivery": {
            "state": str,
            "last_error": (str, type(None)),
            "last_success": (str, type(None)),
            "next_attempt_in_seconds": (float, type(None)),
            "since": (str, type(None)),
            "batch_events": (int, type(None)),
            "delivering": (bool, type(None)),
        },
    }

    def check(document: object, expected: object) -> None:
        if isinstance(expected, dict):
            assert isinstance(document, dict)
            assert list(document) == list(expected)
            for key, value in expected.items():
                check(document[key], value)
        else:
            assert isinstance(document, expected)

    check(product.status(), shape)
    product.start_daemon()
    send(product, GOOD)
    status = product.status()
    check(status, shape)
    assert status["daemon"]["running"] is True
    assert status["daemon"]["pid"] == product.daemon.pid
    product.stop_daemon(signal.SIGKILL)
    status = product.status()
    check(status, shape)
    assert status["daemon"]["running"] is False
    assert (status["queue"]["events"], status["ledger"]["accepted"]) == (1, 1)
    assert status["queue"]["oldest_age_seconds"] is not None


def test_status_tells_people_what_is_wrong_and_what_to_do(product: Product) -> None:
    product.start_emulator("--token", "another")
    product.start_daemon()
    send(product, GOOD)

    wait_until(lambda: product.polled()["delivery"]["state"] == "blocked")
    text = product.run("status").stdout

    assert "blocked" in text
    assert text.count("check POLAR_ACCESS_TOKEN") == 1


def test_status_tells_of_a_clock_that_differs_and_of_what_waits_for_it(product: Product) -> None:
    product.start_emulator()
    product.faults(clock_offset_seconds=-300)
    product.start_daemon()
    send(product, GOOD | {"timestamp": datetime.now(UTC).isoformat()})
    wait_until(lambda: product.polled()["notes"][1:], what="held events")

    text = product.run("status").stdout

    assert re.search(r"this machine's clock is (299|30[01]) s ahead of Polar's; synchronize it", text)
    assert "1 row of events waits until their timestamps have passed" in text


def test_status_and_log_tell_what_is_wrong_with_a_token_file(product: Product, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("\n")
    del product.environ["POLAR_ACCESS_TOKEN"]
    product.set(access_token_file=token)
    product.start_daemon()
    send(product, GOOD)
    wait_until(lambda: product.polled()["delivery"]["state"] == "blocked")

    assert f"the token file {token} is empty; put the token in\n" in product.run("status").stdout
    told = [json.loads(line) for line in product.log.read_text().splitlines()]
    assert told[-1]["reason"] == f"the token file {token} is empty"
    assert told[-1]["hint"] == "put the token in"


def test_delivery_goes_on_by_itself_when_the_token_file_is_mended(product: Product, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("wrong\n")
    del product.environ["POLAR_ACCESS_TOKEN"]
    product.set(access_token_file=token)
    product.start_emulator("--token", TOKEN)
    product.start_daemon()
    send(product, GOOD)
    wait_until(lambda: product.polled()["delivery"]["state"] == "blocked")

    token.write_text(TOKEN + "\n")

    wait_until(lambda: product.polled()["ledger"]["delivered"] == 1)
    assert product.status()["delivery"]["last_error"] is None


# -- dead --------------------------------------------------------------------------------


@pytest.fixture
def buried(product: Product) -> Iterator[Product]:
    """A daemon with one dead letter and two good events delivered."""
    product.start_emulator()
    product.start_daemon()
    send(product, GOOD | {"external_id": "a"}, STRANGER, GOOD | {"external_id": "b"})
    wait_until(lambda: product.polled()["queue"]["dead"] == 1)
    return product


def test_what_only_polar_can_refuse_becomes_a_dead_letter_and_the_rest_arrives(buried: Product) -> None:
    wait_until(lambda: buried.polled()["queue"]["events"] == 0)

    (letter,) = json.loads(buried.run("dead", "list", "--json").stdout)["items"]

    assert letter["external_id"] == "stranger"
    assert letter["status"] == 422
    assert "Customer not found" in letter["reason"]
    assert [(error["type"], error["loc"]) for error in letter["errors"]] == [("customer_id", ["customer_id"])]
    assert {event["external_id"] for event in buried.stored()} == {"a", "b"}
    assert balanced(buried.status())


def test_a_dead_letter_is_shown_whole_and_an_unknown_one_is_not(buried: Product) -> None:
    shown = json.loads(buried.run("dead", "show", "1", "--json").stdout)
    unknown = buried.run("dead", "show", "2")

    assert {"name", "customer_id", "external_id", "timestamp"} == set(shown["event"])
    assert unknown.returncode == 1
    assert "no dead letter 2" in unknown.stderr


@pytest.mark.parametrize("with_daemon", [True, False])
def test_a_mended_dead_letter_is_delivered_under_its_own_id(buried: Product, with_daemon: bool) -> None:
    if not with_daemon:
        buried.stop_daemon()

    done = buried.run("dead", "retry", "1", "--set", "external_customer_id=mended")

    assert done.returncode == 0, done.stderr
    assert buried.run("flush").returncode == 0
    (event,) = [event for event in buried.stored() if event["external_id"] == "stranger"]
    assert event["external_customer_id"] == "mended"
    status = buried.status()
    assert status["ledger"]["dead"] == 0
    assert status["ledger"]["delivered"] == 3
    assert balanced(status)


def test_a_retried_letter_is_known_when_its_id_comes_again(buried: Product) -> None:
    mended = {"name": "usage", "external_customer_id": "mended", "external_id": "stranger"}
    assert buried.run("dead", "retry", "1", "--set", "external_customer_id=mended").returncode == 0

    line = Line(buried.socket)
    line.send(mended | {"metadata": {"other": 1}})
    (answer,) = line.acked(1)
    assert answer["error"]["type"] == "external_id_conflict"
    line.close()


def test_a_letter_that_would_be_refused_again_stays_and_the_reason_is_told(buried: Product) -> None:
    done = buried.run("dead", "retry", "--all", "--set", "metadata.tokens=null")

    assert done.returncode == 1
    assert "metadata.tokens" in done.stderr
    assert buried.status()["queue"]["dead"] == 1


def test_exported_letters_can_be_edited_and_retried(buried: Product, tmp_path: Path) -> None:
    file = tmp_path / "dead.ndjson"
    assert buried.run("dead", "export", str(file)).returncode == 0
    event = json.loads(file.read_text())
    del event["customer_id"]
    file.write_text(json.dumps(event | {"external_customer_id": "edited"}) + "\n")

    assert buried.run("dead", "retry", "--edited", str(file)).returncode == 0

    assert buried.run("flush").returncode == 0
    assert [e["external_customer_id"] for e in buried.stored() if e["external_id"] == "stranger"] == [
        "edited"
    ]


def test_purged_letters_count_as_dropped(buried: Product) -> None:
    done = buried.run("dead", "purge", "--all", "--json")

    assert json.loads(done.stdout) == {"purged": 1}
    status = buried.status()
    assert (status["ledger"]["dead"], status["ledger"]["dropped"], status["queue"]["dead"]) == (0, 1, 0)
    assert balanced(status)


@pytest.mark.parametrize("words", [("purge",), ("retry",), ("purge", "1", "--all")])
def test_it_must_be_said_which_letters_are_meant(product: Product, words: tuple[str, ...]) -> None:
    assert product.run("dead", *words).returncode == 2


# -- run ---------------------------------------------------------------------------------


def test_a_second_daemon_on_the_same_queue_is_refused_with_the_first_ones_number(
    product: Product, tmp_path: Path
) -> None:
    product.start_daemon()
    first = product.daemon.pid
    product.set(socket_path=tmp_path / "second.sock")

    second = product.run("run")

    assert second.returncode == 1
    assert str(first) in second.stderr


def test_the_queue_is_for_its_owner_only(product: Product) -> None:
    product.start_daemon()
    send(product, GOOD)

    assert stat.S_IMODE(product.queue.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in product.queue.iterdir()} == {0o600}


def test_a_queue_that_others_may_look_into_is_refused(product: Product) -> None:
    product.queue.mkdir()
    product.queue.chmod(0o755)

    done = product.run("run")

    assert done.returncode == 1
    assert f"chmod 700 {product.queue}" in done.stderr


def test_events_meant_for_one_server_are_not_sent_to_another(product: Product) -> None:
    product.set(shutdown_timeout="0")
    product.start_daemon()
    send(product, GOOD)
    product.stop_daemon()
    meant = product.environ["POLAR_AGENT_BASE_URL"]
    product.set(base_url="http://127.0.0.1:9")

    done = product.run("run")

    assert done.returncode == 2
    assert meant in done.stderr


def test_a_daemon_without_a_token_takes_events_and_says_what_is_missing(product: Product) -> None:
    del product.environ["POLAR_ACCESS_TOKEN"]
    product.start_emulator()
    product.start_daemon()
    send(product, GOOD)

    wait_until(lambda: product.polled()["delivery"]["state"] == "blocked")

    assert "POLAR_ACCESS_TOKEN" in product.status()["delivery"]["last_error"]
    assert "POLAR_ACCESS_TOKEN" in product.log.read_text()


def test_logs_hold_neither_the_token_nor_what_events_hold(product: Product) -> None:
    product.set(log_level="debug")
    product.start_emulator()
    product.start_daemon()
    send(product, GOOD | {"external_customer_id": "s3cret-customer"}, STRANGER | {"name": "s3cret-name"})
    line = Line(product.socket)
    line.send(b'{"name":"s3cret-bad"}\n')
    line.answer()
    line.close()
    wait_until(lambda: product.polled()["queue"]["dead"] == 1)
    product.stop_daemon()

    log = product.log.read_text()

    assert "dead letters" in log
    assert "s3cret" not in log
    assert TOKEN not in log


def test_stopping_delivers_what_it_can_within_its_time(product: Product) -> None:
    product.set(flush_interval="1h", shutdown_timeout="20")
    product.start_emulator()
    product.start_daemon()
    send(product, *[GOOD] * 30)

    assert product.stop_daemon() == 0

    assert len(list(product.stored())) == 30


def test_stopping_leaves_the_rest_on_disk_when_the_server_hangs(product: Product) -> None:
    product.set(shutdown_timeout="0.3")
    product.start_emulator()
    product.faults(latency_ms=60_000)
    product.start_daemon()
    send(product, GOOD)

    assert product.stop_daemon() == 0

    assert product.status()["queue"]["events"] == 1


# -- the command line itself -------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "demo", "send", "flush", "status", "events", "dead", "emulator"])
def test_every_command_has_help(product: Product, command: str) -> None:
    done = product.run(command, "--help")

    assert done.returncode == 0
    assert "exit codes" in done.stdout or command in ("events", "emulator")


def test_a_wrong_setting_ends_with_2_and_names_the_setting_its_source_and_the_mend(product: Product) -> None:
    product.set(flush_interval="soon")

    done = product.run("status")

    assert done.returncode == 2
    for word in ("flush_interval", "POLAR_AGENT_FLUSH_INTERVAL", "'soon'", "2s"):
        assert word in done.stderr


def test_output_into_a_closed_pipe_is_no_error(product: Product) -> None:
    read, write = os.pipe()
    os.close(read)
    process = product.spawn("status", "--json", stdout=write)
    os.close(write)

    assert process.wait(30) == 0


@pytest.mark.parametrize("words", [("status",), ("queue", "verify"), ("queue", "export"), ("dead", "list")])
def test_output_to_a_full_disk_is_told_and_ends_with_1(product: Product, words: tuple[str, ...]) -> None:
    with closing(DiskQueue(product.queue)) as queue:
        queue.commit(Change(appends=[chunk_of("a")], letters=[letter("b")]))
    with open("/dev/full", "w") as full:  # noqa: PTH123  # no file
        command = product.spawn(*words, stdout=full, stderr=subprocess.PIPE)

        _, told = command.communicate(timeout=PATIENCE)

    assert command.returncode == 1
    hint = "make room on it"
    assert told == (
        f"agent {words[0]}: cannot write the output: standard output: No space left on device\n  {hint}\n"
    )


@pytest.mark.parametrize("words", [("queue", "export"), ("dead", "export")])
def test_an_export_to_a_full_disk_is_told_and_ends_with_1(product: Product, words: tuple[str, ...]) -> None:
    with closing(DiskQueue(product.queue)) as queue:
        queue.commit(Change(appends=[chunk_of("a")], letters=[letter("b")]))

    done = product.run(*words, "/dev/full")

    assert done.returncode == 1
    assert f"agent {words[0]}: cannot write the events: /dev/full: No space left on device" in done.stderr
    assert "written" not in done.stderr


def test_a_daemon_that_nobody_reads_the_output_of_ends_with_0(product: Product) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123  # no file
        product.daemon = product.spawn("run", stdout=full, stderr=subprocess.DEVNULL)
    wait_until(product.socket.exists, what="the daemon's socket")

    assert product.stop_daemon() == 0


def test_it_runs_as_a_module_and_tells_its_version(product: Product) -> None:
    assert product.run("--version").stdout.strip() == f"polar-agent {__version__}"
