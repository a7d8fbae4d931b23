"""What a program is told whose events did not become durable."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from support.clock import NOON

from agent.api.ingest import Ingest
from agent.event import Checker
from agent.httpd.message import Request, Response
from agent.meters import Meters

if TYPE_CHECKING:
    from agent.writer import Append

BODY = json.dumps({"events": [{"name": "usage", "external_customer_id": "c"}]}).encode()


def answer(*, durable: bool) -> Response:
    """Return the answer when the writer made the events durable, or could not."""

    def append(one: Append) -> None:
        assert not one.keep
        one.done(durable)

    writer = SimpleNamespace(full=None, drops=False, wait_for_room=lambda _: True, append=append)
    answers: list[Response] = []
    ingest = Ingest(Checker(), writer, lambda: NOON, lambda: False, Meters())
    ingest(Request("POST", "/", {"content-type": "application/json"}, body=BODY), answers.append)
    (found,) = answers
    return found


@pytest.mark.parametrize(("durable", "status"), [(True, 200), (False, 503)])
def test_only_what_is_durable_is_answered_with_200(durable: bool, status: int) -> None:
    assert answer(durable=durable).status == status


def test_who_is_turned_away_is_told_when_to_come_again() -> None:
    assert int(answer(durable=False).headers["retry-after"]) > 0
