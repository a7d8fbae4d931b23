"""Events of one organization are sent with no other one's token."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field

import pytest
from support.clock import FakeClock

from agent.answer import Answer, NoAnswer, Outcome
from agent.batch import Body, Lease
from agent.chunk import Chunk
from agent.errors import QueueError
from agent.guard import Guard
from agent.verdict import Action, judge

OURS, OTHERS = "0a1b2c3d-0000-4000-8000-000000000001", "0a1b2c3d-0000-4000-8000-000000000002"
STORED = Answer(200, b'{"inserted":1,"duplicates":0}')


def page(*organizations: str) -> Answer:
    items = [{"id": "x", "organization_id": organization} for organization in organizations]
    return Answer(200, json.dumps({"items": items, "pagination": {}}).encode())


@dataclass
class Scene:
    """A queue, a token, and a server of which each token sees one page of events."""

    pages: dict[str, Outcome]
    known: str = ""
    token: str | None = "polar_oat_old"
    sent: list[str | None] = field(default_factory=list)
    asked: int = 0
    refuses: bool = False
    fresh: bool = False
    checks_personal: bool = False
    answer: Outcome = STORED
    clock: FakeClock = field(default_factory=FakeClock)

    def __post_init__(self) -> None:
        self.guard = Guard(
            self,
            known=lambda: self.known,
            remember=self.remember,
            token=lambda: self.token,
            clock=self.clock,
            checks_personal=self.checks_personal,
        )

    def ingest(self, body: Body) -> Outcome:
        del body
        self.sent.append(self.token)
        return self.answer

    def forward(self, target: str) -> Outcome:
        assert target == "/v1/events/?limit=1"
        self.asked += 1
        return self.pages[self.token or ""]

    def close(self) -> None:
        pass

    def remember(self, organization: str) -> None:
        if self.refuses:
            raise QueueError("change the queue", "daemon", "it is stopping")
        self.known = organization

    def send(self, seconds: float = 0.0, *events: str) -> Outcome:
        self.clock.advance(seconds)
        return self.guard.ingest(self.body(*events))

    def body(self, *events: str) -> Body:
        lease = Lease(1, Chunk("\n".join(events).encode(), len(events)), fresh=self.fresh)
        return Body([lease.part()] if events else [], 0)


def test_the_organization_is_learned_once_from_what_was_delivered_when_it_can_be_read() -> None:
    scene = Scene({"polar_oat_old": page(OURS)})

    assert scene.send() == STORED
    assert scene.asked == 0
    assert scene.send(5.0) == STORED

    assert scene.known == OURS
    scene.send(1000.0)
    assert scene.asked == 1


@pytest.mark.parametrize(
    "answer",
    [
        page(),
        Answer(500),
        NoAnswer("timeout", "…"),
        *(
            Answer(200, body)
            for body in (b"<html>", b"{}", b"5", b'{"items":[{}]}', b'{"items":5}', b"[" * 100_000)
        ),
    ],
    ids=lambda answer: str(answer)[:40],
)
def test_what_cannot_be_learned_now_is_asked_for_again_and_keeps_nothing_back(answer: Outcome) -> None:
    scene = Scene({"polar_oat_old": answer})
    scene.send()

    assert [scene.send(60.0) for _ in range(10)] == [STORED] * 10

    assert scene.known == ""
    assert scene.asked == 1
    scene.pages["polar_oat_old"] = page(OURS)
    scene.send(600.0)
    assert scene.known == OURS


def test_nothing_is_learned_from_events_that_were_refused() -> None:
    """They may be another organization's, and this the wrong token."""
    scene = Scene({"polar_oat_old": page(OTHERS)}, answer=Answer(422))

    for _ in range(3):
        scene.send(60.0)

    assert (scene.known, scene.asked) == ("", 0)


def test_what_the_queue_does_not_take_is_learned_another_time() -> None:
    scene = Scene({"polar_oat_old": page(OURS)}, refuses=True)
    scene.send()

    assert scene.send(5.0) == STORED

    assert scene.known == ""


def test_a_new_token_of_the_same_organization_is_asked_about_once() -> None:
    scene = Scene({"polar_oat_new": page(OURS)}, known=OURS, token="polar_oat_new")

    assert [scene.send() for _ in range(3)] == [STORED] * 3

    assert scene.asked == 1


@pytest.mark.parametrize("seen", [page(OTHERS), page()], ids=["others' events", "no events"])
def test_a_token_of_another_organization_sends_nothing_and_holds_everything(seen: Answer) -> None:
    scene = Scene({"polar_oat_new": seen, "polar_oat_old": page(OURS)}, known=OURS, token="polar_oat_new")

    verdict = judge(scene.send(), 1)

    assert scene.sent == []
    assert verdict.action is Action.HOLD
    assert OURS in verdict.reason
    assert "use a token of that organization" in verdict.hint
    scene.token = "polar_oat_old"
    assert scene.send() == STORED


def test_a_personal_token_sends_no_events_of_an_organizations_token() -> None:
    scene = Scene({}, known=OURS, token="polar_pat_x")

    assert judge(scene.send(), 1).action is Action.HOLD

    assert scene.sent == []


def test_a_personal_token_is_asked_nothing_about() -> None:
    scene = Scene({}, token="polar_pat_x")

    assert [scene.send(10.0) for _ in range(3)] == [STORED] * 3

    assert scene.asked == 0


@pytest.mark.parametrize(
    ("answer", "action"),
    [
        (Answer(401), Action.HOLD),
        (Answer(429), Action.THROTTLE),
        (Answer(503), Action.RETRY),
        (Answer(500), Action.RETRY),
        (Answer(422), Action.RETRY),
        (NoAnswer("connect", "…"), Action.RETRY),
        (Answer(200, b"<html>"), Action.RETRY),
    ],
    ids=lambda value: str(getattr(value, "status", value)),
)
def test_while_it_is_not_known_whose_token_it_is_nothing_is_sent_and_no_event_is_blamed(
    answer: Outcome, action: Action
) -> None:
    scene = Scene({"polar_oat_new": answer}, known=OURS, token="polar_oat_new")

    verdict = judge(scene.send(), 1)

    assert scene.sent == []
    assert verdict.action is action
    assert not verdict.suspect


TAKEN_FOR_AN_ORGANIZATION = '{"name":"u","metadata":{"organization_id":"x"}}'
TAKEN_FOR_A_PERSON = '{"name":"u","organization_id":"0a1b2c3d-0000-4000-8000-000000000001"}'


@pytest.mark.parametrize("fresh", [False, True], ids=["from before", "taken by this process"])
@pytest.mark.parametrize(
    ("token", "strange", "fitting", "hint"),
    [
        ("polar_oat_x", TAKEN_FOR_A_PERSON, TAKEN_FOR_AN_ORGANIZATION, "use a personal token"),
        ("polar_pat_x", TAKEN_FOR_AN_ORGANIZATION, TAKEN_FOR_A_PERSON, "use a token of that organization"),
    ],
)
def test_events_that_were_taken_for_the_other_kind_of_token_are_held_and_not_refused_for_good(
    token: str, strange: str, fitting: str, hint: str, fresh: bool
) -> None:
    scene = Scene({}, token=token, fresh=fresh, checks_personal=token == "polar_oat_x")

    verdict = judge(scene.send(0.0, fitting, strange), 2)

    assert scene.sent == []
    assert verdict.action is Action.HOLD
    assert "1 of 2 events were taken for" in verdict.reason
    assert hint in verdict.hint
    assert scene.send(0.0, fitting) == STORED


@pytest.mark.parametrize("event", ['"organization_id"', '{"organization_id', "[" * 2_000])
def test_what_is_no_event_at_all_is_left_to_the_server(event: str) -> None:
    scene = Scene({}, token="polar_pat_x")

    assert scene.send(0.0, event) == STORED


def test_while_one_thread_asks_whose_token_it_is_the_others_wait_for_what_it_learns() -> None:
    """Each question is a request of the same budget."""
    scene = Scene({"polar_oat_new": page(OURS)}, known=OURS, token="polar_oat_new")
    asking, answered, forward = threading.Event(), threading.Event(), scene.forward

    def slow(target: str) -> Outcome:
        asking.set()
        assert answered.wait(20)
        return forward(target)

    scene.forward = slow
    threads = [threading.Thread(target=scene.send) for _ in range(2)]
    threads[0].start()
    assert asking.wait(20)
    threads[1].start()
    threads[1].join(0.3)

    answered.set()

    for thread in threads:
        thread.join()
    assert (scene.asked, len(scene.sent)) == (1, 2)
