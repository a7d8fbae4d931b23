"""What is wrong with settings, in words for those who mend them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from agent.address import is_loopback, split_host_port
from agent.config_sources import Problem
from agent.errors import SettingsError
from agent.redact import redact
from agent.units import Invalid, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from pydantic import SecretStr, ValidationError

SECRETS = ("access_token", "api_token")
"""The settings whose values are never shown."""

# Room for the `external_id` and `timestamp` that the agent adds to a line.
_STAMP_BYTES = 256


class Together(Protocol):
    """The settings that are checked against one another."""

    @property
    def max_line_bytes(self) -> int:
        """The longest event."""

    @property
    def max_batch_bytes(self) -> int:
        """The most bytes in one request."""

    @property
    def queue_max_bytes(self) -> int:
        """The most bytes of the queue."""

    @property
    def api_listen(self) -> str | None:
        """Where the API listens on TCP."""

    @property
    def api_token(self) -> SecretStr | None:
        """What callers over TCP have to send."""

    @property
    def socket_path(self) -> Path:
        """The socket for events."""

    @property
    def api_socket_path(self) -> Path:
        """The socket of the API."""


class ConflictError(ValueError):
    """Settings that are fine one by one, but not together."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{problem.setting}: {problem.reason}" for problem in problems))
        self.problems = problems


def conflicts(settings: Together) -> Iterator[Problem]:
    """Yield what does not go together; each would else show only when the first large event comes."""
    needed = settings.max_line_bytes + _STAMP_BYTES
    for name in ("max_batch_bytes", "queue_max_bytes"):
        room: int = getattr(settings, name)
        if room < needed:
            yield Problem(
                name,
                "",
                f"{format_size(room)} cannot hold one event of max_line_bytes "
                f"({format_size(settings.max_line_bytes)})",
                f"lower max_line_bytes, or raise {name} to at least {needed}",
            )
    if settings.api_listen is not None and settings.api_token is None:
        host, _ = split_host_port(settings.api_listen)
        if not is_loopback(host):
            yield Problem(
                "api_listen",
                "",
                f"{settings.api_listen!r} can be reached from other machines, and no api_token is set",
                "set api_token, or listen on 127.0.0.1",
            )
    if settings.socket_path == settings.api_socket_path:
        yield Problem(
            "api_socket_path",
            "",
            f"is the same as socket_path, {str(settings.socket_path)!r}",
            "choose another path, or leave it out",
        )


def findings(
    error: ValidationError, values: Mapping[str, object], origins: Mapping[str, str]
) -> Iterator[Problem]:
    """Yield pydantic's findings in our words."""
    for finding in error.errors(include_url=False, include_input=False):
        if finding["type"] == "default_factory_not_called":
            continue  # it only follows from another finding
        cause = finding.get("ctx", {}).get("error")
        if isinstance(cause, ConflictError):
            for problem in cause.problems:
                origin = origins.get(problem.setting, "default")
                yield Problem(problem.setting, origin, problem.reason, problem.hint)
            continue
        name = str(finding["loc"][0]) if finding["loc"] else ""
        reason = cause.reason if isinstance(cause, Invalid) else finding["msg"]
        hint = cause.hint if isinstance(cause, Invalid) else ""
        # What is wrong within a table is told with its place and value.
        shown = "" if reason.startswith(f"{name}.") else _shown(name, values)
        yield Problem(name, origins.get(name, "default"), f"{shown}{reason}", hint)


def _shown(name: str, values: Mapping[str, object]) -> str:
    """Return a wrong value as it may be shown, with a blank behind it."""
    if name not in values or name in SECRETS:
        return ""
    shown = redact(repr(values[name]))
    if name == "base_url" and ("@" in shown or "?" in shown):
        return ""  # it may hold a password
    most = 80
    return f"{shown if len(shown) <= most else shown[:most] + '…'} "


def as_one_error(problems: Sequence[Problem]) -> SettingsError:
    """Return one error for all problems."""
    each = tuple((item.subject, item.reason, item.hint) for item in problems)
    if len(problems) == 1:
        return SettingsError("load the settings", *each[0], each)
    lines = [f"- {item.subject}: {item.reason}\n    {item.hint}".rstrip() for item in problems]
    return SettingsError(
        "load the settings", f"{len(problems)} problems", "each needs mending", "\n  ".join(lines), each
    )
