"""`agent check`: is everything as it must be, and what to mend."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from agent import __version__
from agent.cli._common import add_config, add_json, load_settings, print_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from agent.check import Finding
    from agent.settings import Settings

DESCRIPTION = (
    "Looks at settings, directories, permissions, disk, socket, server, token, scopes, clock and "
    "surroundings, and says what to mend. It changes nothing, and does not disturb a daemon that runs."
)
EPILOG = """\
run it as the user that the daemon runs as

exit codes: 0 nothing has failed; 1 something has; 2 wrong usage or settings
"""

_MARKS = {"ok": "ok", "warning": "see to", "failed": "FAILED"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("--offline", action="store_true", help="ask nothing of the server")
    parser.add_argument("--quiet", "-q", action="store_true", help="leave out what is fine")
    add_config(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Check everything."""
    from agent.check import document, passed
    from agent.errors import SettingsError

    try:
        settings = load_settings(args)
    except SettingsError as error:
        if args.json:
            print_json(document(_of_settings(error), __version__))
        raise
    findings = []
    for finding in _findings(settings, online=not args.offline):
        findings.append(finding)
        if not args.json and not (args.quiet and finding.state == "ok"):
            # As they come: the server may take its time.
            print(_line(finding), flush=True)
    if args.json:
        print_json(document(findings, __version__))
    else:
        print(_summary(findings))
    return 0 if passed(findings) else 1


def _findings(settings: Settings, *, online: bool) -> Iterator[Finding]:
    """Yield everything that there is to find."""
    from agent import logs
    from agent.check import disk, ok, sockets, surroundings, tails

    logs.configure("error", "auto", sys.stderr)
    yield ok("settings", ", ".join(_places(settings)) or "defaults", "fine, every one is known")
    status, daemon = sockets.ask_daemon(settings)
    yield daemon
    yield from disk.look(settings)
    yield from sockets.look(settings, status)
    yield from tails.look(settings)
    yield from surroundings.look(settings, os.environ)
    if online:
        from agent.check import server

        yield from server.look(settings, daemon_runs=status is not None)


def _places(settings: Settings) -> list[str]:
    """Return where settings come from, each place once."""
    kinds = {
        "command line": "command line",
        "environment": "environment variables",
        "credential": "credential",
    }
    return list(
        dict.fromkeys(
            next((place for kind, place in kinds.items() if origin.startswith(kind)), origin)
            for origin in settings.sources.values()
        )
    )


def _of_settings(error: Exception) -> list[Finding]:
    """Return what is wrong with the settings as findings."""
    from agent.check import failed

    problems = getattr(error, "problems", ())
    return [failed("settings", subject, reason, mend) for subject, reason, mend in problems]


def _line(finding: Finding) -> str:
    text = f"{_MARKS[finding.state]:<7} {finding.check}: {finding.subject}: {finding.message}"
    return f"{text}\n        {finding.mend}" if finding.mend else text


def _summary(findings: Sequence[Finding]) -> str:
    bad = sum(1 for finding in findings if finding.state == "failed")
    mild = sum(1 for finding in findings if finding.state == "warning")
    if not bad and not mild:
        return "all is well"
    return f"{bad} failed, {mild} to see to"
