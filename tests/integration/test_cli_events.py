"""`agent events` as its users call it, against a server on loopback."""

import io
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from unittest import mock

import pytest
from http_server import Server, answer
from support.processes import wait_until

from agent import config_sources
from agent.cli import events as command
from agent.cli import main
from agent.daemon import call

EVENT = {
    "id": "3745d601-f7f0-4a79-842c-11bff727a5b9",
    "timestamp": "2026-11-23T11:17:47.310530Z",
    "customer_id": None,
    "external_customer_id": "cus_1",
    "name": "ai_usage",
    "source": "user",
    "metadata": {"model": "gpt-5", "tokens": 123456789012345678901234567890},
}
NAME = {"name": "ai_usage", "label": "ai_usage", "source": "user", "occurrences": 44} | {
    "first_seen": "2026-11-01T00:00:00Z",
    "last_seen": "2026-11-23T00:00:00Z",
}


def page_of(items, total=None, last=1):
    return answer(
        200,
        {
            "items": items,
            "pagination": {"total_count": len(items) if total is None else total, "max_page": last},
        },
    )


@pytest.fixture
def server():
    server = Server()
    server.respond = lambda _: page_of([EVENT])
    yield server
    server.stop()


@pytest.fixture
def environment(server, tmp_path):
    return {
        "HOME": str(tmp_path),
        "XDG_RUNTIME_DIR": str(tmp_path),
        "XDG_STATE_HOME": str(tmp_path),
        "POLAR_ACCESS_TOKEN": "polar_oat_secret",
        "POLAR_AGENT_BASE_URL": server.url,
    }


@pytest.fixture
def agent(agent_factory):
    """Run `agent events …`; returns its exit code, its output and its messages."""
    return agent_factory()


@pytest.fixture
def agent_factory(environment, monkeypatch, capsys, tmp_path):
    """Return what makes that, once the environment is as the test wants it."""

    def make():
        monkeypatch.setattr(config_sources, "SYSTEM_CONFIG", tmp_path / "none.toml")
        monkeypatch.setattr(config_sources, "SYSTEM_SECRETS", tmp_path / "none")
        for name in [name for name in os.environ if name.startswith("POLAR_")]:
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

        def agent(*words):
            try:
                code = main(["events", *words])
            except SystemExit as end:
                code = end.code
            captured = capsys.readouterr()
            return code, captured.out, captured.err

        return agent

    return make


class TestGet:
    def test_prints_the_event_field_by_field(self, server, agent):
        server.respond = lambda _: answer(200, EVENT)
        code, out, err = agent("get", EVENT["id"])
        assert code == 0
        assert err == ""
        assert server.requests[0].path == f"/v1/events/{EVENT['id']}"
        rows = dict(line.split(None, 1) for line in out.splitlines())
        assert rows["external_customer_id"] == "cus_1"
        assert rows["customer_id"] == "-"
        assert rows["metadata.tokens"] == "123456789012345678901234567890"

    def test_prints_it_whole_as_json(self, server, agent):
        server.respond = lambda _: answer(200, EVENT)
        code, out, err = agent("get", EVENT["id"], "--json")
        assert (code, json.loads(out), err) == (0, EVENT, "")

    def test_an_unknown_event_is_a_bad_result(self, server, agent):
        server.respond = lambda _: answer(404, {"error": "ResourceNotFound", "detail": "Not found"})
        code, out, err = agent("get", EVENT["id"], "--json")
        assert (code, out) == (1, "")
        assert "no such event" in err
        assert "some seconds after it was delivered" in err

    def test_an_id_that_is_no_uuid_is_wrong_usage(self, server, agent):
        server.respond = lambda _: answer(
            422, {"detail": [{"loc": ["path", "id"], "msg": "no UUID", "input": "x"}]}
        )
        code, _, err = agent("get", "x")
        assert code == 2
        assert "an external_id cannot be looked up" in err


class TestList:
    def test_prints_a_table_and_on_the_side_what_is_left(self, server, agent):
        server.respond = lambda _: page_of([EVENT], 81, 9)
        code, out, err = agent("list")
        assert code == 0
        assert [line.split("  ")[0] for line in out.splitlines()] == ["TIMESTAMP", EVENT["timestamp"]]
        for shown in ("ai_usage", "cus_1", "model=gpt-5", EVENT["id"]):
            assert shown in out
        assert err == "1 of 81 events; more with --page 2, all with --all\n"
        assert server.requests[0].parameters == [("page", "1"), ("limit", "10")]

    def test_prints_one_json_document_with_all_that_came(self, server, agent):
        server.respond = lambda _: page_of([EVENT], 81, 9)
        code, out, err = agent("list", "--json")
        assert (code, err) == (0, "")
        assert json.loads(out) == {"items": [EVENT], "pagination": {"total_count": 81, "max_page": 9}}
        assert "123456789012345678901234567890" in out

    def test_nothing_found_is_no_table(self, server, agent):
        server.respond = lambda _: page_of([], 0, 0)
        assert agent("list") == (0, "", "0 of 0 events\n")

    def test_every_filter_reaches_the_server(self, server, agent):
        words = ["--name", "a", "--name", "b", "--customer-id", "c", "--external-customer-id", "e"]
        words += [
            "--external-customer-id",
            "f",
            "--organization-id",
            "o",
            "--metadata",
            "k=v=w",
            "--metadata",
            "x=",
        ]
        words += ["--since", "2026-11-01T00:00:00z", "--until", "2026-12-01 00:00+02:00", "--source", "user"]
        words += ["--query", "text", "--filter", '{"conjunction":"and","clauses":[]}', "--meter-id", "m"]
        words += ["--parent-id", "p", "--depth", "5", "--sort=-timestamp", "--page", "3", "--limit", "7"]
        code, _, _ = agent("list", *words)
        assert code == 0
        assert sorted(server.requests[0].parameters) == sorted(
            [
                ("name", "a"),
                ("name", "b"),
                ("customer_id", "c"),
                ("external_customer_id", "e"),
                ("external_customer_id", "f"),
                ("organization_id", "o"),
                ("metadata[k]", "v=w"),
                ("metadata[x]", ""),
                ("start_timestamp", "2026-11-01T00:00:00Z"),
                ("end_timestamp", "2026-12-01T00:00+02:00"),
                ("source", "user"),
                ("query", "text"),
                ("filter", '{"conjunction":"and","clauses":[]}'),
                ("meter_id", "m"),
                ("parent_id", "p"),
                ("depth", "5"),
                ("sorting", "-timestamp"),
                ("page", "3"),
                ("limit", "7"),
            ]
        )

    @pytest.mark.parametrize("words", [["--sort", "-timestamp"], ["--sort=-timestamp"]])
    def test_a_descending_order_may_be_written_with_a_blank_or_an_equals_sign(self, server, agent, words):
        code, _, _ = agent("list", *words, "--limit", "2")
        assert code == 0
        assert ("sorting", "-timestamp") in server.requests[0].parameters

    @pytest.mark.parametrize(
        ("words", "ago"),
        [("30m", timedelta(minutes=30)), ("1h", timedelta(hours=1)), ("2d", timedelta(days=2))],
    )
    def test_a_time_may_be_told_as_how_long_ago_it_was(self, server, agent, words, ago):
        agent("list", "--since", words)
        sent = datetime.fromisoformat(dict(server.requests[0].parameters)["start_timestamp"])
        assert abs(datetime.now(UTC) - ago - sent) < timedelta(seconds=60)

    def test_all_fetches_every_page_with_as_few_requests_as_possible(self, server, agent):
        server.respond = lambda request: page_of([EVENT | {"id": dict(request.parameters)["page"]}], 3, 3)
        code, out, err = agent("list", "--all", "--json")
        assert (code, err) == (0, "")
        assert [item["id"] for item in json.loads(out)["items"]] == ["1", "2", "3"]
        assert [dict(request.parameters)["limit"] for request in server.requests] == ["100"] * 3

    def test_all_shows_its_progress_on_a_terminal(self, server, agent, monkeypatch):
        server.respond = lambda request: page_of([EVENT | {"id": dict(request.parameters)["page"]}], 2, 2)

        class Terminal(io.StringIO):
            def isatty(self):
                return True

        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        code, out, _ = agent("list", "--all", "--json")
        assert code == 0
        assert "\r1 of 2 events\r2 of 2 events\r" in terminal.getvalue()
        assert len(json.loads(out)["items"]) == 2

    def test_a_limit_over_a_hundred_is_cut_with_a_note(self, server, agent):
        code, _, err = agent("list", "--limit", "500")
        assert code == 0
        assert dict(server.requests[0].parameters)["limit"] == "100"
        assert "at most 100 events a page" in err

    def test_what_others_wrote_cannot_steer_the_terminal(self, server, agent):
        server.respond = lambda _: page_of([EVENT | {"name": "\x1b[2Jx", "metadata": {"a": "\x07\n"}}])
        assert "\x1b" not in agent("list")[1]
        assert "\x07" not in agent("list")[1]

    def test_long_metadata_is_cut_in_the_table_only(self, server, agent):
        server.respond = lambda _: page_of([EVENT | {"metadata": {"text": "y" * 400}}])
        assert "y" * 61 not in agent("list")[1]
        assert "y" * 400 in agent("list", "--json")[1]


class TestNames:
    def test_prints_a_table(self, server, agent):
        server.respond = lambda _: page_of([NAME])
        code, out, err = agent("names", "--sort=-occurrences", "--query", "ai", "--source", "user")
        assert (code, err) == (0, "1 of 1 names\n")
        assert server.requests[0].path == "/v1/events/names"
        assert dict(server.requests[0].parameters) == {
            "sorting": "-occurrences",
            "query": "ai",
            "source": "user",
            "page": "1",
            "limit": "10",
        }
        assert out.splitlines()[1].split() == [
            "ai_usage",
            "user",
            "44",
            NAME["first_seen"],
            NAME["last_seen"],
        ]

    def test_prints_json_of_the_same_shape_as_list(self, server, agent):
        server.respond = lambda _: page_of([NAME], 1, 1)
        code, out, _ = agent("names", "--json")
        assert code == 0
        assert json.loads(out) == {"items": [NAME], "pagination": {"total_count": 1, "max_page": 1}}

    def test_all_pages(self, server, agent):
        server.respond = lambda request: page_of([NAME | {"name": dict(request.parameters)["page"]}], 2, 2)
        _, out, _ = agent("names", "--all", "--json")
        assert [item["name"] for item in json.loads(out)["items"]] == ["1", "2"]


class TestErrors:
    @pytest.mark.parametrize(
        "words",
        [
            [],
            ["nothing"],
            ["get"],
            ["list", "--since", "yesterday"],
            ["list", "--since", "2026-11-01"],
            ["list", "--since", "2026-11-01T00:00:00"],
            ["list", "--since", "2026-13-01T00:00:00Z"],
            ["list", "--since", "2026-W01-1T00:00:00Z"],
            ["list", "--until", "999999999w"],
            ["list", "--metadata", "novalue"],
            ["list", "--metadata", "=x"],
            ["list", "--filter", "{"],
            ["list", "--filter", "[]"],
            ["list", "--source", "nobody"],
            ["list", "--sort", "name"],
            ["list", "--depth", "6"],
            ["list", "--page", "0"],
            ["list", "--limit", "x"],
            ["names", "--name", "x"],
        ],
    )
    def test_wrong_usage_asks_nothing_and_ends_with_2(self, server, agent, words):
        code, out, err = agent(*words)
        assert (code, out) == (2, "")
        assert "usage:" in err
        assert server.requests == []

    def test_a_time_without_its_offset_is_told_how_to_mend_it(self, agent):
        assert "add Z" in agent("list", "--since", "2026-11-01T00:00:00")[2]

    def test_without_a_token_nothing_is_asked(self, server, agent, monkeypatch):
        monkeypatch.delenv("POLAR_ACCESS_TOKEN")
        code, out, err = agent("list")
        assert (code, out) == (2, "")
        assert "no access token is set\n  set POLAR_ACCESS_TOKEN" in err
        assert server.requests == []

    def test_wrong_settings_end_with_2(self, agent, monkeypatch):
        monkeypatch.setenv("POLAR_AGENT_REQUEST_TIMEOT", "1")
        code, _, err = agent("list")
        assert code == 2
        assert "did you mean POLAR_AGENT_REQUEST_TIMEOUT?" in err

    def test_a_refused_filter_is_wrong_usage(self, server, agent):
        detail = [{"loc": ["query", "meter_id"], "msg": "Meter not found.", "input": "x"}]
        server.respond = lambda _: answer(422, {"detail": detail})
        code, _, err = agent("list", "--meter-id", "x")
        assert code == 2
        assert "meter_id: Meter not found." in err

    @pytest.mark.parametrize("status", [401, 403, 500, 503])
    def test_a_refusal_is_a_bad_result_with_a_hint_and_leaves_the_output_empty(self, server, agent, status):
        server.respond = lambda _: answer(status, {"error": "x"})
        code, out, err = agent("list", "--json")
        assert (code, out) == (1, "")
        assert len(err.splitlines()) == 2
        assert "polar_oat_secret" not in err

    def test_an_error_on_a_later_page_leaves_the_output_empty(self, server, agent):
        replies = iter([page_of([EVENT], 2, 2), answer(503, b"")])
        server.respond = lambda _: next(replies)
        code, out, _ = agent("list", "--all", "--json")
        assert (code, out) == (1, "")

    def test_a_short_pause_that_polar_asks_for_is_taken_and_told(self, server, agent):
        replies = iter([answer(429, b"", retry_after="0"), page_of([EVENT])])
        server.respond = lambda _: next(replies)
        code, out, err = agent("list", "--json")
        assert code == 0
        assert len(json.loads(out)["items"]) == 1
        assert "Polar asks to wait 0 s" in err

    def test_a_long_one_is_left_to_the_user(self, server, agent):
        server.respond = lambda _: answer(429, b"", retry_after="3600")
        code, out, err = agent("list", "--json")
        assert (code, out) == (1, "")
        assert "wait 3600 s and try again" in err
        assert len(server.requests) == 1

    def test_patience_has_an_end(self, server, agent):
        server.respond = lambda _: answer(429, b"", retry_after="0")
        assert agent("list")[0] == 1
        assert len(server.requests) == command._MOST_WAITS + 1


@pytest.mark.usefixtures("server")
def test_it_works_as_a_program_of_its_own(environment, tmp_path):
    (tmp_path / "agent.toml").touch()
    result = subprocess.run(
        [sys.executable, "-m", "agent", "events", "list", "--json", "--config", tmp_path / "agent.toml"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["items"] == [EVENT]


def test_the_help_of_each_action_tells_every_option(agent):
    code, out, _ = agent("list", "--help")
    assert code == 0
    for option in ("--name", "--since", "--metadata", "--all", "--json", "--config"):
        assert option in out
    assert agent("get", "--help")[0] == agent("names", "--help")[0] == agent("--help")[0] == 0


class TestBesideADaemon:
    """The daemon asks, within the rate budget; nobody sees a difference."""

    @pytest.fixture
    def daemon(self, environment, tmp_path):
        """Start a daemon with the settings that the command has."""
        environment |= {
            "POLAR_AGENT_SOCKET_PATH": str(tmp_path / "agent.sock"),
            "POLAR_AGENT_QUEUE_DIR": str(tmp_path / "queue"),
            "POLAR_AGENT_DISK_RESERVE_BYTES": "0",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "agent", "run"], env=os.environ | environment, stderr=subprocess.DEVNULL
        )
        api = tmp_path / "api.sock"
        wait_until(lambda: api.exists() and call(api, "GET", "/status"), what="the daemon's API")
        yield process
        process.kill()
        process.wait()

    @pytest.mark.parametrize(
        ("words", "reply"),
        [
            (["get", EVENT["id"], "--json"], answer(200, EVENT)),
            (["get", EVENT["id"]], answer(404, {"error": "ResourceNotFound", "detail": "Not found"})),
            (["get", "a/b c"], answer(422, {"detail": [{"loc": ["path", "id"], "msg": "no UUID"}]})),
            (["list", "--name", "a b&c", "--metadata", "k=\u00fc", "--json"], page_of([EVENT], 81, 9)),
            (["names", "--sort", "-occurrences"], page_of([NAME])),
            (["list"], answer(500, b"Internal Server Error")),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_the_daemon_asks_the_same_and_the_same_is_said(self, server, agent_factory, daemon, words, reply):
        server.respond = lambda _: reply
        agent = agent_factory()
        with mock.patch("agent.polar.PolarClient.__init__", _never):
            through = agent(*words)
        daemon.kill()
        daemon.wait()
        straight = agent(*words)

        assert through == straight
        first, second = server.requests
        assert (first.path, first.parameters) == (second.path, second.parameters)
        assert first.headers["authorization"] == second.headers["authorization"]

    @pytest.mark.usefixtures("daemon")
    def test_a_token_that_polar_refuses_is_a_bad_result_and_told(self, server, agent_factory):
        server.respond = lambda _: answer(401, {"error": "invalid_token"})
        code, out, err = agent_factory()("list", "--json")
        assert (code, out) == (1, "")
        assert "access token" in err

    @pytest.mark.usefixtures("daemon")
    @pytest.mark.parametrize("other", ["token", "server"])
    def test_a_daemon_with_another_token_or_server_is_passed_over(
        self, server, agent_factory, environment, other
    ):
        elsewhere = Server()
        try:
            elsewhere.respond = lambda _: page_of([EVENT])
            if other == "token":
                environment["POLAR_ACCESS_TOKEN"] = "polar_oat_other"
            else:
                environment["POLAR_AGENT_BASE_URL"] = elsewhere.url
            assert agent_factory()("list", "--json")[0] == 0
            asked = server if other == "token" else elsewhere
            (request,) = asked.requests
            assert request.headers["authorization"] == f"Bearer {environment['POLAR_ACCESS_TOKEN']}"
        finally:
            elsewhere.stop()


def _never(*_, **__):
    raise AssertionError("the command went to Polar itself")
