"""`agent.client`, against a real daemon and against sockets that misbehave."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.processes import PATIENCE, wait_until

from agent.client import BufferFullError, Client, NotSafeError, RefusedError, default_path, recorded

UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@pytest.fixture
def running(product):
    product.start_emulator()
    product.start_daemon()
    return product


@pytest.fixture
def client(running):
    with Client(running.socket) as client:
        yield client


def python(product, program, *words):
    """Run a program that uses the client."""
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        env=product.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def delivered(product):
    """Return what the emulator has, by external id, once the queue is empty."""
    assert product.run("flush").returncode == 0
    return {event["external_id"]: event for event in product.stored()}


def test_an_event_arrives_as_it_was_sent(client, running):
    given = client.send(
        "ai_usage",
        external_customer_id="cus_1",
        metadata={"tokens": 77, "model": "ä\n", "cost": 0.1, "cached": True},
        timestamp="2026-01-02T03:04:05Z",
    )

    assert client.flush(PATIENCE)
    (event,) = delivered(running).values()
    assert UUID7.fullmatch(given)
    assert event["external_id"] == given
    assert (event["name"], event["external_customer_id"]) == ("ai_usage", "cus_1")
    assert event["metadata"] == {"tokens": 77, "model": "ä\n", "cost": 0.1, "cached": True}
    assert event["timestamp"].startswith("2026-01-02T03:04:05")


def test_waiting_returns_when_the_event_is_durable(client, running):
    identity = client.send("a", external_customer_id="c", external_id="mine", wait=PATIENCE)

    assert identity == "mine"
    assert running.status()["ledger"]["accepted"] == 1
    assert client.counts == (0, 1, 0, 0)


def test_a_refused_event_tells_its_sender_why(client):
    with pytest.raises(RefusedError) as caught:
        client.send("a", wait=PATIENCE)

    assert caught.value.error["type"] == "missing"
    assert "external_customer_id" in str(caught.value)
    assert client.counts == (0, 0, 1, 0)


def test_refusals_of_those_who_do_not_wait_go_to_the_callback(running):
    told = []
    with Client(running.socket, on_refused=lambda *words: told.append(words)) as client:
        bad = client.send("a")
        client.send("a", external_customer_id="c")
        assert client.flush(PATIENCE)

    assert [(identity, error["type"]) for identity, error in told] == [(bad, "missing")]


def test_or_to_the_log(client, caplog):
    client.send("a")

    assert client.flush(PATIENCE)
    wait_until(lambda: "the agent refused an event: missing" in caplog.text)


def test_a_callback_that_fails_does_not_end_the_client(running, caplog):
    def fail(*_):
        raise ZeroDivisionError

    with Client(running.socket, on_refused=fail) as client:
        client.send("a")
        client.send("a", external_customer_id="c", wait=PATIENCE)
    assert "on_refused failed" in caplog.text


def test_many_threads_share_a_client_and_nothing_is_lost_or_doubled(client, running):
    with ThreadPoolExecutor(8) as pool:
        sent = [
            identity
            for identities in pool.map(
                lambda thread: [
                    client.send("a", external_customer_id="c", metadata={"n": thread * 1000 + number})
                    for number in range(500)
                ],
                range(8),
            )
            for identity in identities
        ]

    assert client.flush(PATIENCE)
    assert len(set(sent)) == 4000
    stored = list(delivered(running))
    assert sorted(stored) == sorted(sent)
    assert sorted(event["metadata"]["n"] for event in running.stored()) == [
        thread * 1000 + number for thread in range(8) for number in range(500)
    ]


def test_events_wait_for_a_daemon_that_is_away_and_the_sender_does_not(product):
    product.start_emulator()
    with Client(product.socket) as client:
        sent = [client.send("a", external_customer_id="c") for _ in range(50)]
        assert client.counts.waiting == 50

        product.start_daemon()

        assert client.flush(PATIENCE)
    assert sorted(delivered(product)) == sorted(sent)


def test_a_daemon_that_is_killed_and_started_again_gets_everything_once(running):
    with Client(running.socket) as client:
        sent = []
        for round_ in range(3):
            sent += [client.send("a", external_customer_id="c") for _ in range(300)]
            running.stop_daemon(signal.SIGKILL)
            sent += [client.send("a", external_customer_id="c", metadata={"r": round_}) for _ in range(300)]
            running.start_daemon()
        assert client.flush(PATIENCE)
        assert client.counts == (0, 1800, 0, 0)

    assert sorted(delivered(running)) == sorted(sent)
    assert len(list(running.stored())) == len(sent)


def test_what_was_not_acknowledged_is_written_again_with_the_same_id(tmp_path):
    """A daemon by hand: takes the line, breaks the connection, and sees the same line again."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        listening.settimeout(PATIENCE)
        client = Client(tmp_path / "s")
        client.send("a", external_customer_id="c")
        lines = []
        for answer in (b"", b'{"ack":1}\n'):
            connection, _ = listening.accept()
            with connection:
                connection.settimeout(PATIENCE)
                lines.append(connection.makefile("rb").readline())
                connection.sendall(answer)
        assert client.close(PATIENCE)

    assert lines[0] == lines[1]
    assert UUID7.fullmatch(json.loads(lines[0])["external_id"])


@pytest.mark.parametrize(
    "answer", [b'{"ack":7}\n', b"HTTP/1.1 400\r\n", b'{"line":9,"error":{}}\n', b"[1]\n"]
)
def test_an_answer_that_is_not_the_agents_costs_no_event(tmp_path, answer):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        listening.settimeout(PATIENCE)
        client = Client(tmp_path / "s")
        client.send("a", external_customer_id="c")
        for words in (answer, b'{"ack":1}\n'):
            connection, _ = listening.accept()
            with connection:
                connection.settimeout(PATIENCE)
                connection.makefile("rb").readline()
                connection.sendall(words)
                if words == answer:
                    connection.recv(1)  # it goes away by itself
        assert client.close(PATIENCE)
        assert client.counts.safe == 1


def test_a_full_buffer_drops_counts_and_says_so(tmp_path, caplog):
    client = Client(tmp_path / "nobody", buffer_events=10)

    for _ in range(15):
        client.send("a", external_customer_id="c")

    assert client.counts == (10, 0, 0, 5)
    assert "the buffer is full (10 events)" in caplog.text
    assert not client.close(0)
    assert "did not acknowledge are lost: 10" in caplog.text


def test_or_raises(tmp_path):
    client = Client(tmp_path / "nobody", buffer_events=1, when_full="raise")
    client.send("a", external_customer_id="c")

    with pytest.raises(BufferFullError):
        client.send("a", external_customer_id="c")
    client.close(0)


def test_or_waits_for_room(running):
    with Client(running.socket, buffer_events=3, when_full="block") as client:
        for _ in range(100):
            client.send("a", external_customer_id="c")

        assert client.flush(PATIENCE)
        assert client.counts == (0, 100, 0, 0)


def test_waiting_for_an_ack_that_does_not_come_ends_in_time(tmp_path):
    client = Client(tmp_path / "nobody")

    with pytest.raises(NotSafeError):
        client.send("a", external_customer_id="c", wait=0.05)
    assert client.counts.waiting == 1
    client.close(0)


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"x"])
def test_what_is_no_json_is_the_senders_mistake(tmp_path, value):
    client = Client(tmp_path / "nobody")

    with pytest.raises((TypeError, ValueError)):
        client.send("a", external_customer_id="c", metadata={"k": value})
    assert client.counts.waiting == 0


def test_the_end_of_the_program_waits_for_the_acks(running):
    program = """
import sys
from agent.client import Client
client = Client(sys.argv[1], exit_timeout=30)
for number in range(2000):
    client.send("a", external_customer_id="c", metadata={"n": number})
"""
    done = python(running, program, str(running.socket))

    assert (done.returncode, done.stderr) == (0, "")
    assert running.status()["ledger"]["accepted"] == 2000


def test_but_not_for_ever(product):
    program = """
import sys
from agent.client import Client
Client(sys.argv[1], exit_timeout=0.1).send("a", external_customer_id="c")
"""
    done = python(product, program, str(product.socket))

    assert done.returncode == 0
    assert "did not acknowledge are lost: 1" in done.stderr


def test_a_child_sends_its_own_events_and_the_parent_its_own(running):
    # From 3.12 on Python warns of a fork beside threads: that the client bears it is what this is about.
    program = """
import os, sys, warnings
from agent.client import Client
warnings.simplefilter("ignore", DeprecationWarning)
client = Client(sys.argv[1], exit_timeout=30)
for number in range(300):
    client.send("parent", external_customer_id="c")
children = []
for child in range(4):
    pid = os.fork()
    if pid == 0:
        for number in range(100):
            client.send("child", external_customer_id="c")
        assert client.close(30)
        os._exit(0)
    children.append(pid)
codes = [os.waitpid(pid, 0)[1] for pid in children]
assert codes == [0] * 4, codes
client.send("parent", external_customer_id="c")
assert client.close(30)
"""
    done = python(running, program, str(running.socket))

    assert (done.returncode, done.stderr) == (0, "")
    names = [event["name"] for event in delivered(running).values()]
    assert (names.count("parent"), names.count("child")) == (301, 400)
    assert len(list(running.stored())) == 701


def test_children_of_multiprocessing_send_what_they_have_at_their_end(running, tmp_path):
    program = tmp_path / "program.py"
    program.write_text("""
import multiprocessing, sys
from agent.client import Client
client = Client(sys.argv[1], exit_timeout=30)
def work(number):
    client.send("child", external_customer_id="c", metadata={"n": number})
if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(number,)) for number in range(5)]
    for process in processes: process.start()
    for process in processes: process.join()
""")
    done = subprocess.run(
        [sys.executable, program, running.socket],
        env=running.environ,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert running.status()["ledger"]["accepted"] == 5


def test_a_program_with_thousands_of_files_open_can_send(running):
    program = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (4000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
files = [os.dup(0) for _ in range(2000)]
from agent.client import Client
Client(sys.argv[1]).send("a", external_customer_id="c", wait=30)
"""
    done = python(running, program, str(running.socket))

    assert (done.returncode, done.stderr) == (0, "")


def test_tests_can_look_at_what_would_be_sent(tmp_path):
    client = Client(tmp_path / "nobody")

    with recorded() as events:
        identity = client.send("a", external_customer_id="c", metadata={"tokens": 1})

    assert events == [
        {"name": "a", "external_customer_id": "c", "external_id": identity, "metadata": {"tokens": 1}}
    ]
    assert client.counts.waiting == 0


def test_closing_while_others_send_starts_again(running):
    client = Client(running.socket)
    stop = threading.Event()

    def send():
        while not stop.is_set():
            client.send("a", external_customer_id="c", wait=PATIENCE)

    thread = threading.Thread(target=send)
    thread.start()
    for _ in range(5):
        client.close(PATIENCE)
    stop.set()
    thread.join()
    assert client.close(PATIENCE)
    assert client.counts.waiting == client.counts.dropped == 0


def test_the_socket_is_found_where_the_agent_makes_it(tmp_path, monkeypatch):
    monkeypatch.setenv("POLAR_AGENT_SOCKET_PATH", "/given/agent.sock")
    assert default_path() == "/given/agent.sock"

    monkeypatch.delenv("POLAR_AGENT_SOCKET_PATH")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "polar-agent").mkdir()
    (tmp_path / "polar-agent/agent.sock").touch()
    assert default_path() in {str(tmp_path / "polar-agent/agent.sock"), "/run/polar-agent/agent.sock"}


def test_it_imports_nothing_but_the_standard_library():
    program = (
        "import sys; import agent.client; "
        "print([name for name in sys.modules if name.split('.')[0] in "
        "('msgspec', 'pydantic', 'httpx', 'structlog', 'asyncio')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


def test_a_copy_of_the_file_works_alone(running, tmp_path):
    source = sys.modules["agent.client"].__file__
    shutil.copy(source, tmp_path / "polar_client.py")
    program = """
from polar_client import Client
Client(sys.argv[1]).send("a", external_customer_id="c", wait=30)
"""
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{program}",
            running.socket,
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
