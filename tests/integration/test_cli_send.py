"""`agent send` as its users start it, against a daemon that follows a script."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time

import pytest
from support.scripted_daemon import SECONDS, Peer, ScriptedDaemon, events, ids, names

from agent.cli import main

MISSING = {"type": "missing", "loc": ["metadata", "_llm", "model"], "msg": "Field required"}


def refuse_bad(peer):
    peer.serve(lambda line: MISSING if b'"bad"' in line else None)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "agent.sock"


def send(path, *words):
    return main(["send", "--socket", str(path), *map(str, words)])


def start(path, *words, **streams):
    """Start `agent send` as a process of its own."""
    command = [sys.executable, "-m", "agent", "send", "--socket", str(path), *map(str, words)]
    return subprocess.Popen(command, text=True, **streams)


def read_until(descriptor, wanted):
    """Read what a program prints until `wanted` is in it."""
    text = ""
    deadline = time.monotonic() + SECONDS
    while wanted not in text:
        assert select.select([descriptor], [], [], deadline - time.monotonic())[0], f"only {text!r} in time"
        data = os.read(descriptor, 1 << 16)
        assert data, f"only {text!r} before the end"
        text += data.decode()
    return text


def test_files_are_sent_in_order_and_quietly(path, tmp_path, capfd):
    (tmp_path / "one").write_bytes(events("a", "b"))
    (tmp_path / "two").write_bytes(events("c").rstrip(b"\n"))
    (tmp_path / "three").write_bytes(events("d"))
    with ScriptedDaemon(path, Peer.serve) as daemon:
        assert send(path, tmp_path / "one", tmp_path / "two", tmp_path / "three") == 0
    assert names(daemon.peers[0]) == ["a", "b", "c", "d"]
    assert capfd.readouterr() == ("", "")


def test_refused_lines_are_printed_with_file_and_line_as_an_editor_counts(path, tmp_path, capfd):
    file = tmp_path / "events.ndjson"
    file.write_bytes(b"\n" + events("good") + b"\r\n" + events("bad", "good"))
    with ScriptedDaemon(path, refuse_bad):
        assert send(path, file) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"{file}:4: missing at metadata._llm.model: Field required",
        "agent send: 2 accepted, 1 refused",
    ]


def test_json_is_one_document_with_all_counts(path, tmp_path, capfd):
    file = tmp_path / "events.ndjson"
    file.write_bytes(events("good", "bad", "good"))
    with ScriptedDaemon(path, refuse_bad):
        assert send(path, "--json", file) == 1
    assert json.loads(capfd.readouterr().out) == {
        "sent": 3,
        "acknowledged": 3,
        "accepted": 2,
        "refused": [{"file": str(file), "line": 2, "error": MISSING}],
        "refused_count": 1,
    }


def test_the_refusals_in_the_document_are_bounded(path, tmp_path, capfd):
    file = tmp_path / "events.ndjson"
    file.write_bytes(events("bad") * 3000)
    with ScriptedDaemon(path, refuse_bad):
        assert send(path, "--json", file) == 1
    document = json.loads(capfd.readouterr().out)
    assert (len(document["refused"]), document["refused_count"]) == (1000, 3000)


def test_an_event_gets_its_id_here_and_a_resend_carries_it(path, tmp_path):
    file = tmp_path / "events.ndjson"
    file.write_bytes(events("a", "b"))
    with ScriptedDaemon(path, lambda peer: peer.read(2), Peer.serve) as daemon:
        assert send(path, file) == 0
    assert ids(daemon.peers[0]) == ids(daemon.peers[1])


def test_a_line_that_no_daemon_takes_is_refused_here(path, tmp_path, capfd):
    file = tmp_path / "events.ndjson"
    with file.open("wb") as stream:
        stream.write(events("a"))
        for _ in range(11):
            stream.write(b"x" * (1 << 20))
        stream.write(b"\n" + events("b"))
    with ScriptedDaemon(path, Peer.serve) as daemon:
        assert send(path, "--json", file) == 1
    out, err = capfd.readouterr()
    assert names(daemon.peers[0]) == ["a", "b"]
    assert err.startswith(f"{file}:2: too_long: ")
    assert json.loads(out)["accepted"] == 2


def test_lines_of_a_pipe_that_stays_open_go_out_as_they_come(path):
    arrived = [threading.Event(), threading.Event()]

    def script(peer):
        for count, event in enumerate(arrived, 1):
            peer.read(count)
            peer.ack(count)
            event.set()
        peer.serve()

    with ScriptedDaemon(path, script) as daemon, start(path, "--json", stdin=-1, stdout=-1) as process:
        process.stdin.write(events("a").decode())
        process.stdin.flush()
        assert arrived[0].wait(SECONDS)
        process.stdin.write(events("b").decode())
        process.stdin.flush()
        assert arrived[1].wait(SECONDS)
        out, _ = process.communicate(events("c").decode().rstrip("\n"), timeout=SECONDS)
    assert process.returncode == 0
    assert names(daemon.peers[0]) == ["a", "b", "c"]
    assert json.loads(out)["accepted"] == 3


def test_a_dash_stands_for_standard_input(path, tmp_path):
    (tmp_path / "one").write_bytes(events("a"))
    with ScriptedDaemon(path, Peer.serve) as daemon:
        process = start(path, tmp_path / "one", "-", stdin=-1)
        process.communicate(events("b").decode(), timeout=SECONDS)
    assert process.returncode == 0
    assert names(daemon.peers[0]) == ["a", "b"]


def test_a_named_pipe_is_opened_once(path, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with ScriptedDaemon(path, Peer.serve) as daemon:
        writer = threading.Thread(target=fifo.write_bytes, args=(events("a"),))
        writer.start()
        assert send(path, fifo) == 0
        writer.join()
    assert names(daemon.peers[0]) == ["a"]


def test_a_missing_file_is_wrong_usage_before_anything_is_sent(path, tmp_path, capfd):
    (tmp_path / "one").write_bytes(events("a"))
    assert send(path, tmp_path / "one", tmp_path / "missing") == 2
    assert f"cannot read events: {tmp_path / 'missing'}: No such file" in capfd.readouterr().err


def test_a_directory_is_wrong_usage(path, tmp_path, capfd):
    assert send(path, tmp_path) == 2
    assert "it is a directory" in capfd.readouterr().err


@pytest.mark.parametrize("seconds", ["-1", "soon", "inf", "nan"])
def test_patience_is_a_number_of_seconds(path, seconds, capfd):
    with pytest.raises(SystemExit) as caught:
        send(path, f"--retry-for={seconds}")
    assert caught.value.code == 2
    assert "not a number of seconds" in capfd.readouterr().err


def test_without_a_daemon_it_says_how_to_start_one(path, tmp_path, capfd):
    (tmp_path / "one").write_bytes(events("a"))
    assert send(path, "--retry-for", "0", "--json", tmp_path / "one") == 1
    out, err = capfd.readouterr()
    assert "agent run" in err
    assert json.loads(out) == {
        "sent": 0,
        "acknowledged": 0,
        "accepted": 0,
        "refused": [],
        "refused_count": 0,
        "error": "there is no such socket",
    }


def test_waiting_for_the_daemon_is_announced(path, tmp_path):
    (tmp_path / "one").write_bytes(events("a"))
    process = start(path, tmp_path / "one", stderr=-1)
    said = read_until(process.stderr.fileno(), "\n")
    with ScriptedDaemon(path, Peer.serve):
        process.communicate(timeout=SECONDS)
    assert said == f"agent send: waiting for the daemon at {path}: there is no such socket\n"
    assert process.returncode == 0


def test_what_was_not_acknowledged_is_named_when_the_daemon_stays_away(path, tmp_path, capfd):
    file = tmp_path / "events.ndjson"
    file.write_bytes(events("a") + b"\n" + events("b", "c"))
    with ScriptedDaemon(path, lambda peer: (peer.read(3), peer.ack(1))):
        assert send(path, "--retry-for", "0", file) == 1
    assert f"1 accepted, 0 refused; from {file}:3 on nothing is acknowledged" in capfd.readouterr().err


def test_being_slowed_down_is_told_once(path, tmp_path, capfd):
    (tmp_path / "one").write_bytes(events("a"))
    full = {"error": {"type": "queue_full", "msg": "the queue is full"}}

    def slow(peer):
        peer.read(1)
        peer.answer(full, full)
        peer.serve()

    with ScriptedDaemon(path, slow):
        assert send(path, tmp_path / "one") == 0
    assert capfd.readouterr().err == "agent send: slowed down by the daemon: the queue is full\n"


def test_an_interrupt_says_how_far_it_got(path):
    def script(peer):
        peer.read(2)
        peer.ack(1)
        peer.answer({"line": 2, "error": MISSING})  # shows that the ack before it was taken
        while peer.receive():
            pass

    with ScriptedDaemon(path, script), start(path, "--json", stdin=-1, stdout=-1, stderr=-1) as process:
        process.stdin.write(events("a", "b").decode())
        process.stdin.flush()
        read_until(process.stderr.fileno(), "stdin:2: missing")
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        document = json.loads(process.stdout.read())
        process.wait(SECONDS)
    assert process.returncode == 130
    assert "interrupted" in said
    assert "1 accepted, 1 refused; from stdin:2 on nothing is acknowledged" in said
    assert document["acknowledged"] == 1


@contextlib.contextmanager
def terminal():
    ours, theirs = pty.openpty()
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


def test_progress_is_shown_on_a_terminal(path):
    with (
        terminal() as (ours, theirs),
        ScriptedDaemon(path, refuse_bad),
        start(path, stdin=-1, stderr=theirs) as process,
    ):
        process.stdin.write(events("good", "bad").decode())
        process.stdin.flush()
        shown = read_until(ours, "2 acknowledged")
        shown += read_until(ours, "1 refused")
        process.stdin.write(events("good").decode())
        process.stdin.close()
        shown += read_until(ours, "agent send: ")
        process.wait(SECONDS)
    assert "\r\x1b[Kstdin:2: missing at" in shown
    assert re.search(r"2 acknowledged · [\d,]+/s · 1 refused\x1b\[K", shown)


def test_what_the_daemon_says_cannot_steer_the_terminal(path, tmp_path, capfd):
    (tmp_path / "one").write_bytes(events("a"))
    error = {"type": "missing", "msg": "\x1b]0;title\x07\n"}
    with ScriptedDaemon(path, lambda peer: peer.serve(lambda _: error)):
        send(path, tmp_path / "one")
    assert not set("\x1b\x07") & set(capfd.readouterr().err)


def test_the_socket_comes_from_the_settings(path, tmp_path, monkeypatch):
    (tmp_path / "one").write_bytes(events("a"))
    monkeypatch.setenv("POLAR_AGENT_SOCKET_PATH", str(path))
    with ScriptedDaemon(path, Peer.serve) as daemon:
        assert main(["send", str(tmp_path / "one")]) == 0
    assert names(daemon.peers[0]) == ["a"]
