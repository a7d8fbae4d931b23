"""What the README says of the product is what the product is."""

from __future__ import annotations

import re
from pathlib import Path

from agent.cli import COMMANDS
from agent.settings import settings_table

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_settings_table_is_the_one_that_the_settings_themselves_make() -> None:
    table = README.split("<!-- settings -->\n")[1].split("<!-- /settings -->")[0]

    assert table.strip() == settings_table().strip()


def test_every_command_is_in_the_table_of_commands() -> None:
    told = set(re.findall(r"^\| `agent (\w+)", README, re.MULTILINE))

    assert told == set(COMMANDS)


def test_both_commands_are_on_the_first_screen() -> None:
    first = README.splitlines()[:45]

    assert "$ make demo" in first
    assert "$ make test" in first
