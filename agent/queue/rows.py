"""The queue's rows beside the chunks: their keys, and their bytes with a checksum.

A chunk stands under its number. The others stand under words: `books`, `meta`,
``dead-<number>`` for a dead letter, ``checkpoint-<id>`` for a tailed file,
``damaged-<number>`` for the bytes of a chunk whose checksum did not hold. Books, meta,
dead letters and checkpoints are JSON; their last member,
`crc`, covers the key and all before it. Format 1 wrote none, and is read without.
"""

from __future__ import annotations

import re
import zlib
from typing import Any, TypeVar

import msgspec

__all__ = [
    "BOOKS",
    "CHECKPOINT",
    "DAMAGED",
    "DEAD",
    "FORMAT",
    "META",
    "DamagedRowError",
    "Meta",
    "seal",
    "unseal",
]

FORMAT = 2
"""The version of the directory's layout; a newer one is refused, an older one is read."""

BOOKS, META, DEAD, DAMAGED, CHECKPOINT = "books", "meta", "dead-", "damaged-", "checkpoint-"

_SEAL = re.compile(rb',"crc":"([0-9a-f]{8})"\}\Z')
_SEAL_BYTES = len(b',"crc":"00000000"}')
_T = TypeVar("_T", bound=msgspec.Struct)


class DamagedRowError(ValueError):
    """A row is not what was written under its key."""


class Meta(msgspec.Struct, frozen=True):
    """What the queue is: its format and where its events are meant to go."""

    format: int = FORMAT
    server: str = ""
    organization: str = ""  # empty while it is not known, and while the queue holds nothing


def numbered(prefix: str, number: int) -> str:
    """Return the key of a dead letter or a damaged row; zeros keep their order that of the numbers."""
    return f"{prefix}{number:016d}"


def number_of(prefix: str, key: str) -> int | None:
    """Return the number in such a key; None when it is none of this kind."""
    digits = key.removeprefix(prefix)
    return int(digits) if digits != key and len(digits) == 16 and digits.isdecimal() else None


def seal(key: str, record: msgspec.Struct) -> bytes:
    """Return the row of a record that is to stand under `key`."""
    text = msgspec.json.encode(record)
    return b'%b,"crc":"%08x"}' % (text[:-1], zlib.crc32(text, zlib.crc32(key.encode())))


def unseal(key: str, row: object, kind: type[_T]) -> _T:
    """Return the record of the row that stands under `key`.

    Raises:
        DamagedRowError: it is not what was written there.
    """
    if not isinstance(row, bytes):
        raise DamagedRowError("it is not bytes")
    found = _SEAL.search(row, max(0, len(row) - _SEAL_BYTES))
    try:
        if found is None:
            members = msgspec.json.decode(row, type=dict[str, Any])
            # A row of format 1; but a row whose seal is broken is none.
            if not members.keys() <= set(kind.__struct_fields__):
                raise DamagedRowError("it holds what nobody wrote")
            return msgspec.convert(members, kind)
        text = row[: found.start()] + b"}"
        if zlib.crc32(text, zlib.crc32(key.encode())) != int(found[1], 16):
            raise DamagedRowError("the checksum does not match")
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise DamagedRowError(str(error)) from error
