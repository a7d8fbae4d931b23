"""The way to Polar, over real sockets: what is sent, and what becomes of each thing that can come back."""

import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from http_server import DATE_UNIX, Server, answer, read_request

from agent import __version__, network, polar
from agent.answer import Answer, NoAnswer
from agent.polar import EventFilter, NameFilter, PolarClient

TOKEN = "polar_oat_secret"
BODY = b'{"events":[{"name":"x","external_customer_id":"c","external_id":"1"}]}'
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """An environment without proxies and without certificates of its own."""
    for name in (*PROXIES, *(name.upper() for name in PROXIES), "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def client(server):
    with PolarClient(server.url, lambda: TOKEN, timeout=10) as client:
        yield client


@contextmanager
def running(work):
    """Run work in a thread; yields a function that waits for its result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()

    def result(timeout=5):
        thread.join(timeout)
        assert not thread.is_alive(), "it does not end"
        return results[0]

    yield result
    thread.join(10)


@contextmanager
def full_listener():
    """An address that answers no attempt to connect: its queue of connections is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        try:
            for _ in range(4):
                one = socket.socket()
                one.setblocking(False)
                one.connect_ex(listener.getsockname())
                waiting.append(one)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for one in waiting:
                one.close()


class TestWhatIsSent:
    def test_the_body_goes_as_it_is_with_its_length(self, server, client):
        client.ingest(BODY)
        (request,) = server.requests
        assert (request.method, request.target, request.body) == ("POST", "/v1/events/ingest", BODY)
        assert request.headers["content-length"] == str(len(BODY))
        assert request.headers["content-type"] == "application/json"
        assert "transfer-encoding" not in request.headers
        assert "content-encoding" not in request.headers

    def test_headers_name_version_agent_and_token_and_ask_for_plain_answers(self, server, client):
        client.ingest(BODY)
        headers = server.requests[0].headers
        assert headers["authorization"] == f"Bearer {TOKEN}"
        assert headers["polar-version"] == "2026-04"
        assert headers["user-agent"] == f"polar-agent/{__version__}"
        assert headers["accept-encoding"] == "identity"
        assert headers["host"] == f"127.0.0.1:{server.port}"

    def test_a_slash_at_the_end_of_the_servers_address_does_not_matter(self, server):
        with PolarClient(server.url + "/", lambda: TOKEN) as client:
            client.ingest(BODY)
        assert server.requests[0].target == "/v1/events/ingest"

    def test_an_address_with_a_path_keeps_it(self, server):
        with PolarClient(server.url + "/polar", lambda: TOKEN) as client:
            client.ingest(BODY)
            server.respond = lambda _: answer(
                200, {"items": [], "pagination": {"total_count": 0, "max_page": 0}}
            )
            client.list_events()
        assert [request.path for request in server.requests] == [
            "/polar/v1/events/ingest",
            "/polar/v1/events/",
        ]

    def test_the_token_is_asked_for_each_time(self, server):
        tokens = iter(["one", "two"])
        with PolarClient(server.url, lambda: next(tokens)) as client:
            client.ingest(BODY)
            client.ingest(BODY)
        assert [request.headers["authorization"] for request in server.requests] == [
            "Bearer one",
            "Bearer two",
        ]

    @pytest.mark.parametrize("token", [None, "a\nb", "ä", "a\0"])
    def test_without_a_token_that_can_be_sent_nothing_is_sent(self, server, token):
        with PolarClient(server.url, lambda: token) as client:
            outcome = client.ingest(BODY)
        assert isinstance(outcome, NoAnswer)
        assert outcome.kind == "token"
        assert server.requests == []

    def test_cookies_are_not_kept(self, server, client):
        server.respond = lambda _: answer(set_cookie="lb=node1; Path=/")
        client.ingest(BODY)
        client.ingest(BODY)
        assert "cookie" not in server.requests[1].headers

    def test_a_connection_is_used_again(self, server, client):
        for _ in range(3):
            client.ingest(BODY)
        assert {request.connection for request in server.requests} == {1}

    def test_a_connection_that_the_server_closed_meanwhile_is_not(self, server, client):
        closed = threading.Event()

        def respond_and_close(connection):
            with connection.makefile("rb") as stream:
                read_request(stream)
            connection.sendall(answer())
            connection.shutdown(socket.SHUT_RDWR)
            closed.set()

        server.talk = respond_and_close
        for _ in range(3):
            closed.clear()
            assert client.ingest(BODY) == Answer(200, b'{"inserted":1,"duplicates":0}', server_time=DATE_UNIX)
            assert closed.wait(5)


class TestAnswers:
    @pytest.mark.parametrize(
        "status", [200, 301, 307, 400, 401, 403, 404, 405, 408, 411, 413, 422, 425, 429, 500, 503]
    )
    def test_every_status_is_an_answer(self, server, client, status):
        server.respond = lambda _: answer(status, b"what it says")
        assert client.ingest(BODY) == Answer(status, b"what it says", server_time=DATE_UNIX)

    @pytest.mark.parametrize("value", ["60", "0", "Mon, 23 Nov 2026 10:01:00 GMT", "soon"])
    def test_retry_after_is_passed_on_as_it_came(self, server, client, value):
        server.respond = lambda _: answer(429, b"", retry_after=value)
        assert client.ingest(BODY).retry_after == value

    @pytest.mark.parametrize("date", ["yesterday", "", "Mon, 99 Nov 2026 10:00:00 GMT"])
    def test_a_date_that_cannot_be_read_is_none(self, server, client, date):
        server.respond = lambda _: f"HTTP/1.1 200 OK\r\ncontent-length: 0\r\ndate: {date}\r\n\r\n".encode()
        assert client.ingest(BODY) == Answer(200)

    def test_a_redirect_is_not_followed(self, server, client):
        server.respond = lambda _: answer(307, b"", location=f"{server.url}/elsewhere")
        outcome = client.ingest(BODY)
        assert (outcome.status, outcome.location) == (307, f"{server.url}/elsewhere")
        assert len(server.requests) == 1

    def test_an_answer_that_comes_before_the_body_was_read_counts(self, server, client):
        def refuse(connection):
            connection.recv(1000)
            connection.sendall(answer(413, b"too large", connection="close"))
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1_000_000):
                pass

        server.talk = refuse
        assert client.ingest(b"x" * 20_000_000).status == 413

    def test_a_body_in_chunks_is_joined(self, server, client):
        server.respond = lambda _: (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        )
        assert client.ingest(BODY).body == b"abcde"

    def test_a_good_answer_that_is_too_large_is_no_answer(self, server, client, monkeypatch):
        monkeypatch.setattr(polar, "MAX_INGEST_ANSWER", 2**20)
        server.respond = lambda _: answer(200, b"x" * (2**20 + 1))
        outcome = client.ingest(BODY)
        assert outcome == NoAnswer("too_large", "the answer is larger than 1 MiB")
        server.respond = lambda _: answer(200, b"x" * 2**20)
        assert len(client.ingest(BODY).body) == 2**20

    def test_a_refusal_that_is_too_large_is_cut(self, server, client, monkeypatch):
        monkeypatch.setattr(polar, "MAX_INGEST_ANSWER", 2**20)
        server.respond = lambda _: answer(422, b"x" * 3_000_000)
        outcome = client.ingest(BODY)
        assert outcome.status == 422
        assert outcome.body == b"x" * 2**20

    def test_after_a_cut_answer_the_next_request_works(self, server, client, monkeypatch):
        monkeypatch.setattr(polar, "MAX_INGEST_ANSWER", 1000)
        server.respond = lambda _: answer(500, b"x" * 3_000_000)
        client.ingest(BODY)
        server.respond = lambda _: answer()
        assert client.ingest(BODY).body == b'{"inserted":1,"duplicates":0}'


class TestNoAnswer:
    def test_a_refused_connection(self, server, client):
        server.stop()
        outcome = client.ingest(BODY)
        assert outcome == NoAnswer("connect", f"127.0.0.1:{server.port}: Connection refused")

    @pytest.mark.parametrize("host", ["nobody.invalid", "a..b", "x" * 70 + ".invalid"])
    def test_a_name_without_an_address(self, host, monkeypatch):
        # The name service of the machine that runs the test stays out of it.
        def no_address(*_, **__):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", no_address)
        with PolarClient(f"http://{host}", lambda: TOKEN) as client:
            assert client.ingest(BODY) == NoAnswer("dns", f"{host}: Name or service not known")

    def test_the_second_address_is_tried_when_the_first_does_not_answer(self, server, monkeypatch):
        found = [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", server.port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port)),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        with PolarClient(f"http://localhost:{server.port}", lambda: TOKEN) as client:
            assert client.ingest(BODY).status == 200

    def test_a_server_that_lets_nobody_connect(self, monkeypatch):
        monkeypatch.setattr(polar, "CONNECT_TIMEOUT", 0.1)
        with full_listener() as url, PolarClient(url, lambda: TOKEN) as client:
            outcome = client.ingest(BODY)
        assert outcome.kind == "connect"
        assert "in time" in outcome.reason

    @pytest.mark.parametrize(
        "said",
        [
            b"",
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            b"SSH-2.0-OpenSSH_9.0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000,
            b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        ],
    )
    def test_a_broken_conversation(self, server, client, said):
        def talk(connection):
            with connection.makefile("rb") as stream:
                read_request(stream)
            connection.sendall(said)

        server.talk = talk
        outcome = client.ingest(BODY)
        assert isinstance(outcome, NoAnswer)
        assert outcome.kind == "broken"
        assert TOKEN not in outcome.reason

    def test_a_server_that_hangs_up_at_once(self, server, client):
        server.talk = lambda _: None
        assert client.ingest(b"x" * 20_000_000).kind == "broken"

    def test_a_server_that_says_nothing(self, server):
        server.talk = lambda connection: [connection.recv(1000), server.stopping.wait(10)]
        with PolarClient(server.url, lambda: TOKEN, timeout=0.2) as client:
            started = time.monotonic()
            outcome = client.ingest(BODY)
        assert outcome == NoAnswer("timeout", "no complete answer within 0.2 s")
        assert time.monotonic() - started < 2

    @pytest.mark.parametrize(
        "said", [b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n", b"HTTP/1.1 200 OK\r\nx-long: "]
    )
    def test_a_server_that_sends_byte_by_byte_without_end(self, server, said):
        def drip(connection):
            connection.recv(1000)
            connection.sendall(said)
            while not server.stopping.wait(0.02):
                connection.sendall(b"x")

        server.talk = drip
        with PolarClient(server.url, lambda: TOKEN, timeout=0.5) as client:
            started = time.monotonic()
            assert client.ingest(BODY).kind == "timeout"
        assert 0.4 < time.monotonic() - started < 3

    def test_a_server_that_never_reads_what_is_sent(self, server):
        server.talk = lambda _: server.stopping.wait(10)
        with PolarClient(server.url, lambda: TOKEN, timeout=0.3) as client:
            started = time.monotonic()
            assert client.ingest(b"x" * 50_000_000).kind == "timeout"
        assert time.monotonic() - started < 3

    def test_an_answer_whose_redirect_is_no_address_does_not_raise(self, server, client):
        server.respond = lambda _: answer(302, b"", location="http://[::1")
        assert client.ingest(BODY)


class TestClosing:
    @pytest.mark.parametrize(
        "said", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc"]
    )
    def test_ends_a_request_that_waits_for_its_answer(self, server, client, said):
        waiting = threading.Event()

        def talk(connection):
            connection.recv(1000)
            connection.sendall(said)
            waiting.set()
            server.stopping.wait(10)

        server.talk = talk
        with running(lambda: client.ingest(BODY)) as result:
            assert waiting.wait(5)
            started = time.monotonic()
            client.close()
            outcome = result()
        assert outcome.kind == "broken"
        assert time.monotonic() - started < 1

    def test_ends_a_request_that_is_being_sent(self, server, client):
        waiting = threading.Event()
        server.talk = lambda connection: [connection.recv(1000), waiting.set(), server.stopping.wait(10)]
        with running(lambda: client.ingest(b"x" * 50_000_000)) as result:
            assert waiting.wait(5)
            client.close()
            assert result(1) == NoAnswer("broken", "the client was closed")

    def test_ends_an_attempt_to_connect(self, monkeypatch):
        connecting = threading.Event()
        connect = network.Network._connect

        def announced(*args):
            connecting.set()
            return connect(*args)

        monkeypatch.setattr(network.Network, "_connect", announced)
        with full_listener() as url:
            client = PolarClient(url, lambda: TOKEN)
            with running(lambda: client.ingest(BODY)) as result:
                assert connecting.wait(5)
                client.close()
                assert result(1) == NoAnswer("broken", "the client was closed")

    def test_ends_a_tls_handshake(self, server):
        waiting = threading.Event()
        server.talk = lambda connection: [connection.recv(1000), waiting.set(), server.stopping.wait(10)]
        client = PolarClient(f"https://127.0.0.1:{server.port}", lambda: TOKEN)
        with running(lambda: client.ingest(BODY)) as result:
            assert waiting.wait(5)
            client.close()
            assert result(1).kind == "broken"

    def test_ends_the_requests_of_all_threads(self, server, client):
        arrived = threading.Barrier(5)
        server.talk = lambda connection: [connection.recv(1000), arrived.wait(5), server.stopping.wait(10)]
        outcomes = []
        threads = [threading.Thread(target=lambda: outcomes.append(client.ingest(BODY))) for _ in range(4)]
        for thread in threads:
            thread.start()
        arrived.wait(5)
        client.close()
        for thread in threads:
            thread.join(2)
        assert [outcome.kind for outcome in outcomes] == ["broken"] * 4

    def test_a_closed_client_sends_nothing_more(self, server, client):
        client.ingest(BODY)
        client.close()
        client.close()
        assert client.ingest(BODY) == NoAnswer("broken", "the client was closed")
        assert len(server.requests) == 1

    def test_leaves_no_connection_open(self, server, client):
        ended = threading.Event()

        def talk(connection):
            with connection.makefile("rb") as stream:
                read_request(stream)
                connection.sendall(answer())
                if not stream.read(1):
                    ended.set()

        server.talk = talk
        client.ingest(BODY)
        assert not ended.is_set()
        client.close()
        assert ended.wait(5)


class TestThreads:
    def test_several_requests_are_under_way_at_once(self, server, client):
        together = threading.Barrier(4)

        def respond(_):
            together.wait(5)
            return answer()

        server.respond = respond
        outcomes = []
        threads = [threading.Thread(target=lambda: outcomes.append(client.ingest(BODY))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert [outcome.status for outcome in outcomes] == [200] * 4

    def test_a_body_is_not_held_once_its_request_is_over(self, server, client):
        body = b"x" * 1_000_000
        held = sys.getrefcount(body)
        client.ingest(body)
        assert sys.getrefcount(body) == held
        server.respond = lambda _: None
        client.ingest(body)
        assert sys.getrefcount(body) == held


@pytest.fixture
def certificate():
    """A key and a certificate for localhost and polar.test that nobody has signed."""
    return Path(__file__).parents[1] / "data" / "tls"


@pytest.fixture
def tls_server(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    server = Server(context)
    yield server
    server.stop()


class TestTls:
    def test_a_server_that_the_machine_trusts_gets_the_events(self, tls_server, certificate, monkeypatch):
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
        with PolarClient(f"https://localhost:{tls_server.port}", lambda: TOKEN) as client:
            for _ in range(2):
                assert client.ingest(b"x" * 3_000_000).status == 200
        assert [len(request.body) for request in tls_server.requests] == [3_000_000] * 2
        assert {request.connection for request in tls_server.requests} == {1}

    def test_a_server_that_nobody_vouches_for_gets_nothing(self, tls_server):
        with PolarClient(f"https://localhost:{tls_server.port}", lambda: TOKEN) as client:
            outcome = client.ingest(BODY)
        assert outcome.kind == "tls"
        assert "certificate cannot be trusted" in outcome.reason
        assert tls_server.requests == []

    def test_a_certificate_for_another_name_is_refused(self, tls_server, certificate, monkeypatch):
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
        with PolarClient(f"https://127.0.0.1:{tls_server.port}", lambda: TOKEN) as client:
            assert client.ingest(BODY).kind == "tls"

    def test_a_server_that_speaks_no_tls(self, server):
        server.talk = lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with PolarClient(f"https://127.0.0.1:{server.port}", lambda: TOKEN) as client:
            assert client.ingest(BODY).kind in ("tls", "connect")

    def test_closing_ends_a_request_that_waits(self, tls_server, certificate, monkeypatch):
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
        waiting = threading.Event()
        tls_server.talk = lambda connection: [
            connection.recv(1000),
            waiting.set(),
            tls_server.stopping.wait(10),
        ]
        client = PolarClient(f"https://localhost:{tls_server.port}", lambda: TOKEN)
        with running(lambda: client.ingest(BODY)) as result:
            assert waiting.wait(5)
            client.close()
            assert result(1) == NoAnswer("broken", "the client was closed")

    @pytest.mark.parametrize("content", [None, b"", b"no certificate"])
    def test_certificates_that_cannot_be_used_are_told(self, monkeypatch, tmp_path, content):
        if content is not None:
            (tmp_path / "ca.pem").write_bytes(content)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        with PolarClient("https://localhost", lambda: TOKEN) as client:
            outcome = client.ingest(BODY)
        assert outcome.kind == "connect"
        assert "SSL_CERT_FILE" in outcome.reason
        assert "correct the path" in outcome.reason


@contextmanager
def proxy(target):
    """A proxy that leads every connection to one port of this machine."""
    asked = []

    def pump(source, sink):
        try:
            while data := source.recv(65_536):
                sink.sendall(data)
        except OSError:
            pass

    def talk(connection):
        with connection.makefile("rb", buffering=0) as stream:
            asked.append(read_request(stream))
            with socket.create_connection(("127.0.0.1", target)) as inner:
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=pump, args=(inner, connection))
                back.start()
                pump(connection, inner)
                inner.shutdown(socket.SHUT_RDWR)
                back.join(5)

    server = Server()
    server.talk = talk
    try:
        yield server, asked
    finally:
        server.stop()


class TestProxies:
    def test_the_environments_proxy_leads_to_the_real_server(self, tls_server, certificate, monkeypatch):
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
        with proxy(tls_server.port) as (middle, asked):
            monkeypatch.setenv("HTTPS_PROXY", f"http://me:p%40ss@127.0.0.1:{middle.port}")
            with PolarClient("https://polar.test", lambda: TOKEN) as client:
                assert client.ingest(BODY).status == 200
        assert (asked[0].method, asked[0].target) == ("CONNECT", "polar.test:443")
        assert asked[0].headers["proxy-authorization"] == "Basic bWU6cEBzcw=="
        assert "authorization" not in asked[0].headers
        assert tls_server.requests[0].body == BODY
        assert "proxy-authorization" not in tls_server.requests[0].headers

    @pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
    def test_a_server_on_this_machine_is_never_reached_through_one(self, server, monkeypatch, name):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
        with PolarClient(server.url, lambda: TOKEN) as client:
            assert client.ingest(BODY).status == 200

    def test_no_proxy_is_honoured(self, tls_server, monkeypatch):
        monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1")
        monkeypatch.setenv("NO_PROXY", "polar.test")
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", tls_server.port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        with PolarClient("https://api.polar.test", lambda: TOKEN) as client:
            assert client.ingest(BODY).kind == "tls"

    @pytest.mark.parametrize(
        "value", ["socks5://127.0.0.1:1", "https://127.0.0.1:1", "http://", "http://x:y", "http://["]
    )
    def test_a_proxy_that_cannot_be_used_is_told_without_its_password(self, monkeypatch, value):
        monkeypatch.setenv("ALL_PROXY", value.replace("//", "//me:hunter2@"))
        with PolarClient("https://api.polar.test", lambda: TOKEN) as client:
            outcome = client.ingest(BODY)
        assert outcome.kind == "connect"
        assert "NO_PROXY" in outcome.reason
        assert "hunter2" not in outcome.reason

    def test_a_proxy_that_refuses_is_no_answer(self, server, monkeypatch):
        server.respond = lambda _: answer(407, b"")
        monkeypatch.setenv("HTTPS_PROXY", server.url)
        with PolarClient("https://polar.test", lambda: TOKEN) as client:
            outcome = client.ingest(BODY)
        assert outcome.kind == "connect"
        assert "the proxy refused: 407" in outcome.reason


EVENT = {"id": "3745d601-f7f0-4a79-842c-11bff727a5b9", "name": "x", "source": "user", "metadata": {}}


def page_of(items, total=None, last=1):
    count = len(items) if total is None else total
    return answer(200, {"items": items, "pagination": {"total_count": count, "max_page": last}})


class TestReadingBack:
    def test_one_event_by_its_id(self, server, client):
        server.respond = lambda _: answer(200, EVENT | {"something_new": [1]})
        event = client.get_event(EVENT["id"])
        assert server.requests[0].method == "GET"
        assert server.requests[0].target == f"/v1/events/{EVENT['id']}"
        assert "content-type" not in server.requests[0].headers
        assert (event.id, event.name, event.source, event.customer_id) == (EVENT["id"], "x", "user", None)
        assert event.raw["something_new"] == [1]

    def test_an_id_cannot_lead_to_another_path(self, server, client):
        server.respond = lambda _: answer(200, EVENT)
        client.get_event("../customers/x?a=b#c")
        assert server.requests[0].target == "/v1/events/..%2Fcustomers%2Fx%3Fa%3Db%23c"

    def test_big_integers_keep_their_digits(self, server, client):
        digits = "123456789012345678901234567890"
        server.respond = lambda _: answer(200, b'{"id":"i","metadata":{"n":%s}}' % digits.encode())
        assert json.dumps(client.get_event("i").metadata["n"]) == digits

    def test_a_list_sends_every_filter_there_is(self, server, client):
        server.respond = lambda _: page_of([EVENT])
        page = client.list_events(
            EventFilter(
                name=["a", "b c"],
                customer_id=["c1", "c2"],
                external_customer_id=["ä&=", ""],
                organization_id=["o1"],
                source=["user", "system"],
                start_timestamp="2026-11-01T00:00:00+02:00",
                end_timestamp="2026-12-01T00:00:00Z",
                metadata=[("model", "gpt 5"), ("a[b]", "1")],
                filter='{"conjunction":"and","clauses":[]}',
                meter_id="m",
                query="text",
                parent_id="p",
                depth=0,
                sorting=["-timestamp"],
            ),
            page=2,
            limit=50,
        )
        assert server.requests[0].path == "/v1/events/"
        assert sorted(server.requests[0].parameters) == sorted(
            [
                ("name", "a"),
                ("name", "b c"),
                ("customer_id", "c1"),
                ("customer_id", "c2"),
                ("external_customer_id", "ä&="),
                ("external_customer_id", ""),
                ("organization_id", "o1"),
                ("source", "user"),
                ("source", "system"),
                ("start_timestamp", "2026-11-01T00:00:00+02:00"),
                ("end_timestamp", "2026-12-01T00:00:00Z"),
                ("metadata[model]", "gpt 5"),
                ("metadata[a[b]]", "1"),
                ("filter", '{"conjunction":"and","clauses":[]}'),
                ("meter_id", "m"),
                ("query", "text"),
                ("parent_id", "p"),
                ("depth", "0"),
                ("sorting", "-timestamp"),
                ("page", "2"),
                ("limit", "50"),
            ]
        )
        assert (page.items[0].id, page.total_count, page.max_page) == (EVENT["id"], 1, 1)

    def test_without_filters_only_the_paging_is_sent(self, server, client):
        server.respond = lambda _: page_of([])
        client.list_events()
        client.list_names()
        for request in server.requests:
            assert request.parameters == [("page", "1"), ("limit", "100")]

    def test_names_send_their_filters(self, server, client):
        name = {
            "name": "x",
            "label": "x",
            "source": "user",
            "occurrences": 3,
            "first_seen": "a",
            "last_seen": "b",
        }
        server.respond = lambda _: page_of([name])
        page = client.list_names(
            NameFilter(
                customer_id=["c"],
                external_customer_id=["e"],
                organization_id=["o"],
                source=["user"],
                query="q",
                sorting=["-occurrences"],
            )
        )
        assert server.requests[0].path == "/v1/events/names"
        assert dict(server.requests[0].parameters) == {
            "customer_id": "c",
            "external_customer_id": "e",
            "organization_id": "o",
            "source": "user",
            "query": "q",
            "sorting": "-occurrences",
            "page": "1",
            "limit": "100",
        }
        assert (page.items[0].name, page.items[0].occurrences, page.items[0].last_seen) == ("x", 3, "b")

    def test_all_pages_are_gone_through_and_what_moved_to_the_next_comes_once(self, server, client):
        contents = {"1": ["a", "b"], "2": ["b", "c"], "3": ["d"]}
        server.respond = lambda request: page_of(
            [EVENT | {"id": key} for key in contents[dict(request.parameters)["page"]]], 5, 3
        )
        assert [event.id for event in client.iter_events()] == ["a", "b", "c", "d"]
        assert len(server.requests) == 3

    def test_all_names_are_gone_through(self, server, client):
        server.respond = lambda request: page_of([{"name": f"n{dict(request.parameters)['page']}"}], 2, 2)
        assert [name.name for name in client.iter_names()] == ["n1", "n2"]

    def test_an_empty_list_is_one_request(self, server, client):
        server.respond = lambda _: page_of([], 0, 0)
        assert list(client.iter_events()) == []
        assert len(server.requests) == 1

    def test_a_page_may_be_larger_than_an_answer_to_events(self, server, client, monkeypatch):
        monkeypatch.setattr(polar, "MAX_INGEST_ANSWER", 1000)
        server.respond = lambda _: page_of([EVENT | {"metadata": {"a": "x" * 5000}}])
        assert len(client.list_events().items) == 1

    def test_an_unreachable_server_is_an_error_with_a_hint(self, server, client):
        server.stop()
        with pytest.raises(polar.UnreachableError, match="Connection refused") as caught:
            client.list_events()
        assert "check the network" in caught.value.hint

    def test_a_page_of_a_proxy_is_an_error_that_shows_its_title(self, server, client):
        server.respond = lambda _: answer(200, b"<html><head><title>Please\nlog in</title></head></html>")
        with pytest.raises(polar.UnexpectedAnswerError, match='a web page, "Please log in"'):
            client.list_events()


class TestImports:
    def test_the_client_imports_neither_rich_nor_click(self):
        code = "import sys, agent.polar; print(sorted({'rich', 'click', 'pygments'} & set(sys.modules)))"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert result.stdout == "[]\n"
