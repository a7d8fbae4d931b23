"""The routes below /_emulator: for tests and scripts, without a token and without faults."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from msgspec import UNSET, UnsetType
from pydantic import ValidationError

from agent.emulator.answers import from_micros
from agent.emulator.faults import Faults
from agent.emulator.state import Emulator, State
from agent.schema import errors_of

router = APIRouter(prefix="/_emulator")


@router.get("/events")
def stored_events(emulator: State) -> Response:
    """Return all events as NDJSON, in order of storing, as they came.

    Each has `external_id` and `received_at` beside the fields that were sent.
    """
    return StreamingResponse(_lines(emulator), media_type="application/x-ndjson")


@router.put("/faults")
async def set_faults(emulator: State, request: Request) -> Faults:
    """Put these faults in force, in place of those before; whatever the content type, the body is JSON."""
    try:
        faults = Faults.model_validate_json(await request.body())
    except ValidationError as error:
        raise RequestValidationError(errors_of(error)) from error
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
    added = {"external_id": external_id, "received_at": from_micros(received_at)}
    if _sent_id(text) == external_id:
        del added["external_id"]
    return f"{text.rstrip().removesuffix('}')},{json.dumps(added)[1:]}\n"


class _Sent(msgspec.Struct):
    external_id: str | UnsetType | None = UNSET


_SENT = msgspec.json.Decoder(_Sent)


def _sent_id(text: str) -> str | UnsetType | None:
    """Return the `external_id` that stands in what was sent, as far as that is easily told."""
    try:
        return _SENT.decode(text).external_id
    except msgspec.DecodeError:
        return UNSET
