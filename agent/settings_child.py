"""Loads the settings in a child process, for the daemon.

pydantic-settings and pydantic are half of what the daemon would weigh (20 MB) and most of
the time that it takes to start, and it needs them for a moment only. So a child loads the
settings and hands the values over; meanwhile the parent imports what it does need.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from agent.errors import AgentError

if TYPE_CHECKING:
    from agent.settings import Settings

_PATIENCE = 30.0


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
        return _settings(data)


def load_anew(config: Path | None) -> Settings:
    """Load the settings once more, in a daemon that has threads: forking is no way then.

    Args:
        config: the settings file of the command line.

    Raises:
        AgentError: as `SettingsChild.settings`.
    """
    # Our own way to our own modules, whatever the daemon was started by.
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    program = "import sys; from agent.settings_child import answer; answer(sys.argv[1:])"
    words = [] if config is None else [str(config)]
    try:
        done = subprocess.run(  # noqa: S603  # this very program
            [sys.executable, "-P", "-c", program, *words],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AgentError("load the settings", "the child process", str(error)) from error
    return _settings(done.stdout)


def answer(words: list[str]) -> None:
    """Load the settings and write them, or the error, to standard output; `load_anew` calls it."""
    _write(Path(words[0]) if words else None, sys.stdout.fileno())


def _settings(data: bytes) -> Settings:
    """Return what the child wrote, or raise it."""
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
        _write(config, write)
        code = 0
    finally:
        # Not the interpreter's own way out: the parent's buffers and handlers are not ours.
        os._exit(code)


def _write(config: Path | None, write: int) -> None:
    """Load the settings, and write them or the error to a file descriptor."""
    result: Any
    try:
        from agent.settings import load  # noqa: PLC0415  # this is what the child is for

        result = _values(load(config=config))
    except AgentError as error:
        result = error
    with os.fdopen(write, "wb") as pipe:
        pickle.dump(result, pipe)


def _values(settings: Settings) -> dict[str, Any]:
    """Return plain values of all settings."""
    values = {name: getattr(settings, name) for name in type(settings).model_fields}
    for name in ("access_token", "api_token"):
        token = values[name]
        values[name] = None if token is None else Secret(token.get_secret_value())
    values["server_url"] = settings.server_url
    values["batch_ceiling"] = settings.batch_ceiling
    values["sources"] = dict(settings.sources)
    return values
