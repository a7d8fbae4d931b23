"""Connections: each address gets its share of the time, and a network that was closed makes none."""

from __future__ import annotations

import socket
import time

import httpcore
import pytest

from agent.network import EndedError, Network


def test_a_network_that_was_closed_makes_no_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        network = Network(time.monotonic)
        network.close()

        with pytest.raises(EndedError):
            network.connect_tcp("127.0.0.1", server.getsockname()[1], time.monotonic() + 30)

        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_an_address_that_does_not_answer_leaves_time_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as silent,
        socket.create_server(("127.0.0.1", 0)) as good,
    ):
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(silent.getsockname())
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        found = [(*kind, silent.getsockname()), (*kind, good.getsockname())]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        network = Network(time.monotonic)

        stream = network.connect_tcp("polar.example", 443, time.monotonic() + 2.0)

        assert isinstance(stream, httpcore.NetworkStream)
        stream.close()
        for one in waiting:
            one.close()
