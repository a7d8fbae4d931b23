"""Writes the man pages and the shell completions, from the commands' own parsers.

    python deploy/manual.py DIRECTORY        what is laid out there as under /usr/share

Page and completion are for `polar-agent`, and the completion for `agent` as well.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import shtab
from argparse_manpage.manpage import Manpage

from agent import __version__
from agent.cli import COMMANDS, build

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "polar-agent"
COMPLETIONS = {
    "bash": "bash-completion/completions/{name}",
    "zsh": "zsh/site-functions/_{name}",
}


def main(target: Path) -> None:
    """Write everything below `target`."""
    pages = target / "man/man1"
    pages.mkdir(parents=True, exist_ok=True)
    (pages / f"{NAME}.1").write_text(page(parser_of(NAME, ()), "\n".join(_overview())))
    for command in COMMANDS:
        sub = command_of(parser_of(NAME, (command,)), command)
        (pages / f"{NAME}-{command}.1").write_text(page(sub))
    for name in (NAME, "agent"):
        path = target / f"fish/vendor_completions.d/{name}.fish"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in fish(name, parser_of(name, COMMANDS))))
    for shell, place in COMPLETIONS.items():
        for name in (NAME, "agent"):
            path = target / place.format(name=name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(shtab.complete(parser_of(name, COMMANDS), shell=shell))


def parser_of(name: str, commands: object) -> argparse.ArgumentParser:
    """Return the parser of the whole program under a name, files completed where files are meant."""
    parser = build(list(commands))
    _rename(parser, "agent", name)
    _complete_files(parser)
    return parser


def command_of(parser: argparse.ArgumentParser, command: str) -> argparse.ArgumentParser:
    """Return the parser of one command."""
    (actions,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return actions.choices[command]


def page(parser: argparse.ArgumentParser, epilog: str | None = None) -> str:
    """Return a man page."""
    if epilog is not None:
        parser.epilog = epilog
    parser.man_short_description = (parser.description or "").split(". ")[0].rstrip(".").lower()
    data = {"project_name": NAME, "version": __version__, "manual_title": "Polar agent"}
    text = str(Manpage(parser, _data=data))
    # It takes the second word of `polar-agent send` for the section.
    title = parser.prog.replace(" ", "-").upper()
    return re.sub(
        r"^\.TH .*$", f'.TH "{title}" "1" "" "{NAME} {__version__}" "Polar agent"', text, flags=re.MULTILINE
    )


def fish(name: str, parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the lines of a completion for fish, which shtab does not know.

    Args:
        name: of the program.
        parser: of it, or of a command of it.
        words: the command, and what of it; none for the program itself.
    """
    if not words:
        yield f"complete -c {name} -f"
    seen = [f"__fish_seen_subcommand_from {word}" for word in words]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            here = "; and ".join([*seen, f"not __fish_seen_subcommand_from {' '.join(action.choices)}"])
            for choice in action._choices_actions:
                told = f"-a {choice.dest} -d {_quoted(choice.help or '')}"
                yield f"complete -c {name} -n {_quoted(here)} {told}"
            for word, sub in action.choices.items():
                yield from fish(name, sub, (*words, word))
        elif action.option_strings or hasattr(action, "complete"):
            here = "; and ".join(seen) or "__fish_use_subcommand"
            told = parser._get_formatter()._expand_help(action) if action.help else ""
            yield f"complete -c {name} -n {_quoted(here)}{_argument(action)} -d {_quoted(told)}"


def _argument(action: argparse.Action) -> str:
    """Return an argument's names, and what may follow, in fish's options."""
    names = "".join(
        f" -l {option[2:]}" if option.startswith("--") else f" -s {option[1:]}"
        for option in action.option_strings
    )
    if action.choices:
        return f"{names} -x -a {_quoted(' '.join(map(str, action.choices)))}"
    if hasattr(action, "complete"):
        return f"{names} -r -F" if names else " -F"
    return f"{names} -x" if action.nargs != 0 else names


def _quoted(text: str) -> str:
    """Return text as one word of fish."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _rename(parser: argparse.ArgumentParser, old: str, new: str) -> None:
    parser.prog = new + parser.prog.removeprefix(old)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                _rename(sub, old, new)


def _complete_files(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                _complete_files(sub)
        elif action.type is Path or "FILE" in str(action.metavar):
            action.complete = shtab.FILE


def _overview() -> list[str]:
    lines = ["Each command has a page of its own:", ""]
    return [*lines, *(f"{NAME}-{command}(1): {text}" for command, text in COMMANDS.items())]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
