"""What the daemon takes of the machine."""

import resource

import pytest

from agent.process import raise_file_limit


@pytest.fixture
def limits(monkeypatch):
    """What is asked of the system, which allows 50 open files of at most 900."""
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (50, 900))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: asked.append((kind, limits)))
    return asked


def test_as_many_files_may_be_open_as_the_system_allows(limits):
    raise_file_limit()

    assert limits == [(resource.RLIMIT_NOFILE, (900, 900))]


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize("error", [ValueError("not allowed"), OSError(1, "not permitted")])
def test_a_system_that_allows_no_more_files_keeps_nobody_from_starting(monkeypatch, error):
    def refuse(_kind, _limits):
        raise error

    monkeypatch.setattr(resource, "setrlimit", refuse)

    raise_file_limit()
