"""A queue that was filled for one server is not sent to another, whoever is asked to send it."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from support.damage import DATABASE, copy
from support.load import Load, assert_all_accounted
from support.processes import TOKEN, Line, wait_until
from support.queues import chunk_of
from support.trials import STRANGER

from agent.emulator.options import ORGANIZATION_ID
from agent.polar import PolarClient
from agent.queue import Change
from agent.queue.disk import DiskQueue

if TYPE_CHECKING:
    from support.processes import Product

OTHER = "https://polar.example.com"


@pytest.fixture
def filled(product: Product) -> Load:
    """A queue with events for the emulator's address."""
    product.set(shutdown_timeout="0.1")
    product.start_daemon()
    load = Load(product.socket, "a")
    load.go_on()
    load.finish()
    product.stop_daemon()
    return load


@pytest.mark.parametrize("command", [("run",), ("flush",)])
def test_pending_events_for_another_server_are_refused_and_stay(
    product: Product, filled: Load, command: tuple[str]
) -> None:
    product.start_emulator()
    before = product.status()
    product.set(base_url=OTHER)

    done = product.run(*command)

    assert done.returncode == 2
    assert f"meant for {product.url}, but the settings say {OTHER}" in done.stderr
    assert f"it holds {len(filled.written)} pending events" in done.stderr
    assert "flush it with the old settings first, or choose another queue_dir" in done.stderr
    assert product.status()["ledger"] == before["ledger"]
    product.set(base_url=product.url)
    assert product.run("flush").returncode == 0
    assert_all_accounted([filled], list(product.stored()), product.status())


def test_dead_letters_of_another_server_are_refused_too(product: Product) -> None:
    product.start_emulator()
    product.start_daemon()
    line = Line(product.socket)
    line.send({"name": "usage", "customer_id": STRANGER})
    line.acked(1)
    line.close()
    assert product.run("flush").returncode == 0
    product.stop_daemon()
    product.set(base_url=OTHER)

    refused = product.run("dead", "retry", "--all")

    assert refused.returncode == 2
    assert "it holds 1 dead letters" in refused.stderr
    assert "export and purge its dead letters" in refused.stderr
    assert product.run("run").returncode == 2


def test_a_queue_that_holds_nothing_may_go_to_another_server(product: Product, filled: Load) -> None:
    del filled
    product.start_emulator()
    assert product.run("flush").returncode == 0
    product.set(base_url=OTHER)

    product.start_daemon()

    assert product.stop_daemon() == 0


def test_agent_check_tells_that_the_events_are_meant_for_another_server(
    product: Product, filled: Load
) -> None:
    del filled
    product.set(base_url=OTHER)

    done = product.run("check", "--offline", "--json")

    assert done.returncode == 1
    assert f"meant for {product.url}" in json.dumps(json.loads(done.stdout))


@pytest.mark.parametrize("ours", [True, False], ids=["the same organization", "another organization"])
def test_events_for_an_organization_are_sent_with_its_tokens_alone(
    product: Product, filled: Load, ours: bool
) -> None:
    product.start_emulator()
    api = PolarClient(product.url, lambda: TOKEN)
    assert api.ingest(b'{"events":[{"name":"usage","external_customer_id":"c"}]}').status == 200
    wait_until(lambda: api.list_events().items, what="an event of the organization")
    organization = str(ORGANIZATION_ID) if ours else "0a1b2c3d-0000-4000-8000-000000000002"
    queue = DiskQueue(product.queue, server=product.url)
    queue.commit(Change(organization=organization))
    queue.close()

    done = product.run("flush", "--timeout", "20")

    status = product.status()
    if ours:
        assert done.returncode == 0, done.stdout
        assert status["ledger"]["delivered"] == len(filled.written)
    else:
        assert done.returncode == 1
        assert f"the token is not of organization {organization}" in done.stdout
        assert status["queue"]["events"] == len(filled.written)
        assert len(list(product.stored())) == 1
    api.close()


PERSONAL = "polar_pat_test"


@pytest.mark.parametrize("filled_with", [TOKEN, PERSONAL], ids=["an organization's", "a personal"])
def test_events_taken_for_one_kind_of_token_are_not_sent_with_the_other(
    product: Product, filled_with: str
) -> None:
    """Polar would refuse every one of them, and they would become dead letters."""
    product.set(shutdown_timeout="0.1")
    product.environ["POLAR_ACCESS_TOKEN"] = filled_with
    product.start_daemon()
    line = Line(product.socket)
    named = {"organization_id": str(ORGANIZATION_ID)} if filled_with == PERSONAL else {}
    line.send({"name": "usage", "external_customer_id": "c", **named})
    assert line.acked(1) == []
    line.close()
    product.stop_daemon()
    product.environ["POLAR_ACCESS_TOKEN"] = TOKEN if filled_with == PERSONAL else PERSONAL

    for command in ("run", "flush"):
        done = product.run(command)
        assert done.returncode == 2
        assert "Polar would refuse them" in done.stderr
        assert "until the queue is empty, or choose another queue_dir" in done.stderr
    done = product.run("check", "--offline", "--json")
    assert done.returncode == 1
    assert "Polar would refuse them" in done.stdout
    status = product.status()
    assert (status["queue"]["events"], status["ledger"]["dead"]) == (1, 0)
    product.environ["POLAR_ACCESS_TOKEN"] = filled_with
    product.start_daemon()
    assert product.stop_daemon() == 0


READING = [
    ("status",),
    ("dead", "list"),
    ("tail", "status"),
    ("queue", "verify"),
    ("queue", "export"),
    ("flush",),
]


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_a_queue_that_cannot_be_looked_at_is_told_by_every_command(
    product: Product, words: tuple[str, ...]
) -> None:
    """As one of another user is; this one is so for root as well."""
    product.set(queue_dir=product.directory / ("x" * 300))

    done = product.run(*words)

    assert done.returncode == 1
    assert done.stderr.startswith(f"agent {words[0]}: cannot ")
    assert "File name too long" in done.stderr


@pytest.mark.parametrize("words", READING[:-1], ids=" ".join)
def test_a_database_that_is_gone_is_not_taken_for_a_queue_that_never_was(
    product: Product, words: tuple[str, ...]
) -> None:
    with closing(DiskQueue(product.directory / "live", server=product.url)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        copy(queue.directory, product.queue)
    (product.queue / DATABASE).unlink()

    done = product.run(*words)

    assert done.returncode == 1
    assert "none" not in done.stdout + done.stderr
    assert DATABASE in done.stdout + done.stderr


def test_who_flushes_a_queue_whose_database_is_gone_sends_what_its_log_has(product: Product) -> None:
    with closing(DiskQueue(product.directory / "live", server=product.url)) as queue:
        queue.commit(Change(appends=[chunk_of("a")]))
        copy(queue.directory, product.queue)
    (product.queue / DATABASE).unlink()
    product.start_emulator()

    assert product.run("flush").returncode == 0

    assert [event["external_id"] for event in product.stored()] == ["a"]
