"""What the answers to reading events back mean."""

import json

import pytest

from agent import readback
from agent.answer import Answer, NoAnswer
from agent.listing import Event, EventFilter, EventName, Page, pages
from agent.readback import Question, http_date, one_event, one_page

QUESTION = Question("read the event", "e1", {404: "try again", 422: "give a UUID"})


def fails(kind, status, body=b"", **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(readback.PolarError) as caught:
        one_event(QUESTION, Answer(status, content, **headers))
    assert type(caught.value) is kind
    return caught.value


class TestErrors:
    def test_a_wrong_token_points_to_the_token_and_to_the_other_server(self):
        error = fails(
            readback.UnauthorizedError,
            401,
            {"error": "invalid_token", "error_description": "The token is expired."},
        )
        assert "The token is expired." in error.reason
        assert "POLAR_ACCESS_TOKEN" in error.hint
        assert "sandbox" in error.hint

    def test_a_missing_scope_is_named(self):
        error = fails(readback.ForbiddenError, 403, {"error": "insufficient_scope"})
        assert "events:read" in error.hint

    def test_an_unknown_event_is_not_found_and_may_come_later(self):
        error = fails(readback.NotFoundError, 404, {"error": "ResourceNotFound", "detail": "Not found"})
        assert error.hint == "try again"
        assert error.exit_code == 1

    def test_a_404_of_the_whole_path_is_another_matter(self):
        error = fails(readback.UnexpectedAnswerError, 404, {"detail": "Not Found"})
        assert "base_url" in error.hint

    def test_a_refused_question_tells_the_servers_words_once_each_but_never_the_input(self):
        finding = {
            "type": "enum",
            "loc": ["query", "source", "x"],
            "msg": "Input should be 'system' or 'user'",
        }
        other = {
            "type": "uuid_parsing",
            "loc": ["query", "meter_id"],
            "msg": "no UUID",
            "input": "customer data",
        }
        error = fails(readback.InvalidRequestError, 422, {"detail": [finding, finding, other]})
        assert error.reason.endswith("source: Input should be 'system' or 'user'; meter_id: no UUID")
        assert "customer data" not in str(error)
        assert error.hint == "give a UUID"
        assert error.exit_code == 2

    @pytest.mark.parametrize(
        "body", [b"", b"<html>", {"detail": "text"}, {"detail": [1, {"loc": 5}]}, [1], b"\xff"]
    )
    def test_a_refused_question_in_any_form_is_still_one(self, body):
        fails(readback.InvalidRequestError, 422, body)

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            ("60", 60),
            ("0", 0),
            ("Mon, 23 Nov 2026 10:01:00 GMT", 30),
            ("soon", None),
            (None, None),
            ("", None),
        ],
    )
    def test_too_many_requests_tell_how_long_to_wait(self, value, seconds):
        now = http_date("Mon, 23 Nov 2026 10:00:30 GMT")
        assert fails(readback.RateLimitedError, 429, retry_after=value, server_time=now).seconds == seconds

    @pytest.mark.parametrize("status", [301, 307, 400, 405, 413, 500, 502, 503, 204, 100])
    def test_every_other_status_is_unexpected_and_has_a_hint(self, status):
        error = fails(readback.UnexpectedAnswerError, status)
        assert str(status) in error.reason or status < 300
        assert error.hint

    def test_a_web_page_is_told_by_its_title(self):
        body = b"<html><TITLE>502 Bad\x1b[2J Gateway</TITLE>"
        assert (
            'a web page, "502 Bad\ufffd[2J Gateway"'
            in fails(readback.UnexpectedAnswerError, 502, body).reason
        )

    @pytest.mark.parametrize("body", [b"", b"[]", b'"x"', b"{", b"[" * 100_000, b"\xff\xfe", b"9" * 5000])
    def test_a_good_status_with_another_content_is_unexpected(self, body):
        fails(readback.UnexpectedAnswerError, 200, body)

    @pytest.mark.parametrize("kind", ["connect", "dns", "tls", "timeout", "broken", "too_large", "token"])
    def test_no_answer_is_an_error_with_a_hint_for_each_kind(self, kind):
        with pytest.raises(readback.UnreachableError) as caught:
            one_event(QUESTION, NoAnswer(kind, "it happened"))
        assert caught.value.reason == "it happened"
        assert caught.value.hint

    def test_a_token_in_the_servers_words_is_hidden(self):
        assert "abc" not in str(fails(readback.UnauthorizedError, 401, {"detail": "wrong: polar_oat_abc"}))

    @pytest.mark.parametrize(
        "document",
        [
            {},
            {"items": {}},
            {"items": [1], "pagination": {"total_count": 1, "max_page": 1}},
            {"items": []},
            {"items": [], "pagination": {"total_count": "1", "max_page": 1}},
        ],
    )
    def test_a_list_must_look_like_one(self, document):
        with pytest.raises(readback.UnexpectedAnswerError):
            one_page(QUESTION, Answer(200, json.dumps(document).encode()), Event)


class TestValues:
    def test_an_event_of_another_shape_than_expected_does_not_raise(self):
        event = Event({"id": 5, "metadata": None, "external_customer_id": ""})
        assert (event.id, event.name, event.timestamp, event.customer_id) == ("", "", "", None)
        assert event.external_customer_id == ""
        assert event.metadata == {}
        assert (EventName({}).name, EventName({}).occurrences) == ("", 0)

    def test_a_filter_may_be_given_as_one_word(self):
        assert EventFilter(name="x", depth=0).parameters() == [("name", "x"), ("depth", "0")]

    def test_pages_end_where_the_server_has_no_more_than_it_said(self):
        asked = []

        def fetch(number):
            asked.append(number)
            return Page((Event({"id": str(number)}),) if number < 3 else (), 10, 10)

        assert [page.items[0].id for page in pages(fetch)] == ["1", "2"]
        assert asked == [1, 2, 3]

    def test_pages_begin_where_they_are_told_to(self):
        assert [page.items[0].id for page in pages(lambda n: Page((Event({"id": str(n)}),), 9, 4), 3)] == [
            "3",
            "4",
        ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Thu, 01 Jan 1970 00:00:10 GMT", 10),
        ("Thu, 01 Jan 1970 00:00:10 -0000", 10),
        ("Thu, 01 Jan 1970 01:00:10 +0100", 10),
        ("yesterday", None),
        ("", None),
        (None, None),
    ],
)
def test_an_http_date_is_utc(text, seconds):
    assert http_date(text) == seconds
