"""Retrying and purging dead letters, through a pipeline whose writer runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from support.queues import buried, chunk_of, chunks, counts, line, pending

from agent.clock import SystemClock
from agent.errors import QueueError
from agent.operations import purge_dead, retry_dead
from agent.pipeline import Pipeline
from agent.queue import Change
from agent.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    """One with the dead letters a, b and c, numbers 1, 2 and 3; its writer runs, its flusher does not."""
    settings = Settings(
        access_token="polar_oat_test", queue_dir=tmp_path / "queue", socket_path=tmp_path / "agent.sock"
    )
    pipeline = Pipeline(settings, SystemClock())
    (key,) = pipeline.queue.commit(Change(appends=[chunk_of("a", "b", "c")]))
    pipeline.queue.commit(Change(settlements=[buried(key, "a", "b", "c")]))
    pipeline.writer.start()
    yield pipeline
    pipeline.stop()


def dead(pipeline: Pipeline) -> dict[int, str]:
    return {letter.id: letter.external_id for letter in pipeline.queue.dead_letters()}


def test_all_dead_letters_are_retried(pipeline: Pipeline) -> None:
    assert retry_dead(pipeline, {"ids": None}) == {"retried": 3, "refused": []}

    assert dead(pipeline) == {}
    assert counts(pipeline.queue.books()) == {"accepted": 3, "pending": 3}


def test_some_dead_letters_are_retried(pipeline: Pipeline) -> None:
    assert retry_dead(pipeline, {"ids": [3, 1, 777, 1]}) == {"retried": 2, "refused": []}

    assert dead(pipeline) == {2: "b"}
    assert pending(pipeline.queue) == ["a", "c"]


def test_a_retried_event_keeps_its_line_and_gets_a_timestamp_if_it_had_none(pipeline: Pipeline) -> None:
    retry_dead(pipeline, {"ids": [1]})

    ((_, chunk),) = chunks(pipeline.queue)
    assert chunk.lines.startswith(line("a")[:-1] + b',"timestamp":\t"')


def test_a_retry_counts_from_now(pipeline: Pipeline) -> None:
    before = pipeline.clock.wall()

    retry_dead(pipeline, {"ids": None})

    ((_, chunk),) = chunks(pipeline.queue)
    assert chunk.arrived_ms >= int(before * 1000)


def test_a_dead_letter_is_mended(pipeline: Pipeline) -> None:
    mended = '{"name":"mended","external_customer_id":"c","external_id":"b","timestamp":1e9}'

    retry_dead(pipeline, {"ids": [2], "edits": {"2": mended}})

    ((_, chunk),) = chunks(pipeline.queue)
    assert chunk.lines == mended.encode()


def test_what_our_own_check_refuses_stays_a_dead_letter_and_is_told(pipeline: Pipeline) -> None:
    edits = {"1": '{"name":"n"}', "2": "not JSON"}

    answer = retry_dead(pipeline, {"ids": None, "edits": edits})

    assert answer["retried"] == 1
    assert [one["id"] for one in answer["refused"]] == [1, 2]
    assert answer["refused"][0]["reason"] == "external_customer_id: this field is required"
    assert dead(pipeline) == {1: "a", 2: "b"}
    assert pending(pipeline.queue) == ["c"]


def test_an_edit_of_a_letter_that_was_not_named_changes_nothing(pipeline: Pipeline) -> None:
    retry_dead(pipeline, {"ids": [1], "edits": {"2": "not JSON"}})

    assert dead(pipeline) == {2: "b", 3: "c"}


def test_retrying_nothing_writes_nothing(pipeline: Pipeline) -> None:
    before = pipeline.queue.books()

    assert retry_dead(pipeline, {"ids": [777]}) == {"retried": 0, "refused": []}
    assert retry_dead(pipeline, {"ids": []}) == {"retried": 0, "refused": []}

    assert pipeline.queue.books() == before


def test_all_dead_letters_are_purged(pipeline: Pipeline) -> None:
    assert purge_dead(pipeline, {"ids": None}) == {"purged": 3}

    assert dead(pipeline) == {}
    assert counts(pipeline.queue.books()) == {"accepted": 3, "dropped": 3}


def test_some_dead_letters_are_purged(pipeline: Pipeline) -> None:
    assert purge_dead(pipeline, {"ids": [2, 777, 2]}) == {"purged": 1}

    assert dead(pipeline) == {1: "a", 3: "c"}
    assert counts(pipeline.queue.books()) == {"accepted": 3, "dead": 2, "dropped": 1}


def test_purging_nothing_writes_nothing(pipeline: Pipeline) -> None:
    before = pipeline.queue.books()

    assert purge_dead(pipeline, {"ids": []}) == {"purged": 0}

    assert pipeline.queue.books() == before


WRONG = [None, [], "x", {}, {"ids": 1}, {"ids": "all"}, {"ids": ["1"]}, {"ids": [True]}, {"ids": [1.0]}]


@pytest.mark.parametrize("body", WRONG, ids=json.dumps)
def test_a_body_of_another_form_is_refused_and_changes_nothing(pipeline: Pipeline, body: Any) -> None:
    before = pipeline.queue.books()

    with pytest.raises(ValueError, match="ids"):
        retry_dead(pipeline, body)
    with pytest.raises(ValueError, match="ids"):
        purge_dead(pipeline, body)

    assert pipeline.queue.books() == before


@pytest.mark.parametrize(
    "edits", [[1], "x", 1, {"x": "{}"}, {"1": 5}, {"1": {"name": "n"}}, {"1": None}], ids=json.dumps
)
def test_edits_of_another_form_are_refused_and_change_nothing(pipeline: Pipeline, edits: Any) -> None:
    with pytest.raises(ValueError, match="edits"):
        retry_dead(pipeline, {"ids": None, "edits": edits})

    assert len(dead(pipeline)) == 3


def test_a_letter_that_went_meanwhile_is_told_and_changes_nothing(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = list(pipeline.queue.dead_letters())
    purge_dead(pipeline, {"ids": [1]})
    monkeypatch.setattr(pipeline.queue, "dead_letters", lambda _: iter(letters))

    with pytest.raises(QueueError):
        retry_dead(pipeline, {"ids": None})

    monkeypatch.undo()
    assert dead(pipeline) == {2: "b", 3: "c"}
    assert pending(pipeline.queue) == []


def test_nothing_is_changed_once_the_pipeline_stops(pipeline: Pipeline) -> None:
    pipeline.writer.stop()

    with pytest.raises(QueueError, match="stopping"):
        retry_dead(pipeline, {"ids": None})

    assert len(dead(pipeline)) == 3
