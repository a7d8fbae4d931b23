"""Files of a damaged queue are read as far as the disk gives them."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from agent.queue.raw import RawFile

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 4096
DATA = b"a" * BLOCK + b"b" * BLOCK + b"c" * BLOCK


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(DATA)
    return tmp_path / "file"


def refusal() -> OSError:
    return OSError(errno.EIO, os.strerror(errno.EIO))


def test_what_is_not_there_is_zeros(path: Path) -> None:
    with closing(RawFile(path)) as file, closing(RawFile(path.with_name("gone"))) as gone:
        assert file.read(len(DATA) - 1, 3) == b"c\0\0"
        assert (gone.read(5, 2), gone.size, gone.unreadable) == (b"\0\0", 0, 0)


def test_what_the_disk_refuses_once_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused, opening, reading = set(), os.open, os.pread

    def refuse_once(call: str) -> None:
        if call not in refused:
            refused.add(call)
            raise refusal()

    monkeypatch.setattr(os, "open", lambda *words: (refuse_once("open"), opening(*words))[1])
    monkeypatch.setattr(os, "pread", lambda *words: (refuse_once("pread"), reading(*words))[1])

    with closing(RawFile(path)) as file:
        assert file.read(0, len(DATA)) == DATA
        assert (file.size, file.unreadable) == (len(DATA), 0)
    assert refused == {"open", "pread"}


def test_around_a_block_that_the_disk_refuses_all_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = os.pread

    def pread(file: int, length: int, offset: int) -> bytes:
        if offset < 2 * BLOCK and offset + length > BLOCK:
            raise refusal()
        return reading(file, length, offset)

    monkeypatch.setattr(os, "pread", pread)

    with closing(RawFile(path)) as file:
        assert file.read(0, len(DATA)) == DATA[:BLOCK] + bytes(BLOCK) + DATA[2 * BLOCK :]
        assert file.unreadable == 2


def test_a_file_that_cannot_be_opened_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise refusal()

    monkeypatch.setattr(os, "open", refuse)

    with closing(RawFile(path)) as file:
        assert (file.read(0, 2), file.unreadable) == (b"\0\0", 1)
