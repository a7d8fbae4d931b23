"""Which path is whose: what it needs, who does it, and on which threads.

Polar's paths are answered in its words. Its GET takes no HEAD; ours does, as HTTP has it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.api.version import refused
from agent.httpd.message import Response, as_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.api.access import Right
    from agent.httpd.lanes import Lane
    from agent.httpd.message import Reply, Request

Handler = Callable[["Request", "Reply"], None]

# Polar's paths that lack a slash, or have one too many.
_REDIRECTS = {"/v1/events": "/v1/events/", "/v1/events/ingest/": "/v1/events/ingest"}
_ONE_EVENT = re.compile(r"/v1/events/(?!\.\.?$)[^/]+")
_ONE_EVENT_SLASH = re.compile(r"/v1/events/(?!\.\.?/$)[^/]+/")


@dataclass(frozen=True, slots=True)
class Route:
    """One call.

    Attributes:
        method: in capitals; a GET takes HEAD, too, unless the call is one of Polar's.
        path: `/v1/events/{id}` stands for all of its like.
        right: what a caller needs.
        handler: answers.
        lane: the threads that run it.
        max_body: bytes that a request may bring.
    """

    method: str
    path: str
    right: Right
    handler: Handler
    lane: Lane
    max_body: int = 0


class Routes:
    """Finds the route of a request."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = {(route.method, route.path): route for route in routes}

    def find(self, request: Request) -> Route | Response:
        """Return the route of a request, or the answer when there is none: in Polar's words."""
        stranger = refused(request)
        if stranger is not None:
            return stranger
        path = request.raw_path
        where = _REDIRECTS.get(path)
        if where is None and _ONE_EVENT_SLASH.fullmatch(path):
            where = path[:-1]
        if where is not None:
            return Response(307, headers={"location": f"{where}?{request.query}" if request.query else where})
        polars = path.startswith("/v1")
        method = "GET" if request.method == "HEAD" and not polars else request.method
        methods: dict[str, Route] = {}
        # Polar's names of calls look like ids of events, too: the exact path comes first.
        for known in (path, *(["/v1/events/{id}"] if _ONE_EVENT.fullmatch(path) else [])):
            for (word, its), route in self._routes.items():
                if its == known:
                    methods.setdefault(word, route)
        if method in methods:
            return methods[method]
        if methods:
            return as_json(405, {"detail": "Method Not Allowed"}, {"allow": ", ".join(sorted(methods))})
        return as_json(404, {"detail": "Not Found"})
