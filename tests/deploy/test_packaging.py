"""What is shipped around the package: locks, Makefile, image, unit file."""

import os
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import agent

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ["requirements.lock", "deploy/requirements.lock", "deploy/build.lock", "deploy/emulator.lock"]


def locked(name: str) -> dict[str, str]:
    """Return the versions in a lock file, by the names of the packages."""
    pins = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", (ROOT / name).read_text(), re.MULTILINE)
    return {canonicalize_name(package): version for package, version in pins}


def unmet(requirements: list[str], lock: dict[str, str]) -> list[str]:
    """Return the requirements that a lock does not fulfil."""
    wanted = [Requirement(text) for text in requirements]
    return [
        str(requirement)
        for requirement in wanted
        if not requirement.specifier.contains(lock.get(canonicalize_name(requirement.name), "0"))
    ]


def copied() -> list[str]:
    """Return what the Dockerfile takes from the source tree."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def test_one_version_everywhere():
    assert PROJECT["project"]["version"] == agent.__version__ == metadata.version("polar-agent")


def test_the_licence_is_the_one_that_the_package_names():
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_lock_has_all_that_the_project_asks_for():
    project = PROJECT["project"]
    asked = [
        *project["dependencies"],
        *(text for extra in project["optional-dependencies"].values() for text in extra),
        *PROJECT["dependency-groups"]["dev"],
        *PROJECT["build-system"]["requires"],
    ]
    assert unmet(asked, locked("requirements.lock")) == []


def test_the_image_gets_what_the_package_needs_and_no_more():
    lock = locked("deploy/requirements.lock")
    assert unmet(PROJECT["project"]["dependencies"], lock) == []
    assert not {"pytest", "ruff", "mypy", "hatchling", "fastapi"} & lock.keys()


def test_the_image_is_built_with_the_build_system_of_the_project():
    assert unmet(PROJECT["build-system"]["requires"], locked("deploy/build.lock")) == []


@pytest.mark.parametrize("name", LOCKS[1:])
def test_what_is_shipped_has_the_versions_that_were_tested(name):
    assert locked(name).items() <= locked("requirements.lock").items()


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_hashes(name):
    entries = re.split(r"\n(?=\S)", (ROOT / name).read_text().strip())
    assert [entry for entry in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}", entry)] == []


@pytest.mark.parametrize("name", LOCKS)
def test_locks_name_no_host(name):
    text = (ROOT / name).read_text()
    assert not re.search(r"://|--(extra-)?index-url|--find-links|file:", text)


@pytest.mark.parametrize(
    "target", ["help", "setup", "demo", "test", "lint", "types", "bench", "lock", "clean"]
)
def test_the_makefile_has_the_target_and_explains_it(target):
    assert re.search(rf"^{target}:.* ## \w", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_make_alone_only_explains():
    assert ".DEFAULT_GOAL := help" in (ROOT / "Makefile").read_text()


def test_the_makefile_takes_no_python_that_is_too_old():
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=").split(".")
    assert f"sys.version_info < ({', '.join(oldest)})" in (ROOT / "Makefile").read_text()


def test_ci_is_a_script_that_tests_and_lints_and_cannot_hide_a_failure():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert "set -euo pipefail" in text
    assert re.search(r"^make .*\btest\b.*failed=1$", text, re.MULTILINE)
    assert re.search(r"^make .*\blint\b.*failed=1$", text, re.MULTILINE)
    assert text.endswith('exit "$failed"\n')


def test_the_image_runs_the_daemon_as_nobody_special():
    text = (ROOT / "Dockerfile").read_text()
    final = text.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001", final, re.MULTILINE)
    assert 'ENTRYPOINT ["agent"]\n' in text
    assert final.endswith('CMD ["run"]\n')
    assert "STOPSIGNAL SIGTERM" in final
    assert '"/var/lib/polar-agent"' in final
    assert "HEALTHCHECK" in final


def test_the_image_installs_only_what_has_a_hash_or_was_built_here():
    installs = re.findall(r"pip\b[^\n&]*\binstall\b[^\n&]*", (ROOT / "Dockerfile").read_text())
    assert len(installs) == 4
    assert all("--require-hashes" in line or "--no-deps dist/" in line for line in installs)


def test_what_the_image_is_built_from_is_there_and_not_ignored():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied()) == allowed
    assert [source for source in copied() if not (ROOT / source).exists()] == []
