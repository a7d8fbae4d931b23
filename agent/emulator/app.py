"""The ASGI application: routes, and what failures look like."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError

from agent.emulator import control, events
from agent.emulator.answers import ApiError, CrashError, crashed, validation_error
from agent.emulator.connections import Connections
from agent.emulator.gateway import Gateway

if TYPE_CHECKING:
    from fastapi.responses import Response

    from agent.emulator.state import Emulator


def create_app(emulator: Emulator, connections: Connections | None = None) -> FastAPI:
    """Return the application of one emulator."""
    app = FastAPI(openapi_url=None)
    app.state.emulator = emulator
    app.include_router(events.router)
    app.include_router(control.router)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(CrashError, _crash)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_middleware(Gateway, emulator=emulator, connections=connections or Connections())
    return app


async def _api_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101 - registered for this class only
    return error.response()


async def _crash(_request: Request, _error: Exception) -> Response:
    return crashed()


async def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this class only
    return validation_error("RequestValidationError", list(error.errors()))
