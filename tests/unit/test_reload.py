"""Which settings can change in a daemon that runs."""

from __future__ import annotations

from agent.reload import RELOADABLE, changes, merged
from agent.settings import Settings, load


def settings(tmp_path, **given):
    places = {"queue_dir": tmp_path / "queue", "socket_path": tmp_path / "agent.sock"}
    return load(overrides={**places, **given}, environ={})


def test_every_reloadable_setting_is_one():
    assert set(Settings.model_fields) >= RELOADABLE


def test_equal_settings_are_no_change(tmp_path):
    assert changes(settings(tmp_path), settings(tmp_path)) == ([], [])


def test_what_is_bound_to_queue_and_socket_waits_for_a_restart(tmp_path):
    old = settings(tmp_path)
    new = settings(tmp_path, queue_dir=tmp_path / "other", flush_interval=5, socket_mode="0600")

    assert changes(old, new) == (
        ["flush_interval"],
        ["api_socket_mode", "queue_dir", "socket_mode"],  # the API has the mode of the other socket
    )


def test_another_tail_waits_for_a_restart_and_is_told_each_time(tmp_path):
    def tails(*paths):
        return settings(
            tmp_path, tail=[{"path": str(tmp_path / path), "defaults": {"name": "n"}} for path in paths]
        )

    old = tails("a.log")

    assert changes(old, tails("a.log")) == ([], [])
    for new in (tails("b.log"), tails("a.log", "b.log"), settings(tmp_path)):
        assert changes(old, new) == ([], ["tail"])
        assert changes(merged(old, new), new).later == ["tail"]


def test_another_token_is_a_change(tmp_path):
    assert changes(settings(tmp_path, access_token="a"), settings(tmp_path, access_token="b")).now == [
        "access_token"
    ]


def test_only_what_can_change_is_taken_over(tmp_path):
    old = settings(tmp_path, base_url="https://one.example")
    new = settings(tmp_path, base_url="https://two.example", max_in_flight=1)

    result = merged(old, new)

    assert result.max_in_flight == 1
    assert result.base_url == "https://one.example"
