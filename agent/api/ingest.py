"""`POST /v1/events/ingest`: Polar's call, answered once the events are durable with us.

All or nothing, as with Polar. The usual body is checked by the same quick check as the
lines of the socket; only when something is wrong does the whole schema come in, and
says it in Polar's words. Where Polar would answer 500 or store what can never be found, we
name the event instead. `duplicates` counts what came lately, on whichever way, or twice in
the request; an event that came with other content is refused, as at the socket. What else
Polar has already, it will say when the events are delivered, and the books will show.
"""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from agent.chunk import MAX_EVENTS
from agent.event import Checked
from agent.httpd.message import JSON, Response, as_json, refusal
from agent.meters import REFUSALS_AT_ONCE
from agent.polar_json import event_lines
from agent.refusal import Refusal, external_id_conflict, too_long
from agent.reservation import Reservation
from agent.shape import Shapes
from agent.writer import Append

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.event import Checker
    from agent.httpd.message import Reply, Request
    from agent.meters import Meters
    from agent.seen import Memory, Seen
    from agent.writer import Writer

RETRY_SECONDS = 5
_ROOM_SECONDS = 5.0
_MOST_FINDINGS = 9_000
"""So many Polar listed for 1,000 bad events. Many times that would take more memory than all else, so
what is wrong beyond is not told."""

CONFLICT = external_id_conflict().type


class Ingest:
    """Takes batches of events over HTTP.

    Args:
        checker: as for the socket.
        seen: what came lately, on whichever way.
        writer: where accepted events go.
        server_now: Unix time in seconds by the server's clock.
        stopping: tells whether the agent is about to stop.
        meters: where refusals are noted.
    """

    def __init__(
        self,
        checker: Checker,
        seen: Seen,
        writer: Writer,
        server_now: Callable[[], float],
        *,
        stopping: Callable[[], bool],
        meters: Meters,
    ) -> None:
        self._checker = checker
        self._seen = seen
        self._writer = writer
        self._server_now = server_now
        self._stopping = stopping
        self._meters = meters
        self._own = threading.local()

    def __call__(self, request: Request, reply: Reply) -> None:
        """Answer one request; the answer comes from the writer's thread when all is well."""
        content_type = request.headers.get("content-type")
        now = self._server_now()
        lines = _usual_lines(content_type, request.body)
        if lines is not None and all(len(line) <= self._checker.max_line_bytes for line in lines):
            refused = self._take(lines, now, reply)
            if not refused:
                return
            if all(why.type == CONFLICT for _, why in refused):
                reply(self._conflict(refused, now))
                return
        found = self._read_closely(content_type, request.body, now)
        if isinstance(found, Response):
            reply(found)
            return
        refused = self._take(found, now, reply)
        if refused:
            reply(self._conflict(refused, now))

    def _take(self, lines: Sequence[bytes], now: float, reply: Reply) -> list[tuple[int, Refusal]]:
        """Hand events to the writer, if all are fine and it can take them now.

        Return the refused ones by their index: then nothing was done. If none is, the request is answered,
        or will be.
        """
        writer = self._writer
        reserved = Reservation(self._seen, writer.order)
        checked = self._check(lines, now, reserved)
        if checked.refused:
            return _refused(checked)
        roomy = writer.wait_for_room(_ROOM_SECONDS)
        with writer.order:
            if not reserved.stands():
                # It is checked once more, and others wait this time.
                reserved = Reservation(self._seen)
                checked = self._check(lines, now, reserved)
                if checked.refused:
                    return _refused(checked)
            count = checked.accepted + checked.repeated
            answer = as_json(200, {"inserted": checked.accepted, "duplicates": checked.repeated})
            hindered = self._hindrance(roomy=roomy)
            if count and hindered is None:

                def done(durable: bool) -> None:
                    if durable and reserved:
                        with writer.order:
                            reserved.keep()
                    reply(answer if durable else _later(writer.full or "the agent is stopping"))

                self._write(
                    Append(
                        checked.groups,
                        checked.held,
                        refused=0,
                        dropped=0,
                        done=done,
                        repeated=checked.repeated,
                        keep=False,
                    )
                )
                return []
        if not count or hindered is None:
            reply(answer)
            return []
        if writer.full and writer.drops and not self._stopping():
            self._write(Append([], [], refused=0, dropped=count, done=lambda _: None))
        reply(_later(hindered))
        return []

    def _check(self, lines: Sequence[bytes], now: float, memory: Memory) -> Checked:
        """Check events a few at a time, so that no other thread waits for all of them; each has a fate."""
        checker = getattr(self._own, "checker", None)
        if checker is None:
            # What a checker has learned is one thread's own.
            checker = self._own.checker = replace(self._checker, shapes=Shapes())
        checked = Checked([], [], [])
        for start in range(0, len(lines), MAX_EVENTS):
            part = checker.check([line + b"\n" for line in lines[start : start + MAX_EVENTS]], now, memory)
            checked.groups += part.groups
            checked.held += part.held
            checked.fates += part.fates
            checked.repeated += part.repeated
        return checked

    def _hindrance(self, *, roomy: bool) -> str | None:
        """Return why nothing can be taken now; None when it can."""
        if self._stopping():
            return "the agent is stopping"
        if self._writer.full:
            return self._writer.full
        return None if roomy else "the disk does not keep up"

    def _write(self, append: Append) -> None:
        append.source = "api"
        self._writer.append(append)

    # -- what is wrong -----------------------------------------------------------------------

    def _read_closely(self, content_type: str | None, body: bytes, now: float) -> Response | list[bytes]:
        """Read a body as Polar does; return what is wrong with it, or its events, each of them fine alone."""
        # Built on first use: the usual body never comes here, and the daemon stays small.
        from agent import ingest_body  # noqa: PLC0415
        from agent.schema import BodyError  # noqa: PLC0415

        try:
            detail = self._schema_findings(content_type, body, now)
        except ingest_body.UnreadableError as error:
            if error.error is None:
                return as_json(400, ingest_body.BAD_REQUEST)
            return _unprocessable(error.error, error.detail)
        except BodyError as error:
            detail = [{"type": "json_invalid", "loc": ["body"], "msg": str(error), "input": {}}]
        if detail:
            if any(len(entry["loc"]) > 2 for entry in detail):
                self._count(detail, ingest_body.event_texts(body), now)
            return _unprocessable(ingest_body.SCHEMA_ERROR, detail)
        lines = [text.encode("utf-8", "surrogatepass") for text in ingest_body.event_texts(body)]
        reasons = ((index, self._why(line, now)) for index, line in enumerate(lines))
        found = (_finding(index, why, lines[index]) for index, why in reasons if why is not None)
        detail = list(islice(found, _MOST_FINDINGS))
        if not detail:
            return lines
        self._count(detail, lines, now)
        return _unprocessable(ingest_body.SECOND_STAGE_ERROR, detail)

    def _schema_findings(self, content_type: str | None, body: bytes, now: float) -> list[dict[str, Any]]:
        """Return what the schema finds; nothing when Polar would fail before it has found all."""
        from pydantic import ValidationError  # noqa: PLC0415  # as above

        from agent import ingest_body  # noqa: PLC0415
        from agent.schema import PoisonError  # noqa: PLC0415

        latest = self._checker.latest(now)
        detail: list[dict[str, Any]] = []
        for start, part in ingest_body.parse_parts(content_type, body):
            try:
                ingest_body.check_body(part, latest)
            except ValidationError as error:
                detail += ingest_body.schema_errors(error, part, start)
            except PoisonError:
                return []  # the check of each event says which one it is
            if len(detail) >= _MOST_FINDINGS:
                break
        return detail

    def _conflict(self, refused: Sequence[tuple[int, Refusal]], now: float) -> Response:
        """Return what is wrong with events that are fine, each of them alone."""
        from agent import ingest_body  # noqa: PLC0415  # as above

        self._refuse(len(refused), [why for _, why in refused[:REFUSALS_AT_ONCE]], now)
        return _unprocessable(
            ingest_body.SECOND_STAGE_ERROR,
            [_finding(index, why, b"") for index, why in refused[:_MOST_FINDINGS]],
        )

    def _why(self, line: bytes, now: float) -> Refusal | None:
        """Return why one line is refused; None when it is not."""
        if len(line) > self._checker.max_line_bytes:
            return too_long(self._checker.max_line_bytes)
        refused = self._checker.check([line + b"\n"], now).fates[0].refused
        return refused[0][1] if refused else None

    def _count(self, detail: list[dict[str, Any]], lines: Sequence[str | bytes], now: float) -> None:
        """Have refused events counted, and some noted in the words of the socket; nobody waits for that."""
        places = [entry["loc"][2] for entry in detail if len(entry["loc"]) > 2]
        indexes = list(dict.fromkeys(place for place in places if type(place) is int))
        if not indexes:
            return
        some = [lines[index] for index in indexes[:REFUSALS_AT_ONCE]]
        reasons = [
            self._why(line if isinstance(line, bytes) else line.encode("utf-8", "surrogatepass"), now)
            for line in some
        ]
        self._refuse(len(indexes), [why for why in reasons if why is not None], now)

    def _refuse(self, count: int, reasons: Sequence[Refusal], now: float) -> None:
        self._meters.refuse("api", reasons, now)
        self._write(Append([], [], refused=count, dropped=0, done=lambda _: None, patient=True))


def _refused(checked: Checked) -> list[tuple[int, Refusal]]:
    """Return the refused events of a check in which each had a fate, by their index."""
    return [(index, fate.refused[0][1]) for index, fate in enumerate(checked.fates) if fate.refused]


def _usual_lines(content_type: str | None, body: bytes) -> list[bytes] | None:
    """Return the events of a body without a closer look; None when it needs one."""
    if (content_type or "").partition(";")[0].strip().lower() != JSON:
        return None
    try:
        return event_lines(body)
    except ValueError:
        return None


def _finding(index: int, why: Refusal, line: bytes) -> dict[str, Any]:
    """Return a refusal of ours in Polar's form."""
    from agent import ingest_body  # noqa: PLC0415  # as above

    if why.loc == ("organization_id",):
        if why.type == "missing":
            return ingest_body.organization_missing(index)
        return ingest_body.organization_given(index, str(json.loads(line).get("organization_id")))
    return ingest_body.event_error(why.type, index, why.loc, why.msg, None)


def _unprocessable(error: str, detail: list[dict[str, Any]]) -> Response:
    """Return 422 with findings."""
    from agent import ingest_body  # noqa: PLC0415  # as above

    try:
        body = ingest_body.error_json(error, detail)
    except (ValueError, RecursionError):
        # Input that is no JSON cannot be repeated; Polar fails here.
        bare = [{**entry, "input": None, "ctx": {}} for entry in detail]
        body = ingest_body.error_json(error, bare)
    return Response(422, body, JSON)


def _later(reason: str) -> Response:
    """Return the answer to events that were not taken."""
    headers = {"retry-after": str(RETRY_SECONDS)}
    return refusal(503, "QueueFull", f"nothing was taken: {reason}", "send it again later", headers)
