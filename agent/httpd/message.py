"""Requests and responses, as the server and what it serves hand them to each other. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.collector.peers import Peer

JSON = "application/json"

Via = Literal["unix", "tcp"]


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        method: in capitals.
        target: path and query as they came.
        headers: by name in lower case; the values of one that came several times are joined by commas.
        via: the kind of socket that it came through.
        peer: who sent it, where the kernel tells.
        body: all of it; empty while only the head is there.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    via: Via = "unix"
    peer: Peer | None = None
    body: bytes = b""

    @property
    def raw_path(self) -> str:
        """The path as it came, without the query."""
        return self.target.partition("?")[0]

    @property
    def path(self) -> str:
        """The path, decoded."""
        return unquote(self.raw_path)

    @property
    def query(self) -> str:
        """The query as it came, without the question mark."""
        return self.target.partition("?")[2]

    def with_body(self, body: bytes) -> Request:
        """Return the whole request."""
        return replace(self, body=body)


@dataclass(frozen=True, slots=True)
class Response:
    """One response.

    Attributes:
        status: the HTTP status code.
        body: all of it.
        content_type: None for a response without a body.
        headers: further ones.
        close: end the connection after it.
    """

    status: int
    body: bytes = b""
    content_type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    close: bool = False


Reply = Callable[[Response], None]
"""Answers one request; from any thread, once."""


def as_json(status: int, document: Any, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with a JSON document."""
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return Response(status, body, JSON, headers or {})


def refusal(
    status: int, error: str, detail: str, hint: str = "", headers: Mapping[str, str] | None = None
) -> Response:
    """Return an error in the form that Polar's have: `error` is a stable word, `detail` is for people."""
    document = {"error": error, "detail": detail}
    if hint:
        document["hint"] = hint
    return as_json(status, document, headers)
