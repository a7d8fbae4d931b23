"""`POST /v1/events/ingest`: Polar's call, answered once the events are durable with us.

All or nothing, as with Polar. The usual body is checked by the same quick check as the
lines of the socket; only when something is wrong does the whole schema come in, and
says it in Polar's words. Where Polar would answer 500 or store what can never be found, we
name the event instead. `duplicates` counts what came lately, on whichever way, or twice in
the request; an event that came with other content is refused, as at the socket. What else
Polar has already, it will say when the events are delivered, and the books will show.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from agent.httpd.message import JSON, Response, as_json, refusal
from agent.meters import REFUSALS_AT_ONCE
from agent.polar_json import event_lines
from agent.refusal import Refusal, external_id_conflict, too_long
from agent.reservation import Reservation
from agent.writer import Append

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.event import Checker
    from agent.httpd.message import Reply, Request
    from agent.meters import Meters
    from agent.seen import Seen
    from agent.writer import Writer

RETRY_SECONDS = 5
_ROOM_SECONDS = 5.0

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
        roomy = writer.wait_for_room(_ROOM_SECONDS)
        reserved = Reservation(self._seen)
        with writer.order:
            checked = self._checker.check(
                [b"".join(line + b"\n" for line in lines)] if lines else [], now, reserved
            )
            if checked.refused:
                return [(number - 1, why) for fate in checked.fates for number, why in fate.refused]
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
        from pydantic import ValidationError  # noqa: PLC0415

        from agent import ingest_body  # noqa: PLC0415
        from agent.schema import BodyError, PoisonError  # noqa: PLC0415

        latest = datetime.fromtimestamp(now + self._checker.future_tolerance, UTC)
        value: Any = None
        try:
            value = ingest_body.parse_body(content_type, body)
            ingest_body.check_body(value, latest)
        except ingest_body.UnreadableError as error:
            if error.error is None:
                return as_json(400, ingest_body.BAD_REQUEST)
            return _unprocessable(error.error, error.detail)
        except ValidationError as error:
            detail = ingest_body.schema_errors(error, value)
            if isinstance(value, dict) and isinstance(value.get("events"), list):
                self._count(detail, ingest_body.event_texts(body, value), now)
            return _unprocessable(ingest_body.SCHEMA_ERROR, detail)
        except BodyError as error:
            detail = [{"type": "json_invalid", "loc": ["body"], "msg": str(error), "input": {}}]
            return _unprocessable(ingest_body.SCHEMA_ERROR, detail)
        except PoisonError:
            pass  # the check of each event says which one it is
        lines = [text.encode("utf-8", "surrogatepass") for text in ingest_body.event_texts(body, value)]
        detail = []
        for index, line in enumerate(lines):
            why = self._why(line, now)
            if why is not None:
                detail.append(_finding(index, why, value))
        if not detail:
            return lines
        self._count(detail, lines, now)
        return _unprocessable(ingest_body.SECOND_STAGE_ERROR, detail)

    def _conflict(self, refused: Sequence[tuple[int, Refusal]], now: float) -> Response:
        """Return what is wrong with events that are fine, each of them alone."""
        from agent import ingest_body  # noqa: PLC0415  # as above

        self._refuse(len(refused), [why for _, why in refused[:REFUSALS_AT_ONCE]], now)
        return _unprocessable(
            ingest_body.SECOND_STAGE_ERROR, [_finding(index, why, None) for index, why in refused]
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


def _usual_lines(content_type: str | None, body: bytes) -> list[bytes] | None:
    """Return the events of a body without a closer look; None when it needs one."""
    if (content_type or "").partition(";")[0].strip().lower() != JSON:
        return None
    try:
        return event_lines(body)
    except ValueError:
        return None


def _finding(index: int, why: Refusal, value: Any) -> dict[str, Any]:
    """Return a refusal of ours in Polar's form."""
    from agent import ingest_body  # noqa: PLC0415  # as above

    if why.loc == ("organization_id",):
        if why.type == "missing":
            return ingest_body.organization_missing(index)
        return ingest_body.organization_given(index, str(value["events"][index].get("organization_id")))
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
