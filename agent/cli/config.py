"""`agent config`: the settings as they are in force."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.cli._common import add_config, add_json, load_settings, print_json, table

if TYPE_CHECKING:
    import argparse

DESCRIPTION = "Shows the settings."
EPILOG = """\
examples:
  agent config show
  POLAR_AGENT_FLUSH_INTERVAL=5s agent config show --json

exit codes: 0 shown; 2 wrong usage or settings
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    show = verbs.add_parser(
        "show",
        help="show every setting, its value and where that comes from",
        description="Shows every setting that this command would run with, and where each comes from. "
        "The token is never shown.",
    )
    add_config(show)
    add_json(show)


def run(args: argparse.Namespace) -> int:
    """Show the settings."""
    settings = load_settings(args)
    if args.json:
        shown = settings.document()
        print_json({"settings": shown, "server_url": settings.server_url})
    else:
        print(table(("setting", "value", "from"), settings.describe()))
    return 0
