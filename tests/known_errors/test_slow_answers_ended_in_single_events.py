"""Each slow answer halved the batches, whatever made it slow: down to one event in a request.

A server, or a way to it, that takes 50 s for any request was sent 3,400 requests for 5,000 events;
and one slow answer to a batch of three, among quick ones, made the next batch one event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.delivery import Desk, ok

if TYPE_CHECKING:
    from pathlib import Path

    from support.delivery import Request

    from agent.answer import Outcome


def test_answers_that_are_slow_whatever_is_sent_are_no_matter_of_the_size(tmp_path: Path) -> None:
    desk = Desk(tmp_path, max_batch_events=500)
    for first in range(0, 5000, 100):
        desk.put(*range(first, first + 100), filler=400)

    def slow(request: Request) -> Outcome:
        desk.clock.advance(50.0)
        return ok(len(request.names))

    made = desk.run(slow)

    assert len(made) <= 60
    assert desk.pending == []
