"""How the server writes errors and times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi.responses import JSONResponse, PlainTextResponse, Response

from agent.ingest_body import error_json

if TYPE_CHECKING:
    from collections.abc import Mapping

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class ApiError(Exception):
    """An answer that ends a request."""

    def __init__(self, status: int, content: Any, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, content)
        self.status = status
        self.content = content
        self.headers = headers

    def response(self) -> Response:
        """Return the answer."""
        return JSONResponse(self.content, self.status, self.headers)


class CrashError(Exception):
    """What the server does not survive: it answers 500 without a reason."""


def crashed() -> Response:
    """Return the answer of a server whose code failed."""
    return PlainTextResponse("Internal Server Error", 500)


def plain_error(status: int, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error as something between client and server would send it."""
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return crashed()
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return Response(status_code=status, headers=headers)
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Error"
    return JSONResponse({"error": phrase.replace(" ", ""), "detail": phrase}, status, headers)


def validation_error(error: str, detail: list[Any]) -> Response:
    """Return 422; raise CrashError when it cannot be written: then the real server fails."""
    try:
        content = error_json(error, detail)
    except (ValueError, RecursionError) as failure:
        raise CrashError("the error cannot be written as JSON") from failure
    return Response(content, 422, media_type="application/json")


def to_micros(moment: datetime) -> int:
    """Return microseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> str:
    """Return a time as the server writes it."""
    text = (_EPOCH + timedelta(microseconds=micros)).isoformat()
    return text.removesuffix("+00:00") + "Z"
