"""What log lines look like, and what never gets into them."""

# ruff: noqa: TRY301 - the errors are made up

import io
import json
import logging
import subprocess
import sys
import threading
from datetime import UTC, datetime

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from agent import logs
from agent.redact import redact

TOKEN = "polar_oat_abcDEF123"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def undo():
    yield
    structlog.reset_defaults()
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, logs._Forward):
            root.removeHandler(handler)
    logs._configure_structlog("warning", "auto", None)


@pytest.fixture
def lines():
    """Log as JSON, and return the lines so far."""
    stream = io.StringIO()
    logs.configure("debug", "json", stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


class TestLines:
    def test_a_line_has_time_level_logger_message_and_what_was_given(self, lines):
        logs.get("flusher").info("delivered", count=500, seconds=0.5)
        (line,) = lines()
        assert list(line) == ["timestamp", "level", "logger", "message", "count", "seconds"]
        assert (line["level"], line["logger"], line["message"]) == ("info", "flusher", "delivered")
        assert (line["count"], line["seconds"]) == (500, 0.5)

    def test_a_hint_that_says_nothing_is_left_out(self, lines):
        logs.get("x").info("a", hint="")
        logs.get("x").info("b", hint="mend it")
        assert [line.get("hint") for line in lines()] == [None, "mend it"]
        assert "hint" not in lines()[0]

    def test_the_time_is_utc_in_iso_8601(self, lines):
        logs.get("x").info("now")
        written = lines()[0]["timestamp"]
        assert written.endswith("Z")
        assert abs((datetime.now(UTC) - datetime.fromisoformat(written)).total_seconds()) < 60

    def test_less_weighty_messages_than_the_level_are_left_out(self):
        stream = io.StringIO()
        logs.configure("warning", "json", stream)
        log = logs.get("x")
        log.debug("a")
        log.info("b")
        log.warning("c")
        log.error("d")
        assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["c", "d"]

    def test_a_logger_made_before_configure_follows_it(self):
        log = logs.get("x")
        stream = io.StringIO()
        logs.configure("info", "json", stream)
        log.info("hello")
        assert json.loads(stream.getvalue())["message"] == "hello"

    def test_an_exception_comes_with_its_traceback_but_without_local_variables(self, lines):
        hidden_from_logs = "a local variable"
        try:
            raise ValueError(f"no good: {TOKEN}") from KeyError("cause")
        except ValueError:
            logs.get("x").exception("failed")
        line = lines()[0]
        assert "ValueError: no good: [hidden]" in line["exception"]
        assert "KeyError" in line["exception"]
        assert hidden_from_logs not in line["exception"].replace('hidden_from_logs = "a local variable"', "")

    def test_what_is_no_json_becomes_text(self, lines):
        logs.get("x").info("m", path=sys, things={1, 2}, deep=[[[[[[[[["end"]]]]]]]]])
        line = lines()[0]
        assert "module" in line["path"]
        assert line["things"] == [1, 2]
        assert "end" not in json.dumps(line["deep"])

    def test_a_value_that_cannot_be_printed_does_not_raise(self, lines):
        class Broken:
            def __str__(self):
                raise RuntimeError("no")

        logs.get("x").info("m", value=Broken())
        assert lines()[0]["value"] == "[Broken: RuntimeError]"


class TestFormats:
    def test_auto_is_json_when_nobody_watches(self):
        stream = io.StringIO()
        logs.configure("info", "auto", stream)
        logs.get("x").info("hello")
        assert json.loads(stream.getvalue())["message"] == "hello"

    def test_auto_is_for_people_on_a_terminal(self):
        stream = Terminal()
        logs.configure("info", "auto", stream)
        logs.get("x").info("hello", count=3)
        assert "hello" in stream.getvalue()
        assert "\x1b[" in stream.getvalue()
        assert not stream.getvalue().startswith("{")

    def test_console_without_a_terminal_has_no_colors(self):
        stream = io.StringIO()
        logs.configure("info", "console", stream)
        logs.get("flusher").info("hello", count=3)
        assert "\x1b" not in stream.getvalue()
        assert "hello" in stream.getvalue()
        assert "count=3" in stream.getvalue()

    def test_console_shows_tracebacks_line_by_line(self):
        stream = io.StringIO()
        logs.configure("info", "console", stream)
        try:
            raise ValueError("x")
        except ValueError:
            logs.get("flusher").exception("failed")
        assert "\nTraceback (most recent call last):\n" in stream.getvalue()

    def test_text_from_others_can_neither_steer_the_terminal_nor_forge_a_line(self):
        stream = io.StringIO()
        logs.configure("info", "console", stream)
        logs.get("x").info("one\n2026 two", reason="\x1b[2J\r\nthree", **{"k\ney": 1})
        assert stream.getvalue().count("\n") == 1
        assert "\x1b" not in stream.getvalue()
        assert "\r" not in stream.getvalue()


class TestSecrets:
    @pytest.mark.parametrize(
        "token", [TOKEN, "polar_pat_x", "Bearer abc.def-ghi", "bearer  xyz", "polar_cst_12345678"]
    )
    def test_what_looks_like_a_token_is_hidden_wherever_it_stands(self, lines, token):
        secret = token.split()[-1]
        logs.get("x").warning(
            f"sent {token}",
            reason=f"({token})",
            nested={"a": [f"x {token} y"], token: 1},
            error=ValueError(token),
        )
        assert secret not in json.dumps(lines())
        assert "[hidden]" in lines()[0]["message"]

    @pytest.mark.parametrize(
        "key",
        [
            "token",
            "access_token",
            "my_token",
            "Authorization",
            "events",
            "body",
            "input",
            "metadata",
            "line",
            "headers",
        ],
    )
    def test_some_keys_are_never_shown(self, lines, key):
        logs.get("x").info("m", **{key: "customer data"}, nested={key: ["customer data"]})
        assert "customer data" not in json.dumps(lines())

    def test_the_key_of_structlogs_own_message_is_hidden_below_the_top(self, lines):
        logs.get("x").info("m", nested={"event": {"name": "customer data"}})
        assert "customer data" not in json.dumps(lines())

    def test_a_count_of_events_is_shown(self, lines):
        logs.get("x").info("m", events=5)
        assert lines()[0]["events"] == 5

    def test_a_number_under_another_hidden_key_is_not(self, lines):
        logs.get("x").info("m", input=4711)
        assert lines()[0]["input"] == "[hidden]"

    def test_bytes_are_told_by_their_number_only(self, lines):
        logs.get("x").info("m", raw=b"customer data", other=bytearray(b"customer data"))
        assert lines()[0]["raw"] == "[13 bytes]"
        assert "customer" not in json.dumps(lines())

    def test_names_of_settings_are_no_tokens(self):
        text = "set POLAR_ACCESS_TOKEN, POLAR_AGENT_CONFIG or polar_agent_x; see polar_access_token"
        assert redact(text) == text

    @given(st.text(), st.text("abcXYZ019_-", min_size=1), st.text())
    def test_no_organization_token_is_left_in_any_text(self, before, secret, after):
        token = f"polar_oat_{secret}"
        assert token not in redact(f"{before}{token} {after}".replace("[hidden]", ""))


class TestLibraries:
    def test_their_warnings_take_the_same_way(self, lines):
        logging.getLogger("httpcore").warning("trouble with %s", TOKEN)
        (line,) = lines()
        assert (line["level"], line["logger"], line["message"]) == (
            "warning",
            "httpcore",
            "trouble with [hidden]",
        )

    def test_what_they_say_of_each_request_is_left_out(self, lines):
        logging.getLogger("httpx").setLevel(logging.DEBUG)
        logging.getLogger("httpx").info("HTTP Request: …")
        assert lines() == []

    def test_a_message_of_theirs_that_cannot_be_formatted_does_not_raise(self, lines):
        record = logging.LogRecord("x", logging.ERROR, "x.py", 1, "%d", ("no number",), None)
        logs._Forward().handle(record)
        assert lines()[0]["message"] == "%d"

    def test_configuring_twice_does_not_log_twice(self):
        stream = io.StringIO()
        logs.configure("info", "json", stream)
        logs.configure("info", "json", stream)
        logging.getLogger("x").error("once")
        assert len(stream.getvalue().splitlines()) == 1


class TestOutput:
    def test_lines_of_many_threads_stay_whole(self, lines):
        threads = [
            threading.Thread(target=lambda: [logs.get("x").info("m", text="y" * 500) for _ in range(50)])
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [line["text"] for line in lines()] == ["y" * 500] * 400

    @pytest.mark.parametrize("error", [BrokenPipeError, OSError, ValueError])
    def test_a_stream_that_is_gone_does_not_raise(self, error):
        class Gone(io.StringIO):
            def write(self, _):
                raise error

        logs.configure("info", "json", Gone())
        logs.get("x").info("m")

    def test_before_configure_warnings_go_to_standard_error_and_nothing_to_standard_output(self):
        code = "from agent import logs; logs.get('x').info('quiet'); logs.get('x').warning('loud')"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert result.stdout == ""
        assert "loud" in result.stderr
        assert "quiet" not in result.stderr

    def test_logging_does_not_import_rich(self):
        code = "import sys; from agent import logs; print(sorted({'rich', 'pygments'} & set(sys.modules)))"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert result.stdout == "[]\n"
