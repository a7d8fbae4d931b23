"""Who may do what on the local API."""

from __future__ import annotations

import base64
from types import SimpleNamespace

import pytest

from agent.api.access import Access, Right
from agent.collector import peers
from agent.collector.peers import AllowList, Door, Peer
from agent.httpd.message import Request

OWNER, MEMBER, STRANGER, ROOT = (Peer(1, uid, frozenset({uid})) for uid in (500, 501, 502, 0))
TOKEN = "0123456789abcdef"
NOBODY_LISTED = AllowList([], [])


def status(access: Access, needed: Right, **parts: object) -> int | None:
    """Return the status of the refusal; None when there is none."""
    headers = {"host": "127.0.0.1:8686", **parts.pop("headers", {})}
    request = Request(parts.pop("method", "GET"), parts.pop("target", "/x"), headers, **parts)
    refused = access.check(request, needed)
    return None if refused is None else refused.status


def rights(access: Access, **parts: object) -> list[Right]:
    return [right for right in Right if status(access, right, **dict(parts)) is None]


# -- the Unix socket -------------------------------------------------------------------------


def test_without_a_list_everybody_whom_the_mode_lets_in_may_use_it_and_the_owner_may_operate_it() -> None:
    access = Access(NOBODY_LISTED, OWNER.uid)

    assert rights(access, via="unix", peer=STRANGER) == [Right.HEALTH, Right.USE]
    assert rights(access, via="unix", peer=OWNER) == list(Right)
    assert rights(access, via="unix", peer=ROOT) == list(Right)


def test_with_a_list_only_those_on_it_may_use_it_and_owner_and_root_always() -> None:
    access = Access(AllowList(["501"], []), OWNER.uid)

    assert rights(access, via="unix", peer=MEMBER) == [Right.HEALTH, Right.USE]
    assert rights(access, via="unix", peer=STRANGER) == []
    assert rights(access, via="unix", peer=OWNER) == list(Right)
    assert rights(access, via="unix", peer=ROOT) == list(Right)


def test_the_token_and_the_headers_of_tcp_mean_nothing_on_the_unix_socket() -> None:
    access = Access(NOBODY_LISTED, OWNER.uid, TOKEN)

    assert rights(access, via="unix", peer=OWNER, headers={"host": "evil", "origin": "http://evil"}) == list(
        Right
    )


# -- TCP without a token ---------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1:8686", "localhost", "LOCALHOST:1", "[::1]:8686", "127.9.9.9"])
def test_a_loopback_port_takes_requests_that_name_it(host: str) -> None:
    access = Access(NOBODY_LISTED, OWNER.uid)

    assert rights(access, via="tcp", headers={"host": host}) == [Right.HEALTH, Right.USE, Right.OPERATE]


@pytest.mark.parametrize(
    "host",
    [
        "evil.com",
        "127.0.0.1.evil.com",
        "localhost.evil.com:8686",
        "10.0.0.1",
        "",
        "[",
        "evil.com@127.0.0.1:x",
    ],
)
def test_a_name_that_somebody_pointed_at_this_machine_gets_no_further_than_health(host: str) -> None:
    access = Access(NOBODY_LISTED, OWNER.uid)

    assert rights(access, via="tcp", headers={"host": host}) == [Right.HEALTH]


# -- TCP with a token ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [f"Bearer {TOKEN}", f"bearer {TOKEN}", "Basic " + base64.b64encode(f"any:{TOKEN}".encode()).decode()],
)
def test_whoever_sends_the_token_may_do_everything_under_any_name(header: str) -> None:
    access = Access(NOBODY_LISTED, OWNER.uid, TOKEN)

    assert rights(access, via="tcp", headers={"host": "agent.lan", "authorization": header}) == list(Right)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        TOKEN,
        "Basic !",
        "Basic /w==",
        "Bearer \xff",
    ],
)
def test_without_the_right_token_there_is_only_health(header: str) -> None:
    access = Access(NOBODY_LISTED, OWNER.uid, TOKEN)

    assert rights(access, via="tcp", headers={"authorization": header}) == [Right.HEALTH]
    assert status(access, Right.USE, via="tcp", headers={"authorization": header}) == 401


# -- pages in a browser ----------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.com"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_page_of_another_origin_gets_nothing_even_where_the_browser_adds_the_token(
    token: str | None, headers: dict[str, str]
) -> None:
    access = Access(NOBODY_LISTED, OWNER.uid, token)
    sent = {"authorization": f"Bearer {TOKEN}", **headers}

    assert rights(access, via="tcp", method="POST", headers=sent) == []
    assert rights(access, via="tcp", method="GET", headers=sent) == []


def test_our_own_page_may_operate() -> None:
    access = Access(NOBODY_LISTED, OWNER.uid)
    headers = {"origin": "http://127.0.0.1:8686", "sec-fetch-site": "same-origin"}

    assert status(access, Right.OPERATE, via="tcp", method="POST", headers=headers) is None


def test_a_link_from_elsewhere_may_lead_to_the_status_page_alone() -> None:
    access = Access(NOBODY_LISTED, OWNER.uid)
    headers = {"sec-fetch-site": "cross-site"}

    assert status(access, Right.USE, via="tcp", target="/", headers=headers) is None
    assert status(access, Right.USE, via="tcp", target="/status", headers=headers) == 403
    assert status(access, Right.USE, via="tcp", target="/", method="POST", headers=headers) == 403


# -- the door --------------------------------------------------------------------------------


def test_those_who_may_not_are_counted_and_logged_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(
        peers, "get", lambda _name: SimpleNamespace(warning=lambda _event, **parts: told.append(parts["uid"]))
    )
    door = Door(AllowList(["501"], []).allows, "events")

    assert door.admits(MEMBER)
    assert [door.admits(STRANGER) for _ in range(5)] == [False] * 5
    assert not door.admits(Peer(2, 503, frozenset()))

    assert door.refused == 6
    assert told == [502, 503]
