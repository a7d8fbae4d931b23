"""Errors from the disk at every call that a queue makes, of every kind, at many places of its life.

What the queue said is done is done; what it refused is not, and it says why. When the errors are
over it goes on, in the same process; one that could not be opened is opened by the next. Which calls
there are, and how they are hit: `support.queue_life`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.damage import copy, reports, write
from support.queue_life import AT_ONCE, LATEST, Life, contents, open_queue, prepare, watched

import agent

pytestmark = pytest.mark.needs("strace")


class Errors(NamedTuple):
    """Calls that fail, how, and at which places: the 1st, 2nd and so on of each kind."""

    calls: str
    error: str
    places: tuple[int, ...]
    states: tuple[str, ...] = ("killed", "damaged")

    def __str__(self) -> str:
        return f"{self.calls}: {self.error}"


ERRORS = [
    Errors("openat", "EIO", (1, 3, 5, 7, 9, 12, 15, 16, 19, 24, 29)),
    Errors("openat", "EMFILE", (2, 8, 14, 22)),
    Errors("mmap", "ENOMEM", (1, 2, 3)),
    Errors("mmap", "EIO", (1,)),
    Errors("unlink", "EIO", (1, 2, 3)),
    Errors("rename", "EIO", (1, 3, 5), ("damaged",)),
    Errors("fcntl", "EIO", (1, 20, 45, 80, 120)),
    Errors("fcntl", "ENOLCK", (3, 60)),
    Errors("flock", "EIO", (1, 2)),
    Errors("ftruncate,truncate", "EIO", (1, 2, 3)),
    Errors("newfstatat,fstat", "EIO", (1, 2, 4, 8, 16, 30, 50)),
    Errors("lseek,read,pread64", "EIO", (1, 3, 8, 16, 30)),
    Errors("pwrite64,write,ftruncate,truncate,unlink,rename,mkdir", "EROFS", (1, 20, 60)),
    Errors("pwrite64,write", "ENOSPC", (1, 15, 40, 100)),
    Errors("fsync,fdatasync", "EIO", (1, 3, 6, 10, 20)),
    Errors("statfs", "EIO", (1, 2, 3)),
]


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Queues to be taken up: one left by a kill and one that is damaged, and what they hold at last."""
    place = tmp_path_factory.mktemp("templates")
    prepare(place / "killed")
    copy(place / "killed", place / "damaged")
    write(place / "damaged" / "cache.db", 4096, bytes(8192))
    write(place / "damaged" / "cache.db-wal", 32, bytes(100))
    found = {}
    for name in ("killed", "damaged"):
        directory = copy(place / name, place / f"{name}-undisturbed")
        story = Life(directory).live()
        assert story["errors"] == []
        assert len(reports(directory)) == (name == "damaged")
        found[name] = (place / name, story)
    return found


def lead_lives(place: Path, template: Path, errors: Errors) -> list[dict[str, Any]]:
    """Have a queue taken up, used and put down in processes of which each meets the errors elsewhere."""
    for point in errors.places:
        copy(template, place / f"queue-{point}")
    (place / "burn").write_bytes(bytes(8192))
    inject = f"inject={errors.calls}:error={errors.error}:when={LATEST}..{LATEST + AT_ONCE - 1}"
    paths = [word for path in watched(place) for word in ("-P", str(path))]
    how = ["-f", "--seccomp-bpf", "-qq", "-e", f"trace={errors.calls}", "-e", inject, *paths]
    program = [sys.executable, "-m", "support.queue_life", str(place), errors.calls]
    done = subprocess.run(
        ["strace", *how, "-o", str(place / "trace"), "--", *program, ",".join(map(str, errors.places))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (TESTS, TESTS.parent)))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (place / "stories").read_text().splitlines()]


TESTS = Path(agent.__file__).parents[1] / "tests"


@pytest.mark.parametrize(
    ("state", "errors"),
    [(state, errors) for state in ("killed", "damaged") for errors in ERRORS if state in errors.states],
    ids=str,
)
def test_a_queue_says_what_the_disk_refused_keeps_what_it_promised_and_goes_on(
    tmp_path: Path, templates: dict[str, tuple[Path, dict[str, Any]]], state: str, errors: Errors
) -> None:
    template, undisturbed = templates[state]

    stories = lead_lives(tmp_path, template, errors)

    assert "(INJECTED)" in (tmp_path / "trace").read_text(), "no error was put in"
    assert [story["point"] for story in stories] == list(errors.places)
    refused = tmp_path / "refused"
    told = refused.read_text().split("\n\n") if refused.exists() else []
    assert all(" the queue" in error for error in told)
    for story in stories:
        directory = tmp_path / f"done-{story['point']}"
        held = story["held"]
        with closing(open_queue(directory)) as queue:
            assert contents(queue) == held
        assert all(" the queue" in error for error in story["errors"]), story
        for kind in ("pending", "dead"):
            assert len(set(held[kind])) == len(held[kind]), story
        assert held["counted"] == [len(held["pending"]), len(held["dead"])]
        if held["lost"] == undisturbed["held"]["lost"]:
            assert held == undisturbed["held"], story
        else:
            # What could not be read while the rest was rescued is counted as lost.
            assert (state, errors.error) == ("damaged", "EIO"), story
        if state == "killed":
            assert not reports(directory), story
