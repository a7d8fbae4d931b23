"""What the flusher's intake does with a chunk that is not what was written."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from support.clock import FakeClock

from agent.chunk import DamagedChunkError, NewerChunkError
from agent.flusher.intake import Intake, Options
from agent.queue import Settlement

if TYPE_CHECKING:
    from collections.abc import Callable


def intake_of(get: Callable[[int], Any], settled: list[Settlement]) -> Intake:
    """Return an intake of a store that gives chunks by `get`."""
    parts: list[Any] = [SimpleNamespace(get=get), SimpleNamespace(settle=settled.extend), SimpleNamespace()]
    options = Options(0.0, 500, 1 << 20, 1, 500, 60.0)
    clock: Any = FakeClock()
    return Intake(*parts, clock=clock, server_clock=parts[2], options=options)


@pytest.mark.parametrize(
    ("error", "settled"),
    [
        (DamagedChunkError("the checksum does not match"), [Settlement(7, None, damaged=True)]),
        (NewerChunkError("chunk version 9"), []),
    ],
    ids=["damaged", "newer"],
)
def test_a_damaged_chunk_is_given_up_and_a_newer_one_left_alone(
    error: Exception, settled: list[Settlement]
) -> None:
    def get(_: int) -> None:
        raise error

    found: list[Settlement] = []

    assert intake_of(get, found).read_chunk(7)

    assert found == settled
