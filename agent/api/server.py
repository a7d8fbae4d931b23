"""The API on its sockets: what it serves, and what it needs of the daemon."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from agent.api.access import Access, Right
from agent.api.ingest import Ingest
from agent.api.operate import acting
from agent.api.page import page
from agent.api.readback import ReadBack
from agent.api.routes import Route, Routes
from agent.api.version import stamped
from agent.asking import mark
from agent.collector.peers import AllowList, Door, Peer, can_tell, peer_of
from agent.httpd.lanes import Lane
from agent.httpd.message import Response, as_json
from agent.httpd.server import Listener, Server
from agent.operations import latest_dead, purge_dead, retry_dead
from agent.polar_json import MAX_BODY
from agent.prometheus import CONTENT_TYPE

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from agent.api.sockets import ApiSockets
    from agent.clock import Clock
    from agent.httpd.message import Reply, Request
    from agent.pipeline import Pipeline
    from agent.settings import Settings
    from agent.tail.tail import Tail

_MAX_OPERATION = 64 << 20  # mended dead letters, all at once
_MAX_FLUSH_SECONDS = 3600.0
_MOST_DEAD = 50


class Daemon(Protocol):
    """What the API needs of the daemon, beside its pipeline."""

    @property
    def pipeline(self) -> Pipeline:
        """Everything behind the collector."""
        ...

    @property
    def tail(self) -> Tail | None:
        """What reads files; None when nothing does."""
        ...

    @property
    def stopping(self) -> bool:
        """True once the daemon is about to stop."""
        ...

    def status(self) -> dict[str, Any]:
        """Return how everything stands."""
        ...

    def overview(self, *, history: bool) -> dict[str, Any]:
        """Return everything, with the last hour or without."""
        ...

    def metrics(self) -> str:
        """Return the metrics as Prometheus reads them."""
        ...

    def sick(self) -> str | None:
        """Return why the daemon must be started again; None when it lives."""
        ...

    def unready(self) -> str | None:
        """Return why no event can be made durable now; None when it can."""
        ...


class Api:
    """Serves the API of one daemon.

    Args:
        settings: all of them.
        sockets: what it is served on.
        clock: for deadlines.
        daemon: what is served.
        allowed: who may come in through the Unix socket.
    """

    def __init__(
        self, settings: Settings, sockets: ApiSockets, clock: Clock, daemon: Daemon, allowed: AllowList
    ) -> None:
        token = settings.api_token
        self._daemon = daemon
        self._clock = clock
        self._access = Access(allowed, own_user(), None if token is None else token.get_secret_value())
        self.door = Door(self._access.knows, "api")
        self._routes = Routes(self._make_routes())
        self._sockets = sockets
        listeners = [Listener(sockets.unix.sock, "unix", self._identify)]
        if sockets.tcp is not None:
            listeners.append(Listener(sockets.tcp, "tcp"))
        self.server = Server(listeners, self, clock)

    def start(self) -> None:
        """Start serving."""
        self.server.start()

    def stop(self) -> None:
        """Stop serving; requests that are worked on have a moment to end."""
        self.server.stop()
        self._sockets.close()

    # -- what the server asks ----------------------------------------------------------------

    def admit(self, request: Request) -> Response | int:
        """Look at a head: return a refusal, or the longest body that the request may have."""
        route = self._routes.find(request)
        if isinstance(route, Response):
            # Who may not come in learns nothing, not even what there is.
            return self._access.check(request, Right.USE) or stamped(request, route)
        return self._access.check(request, route.right) or route.max_body

    def handle(self, request: Request, reply: Reply) -> None:
        """Have a request answered."""
        route = self._routes.find(request)
        if isinstance(route, Response):
            reply(route)
        else:
            route.lane.put(route.handler, request, lambda answer: reply(stamped(request, answer)))

    def _identify(self, sock: socket.socket) -> Peer | None:
        """Return who connected; somebody who may not is told so, and counted."""
        if not can_tell():
            return None
        peer = peer_of(sock)
        self.door.admits(peer)
        return peer

    # -- what there is -----------------------------------------------------------------------

    def _make_routes(self) -> list[Route]:
        """Return all calls."""
        daemon, pipeline = self._daemon, self._daemon.pipeline
        ingest = Ingest(
            pipeline.checker,
            pipeline.seen,
            pipeline.writer,
            pipeline.server_clock.now,
            stopping=lambda: daemon.stopping,
            meters=pipeline.meters,
        )
        read = ReadBack(
            lambda target, version: pipeline.client().forward(target, version),
            pipeline.flusher.place,
            lambda: mark(pipeline.server_url, pipeline.token.current()),
        )
        # Health is answered by a thread of its own, whatever the others do.
        quick, take = Lane("quick", 1, 64), Lane("ingest", 2, 256)
        reads, work = Lane("read", 8, 64), Lane("operate", 4, 16)
        return [
            Route("GET", "/healthz", Right.HEALTH, _state(daemon.sick, "live"), quick),
            Route("GET", "/readyz", Right.HEALTH, _state(daemon.unready, "ready"), quick),
            Route("GET", "/status", Right.USE, acting(lambda _query, _body: daemon.status()), quick),
            Route("GET", "/", Right.USE, lambda _request, reply: reply(page()), quick),
            Route("GET", "/dead", Right.OPERATE, acting(self._dead), work),
            Route("GET", "/overview", Right.USE, acting(self._overview), quick),
            Route("GET", "/metrics", Right.USE, self._metrics, quick),
            Route("POST", "/v1/events/ingest", Right.USE, ingest, take, MAX_BODY),
            Route("GET", "/v1/events/", Right.USE, read, reads),
            Route("GET", "/v1/events/names", Right.USE, read, reads),
            Route("GET", "/v1/events/{id}", Right.USE, read, reads),
            Route("POST", "/flush", Right.OPERATE, acting(self._flush), work, 1024),
            Route("POST", "/tail/reset", Right.OWN, acting(self._tail_reset), work, 64 << 10),
            Route("POST", "/dead/retry", Right.OPERATE, self._retry, work, _MAX_OPERATION),
            Route(
                "POST",
                "/dead/purge",
                Right.OWN,
                acting(lambda _query, body: purge_dead(pipeline, body)),
                work,
                _MAX_OPERATION,
            ),
        ]

    def _overview(self, query: dict[str, str], body: Any) -> dict[str, Any]:
        """Return everything."""
        del body
        return self._daemon.overview(history=query.get("history") == "1")

    def _dead(self, query: dict[str, str], body: Any) -> dict[str, Any]:
        """Return the latest dead letters."""
        del query, body
        return {"items": list(islice(latest_dead(self._daemon.pipeline.queue), _MOST_DEAD))}

    def _metrics(self, request: Request, reply: Reply) -> None:
        """Answer with the metrics."""
        del request
        reply(Response(200, self._daemon.metrics().encode(), CONTENT_TYPE))

    def _flush(self, query: dict[str, str], body: Any) -> dict[str, Any]:
        """Deliver everything now."""
        del body
        seconds = min(float(query.get("timeout", "60")), _MAX_FLUSH_SECONDS)
        if not seconds >= 0:  # which is no number is not either
            raise ValueError("the timeout must be a number of seconds")
        until = self._clock.monotonic() + seconds
        if self._daemon.tail is not None:
            with suppress(ValueError):  # files that cannot be looked at now keep nothing in the queue
                self._daemon.tail.catch_up(seconds / 2)
        left = max(0.0, until - self._clock.monotonic())
        drained = self._daemon.pipeline.drain(left, give_up=lambda: self._daemon.stopping)
        return {"remaining": drained.remaining, "reason": drained.reason}

    def _tail_reset(self, query: dict[str, str], body: Any) -> dict[str, Any]:
        """Have a tailed file read again."""
        del query
        tail = self._daemon.tail
        if tail is None:
            raise ValueError("the daemon was started without [[tail]]; restart it")
        path = body.get("path") if isinstance(body, dict) else None
        if not path:
            raise ValueError("the body must be an object with a path")
        return {"reset": tail.reset(str(path), to_end=body.get("to") == "end")}

    def _retry(self, request: Request, reply: Reply) -> None:
        """Put dead letters back; to change what they say takes the right to."""

        def retry(_query: dict[str, str], body: Any) -> dict[str, Any]:
            return retry_dead(self._daemon.pipeline, body)

        if b'"edits"' in request.body:
            refused = self._access.check(request, Right.OWN)
            if refused is not None:
                reply(refused)
                return
        acting(retry)(request, reply)


def own_user() -> int:
    """Return the user that the daemon runs as."""
    return os.geteuid()


def _state(trouble: Callable[[], str | None], word: str) -> Callable[[Request, Reply], None]:
    """Return the handler that tells whether something is so: 200, or 503 and why not."""

    def handle(_request: Request, reply: Reply) -> None:
        reason = trouble()
        reply(as_json(200 if reason is None else 503, {word: reason is None, "reason": reason}))

    return handle
