"""`agent run`: the daemon, in the foreground."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.cli._common import add_config

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from agent.service import Service

DESCRIPTION = (
    "Runs the daemon in the foreground: takes events on the socket, keeps them safe on disk, and "
    "delivers them to Polar. SIGTERM or Ctrl-C ends it; what is not delivered by then stays on disk. "
    "SIGHUP loads the settings anew."
)
EPILOG = """\
examples:
  POLAR_ACCESS_TOKEN=polar_oat_... POLAR_ENVIRONMENT=sandbox agent run
  agent run --config agent.toml

exit codes: 0 stopped by a signal; 1 it could not start or go on; 2 wrong usage or settings
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Run the daemon until a signal comes."""
    from agent.errors import AgentError, hint_of, reason_of

    try:
        _keep_standard_streams()
        service = _service(args.config)
    except (OSError, MemoryError) as error:
        raise AgentError("start", "the daemon", reason_of(error), hint_of(error)) from error
    return service.run()


def _service(config: Path | None) -> Service:
    """Make the daemon; nothing of it runs yet."""
    from agent.settings_child import SettingsChild

    child = SettingsChild(config)

    from agent import logs
    from agent.clock import SystemClock
    from agent.service import Service

    settings = child.settings()
    logs.configure(settings.log_level, settings.log_format)
    return Service(settings, SystemClock(), config=config)


def _keep_standard_streams() -> None:
    """See that 0, 1 and 2 are open, so that no file of the queue gets such a number and stray output."""
    import os

    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
