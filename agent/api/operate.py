"""What operators do through the API: flush, and dead letters."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from agent.errors import AgentError
from agent.httpd.message import as_json, refusal

if TYPE_CHECKING:
    from agent.httpd.message import Reply, Request

Action = Callable[[dict[str, str], Any], dict[str, Any]]
"""Takes the query and the body; returns the document to answer with."""


def acting(action: Action) -> Callable[[Request, Reply], None]:
    """Return the handler that answers with the document of an action."""

    def handle(request: Request, reply: Reply) -> None:
        try:
            body = json.loads(request.body) if request.body else None
            query = {name: values[-1] for name, values in parse_qs(request.query).items()}
            reply(as_json(200, action(query, body)))
        except (ValueError, RecursionError) as error:
            reply(refusal(400, "BadRequest", str(error)))
        except AgentError as error:
            reply(refusal(500, "Failed", error.reason, error.hint))

    return handle
