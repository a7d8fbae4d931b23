"""`agent dead` as an operator uses it, with many letters; with a daemon and without."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from support.failpoints import Nursery
from support.processes import Product, balanced, wait_until
from support.queues import chunk_of, letter
from support.trials import Victim

from agent.queue import Change, Settlement
from agent.queue.disk import DiskQueue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.queue import DeadLetter


def kept(number: int, **changes: Any) -> DeadLetter:
    """A letter of one of three customers, refused for one of two reasons, one each second."""
    event = {
        "name": f"name{number % 2}",
        "external_customer_id": f"c{number % 3}",
        "external_id": f"e{number}",
        "timestamp": "2026-01-01T00:00:00Z",
        "metadata": {"n": number},
    }
    reason = ("name: Field required", "customer_id: Customer not found")[number % 2]
    values = {
        "event": json.dumps(event),
        "name": event["name"],
        "reason": reason,
        "errors": [{"type": ("missing", "customer_id")[number % 2], "loc": [], "msg": reason}],
        "died_at": 1_790_000_000.0 + number,
    }
    return msgspec.structs.replace(letter(f"e{number}"), **{**values, **changes})


def bury(product: Product, letters: list[DeadLetter]) -> None:
    """Make a queue with these letters, numbered from 1; no daemon runs."""
    queue = DiskQueue(product.queue, server=product.url)
    (key,) = queue.commit(Change(appends=[chunk_of(*[one.external_id for one in letters])]))
    queue.commit(Change(settlements=[Settlement(key, None, dead=letters)]))
    queue.close()


@pytest.fixture
def many(product: Product) -> Product:
    """A queue with twelve hundred letters; no daemon runs."""
    bury(product, [kept(number) for number in range(1, 1201)])
    return product


@pytest.fixture(params=[True, False], ids=["with a daemon", "without a daemon"])
def operated(request: pytest.FixtureRequest, many: Product) -> Product:
    if request.param:
        many.start_daemon()
    return many


def items(product: Product, *words: str) -> list[dict[str, Any]]:
    done = product.run("dead", "list", "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["items"]


def numbers(product: Product, *words: str) -> list[int]:
    return [item["id"] for item in items(product, "--limit", "0", *words)]


ALL = range(1, 1201)


def test_letters_are_found_by_what_they_hold(many: Product) -> None:
    odd = [number for number in ALL if number % 2]

    assert len(items(many)) == 100
    assert numbers(many) == list(ALL)
    assert numbers(many, "--name", "name1") == odd
    assert numbers(many, "--reason", "customer NOT found") == odd
    assert numbers(many, "--type", "missing") == [number for number in ALL if number not in odd]
    assert numbers(many, "--status", "500") == []
    assert numbers(many, "--customer", "c2") == [number for number in ALL if number % 3 == 2]
    assert numbers(many, "--external-id", "e7", "--external-id", "e9") == [7, 9]
    since, until = "2026-09-21T14:13:24Z", "2026-09-21T14:13:28Z"
    assert numbers(many, "--since", since, "--until", until) == [4, 5, 6, 7]
    assert numbers(many, "--since", since, "--until", until, "--type", "missing") == [4, 6]


def test_letters_are_counted_by_what_they_have_in_common(many: Product) -> None:
    assert items(many, "--count-by", "reason") == [
        {"reason": "customer_id: Customer not found", "count": 600, "id": 1},
        {"reason": "name: Field required", "count": 600, "id": 2},
    ]
    assert items(many, "--count-by", "customer", "--until", "2026-09-21T14:13:25Z") == [
        {"customer": "c1", "count": 2, "id": 1},
        {"customer": "c2", "count": 1, "id": 2},
        {"customer": "c0", "count": 1, "id": 3},
    ]
    text = many.run("dead", "list", "--count-by", "type").stdout
    assert text.splitlines()[0].split() == ["COUNT", "FOR", "EXAMPLE", "TYPE"]


def test_a_letter_is_shown_with_every_digit_of_its_event_and_where_it_came_from(product: Product) -> None:
    text = '{"name":"n","metadata":{"x":1.50,"y":12345678901234567890123}}'
    bury(product, [kept(1, event=text, path="/var/log/app.log", line=7, offset=812), kept(2, event="{oh no")])

    shown = product.run("dead", "show", "1", "--json").stdout

    assert text in shown.replace(" ", "").replace("\n", "")
    assert [json.loads(shown)[name] for name in ("path", "line", "offset")] == ["/var/log/app.log", 7, 812]
    assert json.loads(product.run("dead", "show", "2", "--json").stdout)["event"] == "{oh no"


def test_exported_are_those_that_are_meant(many: Product, tmp_path: Path) -> None:
    lines = many.run("dead", "export", "--customer", "c1").stdout.splitlines()
    file = tmp_path / "dead.ndjson"
    assert many.run("dead", "export", str(file), "--customer", "c1").returncode == 0

    assert [json.loads(line)["external_id"] for line in lines] == [f"e{n}" for n in ALL if n % 3 == 1]
    assert file.read_text().splitlines() == lines
    assert file.stat().st_mode & 0o777 == 0o600, "events are nobody else's business"
    assert many.run("dead", "export", str(tmp_path / "none" / "file")).returncode == 2


def test_those_that_are_meant_are_retried_and_the_others_stay(operated: Product) -> None:
    done = operated.run("dead", "retry", "--customer", "c1", "--set", "name=mended", "--unset", "metadata.n")

    assert done.returncode == 0, done.stderr
    assert "400 dead letters are on their way" in done.stdout
    assert numbers(operated) == [number for number in ALL if number % 3 != 1]
    status = operated.status()
    assert (status["queue"]["events"], status["queue"]["dead"]) == (400, 800)
    assert balanced(status)
    operated.start_emulator()
    assert operated.run("flush").returncode == 0
    stored = list(operated.stored())
    assert {one["external_id"] for one in stored} == {f"e{n}" for n in ALL if n % 3 == 1}
    assert {(one["name"], str(one["metadata"])) for one in stored} == {("mended", "{}")}


def test_those_that_are_meant_are_purged_and_counted(operated: Product) -> None:
    done = operated.run("dead", "purge", "--type", "missing", "--json")

    assert json.loads(done.stdout) == {"purged": 600}
    status = operated.status()
    assert (status["ledger"]["dropped"], status["queue"]["dead"]) == (600, 600)
    assert balanced(status)


def test_an_edit_that_polar_would_refuse_is_refused_with_the_reason_and_the_letters_stay(
    operated: Product,
) -> None:
    done = operated.run("dead", "retry", "--all", "--set", "metadata.n=null", "--json")

    answer = json.loads(done.stdout)
    assert done.returncode == 1
    assert (answer["retried"], answer["refused_count"], len(answer["refused"])) == (0, 1200, 1000)
    assert answer["refused"][0]["id"] == 1
    assert "metadata.n" in answer["refused"][0]["reason"]
    assert numbers(operated) == list(ALL)


def test_an_edited_export_is_retried_each_event_as_its_letter(many: Product, tmp_path: Path) -> None:
    file = tmp_path / "dead.ndjson"
    many.run("dead", "export", str(file))
    events = [json.loads(line) | {"external_customer_id": "mended"} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(event) + "\n" for event in events[::2]))

    done = many.run("dead", "retry", "--from", str(file))

    assert "600 dead letters" in done.stdout
    assert numbers(many) == [number for number in ALL if number % 2 == 0]


@pytest.mark.parametrize("wrong", ["{", '{"external_id":"e1"}\n{"external_id":"e1"}', '{"external_id":"x"}'])
def test_a_file_with_a_mistake_changes_nothing(many: Product, tmp_path: Path, wrong: str) -> None:
    file = tmp_path / "dead.ndjson"
    good = "".join(kept(number).event + "\n" for number in range(600, 1200))
    file.write_text(good + wrong + "\n")

    done = many.run("dead", "retry", "--from", str(file))

    assert done.returncode == 2
    assert f"{file}:60" in done.stderr
    assert many.status()["queue"]["dead"] == 1200


def test_two_letters_of_one_id_are_two_letters(product: Product, tmp_path: Path) -> None:
    bury(product, [kept(1), kept(2, external_id="e1", event=kept(1).event)])
    file = tmp_path / "dead.ndjson"
    product.run("dead", "export", str(file))

    assert "2 dead letters" in product.run("dead", "retry", "--from", str(file)).stdout
    assert product.status()["queue"] | {"path": "", "bytes": 0, "oldest_age_seconds": 0} == {
        "path": "",
        "events": 2,
        "bytes": 0,
        "oldest_age_seconds": 0,
        "dead": 0,
    }


@pytest.mark.parametrize(
    "words",
    [
        ("retry", "--all", "--name", "n"),
        ("purge", "--all", "7"),
        ("retry", "--set", "name=x"),
        ("retry", "--all", "--set", "name"),
        ("retry", "--all", "--set", "external_id=x"),
        ("retry", "1", "--unset", "external_id"),
        ("retry", "--from", "file", "--all"),
        ("list", "--since", "yesterday"),
    ],
)
def test_what_is_not_meant_is_not_guessed(many: Product, words: tuple[str, ...]) -> None:
    done = many.run("dead", *words)

    assert done.returncode == 2, done.stdout
    assert many.status()["queue"]["dead"] == 1200


def test_one_letter_may_get_another_id(many: Product) -> None:
    assert many.run("dead", "retry", "7", "--set", "external_id=mended").returncode == 0

    many.start_emulator()
    assert many.run("flush").returncode == 0
    assert [event["external_id"] for event in many.stored()] == ["mended"]


def test_on_a_terminal_a_purge_is_asked_for(many: Product) -> None:
    master, slave = os.openpty()
    purge = many.spawn("dead", "purge", "--all", stdin=slave, stderr=slave, stdout=subprocess.PIPE)
    os.close(slave)
    asked = b""
    while b"[y/N]" not in asked:
        asked += os.read(master, 1000)
    assert b"throw away 1200 dead letters" in asked
    os.write(master, b"n\n")

    assert purge.wait(60) == 1
    assert many.status()["queue"]["dead"] == 1200
    os.close(master)


@pytest.mark.parametrize(
    "words", [("list", "--limit", "0", "--json"), ("list", "--limit", "0"), ("export",), ("export", "--json")]
)
def test_memory_does_not_grow_with_the_number_of_letters(product: Product, words: tuple[str, ...]) -> None:
    bury(product, [kept(number, event=kept(number).event + " " * 2000) for number in range(10_000)])
    # The kernel's own count for a child begins with what its parent held.
    script = (
        "import re, sys, agent.cli; code = agent.cli.main(sys.argv[1:]);"
        "status = open('/proc/self/status').read();"
        "print(re.search(r'VmHWM:\\s+(\\d+)', status)[1], file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "dead", *words],
        env=product.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=100,
        check=True,
    )

    assert int(done.stderr) < 60 * 1024, "KiB, where the events alone are 20,000"


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.mark.parametrize("verb", ["retry", "purge"])
@pytest.mark.parametrize(("step", "call"), [("before a row is deleted", 700), ("before a row is written", 2)])
def test_a_daemon_killed_in_the_middle_of_it_loses_no_letter_and_the_books_balance(
    tmp_path: Path, nursery: Nursery, step: str, call: int, verb: str
) -> None:
    victim = Victim(tmp_path, "http://127.0.0.1:9", nursery)
    bury(victim, [kept(number) for number in range(1, 1201)])
    victim.start_daemon()
    victim.failpoint.arm(step, call=call)

    assert victim.run("dead", verb, "--all").returncode == 1

    assert wait_until(victim.daemon.poll, what="the daemon's death") == -signal.SIGKILL
    victim.failpoint.disarm()
    victim.start_daemon()
    status = victim.status()
    assert balanced(status)
    assert status["queue"]["dead"] in (700, 1200), "whole transactions, or nothing of them"
    assert victim.run("dead", verb, "--all").returncode == 0
    status = victim.status()
    assert balanced(status)
    assert status["queue"]["dead"] == 0
    assert status["queue"]["events"] + status["ledger"]["dropped"] == 1200
    victim.close()


def test_a_line_of_a_file_that_is_no_json_is_found_and_replaced_as_a_whole(product: Product) -> None:
    bury(product, [kept(1, event="{oh no", path="/var/log/app.log", line=7, offset=812), kept(2)])
    assert "(/var/log/app.log:7)" in product.run("dead", "list").stdout
    assert "1 of them are no JSON objects" in product.run("dead", "export").stderr
    refused = product.run("dead", "retry", "1", "--set", "name=n")
    assert (refused.returncode, "--event" in refused.stderr) == (1, True)
    for words in (["--all"], ["1", "2"], ["1", "--set", "name=n"], []):
        assert product.run("dead", "retry", *words, "--event", "{}").returncode == 2
    assert product.run("dead", "retry", "1", "--event", '{"name": "n"}').returncode == 1
    assert numbers(product) == [1, 2]

    whole = '{"name": "mended", "external_customer_id": "c"}'
    done = product.run("dead", "retry", "1", "--event", whole)

    assert (done.returncode, done.stdout) == (0, "1 dead letter is on its way again\n")
    assert numbers(product) == [2]
    (event,) = map(json.loads, product.run("queue", "export").stdout.splitlines())
    assert (event["name"], event["external_id"]) == ("mended", "e1")
