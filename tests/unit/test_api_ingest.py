"""What a program is told whose events did not become durable."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from support.clock import NOON

from agent.api.ingest import Ingest
from agent.event import Checker
from agent.httpd.message import Request, Response
from agent.meters import Meters
from agent.seen import Seen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent.event import Checked
    from agent.writer import Append

BODY = json.dumps({"events": [{"name": "usage", "external_customer_id": "c"}]}).encode()


def body(*events: tuple[str, int]) -> bytes:
    """Return a body of events with these ids and contents."""
    return json.dumps(
        {
            "events": [
                {"name": "usage", "external_customer_id": "c", "external_id": name, "metadata": {"n": n}}
                for name, n in events
            ]
        }
    ).encode()


def answer(
    data: bytes = BODY,
    *,
    durable: bool = True,
    seen: Seen | None = None,
    order: threading.Lock | None = None,
) -> Response:
    """Return the answer when the writer made the events durable, or could not."""
    order = order or threading.Lock()

    def append(one: Append) -> None:
        appended.append((one, order.locked()))

    appended: list[tuple[Append, bool]] = []
    writer = SimpleNamespace(full=None, drops=False, wait_for_room=lambda _: True, append=append, order=order)
    answers: list[Response] = []
    ingest = Ingest(Checker(), seen or Seen(), writer, lambda: NOON, stopping=lambda: False, meters=Meters())
    ingest(Request("POST", "/", {"content-type": "application/json"}, body=data), answers.append)
    for one, alone in appended:
        assert one.refused or (alone and not one.keep)
        one.done(durable)
    (found,) = answers
    return found


@pytest.mark.parametrize(("durable", "status"), [(True, 200), (False, 503)])
def test_only_what_is_durable_is_answered_with_200(durable: bool, status: int) -> None:
    assert answer(durable=durable).status == status


def test_who_is_turned_away_is_told_when_to_come_again() -> None:
    assert int(answer(durable=False).headers["retry-after"]) > 0


# -- what comes again ----------------------------------------------------------------------


def counts(response: Response) -> tuple[int, int]:
    document = json.loads(response.body)
    return document["inserted"], document["duplicates"]


def test_what_came_before_counts_as_a_duplicate() -> None:
    seen = Seen()

    assert counts(answer(body(("a", 1), ("b", 1), ("a", 1)), seen=seen)) == (2, 1)
    assert counts(answer(body(("b", 1), ("c", 1)), seen=seen)) == (1, 1)


def test_what_could_not_be_kept_is_new_when_it_comes_again() -> None:
    """Else the second attempt would be told that it is a duplicate of what nobody has."""
    seen = Seen()
    answer(body(("a", 1), ("b", 1)), durable=False, seen=seen)

    assert counts(answer(body(("a", 1)), seen=seen)) == (1, 0)
    assert counts(answer(body(("b", 2)), seen=seen)) == (1, 0)


def test_a_conflict_refuses_the_whole_request_and_names_the_event() -> None:
    seen = Seen()
    answer(body(("a", 1)), seen=seen)

    refused = answer(body(("b", 1), ("a", 2)), seen=seen)

    assert refused.status == 422
    document = json.loads(refused.body)
    assert document["error"] == "PolarRequestValidationError"
    (entry,) = document["detail"]
    assert (entry["type"], entry["loc"]) == ("external_id_conflict", ["body", "events", 1, "external_id"])
    assert counts(answer(body(("b", 2)), seen=seen)) == (1, 0)


def test_two_events_under_one_id_in_one_request_are_a_conflict() -> None:
    assert answer(body(("a", 1), ("a", 2))).status == 422


def test_a_conflict_is_found_in_a_body_that_took_a_closer_look() -> None:
    seen = Seen()
    answer(body(("a", 1)), seen=seen)
    customer = '"customer_id": "5b0a9f0e-3d3e-4a36-9e4c-1d1f5f6a7b8c", '
    odd = body(("a", 2)).decode().replace('"name"', customer + '"name"')

    assert answer(odd.encode(), seen=seen).status == 422


# -- large requests ------------------------------------------------------------------------


class Watched(Seen):
    """Has something else happen when it is asked first."""

    meanwhile: Callable[[], None] | None = None

    def first_repeat(self, ids: Iterable[str]) -> int:
        found = super().first_repeat(ids)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile:
            meanwhile()
        return found


def test_others_take_their_turn_while_a_large_request_is_checked() -> None:
    order = threading.Lock()
    free: list[bool] = []
    checks = Checker.check

    def check(*args: Any) -> Checked:
        free.append(not order.locked())
        return checks(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checker, "check", check)
        answer(body(*((str(number), 1) for number in range(2_500))), order=order)

    assert all(free)
    assert len(free) > 1


@pytest.mark.parametrize(("content", "told"), [(1, (1, 1)), (2, None)])
def test_an_event_that_came_on_another_way_during_the_check_is_known(
    content: int, told: tuple[int, int] | None
) -> None:
    seen = Watched()

    def meanwhile() -> None:
        line = body(("a", content)).removeprefix(b'{"events": [').removesuffix(b"]}")
        Checker().check([line + b"\n"], NOON, seen)

    seen.meanwhile = meanwhile
    response = answer(body(("a", 1), ("b", 1)), seen=seen)

    if told is None:
        assert response.status == 422
    else:
        assert counts(response) == told


@pytest.mark.parametrize("bad", ['"name": 5', '"name": "x", "metadata": {"n": NaN}'])
def test_what_is_wrong_with_very_many_events_is_told_for_the_first_thousands(bad: str) -> None:
    """All of it would take a gigabyte for a request of ten megabytes."""
    event = '{"external_customer_id": "c", ' + bad + "}"
    response = answer(('{"events": [' + ",".join([event] * 12_000) + "]}").encode())

    assert response.status == 422
    places = [entry["loc"][2] for entry in json.loads(response.body)["detail"]]
    assert places == sorted(places)
    assert (places[0], 9_000 <= len(places) < 12_000) == (0, True)


def test_what_is_wrong_is_told_by_its_place_in_the_whole_request() -> None:
    events = [b'{"name":"n","external_customer_id":"c"}'] * 1_200
    events[700] = b'{"name":"n"}'
    events[1_100] = b'{"name":5,"external_customer_id":"c"}'
    response = answer(b'{"events":[' + b",".join(events) + b"]}")

    assert {entry["loc"][2] for entry in json.loads(response.body)["detail"]} == {700, 1_100}
