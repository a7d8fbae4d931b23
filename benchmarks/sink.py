"""A server that takes events as fast as Python can and keeps none: the far end of a benchmark.

    python benchmarks/sink.py [--listen 127.0.0.1:0] [--latency-ms 100]

Prints one line when it is ready. Answers every POST as Polar answers an accepted batch;
events are counted by `"name":`, which stands once in each event that `loadgen.py` makes.
`GET /_stats` tells what came; after `POST /_hold` every batch gets 503 until `POST /_release`.
"""

from __future__ import annotations

import argparse
import heapq
import json
import select
import socket
import sys
import time
from email.utils import formatdate

NAME = b'"name":'
READ_BYTES = 1 << 20


class Connection:
    """One client: the bytes of its present request."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.buffer = bytearray()
        self.need = 0  # bytes of the present request, 0 while its head is not complete
        self.body_at = 0
        self.head = b""

    def complete(self) -> bool:
        """Tell whether a whole request is there."""
        if not self.need:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return False
            self.head = bytes(self.buffer[:end])
            self.body_at = end + 4
            self.need = self.body_at
            for line in self.head.split(b"\r\n")[1:]:
                name, _, value = line.partition(b":")
                if name.strip().lower() == b"content-length":
                    self.need += int(value)
        return len(self.buffer) >= self.need


class Sink:
    def __init__(self, listener: socket.socket, latency: float) -> None:
        self.listener = listener
        self.latency = latency
        self.holding = False
        self.poll = select.epoll()
        self.poll.register(listener, select.EPOLLIN)
        self.connections: dict[int, Connection] = {}
        self.due: list[tuple[float, int, Connection, bytes]] = []
        self.space = bytearray(READ_BYTES)
        self.requests = self.events = self.bytes = self.held = self.largest = 0
        self.first_at: float | None = None
        self.last_at: float | None = None

    def run(self) -> None:
        while True:
            timeout = max(0.0, self.due[0][0] - time.monotonic()) if self.due else None
            for descriptor, _ in self.poll.poll(timeout):
                if descriptor == self.listener.fileno():
                    self.accept()
                else:
                    self.receive(descriptor)
            while self.due and self.due[0][0] <= time.monotonic():
                _, _, connection, answer = heapq.heappop(self.due)
                self.send(connection, answer)

    def accept(self) -> None:
        connection, _ = self.listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connections[connection.fileno()] = Connection(connection)
        self.poll.register(connection, select.EPOLLIN)

    def receive(self, descriptor: int) -> None:
        connection = self.connections[descriptor]
        try:
            size = connection.socket.recv_into(self.space)
        except ConnectionError:
            size = 0
        if not size:
            self.drop(connection)
            return
        connection.buffer += memoryview(self.space)[:size]
        while connection.complete():
            answer = self.answer(connection)
            del connection.buffer[: connection.need]
            connection.need = 0
            if self.latency and connection.head.startswith(b"POST /v1/"):
                heapq.heappush(self.due, (time.monotonic() + self.latency, self.requests, connection, answer))
            else:
                self.send(connection, answer)

    def send(self, connection: Connection, answer: bytes) -> None:
        try:
            connection.socket.sendall(answer)
        except OSError:
            self.drop(connection)

    def drop(self, connection: Connection) -> None:
        descriptor = connection.socket.fileno()
        if self.connections.pop(descriptor, None) is not None:
            self.poll.unregister(descriptor)
            connection.socket.close()

    def answer(self, connection: Connection) -> bytes:
        """Return the answer to the request that is complete."""
        if connection.head.startswith(b"GET /_stats"):
            return response(b"200 OK", self.stats())
        if connection.head.startswith((b"POST /_hold", b"POST /_release")):
            self.holding = connection.head.startswith(b"POST /_hold")
            return response(b"200 OK", {"holding": self.holding})
        if not connection.head.startswith(b"POST "):
            return response(b"404 Not Found", {"detail": "Not Found"})
        if self.holding:
            self.held += 1
            return response(b"503 Service Unavailable", {"detail": "held"})
        now = time.monotonic()
        count = connection.buffer.count(NAME, connection.body_at, connection.need)
        self.requests += 1
        self.events += count
        self.largest = max(self.largest, count)
        self.bytes += connection.need - connection.body_at
        self.first_at = now if self.first_at is None else self.first_at
        self.last_at = now
        return response(b"200 OK", {"inserted": count, "duplicates": 0})

    def stats(self) -> dict:
        return {
            "requests": self.requests,
            "held_requests": self.held,
            "events": self.events,
            "bytes": self.bytes,
            "largest_batch": self.largest,
            "first_at": self.first_at,
            "last_at": self.last_at,
            "cpu_seconds": time.process_time(),
        }


def response(status: bytes, document: dict) -> bytes:
    body = json.dumps(document).encode()
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\nDate: %b\r\n\r\n"
    return head % (status, len(body), formatdate(usegmt=True).encode()) + body


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="port 0: any free one")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="wait before every answer to a batch")
    args = parser.parse_args()
    host, _, port = args.listen.rpartition(":")
    listener = socket.create_server((host, int(port)), backlog=1024)
    print("http://{}:{}".format(*listener.getsockname()[:2]), flush=True)
    Sink(listener, args.latency_ms / 1000).run()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(0)
