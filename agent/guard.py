"""Sees whose token it is before events are sent with it: those of one organization go to no other.

An organization's token does not say whose it is, tokens are replaced, and no call with the
scopes for events names the organization. But each event that is read back does. So the
queue learns its organization from the newest event there, once, when something has been
delivered; and before it sends with a token that is new, it looks whether that one
sees events of the same organization. Events are never deleted: who sees none is another.

A personal token needs none of this: with it, each event names its organization itself. But
events that were taken for an organization's token do not, and Polar would refuse them all; as
it would those that name one, with an organization's token.
"""

from __future__ import annotations

import contextlib
import json
import threading
from typing import TYPE_CHECKING, Protocol

from agent.answer import Answer, NoAnswer, Outcome
from agent.errors import QueueError
from agent.queue.destination import names_organization

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.batch import Body
    from agent.clock import Clock

_NEWEST = "/v1/events/?limit=1"
_PERSONAL = "polar_pat_"
_APPEARS_SECONDS = 5.0  # an event can be read so long after it was stored, at the latest
_ASK_AGAIN_SECONDS = 600.0
_NOT_ABOUT_EVENTS = frozenset({401, 403, 404, 408, 429, 502, 503, 504})


class Polar(Protocol):
    """What is needed of the way to Polar."""

    def ingest(self, body: Body) -> Outcome:
        """Send one batch."""
        ...

    def forward(self, target: str) -> Outcome:
        """Read what is at a path."""
        ...

    def close(self) -> None:
        """End running requests and let go."""
        ...


class Guard:
    """Sends for one queue, and for its organization alone; used by several threads.

    Args:
        polar: the way there.
        known: returns the organization that the queue was filled for; empty while it is not known.
        remember: makes it known; raises QueueError.
        token: returns the token.
        clock: for when to ask.
        checks_personal: this process checks events for a person's token.
    """

    def __init__(
        self,
        polar: Polar,
        *,
        known: Callable[[], str],
        remember: Callable[[str], None],
        token: Callable[[], str | None],
        clock: Clock,
        checks_personal: bool = False,
    ) -> None:
        self._polar = polar
        self._known = known
        self._remember = remember
        self._token = token
        self._clock = clock
        self._checks_personal = checks_personal
        self._lock = threading.Lock()
        self._trusted: str | None = None
        self._ask_from: float | None = None

    def ingest(self, body: Body) -> Outcome:
        """Send one batch, if the token is of the right organization; never raises for what networks do."""
        token = self._token()
        with self._lock:
            obstacle = self._mismatch(token, body) or self._obstacle(token)
        if obstacle is not None:
            return obstacle
        outcome = self._polar.ingest(body)
        if isinstance(outcome, Answer) and outcome.status == 200 and self._lock.acquire(blocking=False):
            try:
                self._learn(token)
            finally:
                self._lock.release()
        return outcome

    def close(self) -> None:
        """End running requests and let go."""
        self._polar.close()

    def _mismatch(self, token: str | None, body: Body) -> NoAnswer | None:
        """Return that events were taken for the other kind of token; None when they were not."""
        personal = bool(token) and str(token).startswith(_PERSONAL)
        if not token or not (personal or self._may_be_personal(body)):
            return None
        named = [names_organization(event) for part in body.parts for event in part.lines()]
        strange = named.count(not personal)
        if not strange:
            return None
        told = f"{strange} of {len(named)} events"
        if personal:
            return NoAnswer(
                "elsewhere", f"the token is a person's, and {told} were taken for an organization's"
            )
        return NoAnswer("personal", f"the token is an organization's, and {told} were taken for a person's")

    def _may_be_personal(self, body: Body) -> bool:
        """Tell whether events may have been taken for a person's token: only these name an organization."""
        ours = body.fresh and not self._checks_personal
        return not ours and body.may_hold(b'"organization_id"')

    def _obstacle(self, token: str | None) -> Outcome | None:
        """Return what keeps events from being sent with a token; None when nothing does."""
        known = self._known()
        if not known or not token or token == self._trusted:
            return None
        if token.startswith(_PERSONAL):
            return NoAnswer(
                "elsewhere", "the token is a person's, and the queue's events are an organization's"
            )
        found = self._ask()
        if not isinstance(found, str):
            return found
        if found != known:
            return NoAnswer(
                "elsewhere", f"the token is not of organization {known}, which the events are for"
            )
        self._trusted = token
        return None

    def _learn(self, token: str | None) -> None:
        """Learn the organization, when the first event that was delivered can be read."""
        now = self._clock.monotonic()
        if self._known() or not token or token.startswith(_PERSONAL):
            return
        if self._ask_from is None:
            self._ask_from = now + _APPEARS_SECONDS
        if now < self._ask_from:
            return
        self._ask_from = now + _ASK_AGAIN_SECONDS
        found = self._ask()
        if isinstance(found, str) and found:
            with contextlib.suppress(QueueError):  # another time, then
                self._remember(found)
                self._trusted = token

    def _ask(self) -> str | Outcome:
        """Return the organization of the newest event, empty when there is none; or what came instead."""
        outcome = self._polar.forward(_NEWEST)
        if isinstance(outcome, NoAnswer) or outcome.status in _NOT_ABOUT_EVENTS:
            return outcome
        with contextlib.suppress(ValueError, TypeError, LookupError, RecursionError):
            items = json.loads(outcome.body)["items"] if outcome.status == 200 else None
            if items == []:
                return ""
            if items is not None:
                return str(items[0]["organization_id"])
        return NoAnswer("broken", f"{outcome.status}: the server does not tell whose token it is")
