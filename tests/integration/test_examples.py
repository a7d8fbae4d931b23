"""The clients in examples/, each in its own language, against the daemon and one that misbehaves."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.processes import PATIENCE

from agent.client import recorded

EXAMPLES = Path(__file__).parents[2] / "examples"

CLIENTS = {
    "send.mjs": ["node"],
    "send.rb": ["ruby"],
    "send.php": ["php"],
    "Send.java": ["java", "-XX:TieredStopAtLevel=1"],
    "send.pl": ["perl"],
}
REFUSAL = {"line": 1, "error": {"type": "missing", "loc": ["external_customer_id"], "msg": "is required"}}


def needing(clients):
    return [pytest.param(name, marks=pytest.mark.needs(words[0])) for name, words in clients.items()]


ALL = [*needing(CLIENTS), pytest.param("send.rs", marks=pytest.mark.needs("rustc"))]


def command(name, directory):
    """Return how a client is run."""
    if name in CLIENTS:
        return [*CLIENTS[name], str(EXAMPLES / name)]
    program = directory / "send"
    done = subprocess.run(
        ["rustc", "--edition", "2021", "-o", program, EXAMPLES / name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [str(program)]


def run(words, environ):
    return subprocess.run(words, env=environ, capture_output=True, text=True, timeout=100, check=False)


class Scripted(threading.Thread):
    """A daemon that answers each connection with what was prepared, and keeps the lines that it got."""

    def __init__(self, path, answers):
        super().__init__()
        self.lines = []
        self._answers = answers
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(str(path))
        self._sock.listen()
        self._sock.settimeout(PATIENCE * 2)
        self.start()

    def run(self):
        with self._sock:
            for answer in self._answers:
                connection, _ = self._sock.accept()
                with connection:
                    connection.settimeout(PATIENCE)
                    with connection.makefile("rb") as stream:
                        self.lines.append(json.loads(stream.readline()))
                    connection.sendall(answer)


def test_every_client_is_short_and_told_of():
    table = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.iterdir():
        if path.is_file() and path.name != "README.md":
            assert f"`{path.name}`" in table
            assert len(path.read_text().splitlines()) <= 30, path.name


@pytest.mark.parametrize("name", ALL)
def test_its_event_arrives(product, name, tmp_path):
    product.start_emulator()
    product.start_daemon()

    done = run(command(name, tmp_path), product.environ)

    assert (done.returncode, done.stdout) == (0, "safe on disk\n"), done.stderr
    assert product.status()["ledger"]["accepted"] == 1
    assert product.run("flush").returncode == 0
    (event,) = product.stored()
    assert (event["name"], event["external_customer_id"]) == ("ai_usage", "cus_1")
    assert event["metadata"] == {"tokens": 77}


@pytest.mark.parametrize("name", ALL)
def test_a_broken_connection_makes_it_send_the_same_event_again(name, tmp_path):
    daemon = Scripted(tmp_path / "s", [b"", b'{"ack":1}\n'])

    done = run(command(name, tmp_path), {"POLAR_AGENT_SOCKET_PATH": str(tmp_path / "s"), "PATH": _path()})
    daemon.join()

    assert (done.returncode, done.stdout) == (0, "safe on disk\n"), done.stderr
    assert daemon.lines[0] == daemon.lines[1]
    assert daemon.lines[0]["external_id"]


@pytest.mark.parametrize("name", ALL)
def test_a_refused_event_makes_it_fail_and_say_why(name, tmp_path):
    daemon = Scripted(
        tmp_path / "s", [json.dumps(REFUSAL, separators=(",", ":")).encode() + b'\n{"ack":1}\n']
    )

    done = run(command(name, tmp_path), {"POLAR_AGENT_SOCKET_PATH": str(tmp_path / "s"), "PATH": _path()})
    daemon.join()

    assert done.returncode != 0
    assert "refused" in done.stdout + done.stderr
    assert "safe" not in done.stdout


@pytest.mark.needs("curl")
def test_the_shell_goes_by_the_local_api(product):
    product.start_emulator()
    product.start_daemon()
    environ = {**product.environ, "POLAR_AGENT_API_SOCKET_PATH": str(product.directory / "api.sock")}

    done = run(["bash", str(EXAMPLES / "send.sh")], environ)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"inserted": 1, "duplicates": 0}
    assert product.status()["ledger"]["accepted"] == 1


@pytest.mark.needs("curl")
def test_and_fails_when_its_event_is_refused(product):
    product.start_emulator()
    product.start_daemon()
    environ = {**product.environ, "POLAR_AGENT_API_SOCKET_PATH": str(product.directory / "api.sock")}

    done = run(["bash", str(EXAMPLES / "send.sh"), r"\ud800"], environ)

    assert done.returncode != 0
    assert product.status()["ledger"]["accepted"] == 0


def test_tokens_of_a_language_model_are_metered(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from llm_usage import metered  # noqa: PLC0415  # what is tested

    usage = SimpleNamespace(prompt_tokens=3, completion_tokens=4, total_tokens=7)
    answer = SimpleNamespace(id="chatcmpl-1", model="gpt-4o-mini", usage=usage)

    with recorded() as events:
        assert metered(lambda **_: answer, "openai", "cus_1")(model="gpt-4o-mini") is answer

    assert events[0]["external_id"] == "chatcmpl-1"
    assert events[0]["metadata"]["_llm"] == {
        "vendor": "openai",
        "model": "gpt-4o-mini",
        "input_tokens": 3,
        "output_tokens": 4,
        "total_tokens": 7,
    }


def _path():
    return ":".join(
        dict.fromkeys(
            str(Path(found).parent)
            for found in map(shutil.which, ["node", "ruby", "php", "java", "perl", "sh", sys.executable])
            if found
        )
    )
