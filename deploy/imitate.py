"""Runs the Dockerfile's build stage without a container engine, in a clean directory.

    python deploy/imitate.py DIRECTORY

Afterwards DIRECTORY/opt/polar-agent is what the image has at /opt/polar-agent. The steps run as they stand
in the Dockerfile, in a mount namespace where /opt and /src are below DIRECTORY. What differs: the Python is
this machine's (Debian's, where there is one), and nothing but the build stage is run.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEBIANS = Path("/usr/bin/python3")


def main(directory: Path) -> None:
    """Run all steps of the stage `build`."""
    directory = directory.resolve()
    source = directory / "src"
    for place in (source, directory / "opt"):
        place.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as tools:
        environ = {"PATH": f"{tools}/bin:/usr/local/bin:/usr/bin:/bin", "HOME": tools}
        _make_tools(Path(tools))
        for instruction, rest in steps((ROOT / "Dockerfile").read_text(), "build"):
            if instruction in {"ENV", "ARG"}:
                environ |= dict(word.split("=", 1) for word in shlex.split(rest))
            elif instruction == "COPY":
                *sources, target = rest.split()
                _copy(sources, source / target)
            elif instruction == "RUN":
                print(f"RUN {rest}", file=sys.stderr)
                _run(rest, directory, environ)


def steps(dockerfile: str, stage: str) -> list[tuple[str, str]]:
    """Return the instructions of one stage, each with what follows it, continued lines joined."""
    text = re.sub(r"^#.*\n", "", dockerfile, flags=re.MULTILINE).replace("\\\n", " ")
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    (wanted,) = [body for body in stages if body.splitlines()[0].endswith(f" AS {stage}")]
    return [
        (line.split(" ", 1)[0], line.split(" ", 1)[1].strip())
        for line in wanted.splitlines()[1:]
        if line.strip()
    ]


def _make_tools(tools: Path) -> None:
    """Make what the base image has: `python`, and a `pip` that may install for itself."""
    subprocess.run([sys.executable, "-m", "venv", tools], check=True)
    if DEBIANS.exists():
        # Who makes the environment is who runs it; it must not be one that only this user may enter.
        python = tools / "bin/python"
        (tools / "bin/pip").write_text(f'#!/bin/sh\nexec "{tools}/bin/python3" -m pip "$@"\n')
        python.unlink()
        python.symlink_to(DEBIANS)


def _copy(sources: list[str], target: Path) -> None:
    """Copy from the source tree as COPY does: the contents of directories."""
    for name in sources:
        path = ROOT / name
        if path.is_dir():
            subprocess.run(["cp", "-r", "--", f"{path}/.", target], check=True)
        else:
            target.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "--", path, target], check=True)


def _run(command: str, directory: Path, environ: dict[str, str]) -> None:
    """Run one step where /opt and the working directory are the image's."""
    script = 'mount --bind "$1/opt" /opt && cd "$1/src" && exec sh -ec "$2"'
    words = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(directory), command]
    passed = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "HTTPS_PROXY"))}
    subprocess.run(words, env={**environ, **passed}, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
