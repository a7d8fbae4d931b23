"""What happens to every request before any route sees it.

Below /v1: faults, version, size of the body, rate limit; and on the answer the headers
`date` and `polar-version`. All requests below /v1 are counted.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from email.utils import formatdate
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect

from agent.emulator.answers import ApiError, plain_error
from agent.emulator.faults import Roll
from agent.polar_json import MAX_BODY, VERSIONS

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from agent.emulator.connections import Connections
    from agent.emulator.state import Emulator

DEFAULT_VERSION = VERSIONS[0]
RETRY_AFTER = "60"

_INGEST = "/v1/events/ingest"
_WITH_BODY = {"POST", "PUT", "PATCH"}
_CRASHED = 500


class Gateway:
    """ASGI middleware around all routes."""

    def __init__(self, app: ASGIApp, emulator: Emulator, connections: Connections) -> None:
        self._app = app
        self._emulator = emulator
        self._connections = connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1"):
            await self._app(scope, receive, send)
            return
        emulator = self._emulator
        emulator.counts.requests += 1
        headers = Headers(scope=scope)
        version = headers.get("polar-version", DEFAULT_VERSION)

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._complete(message, version)
            await send(message)

        faults = emulator.dice.faults
        if faults.latency_ms:
            await asyncio.sleep(faults.latency_ms / 1000)
        is_ingest = scope["path"] == _INGEST and scope["method"] == "POST"
        roll = emulator.dice.roll() if is_ingest else Roll()
        if not roll.reset:
            answer = self._refuse(scope["method"], headers, version, roll)
            if answer is not None:
                await _drain(receive)
            with suppress(ClientDisconnect):  # it went away in the middle of its body
                await (answer or self._app)(scope, receive, _swallow if roll.lose_answer else send_on)
        if roll.reset or roll.lose_answer:
            emulator.counts.broken += 1
            self._connections.reset(scope["client"])
            while (await receive())["type"] != "http.disconnect":
                pass

    def _complete(self, start: Message, version: str) -> None:
        """Write the headers that every answer has, and count it."""
        self._emulator.counts.by_status[start["status"]] += 1
        headers = MutableHeaders(scope=start)
        headers["date"] = formatdate(self._emulator.wall(), usegmt=True)
        if start["status"] != _CRASHED:
            headers["polar-version"] = version if version in VERSIONS else DEFAULT_VERSION

    def _refuse(self, method: str, headers: Headers, version: str, roll: Roll) -> Response | None:
        """Return the answer when no route is to be asked."""
        answer: Response | None
        if roll.status is not None:
            answer = plain_error(roll.status, self._retry_after())
        elif version not in VERSIONS:
            answer = ApiError(404, {"detail": "Not Found"}).response()
        else:
            answer = _refuse_body(method, headers)
        if answer is None and self._has_token(headers) and not self._emulator.take_rate():
            answer = plain_error(429, self._retry_after() or {"retry-after": RETRY_AFTER})
        return answer

    def _has_token(self, headers: Headers) -> bool:
        """Tell whether the call belongs to an organization; if not, the route will tell why."""
        try:
            self._emulator.keyring.find(headers.get("authorization"))
        except ApiError:
            return False
        return True

    def _retry_after(self) -> dict[str, str]:
        retry_after = self._emulator.dice.faults.retry_after
        return {} if retry_after is None else {"retry-after": retry_after}


def _refuse_body(method: str, headers: Headers) -> Response | None:
    length = headers.get("content-length")
    if length is None and (method in _WITH_BODY or "transfer-encoding" in headers):
        content = {"error": "LengthRequired", "detail": "The header Content-Length is required."}
        return ApiError(411, content).response()
    if length is not None and int(length) > MAX_BODY:
        message = f"Request body exceeded the maximum allowed size of {MAX_BODY} bytes."
        return ApiError(413, {"error": "RequestBodyTooLarge", "detail": message}).response()
    return None


async def _swallow(message: Message) -> None:
    """Send nothing."""


async def _drain(receive: Receive) -> None:
    """Read the body to its end: a client that is still writing would not see the answer."""
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass
