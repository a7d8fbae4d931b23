"""The emulator over HTTP, and as a process: what the recordings do not show."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from uuid import UUID, uuid4

import httpx
import pytest

from agent.emulator.options import Customer, Options, parse_customer, parse_listen, parse_token
from agent.emulator.ratelimit import RateLimit
from agent.emulator.server import background
from agent.errors import AgentError, UsageError
from agent.schema import MAX_DEPTH

CUSTOMER = UUID("a5366a1f-519f-4d0c-9c28-b4f787be37ed")
ORGANIZATION = "92ddcaf5-fd7c-41a5-85a1-a31b062516b6"
START = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = START

    def wall(self) -> float:
        return self.now.timestamp()

    def monotonic(self) -> float:
        return self.now.timestamp()

    def wait(self, *_args) -> bool:
        raise AssertionError

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Server:
    """A running emulator and a client of it."""

    def __init__(self, url: str, clock: Clock) -> None:
        self.clock = clock
        self.http = httpx.Client(base_url=url, headers={"Authorization": "Bearer polar_oat_any"}, timeout=30)

    def ingest(self, *events, **options):
        return self.http.post("/v1/events/ingest", json={"events": list(events)}, **options)

    def list(self, path="/v1/events/", **params):
        answer = self.http.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()["items"]

    def names(self, **params):
        return [item["name"] for item in self.list(**params)]

    def faults(self, **faults):
        answer = self.http.put("/_emulator/faults", json=faults)
        assert answer.status_code == 200, answer.text

    def stored(self):
        return [json.loads(line) for line in self.http.get("/_emulator/events").text.splitlines()]

    def stats(self):
        return self.http.get("/_emulator/stats").json()


@pytest.fixture
def serve():
    """Start emulators with these options."""
    open_ones = []

    def start(**options) -> Server:
        clock = Clock()
        context = background(Options(**options), clock)
        server = Server(context.__enter__(), clock)
        open_ones.append((server, context))
        return server

    yield start
    for server, context in open_ones:
        server.http.close()
        context.__exit__(None, None, None)


@pytest.fixture
def server(serve):
    """An emulator that knows one customer."""
    return serve(customers=(Customer(CUSTOMER, "cus_1"),))


def event(name="n", **fields):
    return {"name": name, "external_customer_id": "c", **fields}


# -- ingest ----------------------------------------------------------------------------


def test_a_bad_event_keeps_the_whole_batch_out(server):
    """All or nothing."""
    assert server.ingest(event(), {"name": "no customer"}).status_code == 422
    assert server.stored() == []


def test_an_external_id_is_stored_once(server):
    """Whatever the second one says; without one, each is stored."""
    assert server.ingest(event(external_id="a"), event(), event()).json() == {
        "inserted": 3,
        "duplicates": 0,
    }
    assert server.ingest(event("other", external_id="a"), event(external_id="")).json() == {
        "inserted": 1,
        "duplicates": 1,
    }
    assert server.ingest(event(external_id="")).json() == {"inserted": 0, "duplicates": 1}
    assert server.stats()["duplicates"] == 2


def test_a_batch_sent_four_times_at_once_is_stored_once(server):
    """Idempotent under concurrency."""
    batch = [event(external_id=str(number)) for number in range(500)]
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(server.ingest(*batch).json()["inserted"]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(answers) == [0, 0, 0, 500]


def test_an_event_of_as_many_levels_as_the_agent_takes_is_stored(server):
    """What the agent lets through must not be poison here."""
    deep = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    body = '{"events":[{"name":"n","external_customer_id":"c","zz":' + deep + "}]}"
    answer = server.http.post("/v1/events/ingest", content=body, headers={"Content-Type": "application/json"})

    assert answer.json() == {"inserted": 1, "duplicates": 0}


@pytest.mark.parametrize(("levels", "status"), [(2000, 500), (200_000, 400)])
def test_an_event_that_is_too_deep_breaks_the_server(server, levels, status):
    """As it was measured."""
    body = '{"events":[{"name":"n","external_customer_id":"c","zz":' + "[" * levels + "]" * levels + "}]}"
    answer = server.http.post("/v1/events/ingest", content=body, headers={"Content-Type": "application/json"})

    assert answer.status_code == status


def test_bytes_that_are_no_utf_8_cannot_be_parsed(server):
    """400, as for an integer of too many digits."""
    answer = server.http.post(
        "/v1/events/ingest", content=b'{"events":["\xff"]}', headers={"Content-Type": "application/json"}
    )

    assert (answer.status_code, answer.json()) == (400, {"detail": "There was an error parsing the body"})


@pytest.mark.parametrize(("extra", "status"), [(0, 200), (1, 413)])
def test_a_body_has_up_to_10485760_bytes(server, extra, status):
    """Exactly that many are taken."""
    body = b'{"events":[' + b" " * (10_485_760 - 13 + extra) + b"]}"
    answer = server.http.post("/v1/events/ingest", content=body, headers={"Content-Type": "application/json"})

    assert answer.status_code == status


def test_a_body_without_a_length_is_refused(server):
    """Chunked transfer says none."""
    answer = server.http.post(
        "/v1/events/ingest", content=iter([b'{"events":[]}']), headers={"Content-Type": "application/json"}
    )

    assert answer.status_code == 411


@pytest.mark.parametrize("body", [b"", b"null"])
def test_no_body_is_a_missing_one(server, body):
    """As for any route of the server."""
    answer = server.http.post("/v1/events/ingest", content=body, headers={"Content-Type": "application/json"})

    assert [(item["type"], item["loc"]) for item in answer.json()["detail"]] == [("missing", ["body"])]


def test_a_customer_must_be_known_but_an_external_one_need_not(server):
    """The second stage, which shows only when the schema passes all events."""
    unknown = str(uuid4())
    answer = server.ingest(event(), {"name": "n", "customer_id": unknown})

    assert answer.json() == {
        "error": "PolarRequestValidationError",
        "detail": [
            {
                "type": "customer_id",
                "loc": ["body", "events", 1, "customer_id"],
                "msg": "Customer not found.",
                "input": unknown,
            }
        ],
    }
    assert server.ingest({"name": "n", "customer_id": str(CUSTOMER)}).status_code == 200


# -- tokens ----------------------------------------------------------------------------


def test_without_tokens_given_any_token_will_do(serve):
    """But there must be one."""
    server = serve()

    assert server.http.get("/v1/events/").status_code == 200
    assert httpx.get(server.http.base_url.join("/v1/events/")).status_code == 401


def test_a_token_that_was_not_given_is_invalid(serve):
    """401, and it names the error."""
    server = serve(tokens=(parse_token("good"),))
    answer = server.http.get("/v1/events/", headers={"Authorization": "Bearer bad"})

    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_token")
    assert server.http.get("/v1/events/", headers={"Authorization": "bearer good"}).status_code == 200


@pytest.mark.parametrize(
    ("word", "ingest", "read"),
    [
        ("t", 200, 200),
        ("t=events:read", 403, 200),
        ("t=events:write", 200, 200),
        ("t=events:read,events:write", 200, 200),
        ("t=", 403, 403),
        ("t=products:read", 403, 403),
    ],
)
def test_scopes_say_what_a_token_may_do(serve, word, ingest, read):
    """Writing lets one read."""
    server = serve(tokens=(parse_token(word),))
    headers = {"Authorization": "Bearer t"}

    assert server.ingest(event(), headers=headers).status_code == ingest
    assert server.http.get("/v1/events/", headers=headers).status_code == read


# -- reading back ----------------------------------------------------------------------


def test_an_event_is_read_back_without_its_external_id(server):
    """What was stored, with what the server adds."""
    server.ingest(
        event(
            "ai",
            external_customer_id="cus_1",
            external_id="x",
            metadata={"_cost": {"amount": 1.5, "currency": "usd"}},
        )
    )
    (item,) = server.list()

    assert "external_id" not in item
    assert item["customer"]["id"] == str(CUSTOMER)
    assert (item["name"], item["label"], item["source"]) == ("ai", "ai", "user")
    assert (item["timestamp"], item["organization_id"]) == ("2026-11-23T12:00:00Z", ORGANIZATION)
    assert item["metadata"] == {"_cost": {"amount": "1.5", "currency": "usd"}}
    assert server.http.get(f"/v1/events/{item['id']}").json() == item


def test_an_unknown_event_is_not_found(server):
    """404 with the server's word for it."""
    answer = server.http.get(f"/v1/events/{uuid4()}")

    assert (answer.status_code, answer.json()["error"]) == (404, "ResourceNotFound")


def test_pages_are_counted_and_limits_capped_at_100(server):
    """Newest first; a page past the end is empty, and counts nothing."""
    server.ingest(*(event(timestamp=START.timestamp() - number) for number in range(120)))

    page = server.http.get("/v1/events/", params={"limit": 500}).json()
    assert (len(page["items"]), page["pagination"]) == (100, {"total_count": 120, "max_page": 2})
    newest, second = (item["timestamp"] for item in server.list(limit=2))
    assert newest > second
    past = server.http.get("/v1/events/", params={"page": 10**20}).json()
    assert past == {"items": [], "pagination": {"total_count": 0, "max_page": 0}}


def test_both_bounds_of_time_are_exclusive(server):
    """An event at a bound is not listed."""
    for name, hour in (("a", 1), ("b", 2), ("c", 3)):
        server.ingest(event(name, timestamp=f"2026-01-01T0{hour}:00:00Z"))

    assert server.names(start_timestamp="2026-01-01T01:00:00Z", end_timestamp="2026-01-01T03:00:00Z") == ["b"]
    assert server.names(sorting="timestamp") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("params", "names"),
    [
        ({"name": "a"}, ["a"]),
        ({"name": ["a", "b"]}, ["b", "a"]),
        ({"external_customer_id": "cus_2"}, ["b"]),
        ({"customer_id": str(CUSTOMER)}, ["c", "a"]),
        ({"external_customer_id": "cus_1"}, ["c", "a"]),
        ({"metadata[model]": "m1"}, ["a"]),
        ({"metadata[model]": ["m1", "m2"], "metadata[n]": "2"}, ["b"]),
        ({"metadata[free]": "true"}, ["b"]),
        ({"metadata[nothing]": "x"}, []),
        ({"source": "system"}, []),
        ({"organization_id": str(uuid4())}, []),
        ({"query": '"M1"', "organization_id": ORGANIZATION}, ["a"]),
        ({"colour": "red"}, ["c", "b", "a"]),
    ],
)
def test_lists_are_filtered(server, params, names):
    """Values of one parameter are alternatives, parameters add up, unknown ones are ignored."""
    server.ingest(event("a", external_customer_id="cus_1", metadata={"model": "m1", "n": 1}))
    server.ingest(event("b", external_customer_id="cus_2", metadata={"model": "m2", "n": 2, "free": True}))
    server.ingest({"name": "c", "customer_id": str(CUSTOMER)})

    assert server.names(**params) == names


def clause(of, how, value):
    return {"property": of, "operator": how, "value": value}


@pytest.mark.parametrize(
    ("conjunction", "clauses", "names"),
    [
        ("and", [], ["b", "a"]),
        ("and", [clause("name", "eq", "a")], ["a"]),
        ("or", [clause("name", "eq", "a"), clause("n", "gte", 2)], ["b", "a"]),
        ("and", [clause("n", "gt", 1)], ["b"]),
        ("and", [clause("n", "ne", 1)], ["b"]),
        ("and", [clause("n", "eq", "1")], []),
        ("and", [clause("metadata.n", "lt", 2)], ["a"]),
        ("and", [clause("model", "like", "gpt")], ["a"]),
        ("and", [clause("model", "not_like", "gpt")], ["b"]),
        ("and", [clause("free", "eq", True)], ["b"]),
        ("and", [clause("_llm.total_tokens", "lte", 3)], ["a"]),
        ("and", [clause("timestamp", "lte", int(START.timestamp()))], ["b", "a"]),
        ("and", [clause("source", "eq", "system")], []),
        ("and", [{"conjunction": "or", "clauses": [clause("name", "eq", "b")]}], ["b"]),
    ],
)
def test_a_filter_has_clauses(server, conjunction, clauses, names):
    """On name, source, timestamp, and keys of the metadata."""
    llm = {"vendor": "v", "model": "m", "input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    server.ingest(event("a", metadata={"model": "gpt-4", "n": 1, "_llm": llm}))
    server.ingest(event("b", metadata={"model": "claude", "n": 2, "free": True}))

    assert server.names(filter=json.dumps({"conjunction": conjunction, "clauses": clauses})) == names


def test_a_query_needs_three_characters(server):
    """And an organization."""
    answer = server.http.get("/v1/events/", params={"query": "ab", "organization_id": ORGANIZATION})

    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["query", "query"])


def test_names_are_counted_and_their_times_cut_to_milliseconds(server):
    """Sorted as asked for."""
    server.ingest(event("b", timestamp="2026-01-01T00:00:00.123456Z"), event("a"), event("b"))
    names = server.list("/v1/events/names", sorting="-occurrences")

    assert [(item["name"], item["occurrences"]) for item in names] == [("b", 2), ("a", 1)]
    assert (names[0]["first_seen"], names[0]["last_seen"]) == (
        "2026-01-01T00:00:00.123000Z",
        "2026-11-23T12:00:00Z",
    )
    assert [item["name"] for item in server.list("/v1/events/names", query="A")] == ["a"]


def test_a_child_shows_when_its_parent_has_come(server):
    """Until then it is stored, but cannot be read."""
    server.ingest(event("child", parent_id="later"))
    assert server.names() == []
    assert len(server.stored()) == 1

    server.ingest(event("parent", external_id="later"))
    child, parent = sorted(server.list(), key=lambda item: item["name"])
    assert (child["parent_id"], parent["child_count"]) == (parent["id"], 1)


def test_depth_limits_how_far_below_the_roots_or_a_parent(server):
    """A parent is named by its own id or by Polar's."""
    server.ingest(event("root", external_id="r"), event("child", external_id="c", parent_id="r"))
    (root,) = server.list(depth=0)
    server.ingest(event("grandchild", parent_id="c"), event("second", parent_id=root["id"]))

    assert root["name"] == "root"
    assert set(server.names(depth=1)) == {"root", "child", "second"}
    assert set(server.names(depth=2)) == {"root", "child", "grandchild", "second"}
    assert set(server.names(parent_id=root["id"])) == {"child", "second"}
    assert set(server.names(parent_id=root["id"], depth=2)) == {"child", "grandchild", "second"}


def test_an_event_can_be_read_after_the_read_delay(serve):
    """By list, names and get alike."""
    server = serve(read_delay=2.0)
    server.ingest(event())
    assert server.names() == server.list("/v1/events/names") == []

    server.clock.forward(2)
    assert server.names() == ["n"]


# -- faults ----------------------------------------------------------------------------


def test_unknown_faults_are_refused(server):
    """And those of a wrong kind."""
    for faults in ({"statsu": 503}, {"share": 2}, {"latency_ms": -1}):
        assert server.http.put("/_emulator/faults", json=faults).status_code == 422


def test_faults_are_taken_whatever_the_content_type(server):
    """As scripts send them."""
    answer = server.http.put("/_emulator/faults", content=b'{"status": 503}', headers={"Content-Type": "x/y"})
    assert answer.status_code == 200
    assert server.ingest(event()).status_code == 503


def test_a_share_of_ingest_requests_gets_the_status(server):
    """With Retry-After; nothing of them is stored, and reading goes on."""
    server.faults(status=503, share=0.5, retry_after="5")
    answers = [server.ingest(event()) for _ in range(40)]
    failed = [answer for answer in answers if answer.status_code == 503]

    assert 5 < len(failed) < 35
    assert {answer.headers["retry-after"] for answer in failed} == {"5"}
    assert len(server.stored()) == 40 - len(failed)
    assert server.http.get("/v1/events/").status_code == 200


def test_the_same_faults_fail_the_same_requests(server):
    """So that a test that failed fails again."""

    def statuses():
        server.faults(status=503, share=0.3)
        return [server.ingest().status_code for _ in range(30)]

    assert statuses() == statuses()


def test_faults_can_be_cleared(server):
    """All of them."""
    server.faults(status=500)
    assert server.ingest(event()).text == "Internal Server Error"

    assert server.http.delete("/_emulator/faults").status_code == 200
    assert server.ingest(event()).status_code == 200


def test_a_reset_breaks_the_connection_before_anything_is_stored(server):
    """The client sees no answer."""
    server.faults(reset_share=1)
    with pytest.raises(httpx.TransportError):
        server.ingest(event())

    assert server.stored() == []
    assert server.stats()["broken"] == 1


def test_a_lost_answer_breaks_the_connection_after_storing(server):
    """The client cannot know."""
    server.faults(lose_answer_share=1)
    with pytest.raises(httpx.TransportError):
        server.ingest(event(external_id="a"))

    assert [stored["external_id"] for stored in server.stored()] == ["a"]


def test_latency_holds_up_one_request_and_no_other(server):
    """Requests below /v1 wait; the control routes answer meanwhile."""
    server.faults(latency_ms=1500)
    errors = []

    def wait():
        try:
            server.http.get("/v1/events/", timeout=0.2)
        except httpx.ReadTimeout as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert server.stored() == []
    thread.join()
    assert len(errors) == 1


def test_the_rate_limit_can_be_set_by_a_fault(server):
    """It counts from then on."""
    server.ingest()
    server.faults(requests_per_minute=2, retry_after="1")

    assert [server.ingest().status_code for _ in range(3)] == [200, 200, 429]
    server.clock.forward(60)
    assert server.ingest().status_code == 200


def test_the_clock_can_be_wrong(server):
    """It moves `date`, stamps, and what counts as future."""
    server.faults(clock_offset_seconds=-30)
    answer = server.ingest(event(timestamp=START.isoformat()))
    server.ingest(event())

    assert answer.status_code == 422
    assert parsedate_to_datetime(answer.headers["date"]) == START - timedelta(seconds=30)
    assert server.list()[0]["timestamp"] == "2026-11-23T11:59:30Z"


@pytest.mark.parametrize("status", [400, 413, 422, 500])
def test_a_poison_event_spoils_its_batch(server, status):
    """No answer says which it was; others pass."""
    server.faults(poison_external_ids=["bad"], poison_status=status)
    answer = server.ingest(event(external_id="good"), event(external_id="bad"))

    assert answer.status_code == status
    assert "bad" not in answer.text
    assert server.ingest(event(external_id="good")).json()["inserted"] == 1


def test_a_batch_of_too_many_events_fails(server):
    """As a real one of more than 4,681 metered events."""
    server.faults(max_events=2)

    assert server.ingest(event(), event()).status_code == 200
    assert server.ingest(event(), event(), event()).status_code == 500


# -- control ---------------------------------------------------------------------------


def test_stored_events_are_told_in_order_as_they_came(server):
    """Digit for digit, with what was dropped for reading; line breaks within are gone."""
    body = """{"events": [
      {"name": "a", "external_customer_id": "c", "external_id": null,
       "metadata": {"n": 0.10000000000000000001}, "colour": "red"},
      {"name":"b","external_customer_id":"c","external_id":"x"}]}"""
    server.http.post("/v1/events/ingest", content=body, headers={"Content-Type": "application/json"})
    text = server.http.get("/_emulator/events").text
    first, second = server.stored()

    assert "0.10000000000000000001" in text
    assert (first["colour"], first["external_id"], first["received_at"]) == (
        "red",
        None,
        "2026-11-23T12:00:00Z",
    )
    assert (second["name"], second["external_id"]) == ("b", "x")
    for line in text.splitlines():
        assert line.count('"external_id"') == 1


def test_stored_events_with_more_than_json_in_them_are_told_too(server):
    """The server takes NaN where it drops it."""
    body = '{"events":[{"name":"a","external_customer_id":"c","colour":NaN}]}'
    server.http.post("/v1/events/ingest", content=body, headers={"Content-Type": "application/json"})

    assert [stored["name"] for stored in server.stored()] == ["a"]


def test_stats_count_what_was_answered(server):
    """Control requests are not counted."""
    server.ingest(event(external_id="a"), event(external_id="a"))
    server.ingest({})
    server.stored()

    assert server.stats() == {
        "requests": 2,
        "by_status": {"200": 1, "422": 1},
        "broken": 0,
        "events_stored": 1,
        "duplicates": 1,
    }


def test_the_rate_limit_counts_in_windows_of_a_minute():
    """Which the first call opens."""
    limit = RateLimit()

    assert [limit.take(now, 2) for now in (0, 30, 59, 60, 61)] == [True, True, False, True, True]


# -- the command -----------------------------------------------------------------------


def start(*words, **options):
    command = [sys.executable, "-m", "agent", "emulator", "--listen", "127.0.0.1:0", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def ready_url(process):
    line = process.stdout.readline()
    assert line.startswith("emulator ready on http://127.0.0.1:"), process.stderr.read()
    return line.split()[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number):
    """One line on stdout when it is ready, nothing else, exit code 0."""
    with start() as process:
        url = ready_url(process)
        assert httpx.get(f"{url}/v1/events/", headers={"Authorization": "Bearer t"}).status_code == 200
        process.send_signal(number)
        rest = process.communicate(timeout=20)

    assert (process.returncode, *rest) == (0, "", "")


def test_events_in_a_file_are_there_after_a_restart(tmp_path):
    """Also for finding duplicates."""
    body = {"events": [event(external_id="a")]}
    answers = []
    for _ in range(2):
        with start("--data", str(tmp_path / "events.db")) as process:
            url = ready_url(process)
            headers = {"Authorization": "Bearer t"}
            answers.append(httpx.post(f"{url}/v1/events/ingest", json=body, headers=headers).json())
            process.terminate()

    assert answers == [{"inserted": 1, "duplicates": 0}, {"inserted": 0, "duplicates": 1}]


def test_an_address_in_use_is_told():
    """With what to do, and exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = subprocess.run(
            [sys.executable, "-m", "agent", "emulator", "--listen", address],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert (ended.returncode, ended.stdout) == (1, "")
    assert address in ended.stderr
    assert "--listen" in ended.stderr


def test_data_that_cannot_be_opened_is_told(tmp_path):
    """As an error for people."""
    with pytest.raises(AgentError, match="--data"), background(Options(data=tmp_path)):
        pass


def test_without_the_extra_it_says_how_to_install_it():
    """Exit code 2."""
    script = (
        "import sys; sys.modules['fastapi'] = None; from agent.cli import main; sys.exit(main(['emulator']))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )

    assert ended.returncode == 2
    assert "pip install 'polar-agent[emulator]'" in ended.stderr


@pytest.mark.parametrize(
    ("parse", "word"),
    [
        (parse_listen, "8787"),
        (parse_listen, "127.0.0.1:99999"),
        (parse_listen, ":1"),
        (parse_customer, "cus_1"),
        (parse_token, "=events:read"),
        (parse_token, "a b"),
    ],
)
def test_words_that_make_no_sense_are_wrong_usage(parse, word):
    """Exit code 2."""
    with pytest.raises(UsageError):
        parse(word)


def test_listen_takes_ipv6_in_brackets():
    """As in an address of the web."""
    assert parse_listen("[::1]:0") == ("::1", 0)
