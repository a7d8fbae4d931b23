"""Health that tells the truth, and a process that ends when it cannot go on; by real blocked threads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.http import Caller
from support.processes import PATIENCE, Line, Product, wait_until

GOOD = {"name": "usage", "external_customer_id": "c"}

STEPS = {
    "writer": "agent.writer:Writer.step",
    "flusher": "agent.flusher.flusher:Flusher.step",
    "collector": "agent.collector.unix:Collector.step",
    "api": "agent.httpd.server:Server.step",
}

# Run instead of the product's own entry point: when the file is there, the step of one thread
# waits for ever, or dies. Looks are short, so that nobody waits for minutes.
_SPOILED = """
import importlib, sys, threading
from pathlib import Path
import agent.service, agent.watch
agent.service._LOOK_SECONDS = 0.05
agent.service._LOST_SECONDS = {lost}
agent.watch.Watch.__init__.__defaults__ = ({looks},)
module, _, path = {step!r}.partition(":")
owner = importlib.import_module(module)
*above, name = path.split(".")
for part in above:
    owner = getattr(owner, part)
original = getattr(owner, name)
def step(self, *args):
    if Path({file!r}).exists():
        if {dies!r}:
            raise RuntimeError("told to die")
        threading.Event().wait()
    return original(self, *args)
setattr(owner, name, step)
from agent.cli import main
sys.exit(main(["run"]))
"""


def start_spoiled(
    product: Product, thread: str, *, dies: bool = False, looks: int = 24, lost: float = 1.0
) -> Path:
    """Start a daemon; return the file that, once it is there, stops one of its threads."""
    file = product.directory / "stop"
    script = _SPOILED.format(step=STEPS[thread], file=str(file), dies=dies, looks=looks, lost=lost)
    with product.log.open("a") as log:
        product.daemon = subprocess.Popen(
            [sys.executable, "-c", script], env=product.environ, text=True, stderr=log
        )
    product._processes = [product.daemon]
    wait_until(product._takes_connections)
    Caller(product.directory / "api.sock").wait()
    return file


@pytest.mark.parametrize("thread", STEPS)
def test_a_thread_that_is_stuck_ends_the_process_with_1_and_says_where(product: Product, thread: str) -> None:
    file = start_spoiled(product, thread)

    file.touch()

    assert product.daemon is not None
    assert product.daemon.wait(PATIENCE) == 1
    log = product.log.read_text()
    assert f"the {thread} thread is stuck" in log
    assert "threading.py" in log


@pytest.mark.parametrize("thread", STEPS)
def test_a_thread_that_dies_ends_the_process_with_1(product: Product, thread: str) -> None:
    file = start_spoiled(product, thread, dies=True)

    file.touch()

    assert product.daemon is not None
    assert product.daemon.wait(PATIENCE) == 1
    assert f"the {thread} thread has died" in product.log.read_text()


def test_what_was_acknowledged_before_a_thread_got_stuck_is_delivered_after_the_restart(
    product: Product,
) -> None:
    file = start_spoiled(product, "flusher")
    line = Line(product.socket)
    line.send(GOOD, GOOD)
    line.acked(2)
    file.touch()
    assert product.daemon is not None
    assert product.daemon.wait(PATIENCE) == 1
    line.close()

    product.start_emulator()
    product.start_daemon()

    wait_until(lambda: len(list(product.stored())) == 2)


def test_a_daemon_whose_flusher_died_does_not_wait_for_it(product: Product) -> None:
    product.set(shutdown_timeout="600")
    file = start_spoiled(product, "flusher", dies=True, lost=600.0)
    line = Line(product.socket)
    line.send(GOOD)
    line.acked(1)

    file.touch()

    assert product.daemon is not None
    assert product.daemon.wait(PATIENCE) == 1
    line.close()
    assert product.status()["queue"]["events"] == 1


def test_health_and_readiness_name_the_thread_that_is_stuck_before_the_end(product: Product) -> None:
    file = start_spoiled(product, "writer", looks=1_000_000)
    api = Caller(product.directory / "api.sock")
    assert api("GET", "/healthz").json() == {"live": True, "reason": None}

    file.touch()

    answer = wait_until(lambda: (found := api("GET", "/healthz")).status == 503 and found)
    assert "the writer thread is stuck" in answer.json()["reason"]
    assert api("GET", "/readyz").status == 503


def test_a_process_that_was_stopped_for_long_finds_its_threads_well(product: Product) -> None:
    product.set(shutdown_timeout="0")
    start_spoiled(product, "writer")
    assert product.daemon is not None
    api = Caller(product.directory / "api.sock")
    product.daemon.send_signal(19)
    wait_until(lambda: "T (stopped)" in _state(product))

    product.daemon.send_signal(18)

    for _ in range(20):
        assert api("GET", "/healthz").status == 200
    assert product.stop_daemon() == 0


def _state(product: Product) -> str:
    assert product.daemon is not None
    return Path(f"/proc/{product.daemon.pid}/status").read_text()


def test_not_ready_while_the_queue_is_full_and_yet_alive(product: Product) -> None:
    product.set(disk_reserve_bytes="900TiB", shutdown_timeout="0")
    product.start_daemon()
    api = Caller(product.directory / "api.sock").wait()
    line = Line(product.socket)
    line.send(GOOD)

    answer = wait_until(lambda: (found := api("GET", "/readyz")).status == 503 and found)

    assert "disk_reserve_bytes" in answer.json()["reason"]
    assert api("GET", "/healthz").status == 200
    assert line.answer()["error"]["type"] == "queue_full"
    line.close()


def test_status_tells_what_is_wrong(product: Product) -> None:
    product.set(shutdown_timeout="0")
    product.environ.pop("POLAR_ACCESS_TOKEN")
    product.start_daemon()
    api = Caller(product.directory / "api.sock").wait()
    assert "set POLAR_ACCESS_TOKEN" in product.log.read_text()
    assert api("GET", "/status").json()["health"]["delivering"] is True
    line = Line(product.socket)
    line.send(GOOD)
    line.acked(1)
    line.close()

    wait_until(lambda: not api("GET", "/status").json()["health"]["delivering"])

    health = api("GET", "/status").json()["health"]
    assert (health["live"], health["ready"]) == (True, True)
    assert health["reasons"][0] in product.run("status").stdout
    assert product.status()["delivery"]["delivering"] is False


def test_what_is_not_delivered_is_told_without_a_daemon_too(product: Product) -> None:
    product.start_daemon()
    assert product.status()["delivery"]["delivering"] is True

    product.stop_daemon()

    assert product.status()["delivery"]["delivering"] is False


def test_the_metrics_of_a_daemon_at_work_agree_with_its_books(product: Product) -> None:
    product.start_emulator()
    product.start_daemon()
    api = Caller(product.directory / "api.sock").wait()
    line = Line(product.socket)
    line.send(*[GOOD] * 20, {"name": 1})
    line.acked(21)
    api("POST", "/v1/events/ingest", {"events": [GOOD] * 5})
    wait_until(lambda: product.polled()["ledger"]["delivered"] == 25)

    answer = api("GET", "/metrics")

    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }
    assert found["polar_agent_events_accepted_total",] == 25
    assert found["polar_agent_events_refused_total",] == 1
    assert found["polar_agent_events_delivered_total",] == 25
    assert found["polar_agent_source_events_total", "socket"] == 20
    assert found["polar_agent_source_refused_total", "socket"] == 1
    assert found["polar_agent_source_events_total", "api"] == 5
    assert found["polar_agent_delivery_age_seconds_count",] == 25
    assert found["polar_agent_batch_events_sum",] == 25
    assert found["polar_agent_ack_duration_seconds_count",] >= 2
    assert found["polar_agent_ready",] == 1
    assert found["polar_agent_connections", "events"] == 1
    line.close()
