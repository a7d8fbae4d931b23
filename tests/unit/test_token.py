"""Where the access token comes from, and what is said when there is none."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.user import unprivileged

from agent.settings import Settings
from agent.token import TokenSource

ORGANIZATION = "polar_oat_abc123"
PERSONAL = "polar_pat_abc123"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "token"
    path.write_text(f"{ORGANIZATION}\n")
    return path


class TestFromTheSettings:
    def test_the_token_is_given_as_it_is(self):
        source = TokenSource(ORGANIZATION)
        assert source.current() == ORGANIZATION
        assert source.problem is None

    def test_settings_with_a_token(self, tmp_path):
        settings = Settings(access_token=f" {ORGANIZATION} ", queue_dir=tmp_path, socket_path=tmp_path / "s")
        assert TokenSource.from_settings(settings).current() == ORGANIZATION

    def test_settings_with_a_token_file(self, tmp_path, file):
        settings = Settings(access_token_file=file, queue_dir=tmp_path, socket_path=tmp_path / "s")
        assert TokenSource.from_settings(settings).current() == ORGANIZATION

    def test_without_any_token_the_problem_says_what_to_set(self):
        source = TokenSource()
        assert source.current() is None
        assert "set POLAR_ACCESS_TOKEN" in source.problem


class TestFromAFile:
    def test_white_space_around_it_is_left_out(self, file):
        file.write_text(f"\n  {ORGANIZATION}\r\n\n")
        assert TokenSource(file=file).current() == ORGANIZATION

    def test_a_byte_order_mark_is_left_out(self, file):
        file.write_bytes(b"\xef\xbb\xbf" + ORGANIZATION.encode())
        assert TokenSource(file=file).current() == ORGANIZATION

    def test_it_is_read_again_when_it_is_written_anew(self, file):
        source = TokenSource(file=file)
        assert source.current() == ORGANIZATION
        file.write_text("polar_oat_another")
        assert source.current() == "polar_oat_another"

    def test_it_is_read_again_when_only_its_time_changed(self, file):
        source = TokenSource(file=file)
        source.current()
        file.write_text(f"{PERSONAL}\n")  # as long as the other one
        os.utime(file, ns=(1, 1))
        assert source.current() == PERSONAL

    def test_it_is_read_again_when_a_link_to_it_moves(self, file, tmp_path):
        # Kubernetes mounts secrets like this, and changes them by moving the link.
        other = tmp_path / "other"
        other.write_text("polar_oat_another")
        link = tmp_path / "link"
        link.symlink_to(file)
        source = TokenSource(file=link)
        assert source.current() == ORGANIZATION
        (tmp_path / "new").symlink_to(other)
        (tmp_path / "new").replace(link)
        assert source.current() == "polar_oat_another"

    def test_an_unchanged_file_is_not_read_again(self, file, monkeypatch):
        source = TokenSource(file=file)
        source.current()
        monkeypatch.setattr(os, "open", lambda *_: pytest.fail("the file was opened"))
        assert source.current() == ORGANIZATION

    def test_a_file_that_comes_later_is_found(self, tmp_path):
        source = TokenSource(file=tmp_path / "later")
        assert source.current() is None
        assert "does not exist; create it" in source.problem
        (tmp_path / "later").write_text(ORGANIZATION)
        assert source.current() == ORGANIZATION
        assert source.problem is None

    def test_a_token_that_was_taken_away_is_not_used_any_more(self, file):
        source = TokenSource(file=file)
        assert source.current() == ORGANIZATION
        file.unlink()
        assert source.current() is None
        assert "does not exist" in source.problem

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (b"", "is empty"),
            (b" \n\t", "is empty"),
            (b"polar_oat_abc def", "at position 14"),
            (b"polar_oat_abc\ndef", "at position 14"),
            (b"polar_oat_\x00abc", "at position 11"),
            ("polar_oat_ä".encode(), "at position 11"),
            (b"\xff\xfe\x00p", "holds no text"),
            (b"Bearer polar_oat_abc", "leave that word out"),
            (b"x" * 20_000, "too large"),
        ],
    )
    def test_what_cannot_be_a_token_is_told_with_the_mend(self, file, content, told):
        file.write_bytes(content)
        source = TokenSource(file=file)
        assert source.current() is None
        assert told in source.problem
        assert str(file) in source.problem
        assert "; " in source.problem

    def test_a_directory_is_told(self, tmp_path):
        assert "no regular file" in TokenSource(file=tmp_path).problem

    def test_a_pipe_is_told_and_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        assert "no regular file" in TokenSource(file=tmp_path / "pipe").problem

    def test_a_path_through_a_file_is_told(self, file):
        assert "cannot be read" in TokenSource(file=file / "x").problem

    def test_a_file_that_may_not_be_read_is_told(self, file):
        file.chmod(0)
        with unprivileged():
            problem = TokenSource(file=file).problem
        assert "may not be read" in problem


@given(st.text(max_size=40))
def test_whatever_is_given_ends_as_a_token_for_a_header_or_as_a_problem(text):
    source = TokenSource(text)
    token = source.current()
    assert (token is None) == (source.problem is not None)
    assert token is None or (token.isascii() and token.isprintable() and " " not in token)


def test_the_kind_is_told_by_the_prefix():
    assert TokenSource(PERSONAL).kind == "personal"
    assert TokenSource(ORGANIZATION).kind == "organization"
    assert TokenSource().kind == "organization"


def test_no_text_of_it_shows_the_token(file):
    for source in (TokenSource(ORGANIZATION), TokenSource(file=file), TokenSource(f"{ORGANIZATION} x")):
        source.current()
        assert "abc123" not in f"{source!r} {source} {source.problem}"
        assert "abc123" not in repr(source.__dict__)
