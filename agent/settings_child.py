"""Loads the settings in a child process, for the daemon.

pydantic-settings and pydantic are half of what the daemon would weigh (20 MB) and most of
the time that it takes to start, and it needs them for a moment only. So a child loads the
settings and hands the values over; meanwhile the parent imports what it does need.
"""

from __future__ import annotations

import os
import pickle
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from agent.errors import AgentError

if TYPE_CHECKING:
    from pathlib import Path

    from agent.settings import Settings


class Secret:
    """A text that does not show; what pydantic's `SecretStr` is, without pydantic."""

    def __init__(self, text: str) -> None:
        self._text = text

    def get_secret_value(self) -> str:
        """Return the text."""
        return self._text

    def __repr__(self) -> str:
        """Return what is safe to print."""
        return "Secret('**********')"


class SettingsChild:
    """A child process that loads the settings; start it before any thread.

    Args:
        config: the settings file of the command line.
    """

    def __init__(self, config: Path | None) -> None:
        self._pipe, write = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            _report(config, write)
        os.close(write)

    def settings(self) -> Settings:
        """Wait for the settings.

        Returns:
            An object with the attributes of `agent.settings.Settings`, its methods apart.

        Raises:
            UsageError: as `agent.settings.load`.
        """
        with os.fdopen(self._pipe, "rb") as pipe:
            data = pipe.read()
        os.waitpid(self._child, 0)
        if not data:
            raise AgentError("load the settings", "the child process", "it ended without a word")
        result = pickle.loads(data)  # noqa: S301  # from our own child, over our own pipe
        if isinstance(result, AgentError):
            raise result
        return cast("Settings", SimpleNamespace(**result))


def _report(config: Path | None, write: int) -> None:
    """Load the settings, write them or the error to a pipe, and end the process."""
    code = 1
    try:
        result: Any
        try:
            from agent.settings import load  # noqa: PLC0415  # this is what the child is for

            result = _values(load(config=config))
        except AgentError as error:
            result = error
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(result, pipe)
        code = 0
    finally:
        # Not the interpreter's own way out: the parent's buffers and handlers are not ours.
        os._exit(code)


def _values(settings: Settings) -> dict[str, Any]:
    """Return plain values of all settings."""
    values = {name: getattr(settings, name) for name in type(settings).model_fields}
    token = settings.access_token
    values["access_token"] = None if token is None else Secret(token.get_secret_value())
    values["server_url"] = settings.server_url
    values["sources"] = dict(settings.sources)
    return values
