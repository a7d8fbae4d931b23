"""Settings from the child are the settings."""

from __future__ import annotations

import subprocess
import sys

import pytest

from agent.errors import UsageError
from agent.settings import Settings, load
from agent.settings_child import SettingsChild

TOKEN = "polar_oat_s3cret"


def test_every_setting_comes_over_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("POLAR_ACCESS_TOKEN", TOKEN)
    monkeypatch.setenv("POLAR_AGENT_ALLOWED_USERS", "root,nobody")
    file = tmp_path / "agent.toml"
    file.write_text(
        f'queue_dir = "{tmp_path}/queue"\nsocket_path = "{tmp_path}/a.sock"\nflush_interval = "5s"\n'
    )
    expected = load(file)

    given = SettingsChild(file).settings()

    for name in set(Settings.model_fields) - {"access_token"} | {"server_url", "sources"}:
        assert getattr(given, name) == getattr(expected, name), name
    assert given.access_token.get_secret_value() == TOKEN
    assert TOKEN not in repr(given)


def test_an_error_comes_over_with_all_that_it_says(tmp_path):
    with pytest.raises(UsageError) as told:
        load(tmp_path / "nowhere.toml")

    with pytest.raises(UsageError) as given:
        SettingsChild(tmp_path / "nowhere.toml").settings()

    assert str(given.value) == str(told.value)


def test_no_child_is_left(tmp_path):
    # In a process of its own: this one has children of other tests.
    program = """
import contextlib, os, pathlib, sys
from agent.errors import UsageError
from agent.settings_child import SettingsChild
with contextlib.suppress(UsageError):
    SettingsChild(pathlib.Path(sys.argv[1])).settings()
    sys.exit("it did not fail")
with contextlib.suppress(ChildProcessError):
    sys.exit(f"a child: {os.waitpid(-1, os.WNOHANG)}")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "nowhere.toml")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
