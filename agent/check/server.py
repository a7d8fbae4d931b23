"""Polar: can it be reached, does it take the token, what may the token do, what time is it there.

Two requests out of the minute's budget: an ingest without events, which stores nothing and
tells of the scope `events:write`, and a list of one event for `events:read`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.answer import Answer, NoAnswer, Outcome
from agent.check import Finding, failed, ok, warning
from agent.clock import Clock, SystemClock
from agent.errors import AgentError
from agent.polar import ForbiddenError, PolarClient
from agent.server_clock import MOST_LEAD, ServerClock
from agent.token import TokenSource
from agent.units import format_duration
from agent.verdict import Action, judge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.settings import Settings

NO_EVENTS = b'{"events":[]}'
_LONGEST_SECONDS = 15.0
_CLOCK_SECONDS = 2.0
_NO_TOKEN = "none"  # noqa: S105  # any answer to it, a 401, shows that the server is there

_WAYS = {
    "dns": "check the name server of this machine, and base_url",
    "tls": "check the clock of this machine and base_url; SSL_CERT_FILE names the certificates to trust",
    "timeout": "is a firewall in between? HTTPS_PROXY names a proxy",
}


def look(settings: Settings, *, daemon_runs: bool, clock: Clock | None = None) -> Iterator[Finding]:
    """Yield what is to be said of the server and the token.

    Args:
        settings: all of them.
        daemon_runs: a daemon runs, which may have a token that this process has not.
        clock: for tests.
    """
    clock = clock or SystemClock()
    source = TokenSource.from_settings(settings)
    token = source.current()
    timeout = min(settings.request_timeout, _LONGEST_SECONDS)
    with PolarClient(settings.server_url, lambda: token or _NO_TOKEN, timeout=timeout, clock=clock) as client:
        sent_at = clock.monotonic()
        outcome = client.ingest(NO_EVENTS)
        answered_at = clock.monotonic()
        server = explain_server(outcome, settings.server_url)
        yield server
        if token is None:
            yield _without_token(source.problem or "", daemon_runs=daemon_runs)
        elif server.state != "failed":
            yield from explain_token(outcome, where(settings))
            if isinstance(outcome, Answer) and outcome.status == 200:
                yield _read_scope(client)
    if isinstance(outcome, Answer) and outcome.server_time is not None:
        server_clock = ServerClock(clock)
        server_clock.learn(outcome.server_time, sent_at, answered_at)
        yield explain_clock(server_clock.offset, settings.future_tolerance)


def where(settings: Settings) -> str:
    """Return where the token is, for people."""
    if settings.access_token_file is not None:
        return str(settings.access_token_file)
    return settings.sources.get("access_token", "access_token")


def explain_server(outcome: Outcome, url: str) -> Finding:
    """Say whether it is Polar that answers."""
    name = "server"
    if isinstance(outcome, NoAnswer):
        mend = _WAYS.get(outcome.kind, "check the network, base_url and HTTPS_PROXY")
        return failed(name, url, f"no answer: {outcome.reason}", mend)
    verdict = judge(outcome, 0)
    if verdict.action is Action.SETTLE or outcome.status in {401, 403}:
        return ok(name, url, "answers")
    if verdict.action is Action.THROTTLE:
        mend = "wait a minute; lower requests_per_minute if your own calls need the budget"
        return warning(name, url, verdict.reason, mend)
    if verdict.action is Action.RETRY and outcome.status != 200:
        return failed(
            name, url, verdict.reason, "try again later; https://status.polar.sh tells about outages"
        )
    mend = verdict.hint or "check base_url and environment: this does not look like Polar's events API"
    return failed(name, url, verdict.reason, mend)


def explain_token(outcome: Outcome, place: str) -> Iterator[Finding]:
    """Say what an ingest without events shows of the token, and of the scope `events:write`."""
    if not isinstance(outcome, Answer):
        return
    if outcome.status == 401:
        mend = (
            "put a valid token there: this one may be expired, revoked or of the other server "
            "(a sandbox token needs POLAR_ENVIRONMENT=sandbox)"
        )
        yield failed("token", place, "the server does not accept it", mend)
    elif outcome.status == 403:
        yield ok("token", place, "the server knows it")
        mend = "give the token the scope events:write in Polar's settings, or make a new token"
        yield failed("scope events:write", place, "the token may not write events", mend)
    elif outcome.status == 200:
        yield ok("token", place, "the server accepts it")
        yield ok("scope events:write", place, "the token may write events")


def explain_clock(offset: float, tolerance: float) -> Finding:
    """Say how far the server's clock is ahead of this machine's.

    Args:
        offset: the least that it can be, seconds: the server tells whole seconds.
        tolerance: the setting `future_tolerance`.
    """
    name = "clock"
    if abs(offset) < _CLOCK_SECONDS:
        return ok(name, "this machine", "agrees with the server's")
    words = (
        f"is {format_duration(round(abs(offset), 1))} {'behind' if offset > 0 else 'ahead of'} the server's"
    )
    mend = "synchronize it, with chrony or systemd-timesyncd for instance"
    if -offset > tolerance + MOST_LEAD:
        message = f"{words}: timestamps that programs set are refused (future_tolerance)"
        return failed(name, "this machine", message, mend)
    meaning = "are held for as long" if -offset > tolerance else "are wrong"
    return warning(name, "this machine", f"{words}: the timestamps that programs set {meaning}", mend)


def _read_scope(client: PolarClient) -> Finding:
    """Try to read."""
    name = "scope events:read"
    try:
        client.list_events(limit=1)
    except ForbiddenError as error:
        return warning(
            name, "token", "the token may not read events: `agent events` does not work", error.hint
        )
    except AgentError as error:
        return failed(name, "token", error.reason, error.hint)
    return ok(name, "token", "the token may read events")


def _without_token(problem: str, *, daemon_runs: bool) -> Finding:
    message, _, mend = problem.partition("; ")
    if daemon_runs:
        mend = "the daemon may have one of its own, such as a systemd credential: see `agent status`"
        return warning("token", "this command's", message, mend)
    return failed("token", "access_token", message, mend or "set POLAR_ACCESS_TOKEN")
