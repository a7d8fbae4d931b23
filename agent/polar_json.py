"""JSON as Polar's server reads it, on every version of Python alike.

The server reads with Python's own parser, on 3.13 or later, which takes more than JSON.
What it makes of a text depends on the version and on the limits of the interpreter;
here it does not. Pure.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import msgspec

MAX_DEPTH = 910
"""Levels of arrays and objects that an event may have.

The server took an event of 901 levels and failed at some 2,000, so this must not be
less than 901. It cannot be much more: Python 3.11 counts the levels against the same
limit of 1,000 that its callers' frames count against; later versions go deeper.
"""

MAX_INT_DIGITS = 4300
"""Digits of the longest integer that the server reads: the default limit of its interpreter."""

_FATAL_DEPTH = 20_000  # 2,000 levels were answered with 500, 200,000 with 400; it is somewhere between


MAX_BODY = 10_485_760
"""Bytes of the largest body that the server takes."""

VERSIONS = ("2026-04", "2026-10")
"""The versions of its API that the server knew when it was measured; the first is the default."""


class _Body(msgspec.Struct):
    events: list[msgspec.Raw]


_BODY = msgspec.json.Decoder(_Body)


def event_lines(body: bytes) -> list[bytes]:
    """Return the events of a body `{"events": […]}`, each as it came, but on one line.

    Raises:
        ValueError: it is not one, or one that only the server's more lenient parser reads.
    """
    if not body.isascii():
        body.decode()
    try:
        events = _BODY.decode(body).events
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    # A line break in JSON is never part of a value.
    return [bytes(event).replace(b"\n", b" ").replace(b"\r", b" ") for event in events]


class BodyError(ValueError):
    """JSON that the server's parser does not survive.

    Attributes:
        status: what the server answers: 400, or 500 for what is nested too deep.
    """

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


def parse_json(text: str, levels: int = MAX_DEPTH) -> Any:
    """Read JSON as the server does, on every version of Python alike.

    It takes what Python's parser takes: `NaN`, `Infinity`, `1e400`, lone surrogates, and
    of equal keys the last.

    Args:
        text: the JSON.
        levels: how many levels of arrays and objects are taken.

    Raises:
        json.JSONDecodeError: no JSON; `pos` is the offset that the server reports.
        BodyError: an integer of too many digits, or nested too deep.
    """
    # The C parser enforces the interpreter's own limit for nothing; the hook costs a call a number.
    usual = sys.get_int_max_str_digits() == MAX_INT_DIGITS
    try:
        value = json.loads(text, parse_int=None if usual else _read_int)
    except json.JSONDecodeError as error:
        raise _as_newest_python(error) from None
    except ValueError as error:
        raise BodyError(f"an integer has more than {MAX_INT_DIGITS} digits") from error
    except RecursionError:
        raise _too_deep(text, levels) from None
    if _deeper_than(value, levels):
        raise _too_deep(text, levels)
    return value


def _read_int(digits: str) -> int:
    if len(digits.removeprefix("-")) > MAX_INT_DIGITS:
        raise ValueError
    return int(digits)


def _as_newest_python(error: json.JSONDecodeError) -> json.JSONDecodeError:
    """Return the error as Python 3.13 and later give it, which the server runs on.

    For a comma before a closing bracket they point at the comma, older ones behind it.
    """
    before = error.doc[: error.pos].rstrip(" \t\n\r")
    if not before.endswith(","):
        return error
    closing = error.doc[error.pos : error.pos + 1]
    if closing == "}" and error.msg.startswith("Expecting property name"):
        kind = "object"
    elif closing == "]" and error.msg == "Expecting value":
        kind = "array"
    else:
        return error
    return json.JSONDecodeError(f"Illegal trailing comma before end of {kind}", error.doc, len(before) - 1)


def _deeper_than(value: Any, levels: int) -> bool:
    """Tell whether `value` is nested deeper; goes level by level, so that depth costs no stack."""
    level = [value] if type(value) in (dict, list) else []
    for _ in range(levels):
        if not level:
            return False
        level = [
            child
            for container in level
            for child in (container.values() if type(container) is dict else container)
            if type(child) is dict or type(child) is list
        ]
    return bool(level)


def _too_deep(text: str, levels: int) -> BodyError:
    depth = deepest = 0
    in_string = escaped = False
    for char in text:
        if in_string:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                in_string = False
        elif char == '"':
            in_string = True
        elif char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    return BodyError(f"nested deeper than {levels} levels", status=400 if deepest > _FATAL_DEPTH else 500)
