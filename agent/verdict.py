"""What an answer of Polar means. Pure: one table, tested row by row.

Nothing is ever dropped on a status code. An answer settles events, names bad ones,
asks for time, or says that something other than the events is wrong.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeGuard

from agent.answer import Answer, NoAnswer, Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_REASON = 200
_PAST = "Timestamp must be in the past"


class Action(Enum):
    """What the flusher does with a batch."""

    SETTLE = "settle"
    """All of it is at Polar."""
    RESEND = "resend"
    """200, but the sums differ: send once more, it is idempotent."""
    SIFT = "sift"
    """Some events are named: bury or hold these, send the rest again."""
    SPLIT = "split"
    """Something in it is bad, and not named: halve it."""
    RETRY = "retry"
    """The server or the way to it is in trouble: the same again, later."""
    THROTTLE = "throttle"
    """Too many requests: the same again, later, and fewer from now on."""
    HOLD = "hold"
    """Nothing is wrong with the events: keep all, tell the operator, look now and then."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What the server says of one event.

    Attributes:
        reason: one line for people.
        errors: type, location and message, without the server's echo of the data.
        future: it is only too early for this event.
    """

    reason: str
    errors: list[dict[str, object]]
    future: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """The meaning of one answer.

    Attributes:
        action: what to do.
        reason: what happened, for people; empty when all is well.
        hint: what an operator should do about it, and what happens by itself; empty when all is well.
        delivered: events that the server stored.
        duplicates: events that it had already.
        faults: the named events, by their place in the batch.
        suspect: the trouble may come from the batch itself: if it repeats while others pass, split.
        status: the HTTP status; 0 when no answer came.
    """

    action: Action
    reason: str = ""
    hint: str = ""
    delivered: int = 0
    duplicates: int = 0
    faults: Mapping[int, Fault] = field(default_factory=dict)
    suspect: bool = False
    status: int = 0


@dataclass(frozen=True, slots=True)
class _Row:
    action: Action
    reason: str
    hint: str = ""
    suspect: bool = False


_TOKEN_HINT = (
    "check POLAR_ACCESS_TOKEN or the file that access_token_file names, and that the token belongs to this "  # noqa: S105
    "environment (production or sandbox)"
)
_URL_HINT = "check base_url and environment: this does not look like Polar's events API"
_AGAIN = "it is tried again by itself"
_LASTING = f"{_AGAIN}; if it lasts, see Polar's status page"
_SEARCH = "the bad event is looked for; once it is found and others pass, it becomes a dead letter"

TABLE: dict[int, _Row] = {
    400: _Row(Action.SPLIT, "the server could not read the request", _SEARCH),
    401: _Row(Action.HOLD, "the server does not accept the token", _TOKEN_HINT),
    403: _Row(
        Action.HOLD,
        "the token may not write events",
        "give the token the scope events:write, then wait a minute",
    ),
    404: _Row(Action.HOLD, "there is no such address on the server", _URL_HINT),
    405: _Row(Action.HOLD, "the server takes no events at this address", _URL_HINT),
    408: _Row(Action.RETRY, "the server gave up waiting for the request", _AGAIN),
    411: _Row(
        Action.HOLD, "the server asks for a Content-Length", "something between us and Polar removes it"
    ),
    413: _Row(Action.SPLIT, "the request is too large for the server", "it is cut into smaller ones"),
    425: _Row(Action.RETRY, "the server asks for the request again, later", _AGAIN),
    429: _Row(
        Action.THROTTLE,
        "the server's rate limit is used up",
        "it goes on by itself, slower; if it comes often, lower requests_per_minute: others use this limit",
    ),
    500: _Row(Action.RETRY, "the server failed", _LASTING, suspect=True),
    502: _Row(Action.RETRY, "a gateway could not reach the server", _LASTING),
    503: _Row(Action.RETRY, "the server is not available", _LASTING),
    504: _Row(Action.RETRY, "a gateway waited for the server in vain", _LASTING),
}
"""Statuses with one meaning; 200 and 422 are read closer, the rest by their class in `_by_class`."""

_NO_TOKEN = "set POLAR_ACCESS_TOKEN or access_token_file"  # noqa: S105
_STRANGE_TOKENS = {
    "elsewhere": "use a token of that organization until the queue is empty, or choose another queue_dir",
    "personal": "use a personal token until the queue is empty, or choose another queue_dir",
}
_ON_THE_WAY = {
    "connect": f"{_AGAIN}; see whether this machine gets there: network, firewall, proxy, base_url",
    "dns": f"{_AGAIN}; check the name in base_url, and this machine's DNS",
    "tls": f"{_AGAIN}; check this machine's clock and certificates, and what stands between it and Polar",
    "timeout": f"{_AGAIN}, with fewer events; if it lasts, raise request_timeout",
}


def judge(outcome: Outcome, events: int) -> Verdict:
    """Say what an outcome means for a batch.

    Args:
        outcome: what came back.
        events: how many events the batch has.
    """
    if isinstance(outcome, NoAnswer):
        if outcome.kind == "token":
            # What is wrong with a token file comes with what to do, behind a semicolon.
            reason, _, hint = outcome.reason.rpartition("; ")
            return Verdict(Action.HOLD, reason or hint, hint if reason else _NO_TOKEN)
        hint = _STRANGE_TOKENS.get(outcome.kind, "")
        if hint:
            return Verdict(Action.HOLD, outcome.reason, hint)
        return Verdict(Action.RETRY, outcome.reason, _ON_THE_WAY.get(outcome.kind, _AGAIN))
    status = outcome.status
    if status == 200:
        return _ok(outcome, events)
    if status == 422:
        return _invalid(outcome, events)
    row = TABLE.get(status) or _by_class(outcome)
    reason = f"{status}: {row.reason}"
    return Verdict(row.action, reason, row.hint, suspect=row.suspect, status=status)


def _by_class(answer: Answer) -> _Row:
    """Return the meaning of a status that the table does not name."""
    status = answer.status
    if 300 <= status < 400:
        where = f" to {answer.location}" if answer.location else ""
        return _Row(Action.HOLD, f"the server redirects{where}"[:MAX_REASON], _URL_HINT)
    if 400 <= status < 500:
        return _Row(Action.HOLD, "the server refuses the request", _URL_HINT)
    if status >= 500:
        return _Row(Action.RETRY, "the server failed", _LASTING)
    # 1xx or another 2xx is no word about the events: only a 200 with its sums settles.
    return _Row(
        Action.RETRY, "the server answered with a status that says nothing about the events", _URL_HINT
    )


def _ok(answer: Answer, events: int) -> Verdict:
    """Read a 200: the sums must be those of the batch."""
    body = _json(answer.body)
    sums = body if isinstance(body, dict) else {}
    inserted, duplicates = sums.get("inserted"), sums.get("duplicates")
    if not _is_count(inserted) or not _is_count(duplicates):
        # A proxy's welcome page, say: whether Polar saw the batch, the next answer tells.
        return Verdict(Action.RETRY, "200, but the answer is not Polar's", _URL_HINT, status=200)
    if inserted + duplicates != events:
        return Verdict(
            Action.RESEND,
            f"200, but {inserted} inserted and {duplicates} duplicates do not make {events} sent",
            delivered=inserted,
            duplicates=duplicates,
            status=200,
        )
    return Verdict(Action.SETTLE, delivered=inserted, duplicates=duplicates, status=200)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0


def _invalid(answer: Answer, events: int) -> Verdict:
    """Read a 422: it names the bad events, or it is about the request as a whole."""
    body = _json(answer.body)
    detail = body.get("detail") if isinstance(body, dict) else None
    by_event: dict[int, list[Mapping[str, Any]]] = {}
    for error in detail if isinstance(detail, list) else ():
        loc = error.get("loc") if isinstance(error, dict) else None
        if isinstance(loc, list) and len(loc) > 2 and loc[:2] == ["body", "events"] and _is_count(loc[2]):
            by_event.setdefault(loc[2], []).append(error)
    faults = {index: _fault(errors) for index, errors in by_event.items() if index < events}
    if not faults:
        return Verdict(
            Action.SPLIT, "422: the server refuses the batch and names no event", _SEARCH, status=422
        )
    return Verdict(
        Action.SIFT, f"422: the server refuses {len(faults)} of {events}", faults=faults, status=422
    )


def _fault(errors: Sequence[Mapping[str, Any]]) -> Fault:
    """Put together what is said of one event.

    Polar checks an event against both of its kinds and lists what each lacks; the kind
    with the fewest errors is the one that was meant.
    """
    branches: dict[object, list[dict[str, object]]] = {}
    for error in errors:
        loc = list(error["loc"])
        branch = loc[3] if len(loc) > 4 and str(loc[3]).startswith("EventCreate") else None
        path = loc[4:] if branch is not None else loc[3:]
        branches.setdefault(branch, []).append(
            {"type": _text(error.get("type")), "loc": path, "msg": _text(error.get("msg"))}
        )
    meant = min(branches.values(), key=len)
    first = meant[0]
    where = ".".join(str(part) for part in first["loc"]) if isinstance(first["loc"], list) else ""
    reason = f"{where}: {first['msg']}" if where else str(first["msg"])
    future = all(error["loc"] == ["timestamp"] and _PAST in str(error["msg"]) for error in meant)
    return Fault(reason[:MAX_REASON], meant, future)


def _text(value: object) -> str:
    return value[:MAX_REASON] if isinstance(value, str) else ""


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
