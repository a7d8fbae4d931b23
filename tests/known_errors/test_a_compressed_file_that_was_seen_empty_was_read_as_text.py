"""Compressed data became dead letters, line by line, and the events in it were not read.

Whoever compresses a file makes an empty one first; what the tail opened then was plain for good.
"""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

from support.tails import Desk, line

if TYPE_CHECKING:
    from pathlib import Path


def test_a_compressed_file_that_was_opened_empty_is_decompressed(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    packed = tmp_path / "app.log.1.gz"
    packed.touch()
    desk.settle()

    packed.write_bytes(gzip.compress(line("a") + line("b")))
    desk.settle(20)

    assert desk.names() == ["a", "b"]
    assert desk.queue.books().dead == 0
    desk.close()
