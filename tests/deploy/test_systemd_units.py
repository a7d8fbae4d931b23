"""The units: understood by systemd, hardened, and in step with the settings."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.service import STOP_SECONDS
from agent.settings import Settings

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "deploy/systemd"


def unit(name: str = "polar-agent.service") -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # systemd's keys have capitals
    parser.read_string((UNITS / name).read_text())
    return parser


def seconds(text: str) -> float:
    """Return a plain number of seconds of a unit file."""
    return float(text.removesuffix("s"))


def test_systemd_does_not_kill_an_agent_that_would_still_end_by_itself():
    drain = Settings.model_fields["shutdown_timeout"].default
    assert seconds(unit()["Service"]["TimeoutStopSec"]) > drain + STOP_SECONDS


def test_the_unit_keeps_queue_and_token_to_itself():
    service = unit()["Service"]
    assert service["User"] == "polar-agent"
    assert service["StateDirectory"] == service["RuntimeDirectory"] == "polar-agent"
    assert service["StateDirectoryMode"] == "0700"
    assert service["LoadCredential"].startswith("access_token:")
    assert service["NoNewPrivileges"] == "yes"
    assert service["ProtectSystem"] == "strict"


def test_the_unit_does_not_restart_for_ever_on_wrong_settings():
    service = unit()["Service"]
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == "2"


def test_the_agent_tells_systemd_how_it_stands_and_is_started_again_when_it_does_not():
    service = unit()["Service"]
    assert service["Type"] == "notify"
    assert service["Restart"] == "on-failure"
    assert 0 < seconds(service["WatchdogSec"]) <= 120


def test_the_unit_needs_no_program_that_a_minimal_system_lacks():
    assert unit()["Service"]["ExecReload"].split()[0] == "/bin/sh"


def test_systemd_listens_where_the_agent_would():
    socket = unit("polar-agent.socket")["Socket"]
    assert socket["ListenStream"] == "/run/polar-agent/agent.sock"
    assert socket["SocketMode"] == f"{Settings.model_fields['socket_mode'].default:04o}"
    assert socket["SocketUser"] == socket["SocketGroup"] == unit()["Service"]["User"]
    # Else the socket's file goes when the service stops.
    assert unit()["Service"]["RuntimeDirectoryPreserve"] == "yes"


@pytest.fixture
def copies(tmp_path):
    """The units, with a program that is there: systemd looks for it."""
    paths = []
    for path in (UNITS / "polar-agent.service", UNITS / "polar-agent.socket"):
        copy = tmp_path / path.name
        copy.write_text(path.read_text().replace("/opt/polar-agent/bin/agent run", shutil.which("true")))
        paths.append(str(copy))
    return paths


def analyze(*words):
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)


@pytest.mark.needs("systemd-analyze")
def test_systemd_has_nothing_to_say_against_the_units(copies):
    done = analyze("verify", "--man=no", *copies)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.needs("systemd-analyze")
def test_the_service_is_hardened(copies):
    """`--threshold` is in tenths: more than 1.5 of exposure fails."""
    done = analyze("security", "--offline=yes", "--threshold=15", "--no-pager", copies[0])

    assert done.returncode == 0, done.stdout


@pytest.mark.needs("systemd-analyze")
def test_the_measure_of_hardening_can_fail(copies):
    path = Path(copies[0])
    path.write_text(path.read_text().replace("ProtectSystem=strict", "").replace("PrivateMounts=yes", ""))

    assert analyze("security", "--offline=yes", "--threshold=15", "--no-pager", str(path)).returncode != 0
