"""The check takes what the server's parser takes, which is more than JSON, beside the members that count.

Who saw to it that events go out with the kind of token that they were taken for read JSON alone. So
of a person's token an agent did not start on such an event, and with a token that had become an
organization's it sent it, and all that was in the batch with it, to be refused for good.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.clock import NOON, FakeClock

from agent.answer import Answer, NoAnswer
from agent.batch import Body, Lease
from agent.chunk import Chunk
from agent.errors import UsageError
from agent.event import Checker
from agent.guard import Guard
from agent.queue.destination import refuse_other_token

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = b'{"name":"u","external_customer_id":"c"%b%b}'
MORE = [b',"x":NaN', b',"x":"\\ud800"']
ORGANIZATION = b',"organization_id":"0a1b2c3d-0000-4000-8000-000000000001"'


def taken(*lines: bytes, personal: bool) -> Chunk:
    """Return what becomes of lines that an agent takes."""
    checked = Checker(personal_token=personal).check([line + b"\n" for line in lines], NOON)
    assert checked.accepted == len(lines)
    return Chunk(b"\n".join(block for block, _ in checked.groups), len(lines))


@pytest.mark.parametrize("more", MORE)
def test_an_agent_starts_with_the_token_that_an_event_was_taken_for(tmp_path: Path, more: bytes) -> None:
    chunk = taken(PLAIN % (more, ORGANIZATION), personal=True)

    refuse_other_token(tmp_path, chunk, personal=True)

    with pytest.raises(UsageError, match="taken for a personal token"):
        refuse_other_token(tmp_path, chunk, personal=False)


@pytest.mark.parametrize("more", MORE)
@pytest.mark.parametrize("personal", [True, False])
def test_it_does_not_go_out_with_the_other_kind_nor_does_what_came_with_it(
    more: bytes, personal: bool
) -> None:
    named = ORGANIZATION if personal else b""
    chunk = taken(PLAIN % (more, named), PLAIN % (b"", named), personal=personal)
    sent: list[Body] = []

    class Way:
        def ingest(self, body: Body) -> Answer:
            sent.append(body)
            return Answer(422)

        def forward(self, target: str) -> NoAnswer:
            return NoAnswer("connect", target)

        def close(self) -> None:
            pass

    guard = Guard(
        Way(),
        known=lambda: "",
        remember=lambda _: None,
        token=lambda: "polar_oat_x" if personal else "polar_pat_x",
        clock=FakeClock(),
    )

    outcome = guard.ingest(Body([Lease(1, chunk).part()], 0))

    assert isinstance(outcome, NoAnswer)
    assert "2 of 2 events were taken for" in outcome.reason
    assert sent == []
