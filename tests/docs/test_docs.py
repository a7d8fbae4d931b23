"""Every command and snippet of the documentation does what the documentation says.

By the language of a fenced block: `console` is run, against an emulator and a daemon, and its
output compared (numbers and ids may differ; a line of `…` stands for any lines); `python` is
run; lines that begin with `→` and `←` are a conversation with the socket; `toml` are settings;
`sh` are commands for another machine, of which the shell must take the syntax and our parser
each `agent …`; `js` is parsed.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import Line

from agent.cli import COMMANDS, build
from agent.settings import Settings, load

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "deploy/README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Written by others than users type them: what they measured, and on which machine.
REPORTS = {"benchmarks.md"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


OUR_COMMAND = re.compile(r"(?:^|[|;&(\s])(?:polar-)?agent ([a-z]+\b[^|;&\n)#<>`]*)")


def blocks(path, *languages):
    return [body for language, body in FENCE.findall(path.read_text()) if language in languages]


def documents(*languages):
    """Return the documents that have such blocks."""
    found = [path for path in DOCUMENTS if path.name not in REPORTS and blocks(path, *languages)]
    return pytest.mark.parametrize("path", found, ids=lambda path: str(path.relative_to(ROOT)))


@pytest.fixture
def machine(product):
    """An emulator, a daemon, and a shell that knows `agent`."""
    programs = product.directory / "bin"
    programs.mkdir()
    program = programs / "agent"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m agent "$@"\n')
    program.chmod(0o755)
    product.environ["PATH"] = f"{programs}:{product.environ['PATH']}"
    product.start_emulator()
    product.start_daemon()
    return product


def general(line):
    """Return a line without what differs from run to run."""
    line = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID", line)
    line = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", line)
    line = re.sub(r"(/[\w.-]+)+", "PATH", line)
    line = re.sub(r"http:PATH(:\d+)?|http://[\w.:]+", "URL", line)
    line = re.sub(r"\d[\d,.]*( (s|min|KiB|MiB|GiB|ms))?\b", "N", line)
    return re.sub(r"\s+", " ", line).strip()


def same(told, shown):
    """Tell whether an output is as it is told."""
    wanted = ".*".join(
        "\n".join(re.escape(general(line)) for line in part.strip().splitlines())
        for part in re.split(r"^…$", told, flags=re.MULTILINE)
    )
    return re.fullmatch(wanted, "\n".join(map(general, shown.strip().splitlines())), re.DOTALL) is not None


def commands(block):
    """Yield the commands of a console block with their outputs."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        while command.endswith("\\"):
            more, _, output = output.partition("\n")
            command = f"{command}\n{more.removeprefix('> ')}"
        yield command, output


@documents("console")
def test_what_is_shown_on_the_console_is_what_happens(path, machine):
    for block in blocks(path, "console"):
        for command, output in commands(block):
            if command.startswith("make "):  # these have tests of their own
                assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
                continue
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=machine.directory,
                env=machine.environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, (command, done.stdout)
            assert same(output, done.stdout), f"$ {command}\n{done.stdout}"


def test_the_comparison_of_outputs_can_fail():
    assert same("3 accepted\n", "5 accepted\n")
    assert same("a\n…\nz\n", "a\nb\nc\nz\n")
    assert not same("a\n…\nz\n", "a\nb\n")
    assert not same("3 accepted\n", "3 refused\n")
    assert not same("", "surprise\n")


@documents("python")
def test_snippets_of_python_run(path, machine):
    for block in blocks(path, "python"):
        done = subprocess.run(
            [sys.executable, "-c", block],
            cwd=machine.directory,
            env=machine.environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), block


@documents("")
def test_conversations_go_as_they_are_told(path, machine):
    for block in blocks(path, ""):
        lines = block.splitlines()
        if not all(line[:2] in {"→ ", "← "} for line in lines):
            continue
        connection = Line(machine.socket)
        told = [json.loads(line[2:]) for line in lines if line.startswith("← ")]
        connection.send(*(line[2:].encode() + b"\n" for line in lines if line.startswith("→ ")))
        connection.half_close()
        answers = connection.answers()
        connection.close()
        assert [answer for answer in answers if "ack" not in answer] == told[:-1]
        assert answers[-1] == told[-1]


@documents("toml")
def test_settings_files_can_be_used(path, tmp_path):
    places = {"queue_dir": tmp_path / "queue", "socket_path": tmp_path / "agent.sock"}
    for number, block in enumerate(blocks(path, "toml")):
        file = tmp_path / f"{number}.toml"
        file.write_text(block)
        load(file, overrides=places, environ={})


@documents("sh")
def test_commands_for_other_machines_are_ones_that_there_are(path):
    for block in blocks(path, "sh"):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
        for words in re.findall(
            r"(?:^|[|;&(] *|\s)(?:polar-)?agent ((?!socket)[a-z]+\b[^|;&\n)#<>`]*)", block
        ):
            arguments = [word for word in shlex.split(words) if word != "\\"]
            if arguments[0] in COMMANDS:
                build(COMMANDS).parse_args(arguments)


@pytest.mark.needs("node")
@documents("js")
def test_snippets_of_javascript_are_javascript(path, tmp_path):
    for block in blocks(path, "js"):
        (tmp_path / "snippet.js").write_text(block)
        subprocess.run(["node", "--check", tmp_path / "snippet.js"], check=True)


def test_every_link_to_a_file_leads_somewhere():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_every_setting_that_is_told_of_is_one():
    known = {*Settings.model_fields, "config"}
    for path in DOCUMENTS:
        for name in re.findall(r"POLAR_AGENT_([A-Z_]+)", path.read_text()):
            setting = name.partition("__")[0]  # what stands behind two of them is a place inside
            assert setting.lower() in known, f"{path.name}: {name}"
