"""The way to Polar: send events, read them back. The only importer of httpx.

`PolarClient.ingest` never raises for what servers and networks do: it returns an `Answer`
or a `NoAnswer`, and `agent.verdict` says what that means. Reading back returns values or
raises a `PolarError` with what to do (see `agent.readback`).

Rules, and where they come from (Polar's API as measured):

- The body goes as it is, identity-encoded and with its length: the server decompresses
  nothing and answers 411 without a `Content-Length`.
- Redirects are not followed: the token would go to wherever they point.
- One request is over by its timeout, whatever the server does, and at once when `close` is
  called; the moments for that are kept by `agent.network`.
- Proxies (`HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`) and `SSL_CERT_FILE` / `SSL_CERT_DIR` are
  honoured, as everything on a company's network expects; never for this machine itself,
  where no proxy can reach the emulator. ~/.netrc is not: the token comes from our settings alone.
- Cookies are refused: they would bind the agent to one of Polar's machines.
"""

from __future__ import annotations

import threading
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from agent import __version__
from agent.answer import Answer, NoAnswer, Outcome
from agent.clock import Clock, SystemClock
from agent.errors import UsageError
from agent.lean import deferred, without
from agent.listing import MAX_LIMIT, Event, EventFilter, EventName, NameFilter, Page, pages
from agent.network import DnsError, EndedError, Network, TlsError
from agent.polar_json import VERSIONS
from agent.proxy import proxy_for
from agent.readback import (
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    PolarError,
    RateLimitedError,
    Reader,
    UnauthorizedError,
    UnexpectedAnswerError,
    UnreachableError,
    http_date,
)
from agent.redact import redact

with without("rich", "pygments", "click", "anyio", "trio"), deferred("asyncio"):
    import httpcore
    import httpx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from agent.batch import Body

__all__ = [
    "MAX_LIMIT",
    "Event",
    "EventFilter",
    "EventName",
    "ForbiddenError",
    "InvalidRequestError",
    "NameFilter",
    "NotFoundError",
    "Page",
    "PolarClient",
    "PolarError",
    "RateLimitedError",
    "UnauthorizedError",
    "UnexpectedAnswerError",
    "UnreachableError",
    "pages",
]

API_VERSION = VERSIONS[0]
CONNECT_TIMEOUT = 10.0
# Longer than the pause between two requests at Polar's limits, shorter than servers
# usually keep a connection.
KEEP_ALIVE = 15.0
MIB = 1024 * 1024
# A thousand bad events in one batch made an answer of 1.9 MB; a page of a hundred large events is larger.
MAX_INGEST_ANSWER = 8 * MIB
MAX_READ_ANSWER = 64 * MIB


class PolarClient(Reader):
    """One server and one pool of connections; may be used by several threads at once.

    Args:
        base_url: the server's address, without `/v1`.
        token: gives the token for each request, or None when there is none.
        timeout: how many seconds one request may take in all.
        clock: for tests.
        problem: says why there is no token, and behind a semicolon what to do.

    A proxy or certificates of the environment that cannot be used are told by each
    request, as a `NoAnswer`: who makes the client in the daemon has events to keep.
    """

    def __init__(
        self,
        base_url: str,
        token: Callable[[], str | None],
        *,
        timeout: float = 60.0,
        clock: Clock | None = None,
        problem: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._base = base_url.rstrip("/")
        super().__init__(self.forward, self._base)
        self._token = token
        self._problem = problem
        self._timeout = timeout
        self._clock = SystemClock() if clock is None else clock
        self._network = Network(self._clock.monotonic)
        self._lock = threading.Lock()
        self._active = 0
        self._closed = False
        self._ingest_url = httpx.URL(f"{self._base}/v1/events/ingest")
        # Straight to the transport: a `Client` would add a fifth of the CPU of a request for
        # cookies, redirects and the environment's settings, of which we want none.
        self._transport = _transport(self._base, self._network)
        self._headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Polar-Version": API_VERSION,
            "User-Agent": f"polar-agent/{__version__}",
        }

    def ingest(self, body: bytes | Body) -> Outcome:
        """Send one batch, `{"events":[…]}`; returns what came back, never raises for it."""
        return self._exchange("POST", self._ingest_url, body, MAX_INGEST_ANSWER)

    def forward(self, target: str, version: str | None = None) -> Outcome:
        """Ask what somebody else asks; returns what came back, never raises for it.

        Args:
            target: path and query, printable ASCII.
            version: the version of the API, if not the usual one.
        """
        headers = {} if version is None else {"Polar-Version": version}
        whole = target.replace("#", "%23")  # it would begin a fragment, and what follows would be lost
        return self._exchange("GET", httpx.URL(f"{self._base}{whole}"), None, MAX_READ_ANSWER, headers)

    def close(self) -> None:
        """End all requests that are under way, and refuse new ones; from any thread, and again."""
        with self._lock:
            self._closed = True
            idle = self._active == 0
        self._network.close()
        # Closing a connection under the thread that reads from it is not safe; the last
        # request to end does it then.
        if idle:
            self._transport.close()

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the client."""
        self.close()

    def _exchange(
        self,
        method: str,
        url: httpx.URL,
        body: bytes | Body | None,
        most: int,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Outcome:
        """Send one request; returns what came back."""
        token = self._token()
        if token is None:
            return NoAnswer("token", self._problem() or "there is no access token to send")
        if not token.isascii() or not token.isprintable():
            return NoAnswer("token", "the access token has characters that cannot be sent")
        if not self._begin():
            return NoAnswer("broken", "the client was closed")
        try:
            return self._send(method, url, {**headers, "Authorization": f"Bearer {token}"}, body, most)
        except _FAILURES as error:
            return _no_answer(error, self._timeout)
        finally:
            self._end()

    def _begin(self) -> bool:
        """Count a request in; False when the client is closed."""
        with self._lock:
            if self._closed:
                return False
            self._active += 1
            return True

    def _end(self) -> None:
        """Count a request out; the last one of a closed client cleans up."""
        with self._lock:
            self._active -= 1
            last = self._closed and self._active == 0
        if last:
            self._transport.close()

    def _send(
        self, method: str, url: httpx.URL, headers: dict[str, str], body: bytes | Body | None, most: int
    ) -> Outcome:
        """Send one request and read its answer, both until the deadline; raises httpcore's errors."""
        now = self._clock.monotonic()
        deadline = now + self._timeout
        if body is not None:
            headers["Content-Type"] = "application/json"
            headers["Content-Length"] = str(len(body))
        request = httpx.Request(
            method,
            url,
            content=body,
            headers={**self._headers, **headers},
            extensions={
                "timeout": {
                    # Moments, not seconds: see agent.network.
                    "connect": min(deadline, now + CONNECT_TIMEOUT),
                    "write": deadline,
                    "read": deadline,
                    "pool": self._timeout,
                }
            },
        )
        response = self._transport.handle_request(request)
        try:
            content, whole = _read(response, most)
        finally:
            response.close()
            # The response holds its stream, the stream its response, and both hold the body
            # that was sent: cut, or megabytes wait for the garbage collector.
            response.stream = httpx.ByteStream(b"")
        if not whole and response.is_success:
            return NoAnswer("too_large", f"the answer is larger than {most // MIB} MiB")
        return Answer(
            status=response.status_code,
            body=content,
            retry_after=response.headers.get("retry-after"),
            server_time=http_date(response.headers.get("date")),
            location=response.headers.get("location"),
            content_type=response.headers.get("content-type"),
        )


class _Transport(httpx.BaseTransport):
    """Joins httpx to a pool of httpcore's that uses our sockets; httpx's own makes its pool itself."""

    def __init__(self, pool: httpcore.ConnectionPool) -> None:
        self._pool = pool

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; raises httpcore's errors as they are."""
        url = request.url
        response = self._pool.handle_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(
                    scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
                ),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx.Response(response.status, headers=response.headers, stream=_Body(response.stream))

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()


class _Body(httpx.SyncByteStream):
    """The body of an answer, as it comes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        """Yield its parts."""
        yield from self._stream

    def close(self) -> None:
        """Give the connection back, or close it when there is more to come."""
        self._stream.close()


class _NoWay(httpx.BaseTransport):
    """Stands for a way to the server that the environment makes impossible."""

    def __init__(self, why: str) -> None:
        self._why = why

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Raise httpcore.ConnectError with the reason."""
        del request
        raise httpcore.ConnectError(self._why)


def _transport(base_url: str, network: Network) -> httpx.BaseTransport:
    try:
        return _Transport(_pool(base_url, network))
    except UsageError as error:
        return _NoWay(f"{error.subject}: {error.reason}; {error.hint}")


def _pool(base_url: str, network: Network) -> httpcore.ConnectionPool:
    """Return the pool of connections to a server, through a proxy if the environment names one."""
    parts = urlsplit(base_url)
    # Loading the certificates takes 20 ms and 3 MiB, which plain HTTP can do without.
    encrypted = parts.scheme == "https"
    try:
        context = httpx.create_ssl_context(verify=encrypted)
    except OSError as error:
        raise UsageError(
            "load the certificates to trust",
            "SSL_CERT_FILE or SSL_CERT_DIR",
            error.strerror or str(error),
            "correct the path in the environment, or remove it",
        ) from error
    # No bound of its own: the flusher decides how many requests are under way.
    proxy = proxy_for(parts.scheme, parts.hostname or "")
    if proxy is None:
        return httpcore.ConnectionPool(
            ssl_context=context,
            max_connections=None,
            keepalive_expiry=KEEP_ALIVE,
            network_backend=network,
        )
    address, auth = proxy
    return httpcore.HTTPProxy(
        proxy_url=address,
        proxy_auth=auth,
        ssl_context=context,
        max_connections=None,
        keepalive_expiry=KEEP_ALIVE,
        network_backend=network,
    )


def _read(response: httpx.Response, most: int) -> tuple[bytes, bool]:
    """Return the body, at most `most` bytes of it, and whether that is all."""
    parts: list[bytes] = []
    size = 0
    for part in response.iter_raw():
        parts.append(part[: most - size])
        size += len(part)
        if size > most:
            return b"".join(parts), False
    return b"".join(parts), True


# All that servers and networks do to a request; anything else is a mistake of ours and is raised.
_FAILURES = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpx.HTTPError,
    OSError,
)


def _no_answer(error: Exception, timeout: float) -> NoAnswer:
    """Return what a failure means, the most special kinds first."""
    words = redact(str(error)) or type(error).__name__
    match error:
        case DnsError():
            return NoAnswer("dns", words)
        case TlsError():
            return NoAnswer("tls", words)
        case httpcore.ConnectError() | httpcore.ConnectTimeout():
            return NoAnswer("connect", words)
        case httpcore.ProxyError():
            return NoAnswer("connect", f"the proxy refused: {words}")
        case httpcore.TimeoutException():
            return NoAnswer("timeout", f"no complete answer within {timeout:g} s")
        case httpcore.LocalProtocolError():
            # Its words can repeat a header, hence the token.
            words = "the request could not be written as HTTP"
        case EndedError():
            pass
        case _:
            words = f"the connection broke: {words}"
    return NoAnswer("broken", words)
