"""The settings: what they are, where they come from, and what is wrong with them.

The only importer of `pydantic_settings`. `load` promises one of two things: settings in
which every value was checked, or one `SettingsError` that tells every problem at once, each
with the setting, where it stands, its value (never that of the token) and what to do.

Precedence, highest first: command line, `POLAR_AGENT_…`, Polar's own variables
(`POLAR_ACCESS_TOKEN`, `POLAR_ENVIRONMENT`, `POLAR_SERVER`), credentials (systemd's
`$CREDENTIALS_DIRECTORY`, Docker's /run/secrets), the settings file, defaults.
`agent.config_sources` reads these. The ready-made sources of pydantic-settings are not
used for it: they pass misspelt names over, read a secret only once, and keep no
record of where a value came from.
"""

from __future__ import annotations

import os
import sys
from contextvars import ContextVar
from pathlib import Path  # noqa: TC003 - pydantic reads the annotations
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, PrivateAttr, SecretStr, ValidationError, model_validator

from agent import config_sources, places
from agent import settings_values as read
from agent.ceiling import MOST_EVENTS
from agent.lean import deferred
from agent.redact import HIDDEN
from agent.settings_problems import SECRETS, ConflictError, as_one_error, conflicts, findings
from agent.settings_tail import tables
from agent.tail import Table
from agent.units import GIB, KIB, MIB, format_duration, format_size

with deferred("asyncio"):
    from pydantic_settings import (
        BaseSettings,
        InitSettingsSource,
        PydanticBaseSettingsSource,
        SettingsConfigDict,
    )

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agent.config_sources import Layer, Problem

SERVERS = {"production": "https://api.polar.sh", "sandbox": "https://sandbox-api.polar.sh"}

# Requests a minute that Polar allows an organization, for all its calls together; the
# rest is left to the user's own checkout calls.
SERVER_LIMITS = {"production": 500, "sandbox": 100}
OUR_SHARE = 0.6


class _Sources(NamedTuple):
    """What the settings now being built are built from."""

    environ: Mapping[str, str]
    layers: Sequence[Layer]


# pydantic calls the sources and the defaults without any argument of ours.
_sources: ContextVar[_Sources | None] = ContextVar("_sources", default=None)


def _environ() -> Mapping[str, str]:
    sources = _sources.get()
    return os.environ if sources is None else sources.environ


def _setting(
    default: object = None,
    *,
    doc: str,
    shown: str,
    derive: Callable[[dict[str, Any]], object] | None = None,
) -> Any:
    """Return a field: its default (or how to derive it), its line of documentation, its default in words."""
    extra: dict[str, Any] = {"shown": shown}
    if derive is not None:
        return Field(default_factory=derive, description=doc, json_schema_extra=extra, validate_default=True)
    return Field(default, description=doc, json_schema_extra=extra)


class Settings(BaseSettings):
    """Every setting, checked; frozen. Built directly, it reads no source but its arguments."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=False
    )

    access_token: Annotated[SecretStr | None, BeforeValidator(read.secret)] = _setting(
        doc="Polar's access token, with the scopes `events:write` and `events:read`.",
        shown="none; needed to send and to read",
    )
    access_token_file: Annotated[Path | None, BeforeValidator(read.path)] = _setting(
        doc="A file that holds the token instead; it is read again whenever it changes.",
        shown="none",
    )
    environment: Annotated[Literal["production", "sandbox"], read.choice("production", "sandbox")] = _setting(
        "production",
        doc="Which of Polar's servers gets the events: `production` or `sandbox`.",
        shown="`production`",
    )
    base_url: Annotated[str | None, BeforeValidator(read.url)] = _setting(
        doc="Another server than Polar's, such as the emulator; plain `http://` only to this machine.",
        shown="from `environment`",
    )

    socket_path: Annotated[Path, BeforeValidator(read.socket_path)] = _setting(
        doc="The Unix socket that programs write their events to.",
        shown="`/run/polar-agent/agent.sock` where that directory is ours, "
        "else `$XDG_RUNTIME_DIR/polar-agent/agent.sock`",
        derive=lambda _: places.socket_path(_environ()),
    )
    socket_mode: Annotated[int, BeforeValidator(read.mode)] = _setting(
        0o660,
        doc="Who may open the socket: its file mode, as octal digits in quotes.",
        shown='`"0660"`',
    )
    socket_owner: Annotated[str | None, BeforeValidator(read.text)] = _setting(
        doc="The user who owns the socket, by name or number; only root may give it away.",
        shown="the agent's own user",
    )
    socket_group: Annotated[str | None, BeforeValidator(read.text)] = _setting(
        doc="The group that owns the socket, by name or number.",
        shown="the agent's own group",
    )
    allowed_users: Annotated[tuple[str, ...], BeforeValidator(read.names)] = _setting(
        (),
        doc="Only these users may send events; names or numbers, separated by commas in the environment.",
        shown="all that `socket_mode` lets in",
    )
    allowed_groups: Annotated[tuple[str, ...], BeforeValidator(read.names)] = _setting(
        (),
        doc="Only members of these groups may send events; together with `allowed_users`, either suffices.",
        shown="all that `socket_mode` lets in",
    )

    queue_dir: Annotated[Path, BeforeValidator(read.path)] = _setting(
        doc="The directory where events wait, safe on disk, until Polar has them.",
        shown="`/var/lib/polar-agent` where that directory is ours, else `$XDG_STATE_HOME/polar-agent`",
        derive=lambda _: places.queue_dir(_environ()),
    )
    queue_max_bytes: Annotated[int, read.size(64 * KIB, 2**60)] = _setting(
        4 * GIB,
        doc="How much disk the queue may take before it counts as full.",
        shown="4 GiB",
    )
    disk_reserve_bytes: Annotated[int, read.size(0, 2**60)] = _setting(
        256 * MIB,
        doc="Free disk space that the queue leaves to others; with less, it counts as full.",
        shown="256 MiB, at most a quarter of the disk",
    )
    when_full: Annotated[Literal["block", "drop_newest"], read.choice("block", "drop_newest")] = _setting(
        "block",
        doc="What a full queue does: `block` makes programs wait and loses nothing, "
        "`drop_newest` throws new events away and counts them.",
        shown="`block`",
    )
    when_damaged: Annotated[Literal["rescue", "exit"], read.choice("rescue", "exit")] = _setting(
        "rescue",
        doc="What is done about damaged files of the queue: `rescue` sets them aside, goes on with what can "
        "be read and counts the rest, `exit` changes nothing, says so and ends with 1.",
        shown="`rescue`",
    )

    max_dead_letters: Annotated[int, read.whole_number(1, 10_000_000)] = _setting(
        100_000,
        doc="How many events that Polar refused for good are kept; beyond, more of them wait.",
        shown="100,000",
    )

    flush_interval: Annotated[float, read.duration(0.001, 3600)] = _setting(
        2.0,
        doc="How long an event may wait for others to share its request.",
        shown="2 s",
    )
    max_batch_events: Annotated[int, read.whole_number(1, 20_000)] = _setting(
        500,
        doc="So many events make a request; set, no request has more. Not set, requests grow up to "
        "4,681 events while more are waiting or others are under way, and answers are quick.",
        shown="500",
    )
    max_batch_bytes: Annotated[int, read.size(4 * KIB, 10 * MIB)] = _setting(
        5 * MIB,
        doc="The most bytes in one request; Polar takes no more than 10 MiB.",
        shown="5 MiB",
    )
    max_in_flight: Annotated[int, read.whole_number(1, 64)] = _setting(
        4,
        doc="How many requests may be under way at once.",
        shown="4",
    )
    requests_per_minute: Annotated[int, read.whole_number(1, 1_000_000)] = _setting(
        doc="The most requests a minute; Polar's limit is shared with your own calls.",
        shown="60 % of Polar's limit: 300, with `sandbox` 60",
        derive=lambda data: int(SERVER_LIMITS[data["environment"]] * OUR_SHARE),
    )

    request_timeout: Annotated[float, read.duration(0.01, 3600)] = _setting(
        60.0,
        doc="How long one request may take in all; Polar needs its time for large ones.",
        shown="60 s",
    )
    backoff_max: Annotated[float, read.duration(0.01, 3600)] = _setting(
        60.0,
        doc="The longest wait between two attempts while Polar cannot be reached.",
        shown="60 s",
    )
    shutdown_timeout: Annotated[float, read.duration(0, 3600)] = _setting(
        8.0,
        doc="How long a stopping agent goes on sending; what is left stays on disk.",
        shown="8 s",
    )
    future_tolerance: Annotated[float, read.duration(0, 86400)] = _setting(
        60.0,
        doc="How far ahead of the clock an event's timestamp may be; it is held until then.",
        shown="60 s",
    )

    max_line_bytes: Annotated[int, read.size(KIB, 8 * MIB)] = _setting(
        256 * KIB,
        doc="The longest event, as a line of JSON.",
        shown="256 KiB",
    )
    max_connections: Annotated[int, read.whole_number(1, 65_536)] = _setting(
        4096,
        doc="How many programs may be connected at once.",
        shown="4096",
    )

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], read.choice("debug", "info", "warning", "error")
    ] = _setting(
        "info",
        doc="The least weighty messages that are logged: `debug`, `info`, `warning`, `error`.",
        shown="`info`",
    )
    log_format: Annotated[Literal["auto", "json", "console"], read.choice("auto", "json", "console")] = (
        _setting(
            "auto",
            doc="How messages look: `json`, `console` (for people), `auto` (`console` on a terminal).",
            shown="`auto`",
        )
    )

    api_socket_path: Annotated[Path, BeforeValidator(read.socket_path)] = _setting(
        doc="The Unix socket of the local HTTP API.",
        shown="`api.sock` beside `socket_path`",
        derive=lambda data: data["socket_path"].with_name("api.sock"),
    )
    api_socket_mode: Annotated[int, BeforeValidator(read.mode)] = _setting(
        doc="Who may open it: its file mode. Others than the agent's user and root may send and read "
        "events, not operate the agent.",
        shown='as `socket_mode`; `"0600"` where the system does not tell who connects',
        derive=lambda data: f"{data['socket_mode'] if sys.platform == 'linux' else 0o600:04o}",
    )
    api_listen: Annotated[str | None, BeforeValidator(read.listen)] = _setting(
        doc="Serve the API over TCP, too, such as on `127.0.0.1:8686`; elsewhere than on loopback only "
        "with `api_token`.",
        shown="none: no TCP",
    )
    api_token: Annotated[SecretStr | None, BeforeValidator(read.api_token)] = _setting(
        doc="What callers over TCP have to send as a Bearer token.",
        shown="none: anybody on this machine",
    )

    tail: Annotated[tuple[Table, ...], BeforeValidator(tables)] = _setting(
        (),
        doc="Files to read events from: `[[tail]]` tables with `path` (wildcards, `**`), `start` "
        "(`beginning`, or `end`: for files that are there at first), `defaults`, `exclude`; see "
        "docs/tail.md. "
        "In the environment `POLAR_AGENT_TAIL__0__PATH` and so on.",
        shown="none",
    )

    _origins: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put our own sources in the place of the ready-made ones (see the module's text)."""
        del env_settings, dotenv_settings, file_secret_settings
        sources = _sources.get()
        layers = () if sources is None else sources.layers
        return (init_settings, *(InitSettingsSource(settings_cls, layer.values) for layer in layers))

    @model_validator(mode="after")
    def _check_together(self) -> Settings:
        found = list(conflicts(self))
        if found:
            raise ConflictError(found)
        return self

    @property
    def server_url(self) -> str:
        """The server's address, without a slash at its end and without `/v1`."""
        return self.base_url or SERVERS[self.environment]

    @property
    def batch_ceiling(self) -> int:
        """The most events in one request: what the user said, or what a quick server may get."""
        chosen = "max_batch_events" in self.model_fields_set
        return self.max_batch_events if chosen else max(self.max_batch_events, MOST_EVENTS)

    @property
    def sources(self) -> Mapping[str, str]:
        """Where each setting that is no default was given, by setting."""
        return self._origins

    def describe(self) -> list[tuple[str, str, str]]:
        """Return every setting, its value in words (a token's is hidden), and where it comes from."""
        return [
            (name, _in_words(name, getattr(self, name)), self._origins.get(name, "default"))
            for name in type(self).model_fields
        ]

    def document(self) -> list[dict[str, object]]:
        """Return every setting, its value for programs (a token's is hidden), and where it comes from."""
        values = self.model_dump(mode="json")
        for name in SECRETS:
            if values[name] is not None:
                values[name] = HIDDEN
        return [
            {"setting": name, "value": values[name], "from": self._origins.get(name, "default")}
            for name in type(self).model_fields
        ]


def load(
    config: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Return the settings of this process.

    Args:
        config: the settings file of the command line; it must exist.
        overrides: settings of the command line, by name; None counts as not given.
        environ: the environment; that of the process if not given.

    Raises:
        SettingsError: something is wrong; it tells every problem, and how to mend it.
    """
    environ = os.environ if environ is None else environ
    known = tuple(Settings.model_fields)
    problems: list[Problem] = []
    layers = (
        config_sources.from_overrides(overrides or {}, known, problems),
        config_sources.from_environment(environ, known, problems),
        config_sources.from_polar_names(environ),
        config_sources.from_credentials(environ, known, problems),
        config_sources.from_file(config, environ, known, problems),
    )
    config_sources.keep_one_token(layers, problems)
    origins: dict[str, str] = {}
    values: dict[str, object] = {}
    for layer in reversed(layers):
        origins.update(layer.origins)
        values.update(layer.values)
    origins = {name: origins[name] for name in known if name in values}

    token = _sources.set(_Sources(environ, layers))
    try:
        settings = Settings()
    except ValidationError as error:
        problems.extend(findings(error, values, origins))
    finally:
        _sources.reset(token)
    if problems:
        raise as_one_error(problems)
    settings._origins = origins  # noqa: SLF001 - still being made here
    return settings


def settings_table() -> str:
    """Return the settings as a Markdown table: for the README, which a test holds to it."""
    also = {
        "access_token": ", `POLAR_ACCESS_TOKEN`",
        "environment": ", `POLAR_ENVIRONMENT`",
    }
    rows = [
        ("Setting", "Environment variable", "Default", "Meaning"),
        ("---", "---", "---", "---"),
    ]
    for name, info in Settings.model_fields.items():
        extra = info.json_schema_extra
        shown = extra["shown"] if isinstance(extra, dict) else ""
        variable = f"`{config_sources.PREFIX}{name.upper()}`{also.get(name, '')}"
        rows.append((f"`{name}`", variable, str(shown), info.description or ""))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _in_words(name: str, value: object) -> str:
    """Return a checked value for people."""
    if isinstance(value, SecretStr):
        words = "(hidden)"
    elif isinstance(value, tuple):
        words = ", ".join(item.path if isinstance(item, Table) else item for item in value)
    elif isinstance(value, float):
        words = format_duration(value)
    elif isinstance(value, int):
        words = str(value)
        if name.endswith("_mode"):
            words = f"{value:04o}"
        elif name.endswith("_bytes"):
            words = format_size(value)
    else:
        words = "" if value is None else str(value)
    return words or "none"
