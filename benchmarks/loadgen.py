"""Load for a daemon that takes events as lines on a Unix socket.

    python benchmarks/loadgen.py SOCKET --events 1000000                  # as fast as it takes them
    python benchmarks/loadgen.py SOCKET --events 100000 --rate 5000       # one event a write
    python benchmarks/loadgen.py SOCKET --latency --producers 1000        # one event, wait for its ack

All events are made beforehand (4,096 different ones, about 265 bytes each), so that while
the clock runs the generator does little more than `send`; what it took is in the report.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import select
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field

POOL_EVENTS = 4096
WRITE_BYTES = 1 << 18
ACK = re.compile(rb'\{"ack":\s*(\d+)')


def event(rng: random.Random) -> dict:
    """Return one event of the usual kind."""
    return {
        "name": "ai_usage",
        "external_customer_id": f"cust_{rng.randrange(100_000):05d}",
        "metadata": {
            "model": rng.choice(["gpt-4o-mini", "gpt-4o", "claude-sonnet", "mistral-large"]),
            "region": rng.choice(["eu-west-1", "us-east-1", "ap-south-1"]),
            "tokens": rng.randrange(1, 20_000),
            "latency_ms": round(rng.uniform(5, 3000), 1),
            "cached": rng.random() < 0.2,
            "request_id": f"{rng.getrandbits(96):024x}",
            "route": rng.choice(["/v1/chat/completions", "/v1/embeddings"]),
            "plan": rng.choice(["free", "pro", "enterprise"]),
            "streamed": rng.random() < 0.5,
        },
    }


def llm_event(rng: random.Random) -> dict:
    """Return one event with what Polar shows as the use of a language model."""
    usage = event(rng)
    prompt, answer = rng.randrange(10_000), rng.randrange(4000)
    usage["metadata"]["_llm"] = {
        "vendor": "openai",
        "model": "gpt-4o-mini",
        "input_tokens": prompt,
        "output_tokens": answer,
        "total_tokens": prompt + answer,
    }
    return usage


def bad_line(rng: random.Random) -> bytes:
    """Return a line that the daemon refuses."""
    nobody = event(rng)
    del nobody["external_customer_id"]
    return rng.choice([dump(nobody), b'{"name":"ai_usage","metadata":', b"no JSON at all"])


def dump(value: dict) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


@dataclass
class Pool:
    """Lines to send over and over.

    Attributes:
        data: all of them, each with its newline.
        ends: where each ends.
        bad: how many of the first n are bad, for each n.
    """

    data: bytes
    ends: list[int]
    bad: list[int]

    def line(self, number: int) -> bytes:
        number %= len(self.ends)
        return self.data[self.ends[number - 1] if number else 0 : self.ends[number]]

    def bad_in(self, count: int) -> int:
        """Return how many of the first `count` lines sent are bad."""
        passes, rest = divmod(count, len(self.ends))
        return passes * self.bad[-1] + self.bad[rest]

    def bytes_of(self, count: int) -> int:
        """Return how many bytes the first `count` lines sent have."""
        passes, rest = divmod(count, len(self.ends))
        return passes * len(self.data) + (self.ends[rest - 1] if rest else 0)


def build_pool(*, llm: float, bad: float, seed: int) -> Pool:
    rng = random.Random(seed)
    data, ends, counts = bytearray(), [], [0]
    for _ in range(POOL_EVENTS):
        dice = rng.random()
        is_bad = dice < bad
        data += bad_line(rng) if is_bad else dump(llm_event(rng) if dice < bad + llm else event(rng))
        data += b"\n"
        ends.append(len(data))
        counts.append(counts[-1] + is_bad)
    return Pool(bytes(data), ends, counts)


def connect(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    connection.setblocking(False)
    return connection


@dataclass
class Writer:
    """One connection and what has come back on it."""

    connection: socket.socket
    events: int = 0
    left: int = 0  # bytes to write
    position: int = 0  # in the pool
    acknowledged: int = 0
    refused: int = 0
    open: bool = True
    _partial: bytes = b""
    sent_at: deque = field(default_factory=deque)

    def write(self, pool: memoryview) -> bool:
        """Write what the socket takes; True when all is written and the stream is ended."""
        while self.left:
            end = min(len(pool), self.position + min(WRITE_BYTES, self.left))
            try:
                size = self.connection.send(pool[self.position : end])
            except BlockingIOError:
                return False
            self.left -= size
            self.position = (self.position + size) % len(pool)
        self.connection.shutdown(socket.SHUT_WR)
        return True

    def read(self) -> None:
        """Take answers."""
        try:
            data = self.connection.recv(1 << 16)
        except BlockingIOError:
            return
        if not data:
            self.open = False
            return
        complete, _, self._partial = (self._partial + data).rpartition(b"\n")
        self.refused += complete.count(b'"line":')
        acks = ACK.findall(complete)
        if acks:
            self.acknowledged = int(acks[-1])


def run_fast(args: argparse.Namespace, pool: Pool) -> dict:
    """Write as fast as it is taken."""
    share = args.events // args.producers
    writers = {}
    poll = select.epoll()
    for number in range(args.producers):
        count = share + (args.events - share * args.producers if number == 0 else 0)
        writer = Writer(connect(args.socket), events=count, left=pool.bytes_of(count))
        writers[writer.connection.fileno()] = writer
        poll.register(writer.connection, select.EPOLLIN | select.EPOLLOUT)
    view = memoryview(pool.data)
    started, cpu = time.monotonic(), time.process_time()
    written_at = started
    open_writers = len(writers)
    while open_writers:
        for descriptor, events in poll.poll():
            writer = writers[descriptor]
            if events & select.EPOLLOUT and writer.write(view):
                poll.modify(descriptor, select.EPOLLIN)
                written_at = time.monotonic()
                if args.no_acks:
                    writer.open = False
            if events & ~select.EPOLLOUT:
                writer.read()
            if not writer.open:
                poll.unregister(descriptor)
                writer.connection.close()
                open_writers -= 1
    ended = time.monotonic()
    return {
        "events": args.events,
        "bytes": sum(pool.bytes_of(writer.events) for writer in writers.values()),
        "bad": sum(pool.bad_in(writer.events) for writer in writers.values()),
        "acknowledged": sum(writer.acknowledged for writer in writers.values()),
        "refused": sum(writer.refused for writer in writers.values()),
        "seconds_to_written": written_at - started,
        "started_at": started,
        "seconds_to_ack": None if args.no_acks else ended - started,
        "events_per_second": args.events / ((written_at if args.no_acks else ended) - started),
        "cpu_seconds": time.process_time() - cpu,
    }


def run_at_rate(args: argparse.Namespace, pool: Pool) -> dict:
    """Write single events at a steady rate, spread over the producers."""
    writers = [Writer(connect(args.socket)) for _ in range(args.producers)]
    lines = [pool.line(number) for number in range(POOL_EVENTS)]
    poll = select.epoll()
    by_descriptor = {writer.connection.fileno(): writer for writer in writers}
    for writer in writers:
        poll.register(writer.connection, select.EPOLLIN)
    started, cpu = time.monotonic(), time.process_time()
    sent = stalls = 0
    while sent < args.events:
        for descriptor, _ in poll.poll(0.001):
            by_descriptor[descriptor].read()
        due = min(args.events, int((time.monotonic() - started) * args.rate))
        while sent < due:
            writer = writers[sent % len(writers)]
            try:
                writer.connection.send(lines[sent % POOL_EVENTS])
            except BlockingIOError:
                stalls += 1
                break
            sent += 1
    written_at = time.monotonic()
    for writer in writers:
        writer.connection.shutdown(socket.SHUT_WR)
    while not args.no_acks and any(writer.open for writer in writers):
        for descriptor, _ in poll.poll():
            by_descriptor[descriptor].read()
            if not by_descriptor[descriptor].open:
                poll.unregister(descriptor)
    return {
        "events": args.events,
        "bytes": pool.bytes_of(args.events),
        "bad": pool.bad_in(args.events),
        "acknowledged": sum(writer.acknowledged for writer in writers),
        "refused": sum(writer.refused for writer in writers),
        "seconds_to_written": written_at - started,
        "events_per_second": args.events / (written_at - started),
        "stalls": stalls,
        "cpu_seconds": time.process_time() - cpu,
    }


def run_latency(args: argparse.Namespace, pool: Pool) -> dict:
    """In each round every producer writes one event and waits for its ack."""
    writers = [Writer(connect(args.socket)) for _ in range(args.producers)]
    poll = select.epoll()
    by_descriptor = {writer.connection.fileno(): writer for writer in writers}
    for writer in writers:
        poll.register(writer.connection, select.EPOLLIN)
    rounds = max(1, args.events // args.producers)
    took: list[float] = []
    started, cpu = time.monotonic(), time.process_time()
    for number in range(rounds):
        line = pool.line(number)
        sent_at = {}
        for descriptor, writer in by_descriptor.items():
            sent_at[descriptor] = time.perf_counter()
            writer.connection.send(line)
        while sent_at:
            for descriptor, _ in poll.poll():
                writer = by_descriptor[descriptor]
                writer.read()
                if not writer.open:
                    raise SystemExit("the daemon closed a connection")
                if writer.acknowledged > number and descriptor in sent_at:
                    took.append(time.perf_counter() - sent_at.pop(descriptor))
    seconds = time.monotonic() - started
    took.sort()
    return {
        "events": len(took),
        "producers": args.producers,
        "events_per_second": len(took) / seconds,
        "p50_ms": took[len(took) // 2] * 1000,
        "p99_ms": took[min(len(took) - 1, int(len(took) * 0.99))] * 1000,
        "max_ms": took[-1] * 1000,
        "cpu_seconds": time.process_time() - cpu,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("socket", metavar="SOCKET")
    parser.add_argument("--events", type=int, default=100_000, help="how many in all (default: 100000)")
    parser.add_argument("--producers", type=int, default=1, help="how many connections (default: 1)")
    parser.add_argument(
        "--rate", type=float, help="events a second, one a write (default: as fast as it goes)"
    )
    parser.add_argument("--latency", action="store_true", help="write one event, wait for its ack, and so on")
    parser.add_argument("--llm", type=float, default=0.0, metavar="SHARE", help="share of _llm events")
    parser.add_argument("--bad", type=float, default=0.0, metavar="SHARE", help="share of lines to refuse")
    parser.add_argument("--no-acks", action="store_true", help="the daemon acknowledges nothing")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    pool = build_pool(llm=args.llm, bad=args.bad, seed=args.seed)
    if args.latency:
        report = run_latency(args, pool)
    elif args.rate:
        report = run_at_rate(args, pool)
    else:
        report = run_fast(args, pool)
    json.dump(report, sys.stdout)
    print()
    complete = args.latency or args.no_acks or report["acknowledged"] == args.events
    return 0 if complete and report.get("refused", 0) == report.get("bad", 0) else 1


if __name__ == "__main__":
    sys.exit(main())
