"""What `agent check` makes of what it sees."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent.answer import Answer, NoAnswer
from agent.check import failed, ok, passed, tails, warning
from agent.check.mounts import mount_of
from agent.check.server import explain_clock, explain_server, explain_token
from agent.check.surroundings import (
    explain_memory,
    explain_stop,
    explain_unit,
    parse_span,
    secret_file,
    which_container,
)
from agent.tail import Table
from agent.units import MIB

URL = "https://api.polar.sh"
FINE = Answer(200, b'{"inserted":0,"duplicates":0}')

MOUNTINFO = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:21 / /run rw,nosuid - tmpfs tmpfs rw,size=100k
24 22 0:50 / /var/lib/my\\040data rw - nfs4 server:/x rw
25 22 0:60 / /ro ro,relatime - ext4 /dev/sdb1 rw
26 22 0:61 / /frozen rw,relatime - ext4 /dev/sdc1 ro
not a line of it
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me", "ext4"),
        ("/run/polar-agent", "tmpfs"),
        ("/running", "ext4"),
        ("/var/lib/my data/queue", "nfs4"),
    ],
)
def test_a_path_is_on_the_nearest_mount_above_it(path, kind):
    assert mount_of(Path(path), MOUNTINFO).kind == kind


@pytest.mark.parametrize("path", ["/ro/queue", "/frozen/queue"])
def test_a_mount_is_read_only_by_its_own_options_or_its_file_systems(path):
    assert mount_of(Path(path), MOUNTINFO).read_only
    assert not mount_of(Path("/run/x"), MOUNTINFO).read_only


def test_of_two_mounts_on_one_point_the_later_counts():
    twice = "1 0 8:1 / / rw - ext4 a rw\n2 1 0:1 / / rw - overlay b rw\n"

    assert mount_of(Path("/x"), twice).kind == "overlay"


def test_only_what_failed_makes_the_check_fail():
    assert passed([ok("a", "b", "c"), warning("a", "b", "c", "d")])
    assert not passed([ok("a", "b", "c"), failed("a", "b", "c", "d")])


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (FINE, "ok"),
        (Answer(401), "ok"),
        (Answer(403), "ok"),
        (Answer(429), "warning"),
        (Answer(503), "failed"),
        (Answer(404), "failed"),
        (Answer(307, location="https://elsewhere.example/"), "failed"),
        (Answer(200, b"<html>Welcome</html>"), "failed"),
        (NoAnswer("dns", "no such name"), "failed"),
        (NoAnswer("tls", "certificate expired"), "failed"),
        (NoAnswer("timeout", "nothing came"), "failed"),
    ],
)
def test_whether_it_is_polar_that_answers(outcome, state):
    finding = explain_server(outcome, URL)

    assert (finding.check, finding.state, finding.subject) == ("server", state, URL)
    assert bool(finding.mend) == (state != "ok")


@pytest.mark.parametrize(
    ("outcome", "states"),
    [
        (FINE, {"token": "ok", "scope events:write": "ok"}),
        (Answer(401), {"token": "failed"}),
        (Answer(403), {"token": "ok", "scope events:write": "failed"}),
        (Answer(429), {}),
        (NoAnswer("dns", "no such name"), {}),
    ],
)
def test_what_an_ingest_without_events_tells_of_the_token(outcome, states):
    findings = list(explain_token(outcome, "POLAR_ACCESS_TOKEN"))

    assert {finding.check: finding.state for finding in findings} == states
    assert all(finding.mend for finding in findings if finding.state == "failed")


@pytest.mark.parametrize(
    ("offset", "state", "word"),
    [
        (0.0, "ok", "agrees"),
        (1.9, "ok", "agrees"),
        (3600.0, "warning", "3600 s behind"),
        (-30.0, "warning", "30 s ahead of"),
        (-61.0, "warning", "are held"),
        (-3661.0, "failed", "are refused"),
    ],
)
def test_a_clock_that_is_ahead_beyond_the_tolerance_fails(offset, state, word):
    finding = explain_clock(offset, 60.0)

    assert finding.state == state
    assert word in finding.message


@pytest.mark.parametrize(
    ("container", "seconds", "state"),
    [("Docker", 8.0, "ok"), ("Docker", 10.0, "warning"), ("Kubernetes", 20.0, "ok")],
)
def test_docker_kills_after_ten_seconds(container, seconds, state):
    assert explain_stop(container, seconds).state == state


def test_what_kind_of_container_it_is(tmp_path):
    assert which_container({}, tmp_path) is None
    (tmp_path / ".dockerenv").touch()
    assert which_container({}, tmp_path) == "Docker"
    assert which_container({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path) == "Kubernetes"


def test_a_little_memory_is_too_little():
    assert explain_memory(32 * MIB).state == "warning"
    assert explain_memory(128 * MIB).state == "ok"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("15s", 15.0), ("1min 30s", 90.0), ("1h 500ms", 3600.5), ("infinity", None), ("", None)],
)
def test_spans_as_systemd_prints_them(text, seconds):
    assert parse_span(text) == seconds


@pytest.mark.parametrize(
    ("properties", "state"),
    [
        ({"ActiveState": "active", "TimeoutStopUSec": "15s"}, "ok"),
        ({"ActiveState": "inactive", "TimeoutStopUSec": "infinity"}, "ok"),
        ({"ActiveState": "active", "TimeoutStopUSec": "8s"}, "warning"),
        ({"ActiveState": "failed", "Result": "exit-code"}, "failed"),
    ],
)
def test_how_the_unit_stands(properties, state):
    assert explain_unit(properties, 8.0).state == state


@pytest.mark.parametrize(("mode", "state"), [(0o600, "ok"), (0o640, "ok"), (0o644, "warning")])
def test_a_token_that_every_user_may_read_is_told(tmp_path, mode, state):
    file = tmp_path / "token"
    file.write_text("polar_oat_x")
    file.chmod(mode)
    settings = SimpleNamespace(access_token_file=file, access_token=None, sources={})

    assert [finding.state for finding in secret_file(settings)] == [state]


@pytest.mark.parametrize("origin", ["{}", "agent.toml"])
def test_a_settings_file_that_holds_the_token_is_looked_at_likewise(tmp_path, monkeypatch, origin):
    file = tmp_path / "agent.toml"
    file.write_text("access_token = 'polar_oat_x'")
    file.chmod(0o644)
    monkeypatch.chdir(tmp_path)
    settings = SimpleNamespace(
        access_token_file=None, access_token="polar_oat_x", sources={"access_token": origin.format(file)}
    )

    assert [finding.state for finding in secret_file(settings)] == ["warning"]


# -- tailed files --------------------------------------------------------------------------


def of_tail(path, **more):
    (finding,) = tails.look(SimpleNamespace(tail=(Table(str(path), **more),)))
    return finding


def test_tailed_files_that_may_be_read_are_fine_and_counted(tmp_path):
    for name in ("a.log", "b.log", "b.log.gz"):
        (tmp_path / name).touch()
    (tmp_path / "c.log").mkdir()

    assert of_tail(tmp_path / "*.log").message == "2 files, may be read"
    assert of_tail(tmp_path / "*", exclude=("*.gz",)).message == "2 files, may be read"


@pytest.mark.parametrize("path", ["none*.log", "no/such/directory/*.log", "none.log"])
def test_a_tail_that_finds_nothing_works_and_is_told(tmp_path, path):
    assert of_tail(tmp_path / path).state == "warning"


def test_links_that_lead_nowhere_are_no_files_yet_and_such_as_cannot_be_followed_fail(tmp_path):
    (tmp_path / "a.log").symlink_to("nowhere")
    os.mkfifo(tmp_path / "b.log")
    assert of_tail(tmp_path / "*.log").state == "warning"
    (tmp_path / "c.log").symlink_to("c.log")

    finding = of_tail(tmp_path / "*.log")

    assert (finding.state, "c.log: Too many levels" in finding.message) == ("failed", True)


def test_tailed_files_that_this_user_may_not_read_fail(tmp_path, monkeypatch):
    for name in ("a.log", "b.log", "c.log"):
        (tmp_path / name).touch()
    monkeypatch.setattr("os.access", lambda path, _mode: path.endswith("b.log"))

    finding = of_tail(tmp_path / "*.log")

    assert finding.state == "failed"
    assert finding.message == f"{tmp_path / 'a.log'}: this user may not read it; 1 more like it"
