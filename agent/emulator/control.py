"""The routes below /_emulator: for tests and scripts, without a token and without faults."""

import json
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response, StreamingResponse

from agent.emulator.answers import from_micros
from agent.emulator.faults import Faults
from agent.emulator.state import Emulator, State

router = APIRouter(prefix="/_emulator")


@router.get("/events")
def stored_events(emulator: State) -> Response:
    """Return all events as NDJSON, in order of storing, as they came.

    Each has `external_id` and `received_at` beside the fields that were sent.
    """
    return StreamingResponse(_lines(emulator), media_type="application/x-ndjson")


@router.put("/faults")
def set_faults(emulator: State, faults: Faults) -> Faults:
    """Put these faults in force, in place of those before."""
    emulator.set_faults(faults)
    return faults


@router.get("/faults")
def get_faults(emulator: State) -> Faults:
    """Return the faults in force."""
    return emulator.dice.faults


@router.delete("/faults")
def clear_faults(emulator: State) -> Faults:
    """Let nothing go wrong on purpose any more."""
    emulator.set_faults(Faults())
    return emulator.dice.faults


@router.get("/stats")
def stats(emulator: State) -> dict[str, Any]:
    """Return what was counted: requests below /v1 since the start, and events stored."""
    counts = emulator.counts
    return {
        "requests": counts.requests,
        "by_status": {str(status): number for status, number in sorted(counts.by_status.items())},
        "broken": counts.broken,
        "events_stored": emulator.store.count(),
        "duplicates": emulator.store.duplicates,
    }


def _lines(emulator: Emulator) -> Iterator[str]:
    for page in emulator.store.sent():
        yield "".join(_line(*event) for event in page)


def _line(external_id: str | None, received_at: int, text: str) -> str:
    # Of equal keys the last counts, so these stand behind what was sent.
    added = json.dumps({"external_id": external_id, "received_at": from_micros(received_at)})
    return f"{text.rstrip().removesuffix('}')},{added[1:]}\n"
