"""`GET /v1/events/…`: Polar's calls for reading, passed on with the agent's token.

The question and the answer go through as they are. Each takes a place in the agent's own
rate budget; when that has none within some seconds, the answer is Polar's for that case.
What is wrong with the agent's own token is no fault of the caller's, so it is a 502.

A command of ours says which server and whose token it would use itself (`agent.asking`): it
must not be told what another one has, so that is a 421, and it goes its own way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.answer import Answer, NoAnswer
from agent.asking import MARK_HEADER
from agent.httpd.message import JSON, Response, refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.answer import Outcome
    from agent.httpd.message import Reply, Request

_PLACE_SECONDS = 10.0
_RETRY_SECONDS = 10
_ABOUT_THE_TOKEN = (401, 403)


class ReadBack:
    """Passes questions on.

    Args:
        ask: sends a path with its query to Polar, under a version of its API or the usual one.
        place: waits for a place in the rate budget, so many seconds; False when there is none.
        own: returns the mark of this agent's server and token.
    """

    def __init__(
        self,
        ask: Callable[[str, str | None], Outcome],
        place: Callable[[float], bool],
        own: Callable[[], str],
    ) -> None:
        self._ask = ask
        self._place = place
        self._own = own

    def __call__(self, request: Request, reply: Reply) -> None:
        """Answer one request."""
        if request.headers.get(MARK_HEADER, own := self._own()) != own:
            reply(refusal(421, "MisdirectedRequest", "this agent uses another server or access token"))
            return
        if not self._place(_PLACE_SECONDS):
            detail = "the agent's share of Polar's rate limit is used up"
            reply(refusal(429, "TooManyRequests", detail, headers={"retry-after": str(_RETRY_SECONDS)}))
            return
        outcome = self._ask(request.target, request.headers.get("polar-version"))
        reply(_passed_on(outcome))


def _passed_on(outcome: Outcome) -> Response:
    """Return an answer of Polar's as ours."""
    if isinstance(outcome, NoAnswer):
        status, error = (504, "GatewayTimeout") if outcome.kind == "timeout" else (502, "BadGateway")
        return refusal(status, error, f"no answer from Polar: {outcome.reason}", "see `agent status`")
    assert isinstance(outcome, Answer)  # noqa: S101  # there is no third
    if outcome.status in _ABOUT_THE_TOKEN:
        detail = f"Polar does not accept the agent's own access token for this ({outcome.status})"
        return refusal(502, "BadGateway", detail, "give it a valid one with the scope events:read")
    if 300 <= outcome.status < 400:
        return refusal(502, "BadGateway", f"the server redirects elsewhere ({outcome.status})")
    headers = {} if outcome.retry_after is None else {"retry-after": outcome.retry_after}
    kind = outcome.content_type or (JSON if outcome.body else None)
    return Response(outcome.status, outcome.body, kind, headers)
