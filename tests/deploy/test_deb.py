"""The Debian package: what is in it, and that it runs from where it is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import agent

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.needs("dpkg-deb"), pytest.mark.needs("unshare"), pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Build it once; it takes the locked wheels from the package index."""
    out = tmp_path_factory.mktemp("deb")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [ROOT / "deploy/deb/build", out], capture_output=True, text=True, check=False, env=environ
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def installed(package, tmp_path_factory):
    """The package's files, below a directory of their own."""
    root = tmp_path_factory.mktemp("root")
    subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    return root


def field(package, name):
    return subprocess.run(
        ["dpkg-deb", "-f", package, name], capture_output=True, text=True, check=True
    ).stdout


def run(installed, *words, **environ):
    """Run a command with the package's /opt in the place of this machine's; nothing outside changes."""
    script = f'mount --bind "{installed}/opt" /opt && exec "$@"'
    return subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", *words],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environ},
    )


def test_it_says_what_it_is_and_needs(package):
    assert field(package, "Package") == "polar-agent\n"
    assert field(package, "Version") == f"{agent.__version__}\n"
    assert "python3 (>= 3." in field(package, "Depends")


def test_it_has_units_pages_completions_and_a_settings_file_that_upgrades_keep(package, installed):
    for path in (
        "usr/lib/systemd/system/polar-agent.service",
        "usr/lib/systemd/system/polar-agent.socket",
        "usr/lib/sysusers.d/polar-agent.conf",
        "usr/share/man/man1/polar-agent.1.gz",
        "usr/share/bash-completion/completions/polar-agent",
        "usr/share/zsh/site-functions/_polar-agent",
        "usr/share/fish/vendor_completions.d/polar-agent.fish",
        "usr/share/doc/polar-agent/copyright",
        "etc/polar-agent/agent.toml",
    ):
        assert (installed / path).is_file(), path
    subprocess.run(["dpkg-deb", "-e", package, installed / "control"], check=True)
    assert (installed / "control/conffiles").read_text() == "/etc/polar-agent/agent.toml\n"
    for script in ("postinst", "prerm", "postrm"):
        assert os.access(installed / "control" / script, os.X_OK)
        subprocess.run(["sh", "-n", installed / "control" / script], check=True)


def test_everything_belongs_to_root_and_nothing_knows_where_it_was_built(package, installed):
    listing = subprocess.run(["dpkg-deb", "-c", package], capture_output=True, text=True, check=True).stdout
    assert {line.split()[1] for line in listing.splitlines()} == {"root/root"}
    start = (installed / "opt/polar-agent/bin/agent").read_text().splitlines()[0]
    assert start.startswith("#!/opt/polar-agent/bin/python")
    assert sorted(
        path.name
        for path in (installed / "opt/polar-agent/bin").iterdir()
        if path.is_file() and not path.is_symlink()
    ) == ["agent", "polar-agent"]


def test_the_program_of_the_unit_is_there(installed):
    unit = (installed / "usr/lib/systemd/system/polar-agent.service").read_text()
    command = next(line for line in unit.splitlines() if line.startswith("ExecStart=")).split("=")[1]

    assert (installed / command.split()[0].lstrip("/")).exists()
    assert str((installed / "usr/bin/polar-agent").readlink()) == "/opt/polar-agent/bin/polar-agent"


def test_it_runs_from_where_it_is_installed(installed, tmp_path):
    version = run(installed, "/opt/polar-agent/bin/polar-agent", "--version")
    assert (version.returncode, version.stdout) == (0, f"polar-agent {agent.__version__}\n"), version.stderr

    status = run(
        installed,
        "/opt/polar-agent/bin/agent",
        "status",
        "--json",
        POLAR_AGENT_QUEUE_DIR=str(tmp_path / "queue"),
        POLAR_AGENT_SOCKET_PATH=str(tmp_path / "agent.sock"),
        POLAR_AGENT_CONFIG=str(installed / "etc/polar-agent/agent.toml"),
    )
    assert json.loads(status.stdout)["daemon"] == {"running": False, "pid": None, "uptime_seconds": None}


def test_the_daemon_serves_from_there(installed, product):
    """Start, take an event, deliver it, stop: with the package's own program and libraries."""
    product.start_emulator()
    daemon = (
        'mount --bind "$1/opt" /opt; shift; /opt/polar-agent/bin/agent run & daemon=$!;'
        'printf \'{"name":"a","external_customer_id":"c"}\\n\' | /opt/polar-agent/bin/agent send && '
        "/opt/polar-agent/bin/agent flush; code=$?; kill $daemon; wait $daemon; exit $code"
    )
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", daemon, "sh", installed],
        capture_output=True,
        text=True,
        check=False,
        env={**product.environ, "PATH": os.environ["PATH"]},
    )

    assert done.returncode == 0, done.stderr
    assert [event["name"] for event in product.stored()] == ["a"]


@pytest.mark.needs("man")
def test_every_page_can_be_read(installed):
    for page in (installed / "usr/share/man/man1").iterdir():
        done = subprocess.run(
            ["man", "-l", page],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "MANPAGER": "cat"},
        )
        assert done.returncode == 0, done.stderr
        assert "NAME" in done.stdout


def test_the_completion_of_bash_knows_the_commands(installed):
    script = (
        f'. "{installed}/usr/share/bash-completion/completions/polar-agent"; '
        "COMP_WORDS=(polar-agent st) COMP_CWORD=1; "
        'function_=$(complete -p polar-agent | sed "s/.*-F \\([^ ]*\\).*/\\1/"); '
        '$function_ polar-agent st polar-agent; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run([shutil.which("bash"), "-c", script], capture_output=True, text=True, check=False)

    assert done.stdout.split() == ["status"], done.stderr


@pytest.mark.needs("fish")
@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("st", ["status"]),
        ("dead re", ["retry"]),
        ("dead list --na", ["--name"]),
        ("demo --", ["--events", "--help", "--json"]),
    ],
)
def test_the_completion_of_fish_knows_commands_and_options(installed, typed, words):
    file = f"{installed}/usr/share/fish/vendor_completions.d/polar-agent.fish"
    script = f"source {file}; complete -C 'polar-agent {typed}'"
    done = subprocess.run(
        [shutil.which("fish"), "--no-config", "-c", script], capture_output=True, text=True, check=False
    )

    assert (done.stderr, sorted(line.split("\t")[0] for line in done.stdout.splitlines())) == ("", words)
