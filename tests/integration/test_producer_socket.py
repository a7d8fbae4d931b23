"""The producer on a real socket, against a daemon that follows a script."""

import os
import resource
import tempfile
import threading
from pathlib import Path

import pytest
from support.scripted_daemon import SECONDS, Peer, ScriptedDaemon, events, ids, names

from agent.errors import DaemonError, UsageError
from agent.producer import Producer, Refusal


class StoppedClock:
    """Time passes only where it is waited for."""

    def __init__(self):
        self.now = 1000.0
        self.waits = []

    def wall(self):
        return self.now

    def monotonic(self):
        return self.now

    def wait(self, event, seconds):
        self.waits.append(seconds)
        self.now += seconds
        return event.is_set()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "agent.sock"


def send(producer, lines, source="file"):
    producer.wait(timeout=SECONDS)
    producer.feed(lines, source, 1)


def finish(producer):
    assert producer.finish(SECONDS), "not acknowledged in time"


def test_lines_are_acknowledged(path):
    with ScriptedDaemon(path, Peer.serve) as daemon:
        producer = Producer(path)
        send(producer, events("a", "b"))
        send(producer, events("c"))
        finish(producer)
    assert names(daemon.peers[0]) == ["a", "b", "c"]
    assert (producer.window.sent, producer.window.accepted) == (3, 3)


def test_the_stream_is_half_closed_and_the_last_ack_is_waited_for(path):
    half_closed = threading.Event()

    def script(peer):
        while peer.receive():
            pass
        half_closed.set()
        peer.ack(2)

    with ScriptedDaemon(path, script):
        producer = Producer(path)
        send(producer, events("a", "b"))
        finish(producer)
    assert half_closed.is_set()
    assert producer.window.acknowledged == 2


def test_nothing_to_send_needs_no_daemon(path):
    finish(Producer(path))


def test_refused_lines_are_reported_with_their_place_in_the_source(path):
    refused = []
    error = {"type": "missing", "loc": ["external_customer_id"], "msg": "is missing"}
    with ScriptedDaemon(path, lambda peer: peer.serve(lambda line: error if b"bad" in line else None)):
        producer = Producer(path, on_refused=refused.append)
        send(producer, b"\n" + events("good") + b"\n \n" + events("bad", "good"), "one.ndjson")
        send(producer, events("bad"), "two.ndjson")
        finish(producer)
    assert refused == [Refusal("one.ndjson", 5, error), Refusal("two.ndjson", 1, error)]
    assert (producer.window.acknowledged, producer.window.accepted, producer.window.refused) == (4, 2, 2)


def test_blank_lines_are_not_sent(path):
    with ScriptedDaemon(path, Peer.serve) as daemon:
        producer = Producer(path)
        send(producer, b"\n\r\n" + events("a") + b"\t \n" + events("b"))
        finish(producer)
    assert (names(daemon.peers[0]), daemon.peers[0].blank) == (["a", "b"], 0)


def test_after_a_break_sending_goes_on_at_the_first_line_that_was_not_acknowledged(path):
    def breaks(peer):
        peer.read(5)
        peer.ack(2)

    with ScriptedDaemon(path, breaks, Peer.serve) as daemon:
        producer = Producer(path)
        send(producer, events("a", "b", "c"))
        send(producer, events("d", "e"))
        finish(producer)
    first, second = daemon.peers
    assert names(first) == ["a", "b", "c", "d", "e"]
    assert names(second) == ["c", "d", "e"]
    assert (producer.window.sent, producer.window.acknowledged) == (5, 5)


def test_a_line_that_is_sent_again_carries_the_same_id(path):
    with ScriptedDaemon(path, lambda peer: peer.read(3), Peer.serve) as daemon:
        producer = Producer(path)
        send(producer, events("a", "b", "c"))
        finish(producer)
    first, second = daemon.peers
    assert ids(first) == ids(second)
    assert len(set(ids(first))) == 3


def test_an_ack_that_came_before_the_break_counts_even_if_a_write_finds_the_break(path):
    closed = threading.Event()

    def breaks(peer):
        peer.read(1)
        peer.ack(1)

    with ScriptedDaemon(path, lambda peer: (breaks(peer), peer.connection.close(), closed.set())) as daemon:
        producer = Producer(path, retry_for=0)
        send(producer, events("a"))
        producer.wait(timeout=SECONDS)
        assert closed.wait(SECONDS)
        producer.feed(events("b"), "file", 2)
        with pytest.raises(DaemonError):
            producer.finish(SECONDS)
    assert names(daemon.peers[0]) == ["a"]
    assert producer.window.acknowledged == 1


def test_a_refusal_that_a_resend_repeats_is_reported_once(path):
    error = {"type": "missing"}
    refused = []

    def breaks(peer):
        peer.read(2)
        peer.answer({"line": 2, "error": error})

    def serve(peer):
        peer.serve(lambda line: error if b'"b"' in line else None)

    with ScriptedDaemon(path, breaks, serve):
        producer = Producer(path, on_refused=refused.append)
        send(producer, events("a", "b"))
        finish(producer)
    assert len(refused) == 1
    assert producer.window.accepted == 1


def test_a_daemon_that_restarts_while_the_stream_was_ended_gets_the_rest(path):
    def breaks(peer):
        while peer.receive():
            pass
        peer.ack(1)

    with ScriptedDaemon(path, breaks, Peer.serve) as daemon:
        producer = Producer(path)
        send(producer, events("a", "b"))
        finish(producer)
    assert names(daemon.peers[1]) == ["b"]


def test_a_daemon_that_comes_later_is_waited_for(path):
    daemon = ScriptedDaemon(path, Peer.serve)
    producer = Producer(path, on_outage=daemon.start)
    producer.connect()
    send(producer, events("a"))
    finish(producer)
    daemon.stop()
    assert names(daemon.peers[0]) == ["a"]


def test_without_patience_a_missing_daemon_fails_at_once(path):
    clock = StoppedClock()
    producer = Producer(path, retry_for=0, clock=clock)
    with pytest.raises(DaemonError) as caught:
        producer.connect()
    assert "agent run" in caught.value.hint
    assert clock.waits == []


def test_patience_ends_when_the_daemon_stays_away(path):
    clock = StoppedClock()
    outages = []
    producer = Producer(path, retry_for=30, clock=clock, on_outage=outages.append)
    with pytest.raises(DaemonError):
        producer.connect()
    assert 30 <= clock.now - 1000 <= 31
    assert outages == ["there is no such socket"]


def test_pauses_between_attempts_grow_to_a_second(path):
    clock = StoppedClock()
    with pytest.raises(DaemonError):
        Producer(path, retry_for=10, clock=clock).connect()
    assert clock.waits[0] < 0.1
    assert max(clock.waits) == 1.0
    assert len(clock.waits) < 20


def test_waiting_for_a_daemon_ends_in_time_for_the_caller(path):
    clock = StoppedClock()
    producer = Producer(path, retry_for=30, clock=clock)
    producer.feed(events("a"), "file", 1)
    assert not producer.finish(timeout=0.2)
    assert clock.now == pytest.approx(1000.2)


def test_short_turns_do_not_keep_it_from_trying_again(path):
    clock = StoppedClock()
    producer = Producer(path, retry_for=30, clock=clock)
    producer.feed(events("a"), "file", 1)
    for _ in range(100):  # 20 seconds in steps shorter than the longest pause
        assert not producer.finish(timeout=0.2)
    with ScriptedDaemon(path, Peer.serve):
        producer.finish(timeout=2)  # waits for the next attempt at most
        finish(producer)


def test_a_daemon_that_hangs_up_at_once_is_not_hammered(path):
    clock = StoppedClock()
    attempts = 20
    with ScriptedDaemon(path, *[Peer.receive] * attempts, Peer.serve):
        producer = Producer(path, retry_for=60, clock=clock)
        send(producer, events("a"))
        finish_by_steps(producer)
    assert clock.now - 1000 > 10


def finish_by_steps(producer):
    """The clock does not move by itself, so the producer's own limit never ends a step."""
    while not producer.finish(timeout=None):
        pass


@pytest.fixture
def stranger():
    """Take root's rights away for a while: root may use any socket."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)


@pytest.fixture
def closed_socket():
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:  # its parents let everyone in
        Path(directory).chmod(0o755)
        path = Path(directory) / "agent.sock"
        with ScriptedDaemon(path):
            path.chmod(0)
            yield path


@pytest.mark.usefixtures("closed_socket", "stranger")
def test_no_retry_when_the_socket_may_not_be_used(closed_socket):
    with pytest.raises(DaemonError) as caught:
        Producer(closed_socket).connect()
    assert caught.value.reason == "permission denied"
    assert "group" in caught.value.hint


def test_a_path_that_cannot_be_a_socket_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError):
        Producer(tmp_path / ("x" * 200)).connect()


def test_a_notice_is_passed_on_and_ends_nothing(path):
    notices = []

    def slow(peer):
        peer.read(1)
        peer.answer({"error": {"type": "queue_full", "msg": "the queue is full"}})
        peer.serve()

    with ScriptedDaemon(path, slow):
        producer = Producer(path, on_notice=notices.append)
        send(producer, events("a"))
        finish(producer)
    assert notices == [{"type": "queue_full", "msg": "the queue is full"}]
    assert producer.window.accepted == 1


def test_a_producer_that_is_not_allowed_gives_up_at_once(path):
    def shut_out(peer):
        peer.answer({"error": {"type": "not_allowed", "msg": "user 1000 may not send"}})
        while peer.receive():
            pass

    with ScriptedDaemon(path, shut_out):
        producer = Producer(path)
        send(producer, events("a"))
        with pytest.raises(DaemonError, match="may not send"):
            producer.finish(SECONDS)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b'{"ack":"x"}\n', b"x" * (2 << 20)])
def test_what_is_not_the_agent_is_not_talked_to(path, answer):
    def other(peer):
        try:
            peer.connection.sendall(answer)
            while peer.receive():
                pass
        except OSError:
            pass

    with ScriptedDaemon(path, other):
        producer = Producer(path)
        send(producer, events("a"))
        with pytest.raises(DaemonError, match="not the agent"):
            producer.finish(SECONDS)


def test_an_ack_of_lines_never_sent_is_an_error(path):
    with ScriptedDaemon(path, lambda peer: (peer.read(1), peer.ack(2))):
        producer = Producer(path)
        send(producer, events("a"))
        with pytest.raises(DaemonError, match="not sent"):
            producer.finish(SECONDS)


def test_answers_of_a_newer_daemon_are_passed_over(path):
    with ScriptedDaemon(path, lambda peer: (peer.answer({"hello": {"version": 9}}), peer.serve())):
        producer = Producer(path)
        send(producer, events("a"))
        finish(producer)


def test_without_acks_no_more_than_the_window_is_taken(path):
    block = events("x" * 1000) * 100
    release = threading.Event()

    def deaf(peer):
        assert release.wait(SECONDS)
        peer.serve()

    with ScriptedDaemon(path, deaf):
        producer = Producer(path, window_bytes=1 << 20)
        while producer.wait(timeout=0):
            producer.feed(block, "file", 1)
        held = producer.window.held_bytes
        release.set()
        finish(producer)
    assert 1 << 20 <= held < (1 << 20) + 2 * len(block)
    assert producer.window.held_bytes == 0


def test_memory_does_not_grow_with_the_input(path):
    block = events("x" * 200) * 4000
    with ScriptedDaemon(path, count_only):
        producer = Producer(path)
        peaks = []
        for _ in range(100):
            assert producer.wait(timeout=SECONDS)
            producer.feed(block, "file", 1)
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        finish(producer)
    assert producer.window.accepted == 400_000
    assert peaks[-1] - peaks[20] < 16 * 1024  # KiB; 80 MB were sent since


def count_only(peer):
    """Acknowledge without keeping anything."""
    count = 0
    while data := peer.connection.recv(1 << 18):
        if new := data.count(b"\n"):
            count += new
            peer.answer({"ack": count})


def test_answers_are_read_while_writing_is_stuck(path):
    """Were they not, both sides would wait for each other for ever."""
    error = {"type": "missing", "msg": "x" * 1000}
    lines = events("bad") * 20_000
    with ScriptedDaemon(path, lambda peer: peer.serve(lambda _: error)):
        producer = Producer(path)
        send(producer, lines)
        finish(producer)
    assert producer.window.refused == 20_000


def test_a_file_descriptor_is_waited_for_together_with_answers(path):
    reader, writer = os.pipe()
    acknowledged = threading.Event()

    def script(peer):
        peer.read(1)
        peer.ack(1)
        acknowledged.set()
        peer.serve()

    with ScriptedDaemon(path, script):
        producer = Producer(path)
        producer.feed(events("a"), "stdin", 1)
        while producer.window:
            assert not producer.wait(reader, timeout=0.01)
        assert acknowledged.is_set()
        os.write(writer, b"x")
        assert producer.wait(reader, timeout=SECONDS)
        finish(producer)
    os.close(reader)
    os.close(writer)


def test_a_daemon_that_goes_while_nothing_is_open_is_not_missed_until_there_is_input(path):
    reader, writer = os.pipe()
    with ScriptedDaemon(path, lambda peer: (peer.read(1), peer.ack(1)), Peer.serve) as daemon:
        outages = []
        producer = Producer(path, retry_for=0, on_outage=outages.append)
        producer.feed(events("a"), "stdin", 1)
        while producer.window:
            producer.wait(reader, timeout=0.01)
        producer.wait(reader, timeout=0.01)
        producer.feed(events("b"), "stdin", 2)
        finish(producer)
    assert names(daemon.peers[1]) == ["b"]
    assert outages == []
    os.close(reader)
    os.close(writer)
