"""Where settings come from, what is checked, and what their errors say."""

import socket
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from support.user import unprivileged

from agent import config_sources, places, settings_values
from agent.errors import UsageError
from agent.settings import Settings, load, settings_table
from agent.units import Invalid

TOKEN = "polar_oat_verysecret"


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine of our own: no settings file, no secrets, none of the system's directories."""
    monkeypatch.setattr(config_sources, "SYSTEM_CONFIG", tmp_path / "etc" / "agent.toml")
    monkeypatch.setattr(config_sources, "SYSTEM_SECRETS", tmp_path / "secrets")
    monkeypatch.setattr(places, "RUN", tmp_path / "no-run")
    monkeypatch.setattr(places, "STATE", tmp_path / "no-state")
    return tmp_path


@pytest.fixture
def home():
    return {"HOME": "/home/somebody", "XDG_RUNTIME_DIR": "/run/user/1000"}


@pytest.fixture
def read(home, tmp_path):
    """Load settings from a file's text, variables and overrides."""

    def read(toml=None, overrides=None, /, **variables):
        path = None
        if toml is not None:
            path = tmp_path / "agent.toml"
            path.write_text(toml)
        return load(path, overrides, home | variables)

    return read


@pytest.fixture
def refused(read):
    """Return the text of the error that loading ends with."""

    def refused(*args, **variables):
        with pytest.raises(UsageError) as caught:
            read(*args, **variables)
        return str(caught.value)

    return refused


class TestDefaults:
    def test_they_are_those_of_the_documentation(self, read):
        found = read()
        assert found.model_dump() == {
            "access_token": None,
            "tail": (),
            "access_token_file": None,
            "environment": "production",
            "base_url": None,
            "socket_path": Path("/run/user/1000/polar-agent/agent.sock"),
            "socket_mode": 0o660,
            "socket_owner": None,
            "socket_group": None,
            "allowed_users": (),
            "allowed_groups": (),
            "queue_dir": Path("/home/somebody/.local/state/polar-agent"),
            "queue_max_bytes": 4 * 2**30,
            "disk_reserve_bytes": 256 * 2**20,
            "when_full": "block",
            "max_dead_letters": 100_000,
            "when_damaged": "rescue",
            "flush_interval": 2.0,
            "max_batch_events": 500,
            "max_batch_bytes": 5 * 2**20,
            "max_in_flight": 4,
            "requests_per_minute": 300,
            "request_timeout": 60.0,
            "backoff_max": 60.0,
            "shutdown_timeout": 8.0,
            "future_tolerance": 60.0,
            "max_line_bytes": 256 * 2**10,
            "max_connections": 4096,
            "log_level": "info",
            "log_format": "auto",
            "api_socket_path": Path("/run/user/1000/polar-agent/api.sock"),
            "api_socket_mode": 0o660,
            "api_listen": None,
            "api_token": None,
        }
        assert found.sources == {}

    def test_every_default_would_be_taken_if_somebody_wrote_it_down(self, read):
        shown = {name: value for name, value, _ in read().describe() if value != "none"}
        assert read(None, shown).model_dump() == read().model_dump()

    def test_settings_cannot_be_changed(self, read):
        with pytest.raises(ValueError, match="frozen"):
            read().max_in_flight = 5

    def test_settings_built_directly_read_no_other_source(self, monkeypatch, tmp_path):
        monkeypatch.setenv("POLAR_AGENT_MAX_IN_FLIGHT", "9")
        monkeypatch.setenv("MAX_IN_FLIGHT", "9")
        assert Settings(queue_dir=tmp_path, socket_path=tmp_path / "s", max_batch_events=7).max_in_flight == 4

    @pytest.mark.parametrize(("environment", "requests"), [("production", 300), ("sandbox", 60)])
    def test_requests_per_minute_is_sixty_percent_of_the_servers_limit(self, read, environment, requests):
        assert read(None, {"environment": environment}).requests_per_minute == requests
        assert (
            read(None, {"environment": environment, "base_url": "http://localhost:1"}).requests_per_minute
            == requests
        )

    def test_the_api_socket_is_beside_the_other_one(self, read):
        assert str(read(None, {"socket_path": "/srv/x/my.sock"}).api_socket_path) == "/srv/x/api.sock"


class TestPlaces:
    def test_the_systems_directories_are_taken_where_they_are_ours(self, read, tmp_path, monkeypatch):
        for name in ("RUN", "STATE"):
            (tmp_path / name / "polar-agent").mkdir(parents=True)
            monkeypatch.setattr(places, name, tmp_path / name)
        assert read().socket_path == tmp_path / "RUN" / "polar-agent" / "agent.sock"
        assert read().queue_dir == tmp_path / "STATE" / "polar-agent"

    def test_a_queue_directory_that_we_may_create_is_ours(self, read, tmp_path, monkeypatch):
        monkeypatch.setattr(places, "STATE", tmp_path)
        assert read().queue_dir == tmp_path / "polar-agent"

    def test_a_runtime_directory_of_the_user_goes_before_creating_the_systems(
        self, read, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(places, "RUN", tmp_path)
        assert str(read().socket_path) == "/run/user/1000/polar-agent/agent.sock"
        assert read(XDG_RUNTIME_DIR="").socket_path == tmp_path / "polar-agent" / "agent.sock"

    def test_a_directory_that_we_may_not_write_to_is_not_ours(self, home, tmp_path, monkeypatch):
        (tmp_path / "polar-agent").mkdir(mode=0o555)
        monkeypatch.setattr(places, "RUN", tmp_path)
        with unprivileged():
            found = places.socket_path(home)
        assert str(found) == "/run/user/1000/polar-agent/agent.sock"

    def test_without_a_runtime_directory_the_socket_is_in_the_users_state_not_in_tmp(self, read):
        found = read(XDG_RUNTIME_DIR="")
        assert str(found.socket_path) == "/home/somebody/.local/state/polar-agent/agent.sock"

    def test_xdg_directories_count_only_when_they_are_absolute(self, read):
        assert str(read(XDG_STATE_HOME="/data/state").queue_dir) == "/data/state/polar-agent"
        assert str(read(XDG_STATE_HOME="state").queue_dir) == "/home/somebody/.local/state/polar-agent"

    def test_with_no_place_at_all_the_error_says_which_setting_to_give(self):
        with pytest.raises(UsageError, match="POLAR_AGENT_SOCKET_PATH"):
            load(environ={})

    def test_a_path_that_no_socket_can_have_is_refused(self, refused):
        most = 107 if sys.platform == "linux" else 103
        assert f"at most {most}" in refused(None, {"socket_path": "/" + "x" * most})

    def test_the_longest_path_that_is_taken_can_be_bound(self, read, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        most = 107 if sys.platform == "linux" else 103
        path = "/tmp/" + "x" * (most - 5)  # noqa: S108 - the name is the point
        assert str(read(None, {"socket_path": path, "api_socket_path": "/a"}).socket_path) == path
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            Path(path).unlink()

    def test_a_default_path_that_is_too_long_is_refused_too(self, refused):
        assert "socket_path" in refused(XDG_RUNTIME_DIR="/" + "x" * 120)

    def test_paths_are_absolute_and_know_the_home_directory(self, read, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", "/home/me")
        found = read(None, {"queue_dir": "here/../queue", "socket_path": "~/a.sock"})
        assert found.queue_dir == tmp_path / "queue"
        assert str(found.socket_path) == "/home/me/a.sock"


class TestPrecedence:
    def test_command_line_environment_credentials_file_defaults(self, read, tmp_path):
        sources = {
            "command line": lambda: ({"max_in_flight": 5}, {}),
            "environment": lambda: ({}, {"POLAR_AGENT_MAX_IN_FLIGHT": "6"}),
            "credential": lambda: ({}, {"CREDENTIALS_DIRECTORY": str(tmp_path / "cred")}),
            "agent.toml": lambda: ({}, {}),
        }
        (tmp_path / "cred").mkdir()
        (tmp_path / "cred" / "max_in_flight").write_text("7\n")
        values = {"command line": 5, "environment": 6, "credential": 7, "agent.toml": 8}
        left = list(sources)
        while left:
            overrides, variables = {}, {}
            for name in left:
                more_overrides, more_variables = sources[name]()
                overrides |= more_overrides
                variables |= more_variables
            found = read("max_in_flight = 8", overrides, **variables)
            assert found.max_in_flight == values[left[0]]
            assert left[0] in found.sources["max_in_flight"]
            left.pop(0)
        assert read("").max_in_flight == 4

    def test_our_own_variables_go_before_polars(self, read):
        assert read(POLAR_ENVIRONMENT="sandbox").environment == "sandbox"
        assert (
            read(POLAR_ENVIRONMENT="sandbox", POLAR_AGENT_ENVIRONMENT="production").environment
            == "production"
        )

    def test_polar_server_is_an_older_alias_of_polar_environment(self, read):
        assert read(POLAR_SERVER="sandbox").environment == "sandbox"
        assert read(POLAR_SERVER="sandbox", POLAR_ENVIRONMENT="production").environment == "production"

    def test_an_option_that_was_not_given_leaves_the_setting_alone(self, read):
        assert read("max_in_flight = 8", {"max_in_flight": None}).max_in_flight == 8

    def test_an_empty_variable_counts_as_not_set(self, read):
        found = read("max_in_flight = 8", POLAR_AGENT_MAX_IN_FLIGHT="", POLAR_ACCESS_TOKEN=" ")
        assert found.max_in_flight == 8
        assert found.access_token is None

    def test_sources_tell_where_each_setting_was_given(self, read, tmp_path):
        found = read("max_in_flight = 8", {"log_level": "debug"}, POLAR_ENVIRONMENT="sandbox")
        assert found.sources == {
            "environment": "environment variable POLAR_ENVIRONMENT",
            "max_in_flight": str(tmp_path / "agent.toml"),
            "log_level": "command line",
        }


class TestToken:
    def test_it_is_taken_from_polars_own_variable(self, read):
        assert read(POLAR_ACCESS_TOKEN=f" {TOKEN}\n").access_token == SecretStr(TOKEN)

    def test_a_token_file_is_taken_from_the_environment(self, read):
        assert str(read(POLAR_AGENT_ACCESS_TOKEN_FILE="/x/token").access_token_file) == "/x/token"

    @pytest.mark.parametrize("name", ["access_token", "polar_access_token", "POLAR_ACCESS_TOKEN"])
    def test_a_credential_is_taken_as_a_file_so_that_it_can_change(self, read, tmp_path, name):
        for directory, variables in (
            ("secrets", {}),
            ("cred", {"CREDENTIALS_DIRECTORY": str(tmp_path / "cred")}),
        ):
            (tmp_path / directory).mkdir()
            (tmp_path / directory / name).write_text(TOKEN)
            found = read(**variables)
            assert found.access_token is None
            assert found.access_token_file == tmp_path / directory / name

    def test_of_a_token_and_a_token_file_the_higher_source_counts_alone(self, read):
        found = read('access_token_file = "/x/token"', POLAR_ACCESS_TOKEN=TOKEN)
        assert found.access_token == SecretStr(TOKEN)
        assert found.access_token_file is None
        assert "access_token_file" not in found.sources

    def test_a_token_and_a_token_file_in_one_source_are_an_error(self, refused):
        error = refused(POLAR_AGENT_ACCESS_TOKEN=TOKEN, POLAR_AGENT_ACCESS_TOKEN_FILE="/x/token")
        assert "keep access_token or access_token_file" in error

    def test_other_files_among_the_credentials_are_left_alone(self, read, tmp_path):
        (tmp_path / "secrets" / "kubernetes.io").mkdir(parents=True)
        (tmp_path / "secrets" / "database_password").write_text("x")
        assert read().sources == {}

    def test_it_is_shown_nowhere(self, read):
        found = read(POLAR_ACCESS_TOKEN=TOKEN)
        for text in (repr(found), str(found), str(found.describe()), found.model_dump_json()):
            assert TOKEN not in text

    @pytest.mark.parametrize(
        "wrong",
        [
            {"POLAR_AGENT_BASE_URL": TOKEN},
            {"POLAR_AGENT_ENVIRONMENT": TOKEN},
            {"POLAR_AGENT_FLUSH_INTERVAL": f"Bearer {TOKEN}"},
            {"POLAR_AGENT_BASE_URL": f"https://user:{TOKEN}@polar.sh"},
        ],
    )
    def test_no_error_shows_it_where_it_was_pasted_by_mistake(self, refused, wrong):
        assert TOKEN not in refused(**wrong)

    def test_a_wrong_token_setting_is_told_without_its_value(self, refused):
        error = refused("access_token = 123456789")
        assert "access_token" in error
        assert "123456789" not in error


class TestServer:
    def test_it_follows_the_environment(self, read):
        assert read().server_url == "https://api.polar.sh"
        assert read(POLAR_ENVIRONMENT="sandbox").server_url == "https://sandbox-api.polar.sh"

    @pytest.mark.parametrize(
        ("written", "url"),
        [
            ("https://api.example.com", "https://api.example.com"),
            ("https://api.example.com/", "https://api.example.com"),
            ("https://api.example.com/v1", "https://api.example.com"),
            ("https://api.example.com/v1/", "https://api.example.com"),
            ("https://Example.com/polar/v1//", "https://example.com/polar"),
            ("https://example.com/rev1", "https://example.com/rev1"),
            ("http://127.0.0.1:8787", "http://127.0.0.1:8787"),
            ("http://127.1.2.3:8787/v1", "http://127.1.2.3:8787"),
            ("http://[::1]:8787", "http://[::1]:8787"),
            ("http://localhost:8787/", "http://localhost:8787"),
            ("HTTP://LOCALHOST", "http://localhost"),
        ],
    )
    def test_base_url_overrides_it_without_slash_and_version(self, read, written, url):
        found = read(POLAR_AGENT_BASE_URL=written, POLAR_ENVIRONMENT="sandbox")
        assert found.server_url == url

    @pytest.mark.parametrize(
        "written",
        [
            "http://api.polar.sh",
            "http://10.0.0.1:8787",
            "http://localhost.example.com",
            "http://127.0.0.1.example.com",
            "http://[::2]",
            "http://0.0.0.0:1",
        ],
    )
    def test_plain_http_is_for_this_machine_only(self, refused, written):
        assert "unencrypted" in refused(POLAR_AGENT_BASE_URL=written)

    @pytest.mark.parametrize(
        "written",
        [
            "api.polar.sh",
            "ftp://api.polar.sh",
            "https://",
            "https://a:b@example.com",
            "https://token@example.com",
            "https://example.com/?key=1",
            "https://example.com/?",
            "https://example.com/#x",
            "https://example.com:0",
            "https://example.com:99999",
            "https://example .com",
            "https://[::1",
            "https://exämple.com",
        ],
    )
    def test_what_is_no_plain_address_is_refused(self, refused, written):
        assert "base_url" in refused(POLAR_AGENT_BASE_URL=written)

    def test_a_password_in_an_address_is_not_repeated(self, refused):
        assert "hunter2" not in refused(POLAR_AGENT_BASE_URL="https://me:hunter2@example.com")
        assert "hunter2" not in refused(POLAR_AGENT_BASE_URL="https://example.com/?key=hunter2")

    @given(st.text())
    def test_any_text_is_either_an_address_without_secrets_or_refused(self, written):
        try:
            found = settings_values.url(written)
        except Invalid:
            return
        assert found is None or (found.startswith(("https://", "http://")) and not set("@?#") & set(found))


class TestValues:
    @pytest.mark.parametrize(
        ("name", "written", "value"),
        [
            ("flush_interval", "500ms", 0.5),
            ("queue_max_bytes", "1GiB", 2**30),
            ("max_batch_bytes", 10_485_760, 10_485_760),
            ("max_in_flight", "64", 64),
            ("socket_mode", "0600", 0o600),
            ("socket_mode", "666", 0o666),
            ("socket_mode", "0o660", 0o660),
            ("allowed_users", "www-data, 1000", ("www-data", "1000")),
            ("allowed_users", ["www-data", 1000], ("www-data", "1000")),
            ("when_full", "DROP_NEWEST", "drop_newest"),
            ("when_damaged", "exit", "exit"),
            ("log_level", "Debug", "debug"),
            ("future_tolerance", 0, 0.0),
            ("shutdown_timeout", 0, 0.0),
        ],
    )
    def test_what_is_taken(self, read, name, written, value):
        assert getattr(read(None, {name: written}), name) == value

    @pytest.mark.parametrize(
        ("name", "written", "told"),
        [
            ("flush_interval", 0, "too small"),
            ("flush_interval", "2h", "too large"),
            ("flush_interval", "soon", "no duration"),
            ("request_timeout", "0s", "too small"),
            ("max_batch_bytes", 10_485_761, "the most is 10 MiB"),
            ("max_batch_events", 0, "the least is 1"),
            ("max_batch_events", 1.5, "no whole number"),
            ("max_batch_events", True, "no whole number"),
            ("max_batch_events", "9" * 5000, "too large"),
            ("max_in_flight", 65, "the most is 64"),
            ("max_in_flight", 0, "the least is 1"),
            ("requests_per_minute", 0, "the least is 1"),
            ("max_line_bytes", 1023, "the least is 1 KiB"),
            ("max_line_bytes", "9MiB", "the most is 8 MiB"),
            ("max_connections", 0, "the least is 1"),
            ("queue_max_bytes", 1, "the least is 64 KiB"),
            ("socket_mode", 660, "octal digits in quotes"),
            ("socket_mode", "0680", "octal digits in quotes"),
            ("socket_mode", "77777", "octal digits in quotes"),
            ("allowed_users", [], "leave it out"),
            ("allowed_users", "a,,b", "leave it out"),
            ("allowed_groups", {"a": 1}, "no list of names"),
            ("socket_group", 5, "put it in quotes"),
            ("queue_dir", "", "no path"),
            ("queue_dir", "a\0b", "no path"),
            ("queue_dir", "~nobody-by-this-name/x", "home directory"),
            ("when_full", "drop-newest", "did you mean drop_newest?"),
            ("when_damaged", "stop", "write one of rescue, exit"),
            ("log_level", "verbose", "write one of debug, info, warning, error"),
            ("log_format", 1, "write one of auto, json, console"),
            ("environment", "prod", "write one of production, sandbox"),
        ],
    )
    def test_what_is_refused(self, refused, name, written, told):
        error = refused(None, {name: written})
        assert name in error
        assert told in error

    @pytest.mark.parametrize("name", ["max_batch_bytes", "queue_max_bytes"])
    def test_the_largest_event_must_fit(self, refused, name):
        error = refused(None, {name: "256KiB"})
        assert f"{name} (command line): 256 KiB cannot hold one event" in error
        assert "lower max_line_bytes" in error

    def test_the_two_sockets_must_differ(self, refused):
        assert "same as socket_path" in refused(None, {"socket_path": "/a", "api_socket_path": "/a"})

    def test_a_long_value_is_cut_in_the_error(self, refused):
        assert len(refused(POLAR_AGENT_WHEN_FULL="x" * 100_000)) < 400


class TestUnknownNames:
    def test_a_misspelt_key_of_the_file_names_the_nearest_one(self, refused, tmp_path):
        error = refused("flush_intervall = 2")
        assert f"flush_intervall ({tmp_path / 'agent.toml'}): is no setting" in error
        assert "did you mean flush_interval?" in error

    def test_dashes_in_a_key_are_understood(self, refused):
        assert "did you mean flush_interval?" in refused("flush-interval = 2")

    def test_a_misspelt_variable_names_the_nearest_one(self, refused):
        error = refused(POLAR_AGENT_REQUEST_TIMEOT="3")
        assert "environment variable POLAR_AGENT_REQUEST_TIMEOT: is no setting" in error
        assert "did you mean POLAR_AGENT_REQUEST_TIMEOUT?" in error

    @pytest.mark.parametrize("name", ["POLAR_AGENT_flush_interval", "POLAR_AGENT_", "POLAR_AGENT_X__Y"])
    def test_variables_must_be_written_exactly(self, refused, name):
        assert name in refused(**{name: "2s"})

    def test_an_unknown_name_far_from_all_is_told_too(self, refused):
        assert "none is named alike" in refused("qqqqqq = 1")

    def test_an_unknown_override_is_told(self, refused):
        assert "did you mean max_in_flight?" in refused(None, {"max_inflight": 2})

    def test_names_of_others_do_not_matter(self, read):
        assert read(POLAR_SANDBOX="1", POLARIS="2", PATH="/bin", POLAR_AGENT="x").sources == {}

    def test_what_kubernetes_sets_for_a_service_of_our_name_does_not_matter(self, read):
        found = read(
            POLAR_AGENT_SERVICE_HOST="10.0.0.1",
            POLAR_AGENT_SERVICE_PORT="80",
            POLAR_AGENT_SERVICE_PORT_HTTP="80",
            POLAR_AGENT_PORT="tcp://10.0.0.1:80",
            POLAR_AGENT_PORT_80_TCP="tcp://10.0.0.1:80",
            POLAR_AGENT_PORT_80_TCP_PROTO="tcp",
            POLAR_AGENT_PORT_80_TCP_PORT="80",
            POLAR_AGENT_PORT_80_TCP_ADDR="10.0.0.1",
        )
        assert found.sources == {}


class TestTail:
    def test_tables_are_read_from_the_file(self, read):
        found = read(
            '[[tail]]\npath = "/l/*.log"\nstart = "end"\nexclude = ["*.gz"]\n'
            'defaults = { name = "n", metadata = { region = "eu" } }\n[[tail]]\npath = "/m/**"\n'
        )
        first, second = found.tail
        assert (first.path, first.start, first.exclude) == ("/l/*.log", "end", ("*.gz",))
        assert first.defaults == {"name": "n", "metadata": {"region": "eu"}}
        assert (second.path, second.start) == ("/m/**", "beginning")

    def test_tables_are_read_from_nested_variables_and_from_json(self, read):
        nested = {"POLAR_AGENT_TAIL__0__PATH": "/x", "POLAR_AGENT_TAIL__0__DEFAULTS__NAME": "n"}
        (table,) = read(**nested).tail
        assert (table.path, table.defaults) == ("/x", {"name": "n"})
        (table,) = read(POLAR_AGENT_TAIL='[{"path": "/y", "start": "end"}]').tail
        assert (table.path, table.start) == ("/y", "end")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ('start = "end"', ("tail.0.path", "missing")),
            ('path = "logs/*.log"', ("tail.0.path", "'logs/*.log'", "not absolute")),
            ('path = "/x"\nstart = "middle"', ("tail.0.start", "'middle'", "beginning, end")),
            ('path = "/x"\nexcludes = []', ("tail.0.excludes", "did you mean exclude")),
            ('path = "/x"\ndefaults = { user = "u" }', ("tail.0.defaults.user", "metadata")),
            ('path = "/x"\ndefaults = { name = 1 }', ("tail.0.defaults.name", "1", "quotes")),
        ],
    )
    def test_what_is_wrong_is_named_with_its_place_value_and_mend(self, refused, text, expected):
        told = refused(f"[[tail]]\n{text}")
        assert all(part in told for part in expected), told
        assert "[{" not in told  # the place is told: not all of what was written


class TestApi:
    def test_its_socket_is_open_to_those_to_whom_the_other_one_is(self, read):
        assert read(None, {"socket_mode": "0666"}).api_socket_mode == 0o666
        assert read(None, {"socket_mode": "0666", "api_socket_mode": "0600"}).api_socket_mode == 0o600

    @pytest.mark.parametrize("address", ["127.0.0.1:8686", "[::1]:8686", "localhost:1"])
    def test_on_loopback_tcp_needs_no_token(self, read, address):
        assert read(None, {"api_listen": address}).api_listen == address

    @pytest.mark.parametrize("address", ["0.0.0.0:8686", "[::]:8686", "192.168.0.1:1", "agent.lan:8686"])
    def test_elsewhere_it_needs_one(self, read, refused, address):
        assert "set api_token" in refused(None, {"api_listen": address})
        token = "0123456789abcdef"
        assert read(None, {"api_listen": address, "api_token": token}).api_listen == address

    @pytest.mark.parametrize(
        "address", ["8686", ":8686", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:0", "h:65536"]
    )
    def test_what_is_no_host_and_port_is_refused(self, refused, address):
        assert "api_listen" in refused(None, {"api_listen": address})

    @pytest.mark.parametrize("token", ["short", "x" * 15, "with a blank in it all", "\xfcnot ascii at all"])
    def test_a_token_that_could_be_guessed_or_not_be_sent_is_refused_and_not_shown(self, refused, token):
        message = refused(None, {"api_token": token})
        assert "api_token" in message
        assert token not in message


class TestFile:
    def test_the_systems_file_is_read_if_it_is_there(self, read, tmp_path):
        assert read().max_in_flight == 4
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc" / "agent.toml").write_text("max_in_flight = 9")
        assert read().max_in_flight == 9

    def test_the_environment_names_another(self, read, tmp_path):
        (tmp_path / "mine.toml").write_text("max_in_flight = 9")
        assert read(POLAR_AGENT_CONFIG=str(tmp_path / "mine.toml")).max_in_flight == 9

    def test_the_command_line_goes_before_the_environment(self, read):
        assert read("max_in_flight = 9", POLAR_AGENT_CONFIG="/nowhere").max_in_flight == 9

    def test_a_named_file_that_is_missing_is_an_error(self, refused, home, tmp_path):
        error = refused(POLAR_AGENT_CONFIG="/no/where.toml")
        assert "/no/where.toml (environment variable POLAR_AGENT_CONFIG): there is no such file" in error
        with pytest.raises(UsageError, match=r"--config.*there is no such file"):
            load(tmp_path / "missing.toml", None, home)

    def test_wrong_toml_is_told_with_its_line(self, refused):
        error = refused("max_in_flight = 4\nwhen_full = block\n")
        assert "line 2" in error

    def test_a_file_that_is_not_utf8_is_told(self, home, tmp_path):
        (tmp_path / "x.toml").write_bytes(b'log_level = "\xff"')
        with pytest.raises(UsageError, match="UTF-8"):
            load(tmp_path / "x.toml", None, home)

    def test_a_directory_is_told(self, home, tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            load(tmp_path, None, home)

    def test_a_file_that_may_not_be_read_is_told(self, home, tmp_path):
        path = tmp_path / "x.toml"
        path.touch(mode=0)
        with unprivileged(), pytest.raises(UsageError, match="access_token_file"):
            load(path, None, home)


class TestErrors:
    def test_one_problem_names_setting_source_value_and_mend(self, refused):
        assert refused(POLAR_AGENT_FLUSH_INTERVAL="2 parsecs") == (
            "cannot load the settings: flush_interval (environment variable POLAR_AGENT_FLUSH_INTERVAL): "
            "'2 parsecs' has a unit that is no unit of time\n"
            '  write seconds as a number, or with a unit: 2, 0.5, "500ms", "2s", "1m", "1h"'
        )

    def test_all_problems_are_told_at_once(self, refused):
        error = refused(
            'max_in_flight = 0\nnonsense = 1\nenvironment = "prod"',
            {"log_level": "loud"},
            POLAR_AGENT_WHEN_FUL="block",
        )
        assert "5 problems" in error
        for told in ("max_in_flight", "nonsense", "environment", "log_level", "POLAR_AGENT_WHEN_FUL"):
            assert told in error

    def test_a_wrong_environment_is_not_told_twice_because_others_depend_on_it(self, refused):
        assert "problems" not in refused(POLAR_ENVIRONMENT="prod")

    def test_they_end_a_command_with_the_code_for_wrong_usage(self):
        assert UsageError.exit_code == 2


class TestDocumentation:
    def test_the_table_has_a_row_for_each_setting(self):
        lines = settings_table().splitlines()
        assert len(lines) == 2 + len(Settings.model_fields)
        for name, line in zip(Settings.model_fields, lines[2:], strict=True):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert cells[0] == f"`{name}`"
            assert f"POLAR_AGENT_{name.upper()}" in cells[1]
            assert all(cells[2:4])

    def test_every_variable_of_the_table_is_one_that_is_taken(self, read):
        for name in Settings.model_fields:
            if name not in ("access_token", "access_token_file", "base_url", "socket_group"):
                value = {row[0]: row[1] for row in read().describe()}[name]
                if value != "none":
                    assert name in read(**{f"POLAR_AGENT_{name.upper()}": value}).sources

    def test_describe_hides_the_token_and_tells_the_source(self, read):
        rows = {name: (value, source) for name, value, source in read(POLAR_ACCESS_TOKEN=TOKEN).describe()}
        assert rows["access_token"] == ("(hidden)", "environment variable POLAR_ACCESS_TOKEN")
        assert rows["socket_mode"] == ("0660", "default")
        assert rows["queue_max_bytes"] == ("4 GiB", "default")
        assert rows["flush_interval"] == ("2 s", "default")
