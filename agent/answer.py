"""What can come back from one request to Polar, without any HTTP library in it.

`agent.polar` makes these, `agent.verdict` says what they mean.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """The server answered.

    Attributes:
        status: the HTTP status code.
        body: the body, at most a few MiB of it.
        retry_after: the `Retry-After` header as it came, if it did.
        server_time: the `Date` header as Unix seconds, if it came and could be read.
        location: the `Location` header of a redirect.
        content_type: the `Content-Type` header, if it came.
    """

    status: int
    body: bytes = b""
    retry_after: str | None = None
    server_time: float | None = None
    location: str | None = None
    content_type: str | None = None


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """No complete answer came; the server may or may not have stored the events.

    Attributes:
        kind: a stable word: ``connect``, ``dns``, ``tls``, ``timeout``, ``broken``, ``too_large``,
            ``token`` (there is none to send), ``elsewhere`` (it is of another organization),
            ``personal`` (it is an organization's, and the events need a person's).
        reason: what happened, for people; holds neither event contents nor the token.
    """

    kind: str
    reason: str


Outcome = Answer | NoAnswer
