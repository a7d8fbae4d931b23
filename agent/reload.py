"""New settings for a daemon that runs.

They are loaded and checked as a whole, by a process of its own (see `settings_child`);
only settings that are fine come into force. What is bound to the queue, to a socket or to
the kind of token stays as it is until the daemon is started again, and is told.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple, cast

if TYPE_CHECKING:
    from agent.settings import Settings

RELOADABLE = frozenset(
    {
        "access_token",
        "access_token_file",
        "allowed_groups",
        "allowed_users",
        "backoff_max",
        "disk_reserve_bytes",
        "flush_interval",
        "log_format",
        "log_level",
        "max_connections",
        "max_dead_letters",
        "max_in_flight",
        "queue_max_bytes",
        "requests_per_minute",
        "shutdown_timeout",
        "when_full",
    }
)
"""The settings that can change in a daemon that runs."""


_DERIVED = frozenset({"batch_ceiling", "server_url", "sources"})


class Changes(NamedTuple):
    """Which settings differ.

    Attributes:
        now: those that come into force at once.
        later: those that need a restart.
    """

    now: list[str]
    later: list[str]


def changes(old: Settings, new: Settings) -> Changes:
    """Compare the settings that are in force with new ones."""
    before, after = plain(old), plain(new)
    differ = [name for name in sorted(before) if before[name] != after.get(name)]
    return Changes(
        [name for name in differ if name in RELOADABLE], [name for name in differ if name not in RELOADABLE]
    )


def merged(old: Settings, new: Settings) -> Settings:
    """Return the old settings with those of the new ones that come into force at once."""
    values = vars(old) | {name: getattr(new, name) for name in RELOADABLE} | {"sources": new.sources}
    return cast("Settings", SimpleNamespace(**values))


def plain(settings: Settings) -> dict[str, object]:
    """Return all values, secrets as their text, so that they can be compared."""
    values = {name: value for name, value in vars(settings).items() if name not in _DERIVED}
    return {
        name: value.get_secret_value() if hasattr(value, "get_secret_value") else value
        for name, value in values.items()
    }
