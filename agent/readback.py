"""Reading events back: the questions, and what the answers mean: a value, or an error that says what to do.

No I/O: `agent.polar` sends the questions, or the daemon does. Nothing of an answer's `input`
is repeated in an error, since that is the customer's data.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote, urlencode

from agent.answer import Answer, NoAnswer, Outcome
from agent.errors import AgentError
from agent.listing import MAX_LIMIT, Event, EventFilter, EventName, Item, NameFilter, Page, pages
from agent.redact import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_MOST_DETAILS = 5
_MOST_WORDS = 300
_NO_ANSWER = {502: "BadGateway", 504: "GatewayTimeout"}
_EVENT_HINTS = {
    404: "an event can be read some seconds after it was delivered: try again; "
    "with the id of an event of another organization, this is the answer too",
    422: "give Polar's own id, a UUID, as `agent events list` shows it; an external_id cannot be looked up",
}


class PolarError(AgentError):
    """Polar, or the way to it, did not give what was asked for."""


class UnreachableError(PolarError):
    """No complete answer came."""


class UnauthorizedError(PolarError):
    """Polar does not know the token."""


class ForbiddenError(PolarError):
    """The token lacks a scope."""


class NotFoundError(PolarError):
    """There is no such event, or not yet."""


class InvalidRequestError(PolarError):
    """Polar refused the question: a filter is wrong."""

    exit_code = 2


class RateLimitedError(PolarError):
    """Too many requests a minute.

    Attributes:
        seconds: how long Polar asks to wait; None if it did not say.
    """

    def __init__(
        self, operation: str, subject: str, reason: str, hint: str = "", *, seconds: float | None = None
    ) -> None:
        super().__init__(operation, subject, reason, hint)
        self.seconds = seconds


class UnexpectedAnswerError(PolarError):
    """The answer is none that Polar's API has: a proxy's page, an outage, another server."""


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked, for the words of an error.

    Attributes:
        operation: what is being done: ``"read the event"``.
        subject: which one, or from which server.
        hints: what to do, by the answer's status, where that differs from the usual.
    """

    operation: str
    subject: str
    hints: Mapping[int, str] = field(default_factory=dict)


class Reader:
    """Asks for events, whatever the way to Polar.

    Args:
        ask: sends a path with its query, printable ASCII; returns what came back, never raises for it.
        server: the server's address, for the words of errors.
    """

    def __init__(self, ask: Callable[[str], Outcome], server: str) -> None:
        self._ask = ask
        self._server = server

    def get_event(self, event_id: str) -> Event:
        """Return the event with an id of Polar's.

        Raises:
            NotFoundError: there is none, or it cannot be read yet.
            PolarError: another of its kinds.
        """
        # Without `safe`, a slash in a wrong id would make another path of it.
        outcome = self._ask(f"/v1/events/{quote(event_id, safe='')}")
        return one_event(Question("read the event", event_id, _EVENT_HINTS), outcome)

    def list_events(
        self, where: EventFilter | None = None, *, page: int = 1, limit: int = MAX_LIMIT
    ) -> Page[Event]:
        """Return one page of events, newest first if the filter does not say otherwise; raises PolarError."""
        outcome = self._get_page("/v1/events/", (where or EventFilter()).parameters(), page, limit)
        return one_page(Question("list events", self._server), outcome, Event)

    def iter_events(
        self, where: EventFilter | None = None, *, page: int = 1, limit: int = MAX_LIMIT
    ) -> Iterator[Event]:
        """Yield the events of all pages from `page` on; raises PolarError."""
        for found in pages(lambda number: self.list_events(where, page=number, limit=limit), page):
            yield from found.items

    def list_names(
        self, where: NameFilter | None = None, *, page: int = 1, limit: int = MAX_LIMIT
    ) -> Page[EventName]:
        """Return one page of the names that events have; raises PolarError."""
        outcome = self._get_page("/v1/events/names", (where or NameFilter()).parameters(), page, limit)
        return one_page(Question("list event names", self._server), outcome, EventName)

    def iter_names(
        self, where: NameFilter | None = None, *, page: int = 1, limit: int = MAX_LIMIT
    ) -> Iterator[EventName]:
        """Yield the names of all pages from `page` on; raises PolarError."""
        for found in pages(lambda number: self.list_names(where, page=number, limit=limit), page):
            yield from found.items

    def _get_page(self, path: str, parameters: Sequence[tuple[str, str]], page: int, limit: int) -> Outcome:
        query = urlencode([*parameters, ("page", page), ("limit", limit)], errors="replace")
        return self._ask(f"{path}?{query}")


def one_event(question: Question, outcome: Outcome) -> Event:
    """Return the event of an answer, or raise a `PolarError`."""
    return Event(_document(question, outcome))


def one_page(question: Question, outcome: Outcome, make: Callable[[Mapping[str, Any]], Item]) -> Page[Item]:
    """Return the page of an answer, or raise a `PolarError`."""
    document = _document(question, outcome)
    items, pagination = document.get("items"), document.get("pagination")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        _unexpected(question, "the answer has no list of items")
    counts = pagination if isinstance(pagination, dict) else {}
    total, last = counts.get("total_count"), counts.get("max_page")
    if not isinstance(total, int) or not isinstance(last, int):
        _unexpected(question, "the answer does not say how many items there are")
    return Page(tuple(make(item) for item in items), total, last)


def _document(question: Question, outcome: Outcome) -> dict[str, Any]:
    """Return the JSON object of a good answer, or raise what a bad one means."""
    if isinstance(outcome, NoAnswer):
        raise UnreachableError(question.operation, question.subject, outcome.reason, _no_answer_hint(outcome))
    document = _json(outcome.body)
    if outcome.status != 200:
        _refused(question, outcome, document if isinstance(document, dict) else {})
    if not isinstance(document, dict):
        _unexpected(question, f"the answer is no JSON object{_page_title(outcome.body)}")
    return document


def _refused(question: Question, answer: Answer, document: Mapping[str, Any]) -> NoReturn:
    """Raise what an answer other than 200 means."""
    operation, subject, status = question.operation, question.subject, answer.status
    hint = question.hints.get(status, "")
    said = _said(document)
    if status == 401:
        raise UnauthorizedError(
            operation,
            subject,
            f"Polar does not accept the access token (401{said})",
            "check POLAR_ACCESS_TOKEN or access_token_file: the token may be wrong, expired or revoked, "
            "or belong to the other server (a sandbox token needs POLAR_ENVIRONMENT=sandbox)",
        )
    if status == 403:
        raise ForbiddenError(
            operation,
            subject,
            f"the access token may not do this (403{said})",
            "give the token the scope events:read (events:write does as well) in Polar's settings",
        )
    if status == 404 and document.get("error") == "ResourceNotFound":
        raise NotFoundError(operation, subject, "Polar has no such event (404)", hint)
    if status == 422:
        details = _details(document)
        raise InvalidRequestError(
            operation, subject, f"Polar refuses this question (422): {details or 'it does not say why'}", hint
        )
    if status == 429:
        seconds = _retry_after(answer)
        wait = "a minute" if seconds is None else f"{seconds:.0f} s"
        raise RateLimitedError(
            operation,
            subject,
            "too many requests a minute (429)",
            f"wait {wait} and try again; all that calls Polar for your organization shares this limit",
            seconds=seconds,
        )
    if status in _NO_ANSWER and document.get("error") == _NO_ANSWER[status]:
        # The daemon asked in our place, and says why it can tell us nothing.
        reason, said_hint = _short(str(document.get("detail"))), _short(str(document.get("hint", "")))
        raise UnreachableError(operation, subject, reason, said_hint)
    if 300 <= status < 400:
        _unexpected(question, f"the server redirects elsewhere ({status})")
    if status >= 500:
        _unexpected(
            question,
            f"the server has a problem ({status}{said or _page_title(answer.body)})",
            "try again later; https://status.polar.sh tells about outages",
        )
    _unexpected(question, f"the server answers {status}{said or _page_title(answer.body)}")


def _unexpected(question: Question, reason: str, hint: str = "") -> NoReturn:
    usual = "check base_url and POLAR_ENVIRONMENT; if they are right, a proxy on the way may have answered"
    raise UnexpectedAnswerError(question.operation, question.subject, reason, hint or usual)


def _no_answer_hint(outcome: NoAnswer) -> str:
    return {
        "token": "set POLAR_ACCESS_TOKEN, or access_token_file to a file that holds the token",
        "dns": "check the network and the name server of this machine, and base_url",
        "tls": "check base_url and the clock of this machine; SSL_CERT_FILE names the certificates to trust",
        "timeout": "try again; request_timeout says how long to wait",
        "too_large": "ask for fewer at once",
    }.get(outcome.kind, "check the network, base_url and HTTPS_PROXY, and try again")


def _json(body: bytes) -> Any:
    """Return what JSON says; None when it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _said(document: Mapping[str, Any]) -> str:
    """Return the server's own words, in parentheses' style; empty if it said nothing."""
    for key in ("error_description", "detail", "error"):
        value = document.get(key)
        if isinstance(value, str) and value:
            return f": {_short(value)}"
    return ""


def _details(document: Mapping[str, Any]) -> str:
    """Return the findings of a 422, without the input that they repeat."""
    findings = document.get("detail")
    if not isinstance(findings, list):
        return _said(document).removeprefix(": ")
    # One wrong value comes once for each form that the parameter could have had.
    texts: dict[str, None] = {}
    for finding in findings:
        if isinstance(finding, dict):
            where = finding.get("loc")
            place = str(where[1]) if isinstance(where, list) and len(where) > 1 else "the question"
            texts[f"{place}: {_short(str(finding.get('msg', '')))}"] = None
    return "; ".join(list(texts)[:_MOST_DETAILS])


def _page_title(body: bytes) -> str:
    """Return the title of a web page that came instead, as `: "…"`."""
    text = body[:4096].decode("utf-8", "replace")
    start = text.lower().find("<title>")
    if start < 0:
        return ""
    title = text[start + len("<title>") :].partition("<")[0]
    return f': a web page, "{_short(title)}"' if title.strip() else ""


def _short(text: str) -> str:
    """Return words from a server as one short line that is safe to print."""
    line = " ".join(redact(text[:_MOST_WORDS]).split())
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)


def http_date(text: str | None) -> float | None:
    """Return an HTTP date as Unix seconds (RFC 9110, 5.6.7); None if it cannot be read."""
    if text is None:
        return None
    try:
        moment = parsedate_to_datetime(text)
        # HTTP dates are UTC; without this, one that does not say so would be local time.
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _retry_after(answer: Answer) -> float | None:
    """Return the seconds that the server asks to wait: RFC 9110, 10.2.3, seconds or a date."""
    value = (answer.retry_after or "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    moment = http_date(value)
    if moment is None or answer.server_time is None:
        return None
    return max(0.0, moment - answer.server_time)
