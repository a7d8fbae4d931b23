"""Every command and snippet of the documentation does what the documentation says.

By the language of a fenced block: `console` is run, against an emulator and a daemon, and its
output compared (numbers and ids may differ; a line of `…` stands for any lines); `python` is
run; lines that begin with `→` and `←` are a conversation with the socket; `toml` are settings;
`sh` is run as a script, with the places of this test instead of the machine's, and so is `js`.
What cannot be run here has `<!-- only checked: PROGRAM -->` above it, with one of `ONLY_CHECKED`: of
that the shell must take the syntax and our parser each `agent …`.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest
from conftest import PROGRAMS
from support.processes import PATIENCE, Line, _free_port

from agent.cli import COMMANDS, build
from agent.settings import Settings, load

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "deploy/README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Written by others than users type them: what they measured, and on which machine.
REPORTS = {"benchmarks.md"}
FENCE = re.compile(r"^(?:<!-- only checked: (\w+) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ONLY_CHECKED = {
    "systemd": "wants to be process 1; its units are checked in tests/deploy",
    "apt": "installs on this machine; the package is built and looked into in tests/deploy",
    "docker": "there is no engine; the image's steps are run in tests/deploy",
}


PROGRAMS_OF_BLOCKS = {"curl", "socat"} & set(PROGRAMS)


def blocks(path, *languages, only_checked=False):
    """Return the blocks of some languages that are run, or those that are only checked."""
    return [
        body
        for mark, language, body in FENCE.findall(path.read_text())
        if language in languages and bool(mark) == only_checked
    ]


def documents(*languages, only_checked=False):
    """Return the documents that have such blocks, each with the programs that these need."""
    found = []
    for path in DOCUMENTS:
        bodies = blocks(path, *languages, only_checked=only_checked)
        if path.name not in REPORTS and bodies:
            needed = PROGRAMS_OF_BLOCKS & set(re.findall(r"\w+", " ".join(bodies)))
            marks = [] if only_checked else [pytest.mark.needs(program) for program in sorted(needed)]
            found.append(pytest.param(path, marks=marks, id=str(path.relative_to(ROOT))))
    return pytest.mark.parametrize("path", found)


@pytest.fixture
def programs(product):
    """A shell that knows `agent`, and how to reach what is not started yet."""
    programs = product.directory / "bin"
    programs.mkdir()
    program = programs / "agent"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m agent "$@"\n')
    program.chmod(0o755)
    product.environ["PATH"] = f"{programs}:{product.environ['PATH']}"
    return product


@pytest.fixture
def machine(programs):
    """The same with an emulator and a daemon."""
    programs.start_emulator()
    programs.start_daemon()
    return programs


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


PROLOGUE = r"""
set -eu
pip() { printf '%s\n' "$*" >>"$SCRATCH/pip"; }
# In the foreground a daemon runs for ever: it is ended once it is ready.
until_ready() {
    "$@" 2>>"$SCRATCH/run.log" &
    local pid=$!
    until [ -S "$POLAR_AGENT_SOCKET_PATH" ]; do kill -0 $pid; sleep 0.05; done
    kill $pid
    wait $pid
}
"""
EPILOGUE = r"""
if [ -n "$(jobs -p)" ]; then
    until [ -S "$POLAR_AGENT_SOCKET_PATH" ]; do kill -0 $(jobs -p); sleep 0.05; done
    echo '{"name":"n","external_customer_id":"c"}' | agent send
    agent flush --timeout 20s
    kill $(jobs -p)
    wait
fi
"""


def as_here(block, directory, port):
    """Return a script with the places of this test, and with an end."""
    block = block.replace("/run/polar-agent/", f"{directory}/").replace("127.0.0.1:8787", f"127.0.0.1:{port}")
    return re.sub(r"\bagent run(?= *(#.*)?$)", "until_ready agent run", block, flags=re.MULTILINE)


@documents("sh")
def test_scripts_run(path, programs):
    """With a daemon that runs, unless they start one."""
    directory = programs.directory
    programs.start_emulator()
    programs.environ["SCRATCH"] = str(directory)
    event = {"name": "ai_usage", "external_customer_id": "cus_1"}
    (directory / "yesterday.ndjson").write_text(json.dumps(event) + "\n")
    for block in blocks(path, "sh"):
        if "agent run" not in block:
            programs.start_daemon()
        done = subprocess.run(
            ["bash", "-c", PROLOGUE + as_here(block, directory, _free_port()) + EPILOGUE],
            cwd=directory,
            env=programs.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}"
        if "agent run" not in block:
            assert programs.stop_daemon() == 0
    _pip_would_find(directory / "pip")


def _pip_would_find(notes):
    """Check what scripts would have installed: this project, with extras that it has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in notes.read_text().splitlines() if notes.exists() else []:
        name, extra = re.fullmatch(r"install ([\w-]+)(?:\[(\w+)\])?", line).groups()
        assert name == project["name"]
        assert extra is None or extra in project["optional-dependencies"]


@documents("sh", only_checked=True)
def test_scripts_that_cannot_run_here_are_in_the_shells_syntax_and_of_our_commands(path):
    for block in blocks(path, "sh", only_checked=True):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
        for words in re.findall(
            r"(?:^|[|;&(] *|\s)(?:polar-)?agent ((?!socket)[a-z]+\b[^|;&\n)#<>`]*)", block
        ):
            arguments = [word for word in shlex.split(words) if word != "\\"]
            if arguments[0] in COMMANDS:
                build(COMMANDS).parse_args(arguments)


def test_only_what_cannot_be_run_is_left_out():
    for path in DOCUMENTS:
        for mark, _, body in FENCE.findall(path.read_text()):
            assert not mark or mark in ONLY_CHECKED
            assert not mark or mark in body or mark == "systemd", f"{path.name}: {body}"


@pytest.mark.needs("node")
@documents("js")
def test_snippets_of_javascript_run(path, machine):
    for block in blocks(path, "js"):
        script = as_here(block, machine.directory, 0)
        with subprocess.Popen(["node", "-e", script], stdout=subprocess.PIPE, text=True) as node:
            timer = threading.Timer(PATIENCE, node.kill)
            timer.start()
            said = node.stdout.readline()
            timer.cancel()
            node.kill()
        assert json.loads(said) == {"ack": 1}


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
