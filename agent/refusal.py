"""The full check of one line, and the words in which a producer is told what is wrong. Pure.

`agent.schema` gives the errors that Polar would give, for both of its kinds of event;
the producer is told one: the first of the kind that its line is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.seen import identity

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

JSON_TYPES = ("json_invalid",)
_PAST = "Timestamp must be in the past"
_METADATA_BRANCHES = frozenset({"constrained-str", "int", "float", "bool"})
_TIMESTAMP_TYPES = ("datetime", "timezone", "date_")
_HALF = "half of a surrogate pair, which is no character"

_encode = json.JSONEncoder(separators=(",", ":")).encode

_MESSAGES = {
    "missing": "this field is required",
    "timestamp_in_future": "the timestamp is too far ahead of now",
    "timestamp_invalid": "use RFC 3339 with an offset, such as 2026-01-31T12:00:00Z, or Unix seconds",
    "metadata_value": "use a string of 1 to 500 characters, an integer, a finite number or a boolean",
    "invalid_characters": "Polar takes no NUL character",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a line was refused.

    Attributes:
        type: a stable word, for programs.
        loc: the path to the bad value within the event.
        msg: for people; repeats nothing of the value.
    """

    type: str
    loc: tuple[str | int, ...]
    msg: str

    def answer(self, line: int) -> bytes:
        """Return the answer to the producer whose line of this number it was."""
        error = {"type": self.type, "loc": list(self.loc), "msg": self.msg}
        return _encode({"line": line, "error": error}).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Facts:
    """What stamping must know of an accepted line.

    Attributes:
        identity: what Polar tells it from others by, see `agent.seen.identity`; empty when its
            `external_id` is absent, null or empty.
        timestamp: its own, None when it has none.
        idle_customer_id: it has a `customer_id`, but Polar goes by its `external_customer_id`.
    """

    identity: str
    timestamp: datetime | None
    idle_customer_id: bool = False


def too_long(max_line_bytes: int) -> Refusal:
    """Return the refusal of a line beyond the bound."""
    return Refusal("too_long", (), f"the line is longer than max_line_bytes ({max_line_bytes})")


def missing(field: str) -> Refusal:
    """Return the refusal of an event that lacks a field, and nothing else."""
    return Refusal("missing", (field,), _MESSAGES["missing"])


def queue_full(reason: str) -> Refusal:
    """Return the refusal, or the notice, for a queue that has no room."""
    return Refusal("queue_full", (), reason)


def external_id_conflict() -> Refusal:
    """Return the refusal of an event whose id an event of other content had a moment ago."""
    return Refusal(
        "external_id_conflict",
        ("external_id",),
        "another event came with this external_id a moment ago; Polar would drop this one in silence",
    )


def full_check(line: bytes, latest: datetime, *, personal_token: bool = False) -> Facts | Refusal:  # noqa: C901, PLR0911  # one return a reason
    """Check one line as Polar would.

    Args:
        line: one line without blanks at its ends.
        latest: the newest timestamp allowed, with its time zone.
        personal_token: events go out with a person's token, which needs `organization_id`.
    """
    # Built on first use: the usual line never comes here, and the daemon starts sooner.
    from pydantic import ValidationError  # noqa: PLC0415

    from agent import schema  # noqa: PLC0415

    try:
        value = schema.parse_json(line.decode())
    except UnicodeDecodeError as error:
        return Refusal("json_invalid", (), f"not UTF-8 at byte {error.start + 1}")
    except json.JSONDecodeError as error:
        return Refusal("json_invalid", (), f"{error.msg.removesuffix(' at')} at character {error.pos + 1}")
    except schema.BodyError as error:
        return Refusal("json_invalid", (), str(error))
    if not isinstance(value, dict):
        return Refusal("json_invalid", (), "a line must be one JSON object")
    try:
        event = schema.parse_event(value, latest)
        schema.check_poison(event)
    except ValidationError as error:
        return _explain(schema.errors_of(error), value)
    except schema.PoisonError as error:
        kind = "timestamp_invalid" if error.field == "timestamp" else "invalid_characters"
        if "too long" in error.reason:
            kind = "string_too_long"
        elif "finite" in error.reason:
            kind = "metadata_value"
        return Refusal(kind, error.loc, error.reason)
    if personal_token and event.organization_id is None:
        return Refusal("missing", ("organization_id",), "a personal access token needs organization_id")
    if not personal_token and event.organization_id is not None:
        return Refusal(
            "not_allowed", ("organization_id",), "leave it out: an organization's token implies it"
        )
    idle = isinstance(event, schema.EventCreateExternalCustomer) and "customer_id" in value
    own = identity(event.external_id, event.organization_id) if event.external_id else ""
    return Facts(own, event.timestamp, idle)


def _explain(errors: Any, event: Mapping[str, Any]) -> Refusal:
    """Choose the error to tell from those of both branches."""
    customer_id = event.get("customer_id")
    by_id = event.get("external_customer_id") is None and customer_id is not None
    branch = "EventCreateCustomer" if by_id else "EventCreateExternalCustomer"
    for error in errors:
        kind, loc = error["type"], error["loc"]
        if loc and loc[0] != branch:
            continue
        return _refusal(kind, tuple(loc[1:]), error["msg"])
    first = errors[0]
    return _refusal(first["type"], tuple(first["loc"][1:]), first["msg"])


def _refusal(kind: str, loc: tuple[str | int, ...], msg: str) -> Refusal:
    """Translate one of the server's errors into our stable words."""
    plain_value = len(loc) == 3 and loc[0] == "metadata" and loc[2] in _METADATA_BRANCHES
    if plain_value:
        loc = loc[:2]
    if kind == "string_unicode":
        return Refusal("invalid_characters", loc, _HALF)
    if plain_value:
        kind = "metadata_value"
    elif loc[:1] == ("timestamp",):
        if _PAST in msg:
            kind = "timestamp_in_future"
        elif kind.startswith(_TIMESTAMP_TYPES):
            kind = "timestamp_invalid"
    if kind == "value_error" and "invalid characters" in msg:
        kind = "invalid_characters"
    return Refusal(kind, loc, _MESSAGES.get(kind, msg))
