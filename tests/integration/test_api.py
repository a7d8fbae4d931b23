"""The local HTTP API of a real daemon, through to the emulator."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
import stat
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import httpx
import pytest
from support.http import Caller
from support.processes import PATIENCE, Product, _free_port, balanced, wait_until
from support.user import unprivileged

from agent.api.server import Api
from agent.api.sockets import ApiSockets
from agent.clock import SystemClock
from agent.collector.peers import AllowList
from agent.polar_json import MAX_BODY
from agent.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterator

GOOD = {"name": "usage", "external_customer_id": "c"}
INGEST = "/v1/events/ingest"
API_TOKEN = "a-token-of-the-agent"


@pytest.fixture
def api(product: Product) -> Caller:
    """The API of a daemon that delivers to a running emulator."""
    product.start_emulator()
    product.start_daemon()
    return Caller(product.directory / "api.sock").wait()


@pytest.fixture
def lonely(product: Product) -> Caller:
    """The API of a daemon whose server is away."""
    product.set(shutdown_timeout="0")
    product.start_daemon()
    return Caller(product.directory / "api.sock").wait()


def polar(product: Product) -> httpx.Client:
    """The emulator, as a program would call it."""
    return httpx.Client(
        base_url=product.url, headers={"Authorization": "Bearer any"}, timeout=PATIENCE, trust_env=False
    )


# -- ingest --------------------------------------------------------------------------------


def test_events_are_taken_in_one_call_and_delivered(api: Caller, product: Product) -> None:
    events = [{**GOOD, "external_id": f"e{number}", "metadata": {"n": number}} for number in range(1200)]

    answer = api("POST", INGEST, {"events": events})

    assert (answer.status, answer.json()) == (200, {"inserted": 1200, "duplicates": 0})
    wait_until(lambda: len(list(product.stored())) == 1200)
    assert sorted(event["metadata"]["n"] for event in product.stored()) == list(range(1200))
    status = product.status()
    assert balanced(status)
    assert status["ledger"]["accepted"] == 1200


def test_an_answered_event_survives_kill_9(lonely: Caller, product: Product) -> None:
    assert lonely("POST", INGEST, {"events": [GOOD] * 3}).json() == {"inserted": 3, "duplicates": 0}

    product.stop_daemon(9)

    product.start_emulator()
    product.start_daemon()
    wait_until(lambda: len(list(product.stored())) == 3)
    assert len({event["external_id"] for event in product.stored()}) == 3


def test_numbers_and_unknown_fields_arrive_as_they_were_written(api: Caller, product: Product) -> None:
    text = (
        b'{"events": [\n {"name":"usage","external_customer_id":"c",\n'
        b'"metadata":{"n":1.10,"big":123456789012345678901234567890}, "new": [1]}\n]}'
    )

    assert api("POST", INGEST, text).status == 200

    wait_until(lambda: list(product.stored()))
    assert product.stored_text().count(b'"n":1.10') == 1
    assert product.stored_text().count(b"123456789012345678901234567890") == 1


def test_an_id_that_comes_twice_in_a_call_counts_as_a_duplicate_as_with_polar(
    api: Caller, product: Product
) -> None:
    events = [{**GOOD, "external_id": "a"}, {**GOOD, "external_id": "b"}, {**GOOD, "external_id": "a"}, GOOD]

    assert api("POST", INGEST, {"events": events}).json() == {"inserted": 3, "duplicates": 1}

    wait_until(lambda: product.polled()["queue"]["events"] == 0)
    ledger = product.status()["ledger"]
    assert (ledger["delivered"], ledger["duplicates"]) == (3, 1)


def test_one_bad_event_refuses_all_and_nothing_is_kept(lonely: Caller, product: Product) -> None:
    answer = lonely("POST", INGEST, {"events": [GOOD, {"name": 1}, GOOD]})

    assert answer.status == 422
    status = product.status()
    assert status["queue"]["events"] == 0
    wait_until(lambda: product.polled()["ledger"]["refused"] == 1)
    assert product.status()["ledger"]["accepted"] == 0


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({"events": []}, {}),
        ({"events": [{"name": 1}, {}, GOOD, []]}, {}),
        ({"events": [{**GOOD, "metadata": {"a": None, "b": [1], "c": "x" * 501}}]}, {}),
        (
            {"events": [{**GOOD, "timestamp": "2026-01-01"}, {**GOOD, "timestamp": "2199-01-01T00:00:00Z"}]},
            {},
        ),
        ({"events": [{"name": "x" * 129, "customer_id": "nonsense"}]}, {}),
        ({"events": [{**GOOD, "organization_id": "5b0a9f0e-3d3e-4a36-9e4c-1d1f5f6a7b8c"}]}, {}),
        ({"events": {"a": 1}}, {}),
        ({"event": []}, {}),
        ([], {}),
        (b"", {}),
        (b'{"events": [', {}),
        (b'{"events": [{"name":"\xff","external_customer_id":"c"}]}', {}),
        (b'{"events": [{"name":"usage","external_customer_id":"c","metadata":{"a":"\\u0000"}}]}', {}),
        (b'{"events": [{"name":"u","external_customer_id":"c","metadata":{"a":' + b"9" * 5000 + b"}}]}", {}),
        (json.dumps({"events": [GOOD]}).encode("utf-16"), {}),
        (json.dumps({"events": [GOOD]}).encode(), {"Content-Type": "text/plain"}),
        (json.dumps({"events": [GOOD]}).encode(), {"Content-Type": "application/vnd.x+json"}),
        (gzip.compress(json.dumps({"events": [GOOD]}).encode(), mtime=0), {"Content-Encoding": "gzip"}),
    ],
)
def test_every_answer_is_the_one_that_polar_gives(
    api: Caller, product: Product, body: object, headers: dict[str, str]
) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with polar(product) as client:
        theirs = client.post(INGEST, content=data, headers={"Content-Type": "application/json", **headers})

    ours = api("POST", INGEST, data, headers)

    assert (ours.status, ours.json()) == (theirs.status_code, theirs.json())


@pytest.mark.parametrize(
    ("event", "place"),
    [
        (b'{"name":"u","external_customer_id":"c","metadata":{"a":NaN}}', ["metadata", "a"]),
        (b'{"name":"u","external_customer_id":"\\ud800"}', ["external_customer_id"]),
        (b'{"name":"u","external_customer_id":"c","timestamp":"0001-01-01T00:00:00+14:00"}', ["timestamp"]),
    ],
)
def test_what_polar_answers_500_to_is_named(
    api: Caller, product: Product, event: bytes, place: list[str]
) -> None:
    body = b'{"events":[{"name":"u","external_customer_id":"c"},' + event + b"]}"
    with polar(product) as client:
        assert (
            client.post(INGEST, content=body, headers={"Content-Type": "application/json"}).status_code == 500
        )

    answer = api("POST", INGEST, body)

    assert answer.status == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "events", 1, *place]
    assert product.status()["ledger"]["accepted"] == 0


def test_an_event_longer_than_max_line_bytes_is_named(lonely: Caller) -> None:
    long = {**GOOD, "metadata": {f"k{number}": "x" * 500 for number in range(600)}}

    answer = lonely("POST", INGEST, {"events": [GOOD, long]})

    assert answer.status == 422
    assert [(entry["type"], entry["loc"]) for entry in answer.json()["detail"]] == [
        ("too_long", ["body", "events", 1])
    ]


def test_json_that_only_python_reads_is_taken_as_polar_takes_it(api: Caller, product: Product) -> None:
    body = b'{"events":[{"name":"u","external_customer_id":"c","unknown":NaN}], "more": Infinity}'

    assert api("POST", INGEST, body).json() == {"inserted": 1, "duplicates": 0}

    wait_until(lambda: len(list(product.stored())) == 1)


def test_an_event_that_is_a_little_ahead_is_held_until_it_is_due(api: Caller, product: Product) -> None:
    body = b'{"events":[{"name":"u","external_customer_id":"c","timestamp":%d}]}' % (int(time.time()) + 3)

    assert api("POST", INGEST, body).json() == {"inserted": 1, "duplicates": 0}

    wait_until(lambda: len(list(product.stored())) == 1)
    assert product.status()["ledger"]["delivered"] == 1


def test_a_body_of_exactly_the_bound_is_taken_and_one_byte_more_is_413(lonely: Caller) -> None:
    event = json.dumps({**GOOD, "metadata": {"a": "x" * 400}}).encode()
    body = b'{"events":[' + b",".join([event] * (MAX_BODY // (len(event) + 1) - 1)) + b"]}"

    assert lonely("POST", INGEST, body + b" " * (MAX_BODY - len(body))).status == 200
    answer = lonely("POST", INGEST, body + b" " * (MAX_BODY - len(body) + 1))

    assert (answer.status, answer.json()["error"]) == (413, "RequestBodyTooLarge")


@pytest.mark.usefixtures("lonely")
def test_a_body_without_a_length_is_411(product: Product) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(product.directory / "api.sock"))
        sock.sendall(b"POST /v1/events/ingest HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert b" 411 " in sock.recv(1000)


def test_a_full_queue_is_503_with_a_time_to_come_again_and_nothing_is_taken(product: Product) -> None:
    product.set(queue_max_bytes="300KiB", max_batch_bytes="300KiB", shutdown_timeout="0")
    product.start_daemon()
    api = Caller(product.directory / "api.sock").wait()
    event = {**GOOD, "metadata": {"x": os.urandom(200).hex()}}
    many = [{**GOOD, "metadata": {"x": os.urandom(240).hex()}} for _ in range(200)]

    def fill() -> bool:
        return api("POST", INGEST, {"events": many}).status == 503

    wait_until(fill)
    before = product.status()
    answer = api("POST", INGEST, {"events": [event]})

    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0
    assert product.status()["ledger"] == before["ledger"]
    assert api("GET", "/readyz").status == 503

    product.start_emulator()
    wait_until(lambda: api("POST", INGEST, {"events": [event]}).status == 200)
    assert api("GET", "/readyz").status == 200


def test_many_programs_at_once_are_all_served(api: Caller, product: Product) -> None:
    codes: list[int] = []

    def one() -> None:
        codes.extend(api("POST", INGEST, {"events": [GOOD] * 5}).status for _ in range(10))

    threads = [threading.Thread(target=one) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert codes == [200] * 200
    wait_until(lambda: len(list(product.stored())) == 1000)


# -- reading back --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "/v1/events/?limit=2",
        "/v1/events/?name=usage&metadata[n]=3&external_customer_id=c",
        "/v1/events/?limit=0",
        "/v1/events/?start_timestamp=2026-01-01",
        "/v1/events/?sorting=timestamp&limit=1&page=2&unknown=1",
        "/v1/events/names?sorting=-occurrences",
        "/v1/events/not-a-uuid",
        "/v1/events/a%2Fb",
        "/v1/events/3745d601-f7f0-4a79-842c-11bff727a5b9",
        "/v1/events/ingest",
        "/v1/events/?metadata[a%20b]=%C3%BC+%2B&external_customer_id=a%20b%2Fc&;=1&&",
        "/v1/events/?filter=%7B",
        "/v1/events/names?query=%00&limit=101",
    ],
)
def test_questions_and_answers_are_polar_s(api: Caller, product: Product, target: str) -> None:
    api("POST", INGEST, {"events": [{**GOOD, "metadata": {"n": number}} for number in range(5)]})
    wait_until(lambda: len(list(product.stored())) == 5)
    with polar(product) as client:
        theirs = client.get(target)

    ours = api("GET", target)

    assert (ours.status, ours.json()) == (theirs.status_code, theirs.json())
    assert ours.headers["content-type"] == theirs.headers["content-type"]


def test_an_event_is_read_by_its_id(api: Caller) -> None:
    api("POST", INGEST, {"events": [GOOD]})
    listed = wait_until(lambda: api("GET", "/v1/events/").json()["items"])[0]

    assert api("GET", f"/v1/events/{listed['id']}").json() == listed


@pytest.mark.parametrize(
    ("method", "target", "location"),
    [
        ("GET", "/v1/events?limit=1", "/v1/events/?limit=1"),
        ("POST", "/v1/events/ingest/", "/v1/events/ingest"),
        ("GET", "/v1/events/names/", "/v1/events/names"),
    ],
)
def test_redirects_are_as_polar_s(
    api: Caller, product: Product, method: str, target: str, location: str
) -> None:
    with polar(product) as client:
        theirs = client.request(method, target, content=b"{}" if method == "POST" else None)

    ours = api(method, target, b"{}" if method == "POST" else None)

    assert ours.status == theirs.status_code == 307
    assert theirs.headers["location"] == product.url + location
    assert ours.headers["location"] == location


@pytest.mark.parametrize(
    ("method", "target"), [("PUT", INGEST), ("DELETE", "/v1/events/"), ("GET", "/v1/nothing")]
)
def test_what_polar_has_not_is_answered_in_its_words(
    api: Caller, product: Product, method: str, target: str
) -> None:
    data = b"{}" if method == "PUT" else None
    with polar(product) as client:
        theirs = client.request(method, target, content=data)

    ours = api(method, target, data)

    assert (ours.status, ours.json()) == (theirs.status_code, theirs.json())


def test_what_follows_a_hash_is_part_of_the_question(api: Caller, product: Product) -> None:
    theirs = Caller(int(product.url.rpartition(":")[2]))

    ours = api("GET", "/v1/events/?limit=2#3")

    assert ours.status == 422
    assert ours.body == theirs("GET", "/v1/events/?limit=2#3", None, {"Authorization": "Bearer any"}).body


@pytest.mark.parametrize("target", ["/v1/events/", "/v1/events", INGEST, "/v1/events/names", "/v1/events/x"])
def test_polar_s_calls_take_no_head_request(api: Caller, product: Product, target: str) -> None:
    with polar(product) as client:
        theirs = client.head(target)

    assert api("HEAD", target).status == theirs.status_code != 200
    assert api("HEAD", "/healthz").status == 200


@pytest.mark.parametrize("version", ["2026-04", "2026-10", "2025-01", "2026-4", "nonsense", ""])
def test_a_version_of_the_api_is_known_or_not_as_with_polar(
    api: Caller, product: Product, version: str
) -> None:
    headers, data = {"Polar-Version": version}, b'{"events":[]}'
    with polar(product) as client:
        theirs = [
            client.post(INGEST, content=data, headers={"Content-Type": "application/json", **headers}),
            client.get("/v1/events/", headers=headers),
            client.put("/v1/nothing", content=b"", headers=headers),
        ]

    ours = [
        api("POST", INGEST, data, headers),
        api("GET", "/v1/events/", None, headers),
        api("PUT", "/v1/nothing", b"", headers),
    ]

    assert [(one.status, one.body, one.headers["polar-version"]) for one in ours] == [
        (one.status_code, one.content, one.headers["polar-version"]) for one in theirs
    ]
    assert "polar-version" not in api("GET", "/status", None, headers).headers


def test_events_under_a_version_later_than_we_know_are_not_refused(api: Caller, product: Product) -> None:
    assert api("POST", INGEST, {"events": [GOOD]}, {"Polar-Version": "2031-01"}).status == 200

    wait_until(lambda: len(list(product.stored())) == 1)


def test_a_server_that_is_away_is_a_502_and_the_agent_s_own_bad_token_too(product: Product) -> None:
    product.set(shutdown_timeout="0")
    product.start_daemon()
    api = Caller(product.directory / "api.sock").wait()
    away = api("GET", "/v1/events/")

    product.start_emulator("--token", "another_token_than_ours")
    refused = wait_until(
        lambda: (answer := api("GET", "/v1/events/")).json()["detail"] != away.json()["detail"] and answer
    )

    assert (away.status, away.json()["error"]) == (502, "BadGateway")
    assert (refused.status, refused.json()["error"]) == (502, "BadGateway")
    assert "access token" in refused.json()["detail"]


def test_reading_stays_inside_the_rate_budget_and_leaves_delivery_its_turn(product: Product) -> None:
    product.set(requests_per_minute="120", flush_interval="0.05")
    product.start_emulator()
    product.start_daemon()
    api = Caller(product.directory / "api.sock").wait()
    codes: list[int] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            codes.append(api("GET", "/v1/events/?limit=1").status)

    readers = [threading.Thread(target=read) for _ in range(4)]
    began = product.stats()["requests"], time.time()
    for reader in readers:
        reader.start()
    for number in range(6):
        api("POST", INGEST, {"events": [GOOD]})
        wait_until(lambda number=number: product.status()["ledger"]["delivered"] == number + 1)
    requests, seconds = product.stats()["requests"] - began[0], time.time() - began[1]
    stop.set()
    for reader in readers:
        reader.join()

    assert codes.count(200) > 3
    # Two a second, beside what may go at once after a pause.
    assert requests <= 2 * seconds + 6


# -- who may connect -----------------------------------------------------------------------


def test_the_api_socket_has_the_mode_of_the_other_one_unless_told_otherwise(tmp_path: Path) -> None:
    modes = {}
    for given in (None, "0600"):
        directory = tmp_path / str(given)
        directory.mkdir()
        product = Product(directory, socket_mode="0666")
        if given:
            product.set(api_socket_mode=given)
        try:
            product.start_daemon()
            Caller(product.directory / "api.sock").wait()
            modes[given] = stat.S_IMODE((product.directory / "api.sock").stat().st_mode)
        finally:
            product.close()

    assert modes == {None: 0o666, "0600": 0o600}


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that everybody may enter."""
    directory = Path(tempfile.mkdtemp(prefix="polar-agent-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def strangers_api(directory: Path, monkeypatch: pytest.MonkeyPatch, *allowed: str) -> Api:
    """An API whose owner is somebody else than the caller, who is never root (see `as_stranger`)."""
    monkeypatch.setattr("agent.api.server.own_user", lambda: 12345)
    settings = load(
        environ={"HOME": str(directory)},
        overrides={"socket_path": directory / "agent.sock", "socket_mode": "0666", "queue_dir": directory},
    )
    pipeline = SimpleNamespace(
        checker=None,
        writer=None,
        seen=None,
        server_clock=SimpleNamespace(now=None),
        flusher=SimpleNamespace(place=None),
        meters=None,
        drain=lambda _seconds, **_: SimpleNamespace(remaining=0, reason=None),
    )
    daemon = SimpleNamespace(
        pipeline=pipeline, stopping=False, status=dict, sick=lambda: None, unready=lambda: None
    )
    return Api(settings, ApiSockets.bind(settings), SystemClock(), daemon, AllowList(allowed, ()))


def as_stranger(directory: Path, method: str, target: str) -> int:
    with unprivileged():
        return Caller(directory / "api.sock")(method, target, b"" if method == "POST" else None).status


def test_others_may_use_the_api_and_not_operate_the_agent(
    public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = strangers_api(public, monkeypatch)
    api.start()
    try:
        assert as_stranger(public, "GET", "/status") == 200
        assert as_stranger(public, "GET", "/healthz") == 200
        assert as_stranger(public, "POST", "/flush") == 403
        assert as_stranger(public, "POST", "/dead/purge") == 403
        assert api.door.refused == 0
    finally:
        api.stop()


def test_who_is_not_on_the_list_gets_nothing_and_is_counted(
    public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = strangers_api(public, monkeypatch, "54321")
    api.start()
    try:
        for target in ("/status", "/healthz", "/v1/nothing"):
            assert as_stranger(public, "GET", target) == 403
        assert as_stranger(public, "POST", INGEST) == 403
        assert api.door.refused == 4
    finally:
        api.stop()


# -- TCP -----------------------------------------------------------------------------------


def test_over_tcp_the_same_is_served_and_other_names_are_refused(product: Product) -> None:
    port = _free_port()
    product.set(api_listen=f"127.0.0.1:{port}", shutdown_timeout="0")
    product.start_daemon()
    api = Caller(port).wait()

    assert api("POST", INGEST, {"events": [GOOD]}).json() == {"inserted": 1, "duplicates": 0}
    assert api("GET", "/status").json()["queue"]["events"] == 1
    assert api("POST", INGEST, {"events": [GOOD]}, {"Host": "evil.com"}).status == 403
    assert api("POST", INGEST, {"events": [GOOD]}, {"Origin": "http://evil.com"}).status == 403
    assert api("POST", "/dead/purge", {"ids": None}).status == 403
    assert api("POST", "/dead/retry", {"ids": None}).json() == {"retried": 0, "refused": []}
    assert api("POST", "/dead/retry", {"ids": None, "edits": {"1": "{}"}}).status == 403
    assert product.status()["ledger"]["accepted"] == 1


def test_with_a_token_tcp_wants_it_and_health_does_not(product: Product) -> None:
    port = _free_port()
    product.set(api_listen=f"0.0.0.0:{port}", api_token=API_TOKEN, shutdown_timeout="0")
    product.start_daemon()
    api = Caller(port).wait()
    right, wrong = {"Authorization": f"Bearer {API_TOKEN}"}, {"Authorization": "Bearer nonsense"}

    assert [api("POST", INGEST, {"events": [GOOD]}, sent).status for sent in ({}, wrong, right)] == [
        401,
        401,
        200,
    ]
    assert [api("GET", "/readyz", None, sent).status for sent in ({}, wrong, right)] == [200] * 3
    assert api("POST", "/dead/purge", {"ids": None}, right).json() == {"purged": 0}
    assert API_TOKEN not in product.log.read_text()


def test_without_a_choice_there_is_no_tcp(lonely: Caller, product: Product) -> None:
    del lonely
    assert product.daemon is not None
    inodes = {
        str(link.readlink()).removeprefix("socket:[").removesuffix("]")
        for link in Path(f"/proc/{product.daemon.pid}/fd").iterdir()
    }
    listening = {
        line.split()[9]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{product.daemon.pid}/net/{table}").read_text().splitlines()[1:]
    }
    assert not inodes & listening


def test_a_port_that_others_can_reach_needs_a_token(product: Product) -> None:
    product.set(api_listen="0.0.0.0:8686")

    done = product.run("run")

    assert done.returncode == 2
    assert "api_token" in done.stderr


def test_a_port_that_is_taken_is_told_and_the_daemon_does_not_start(product: Product) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        product.set(api_listen=address)

        done = product.run("run")

    assert done.returncode == 1
    assert address in done.stderr
    assert "api_listen" in done.stderr
    assert not product.socket.exists()
