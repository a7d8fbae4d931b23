"""Logging: one line a message, to standard error, without secrets and without events.

`configure` is called once by a command that logs; `get` can be used before. Every line
has a UTC timestamp, a level and the name of its logger. Three promises:

- What looks like a token, and what stands under a key that names a token or the
  contents of events, never reaches the output. That holds for the libraries below us too:
  their messages take the same way.
- A value that cannot be printed, or a standard error that is gone or full, costs the line,
  not the daemon.
- A line is written in one piece, also when several threads log at once.
"""

from __future__ import annotations

import io
import logging
import os
import select
import sys
import threading
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

from agent.lean import deferred, without
from agent.redact import HIDDEN, redact

with without("rich", "pygments"), deferred("asyncio"):
    import structlog

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping, Sequence

    from structlog.typing import FilteringBoundLogger, Processor

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "console"]

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

# Contents of events are the customer's data, and Polar's refusals repeat them (`input`).
_SECRET_KEYS = frozenset(
    {
        "access_token",
        "api_key",
        "authorization",
        "body",
        "cookie",
        "content",
        "event",
        "events",
        "headers",
        "input",
        "line",
        "lines",
        "metadata",
        "password",
        "payload",
        "secret",
        "set_cookie",
        "token",
    }
)
# A count of events is no event.
_COUNTABLE_KEYS = frozenset({"events", "event", "lines", "line"})
_FIRST_KEYS = ("timestamp", "level", "logger", "message")
_MOST_DEPTH = 6
_PATIENCE_MS = 200
_MOST_TEXT = 10_000


def configure(level: Level = "info", format: Format = "auto", stream: TextIO | None = None) -> None:  # noqa: A002
    """Set up logging for this process; may be called again.

    Args:
        level: the least weighty messages that are written.
        format: ``console`` for people, ``json`` for machines, ``auto``: by whether the stream is a terminal.
        stream: where to write; standard error if not given.
    """
    _configure_structlog(level, format, stream)
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Forward)]:
        root.removeHandler(handler)
    # Libraries say below a warning only what we say ourselves, such as each request.
    root.addHandler(_Forward(logging.WARNING))


def get(name: str) -> FilteringBoundLogger:
    """Return the logger of a part of the agent: ``get("flusher").info("delivered", count=500)``."""
    return cast("FilteringBoundLogger", structlog.get_logger(name))


def _configure_structlog(level: Level, format: Format, stream: TextIO | None) -> None:  # noqa: A002
    lock = threading.Lock()
    terminal = _is_terminal(sys.stderr if stream is None else stream)
    for_people = format == "console" or (format == "auto" and terminal)
    structlog.configure(
        processors=_processors(for_people=for_people, colors=for_people and terminal),
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        context_class=dict,
        logger_factory=lambda name="": _Output(name, stream, lock),
        cache_logger_on_first_use=False,
    )


class _Output:
    """The end of the way: writes a line, whatever its level."""

    def __init__(self, name: str, stream: TextIO | None, lock: threading.Lock) -> None:
        self.name = name
        self._stream = stream
        self._lock = lock

    def msg(self, line: str) -> None:
        # The one place where a lock is held while writing: it is what keeps lines whole.
        # Where standard error is gone, full or closed, nobody is left to tell.
        with self._lock, suppress(OSError, ValueError, AttributeError):
            _write(sys.stderr if self._stream is None else self._stream, f"{line}\n")

    debug = info = warning = error = critical = exception = log = msg


def _write(stream: TextIO, text: str) -> None:
    """Write to a stream what it takes soon; raises OSError or ValueError when it is gone."""
    try:
        file = stream.fileno()
    except io.UnsupportedOperation:  # it is no file
        stream.write(text)
        stream.flush()
        return
    # Past its buffer: what stays in there when a write fails, Python tries to write once more at
    # the end of the process, and ends with 120 for it.
    data = text.encode(stream.encoding, "backslashreplace")
    while data and _takes(file):  # a pipe that nobody reads must not stop the daemon
        data = data[os.write(file, data) :]


def _takes(file: int) -> bool:
    """Tell whether a file takes something soon."""
    poll = select.poll()
    poll.register(file, select.POLLOUT)
    return bool(poll.poll(_PATIENCE_MS))


class _Forward(logging.Handler):
    """Takes what libraries log through the standard library."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - a library's wrong format must not become our crash
            message = str(record.msg)
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        get(record.name).log(level, message, exc_info=record.exc_info)


def _processors(*, for_people: bool, colors: bool) -> list[Processor]:
    common: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _exception_as_text,
        _arrange,
    ]
    if for_people:
        # The plain formatter on purpose: the rich one prints local variables, hence events.
        return [
            *common,
            structlog.dev.ConsoleRenderer(
                colors=colors,
                event_key="message",
                pad_event_to=0,
                exception_formatter=structlog.dev.plain_traceback,
                sort_keys=False,
            ),
        ]
    return [*common, structlog.processors.JSONRenderer(ensure_ascii=False, default=str)]


def _exception_as_text(_: Any, __: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace `exc_info` by the traceback as text: plain, so without local variables."""
    given = entry.pop("exc_info", None)
    if given is True:
        given = sys.exc_info()
    if isinstance(given, tuple):
        given = given[1]
    if isinstance(given, BaseException):
        entry["exception"] = "".join(traceback.format_exception(given)).rstrip()
    return entry


def _arrange(logger: Any, _: str, entry: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Redact everything, and put what every line has to its front."""
    # structlog calls the message "event"; here that word means something else.
    entry["message"] = entry.pop("event", "")
    entry["logger"] = getattr(logger, "name", "")
    if not entry.get("hint", True):
        del entry["hint"]  # nothing is to be done
    front = {key: _clean(entry.pop(key), 0) for key in _FIRST_KEYS if key in entry}
    traceback_text = entry.pop("exception", None)
    back = {} if traceback_text is None else {"exception": _text(traceback_text, lines=True)}
    return front | {_text(key): _value(key, value, 0) for key, value in entry.items()} | back


def _value(key: object, value: object, depth: int) -> object:
    """Return the value of a key without secrets."""
    name = str(key).lower().replace("-", "_")
    if name in _SECRET_KEYS or name.endswith(("_token", "_secret", "_password")):
        countable = name in _COUNTABLE_KEYS and isinstance(value, (int, float))
        return value if value is None or countable else HIDDEN
    return _clean(value, depth)


def _clean(value: object, depth: int) -> object:
    """Return a value without secrets; what is no JSON becomes text."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"[{len(value)} bytes]"  # raw bytes are events or answers
    if depth >= _MOST_DEPTH:
        return "…"
    if isinstance(value, dict):
        return {_text(key): _value(key, item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_clean(item, depth + 1) for item in cast("Sequence[object]", value)]
    return _text(value)


def _text(value: object, *, lines: bool = False) -> str:
    """Return a value's text: bounded, without tokens, without control characters.

    Part of it comes from servers and producers, and must neither steer a terminal nor
    forge a line of the log.
    """
    try:
        text = redact(str(value)[:_MOST_TEXT])
    except Exception as error:  # noqa: BLE001 - any class may have a broken __str__
        text = f"[{type(value).__name__}: {type(error).__name__}]"
    if text.isprintable():
        return text
    kept = "\n" if lines else ""
    return "".join(
        char if char.isprintable() or char in kept else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


# structlog's own default writes to standard output, which belongs to what commands print.
_configure_structlog("warning", "auto", None)
