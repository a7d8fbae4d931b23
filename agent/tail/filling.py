"""Fills the defaults of a `[[tail]]` into lines that lack them. Pure.

Lines of one program mostly lack the same: then what they lack is written into all of a block
at once, before their closing braces. Others are filled one by one.
"""

from __future__ import annotations

from operator import attrgetter, itemgetter
from types import NoneType
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, UnsetType

from agent.quick import ERRORS, Value
from agent.shape import may_be_a_field

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent.stamp import Cut

_CUSTOMER = ("customer_id", "external_customer_id")
_CLOSING = ord("}")
_last_of = itemgetter(-1)
_but_last_of = itemgetter(slice(None, -1))


class _MixedError(Exception):
    """Some lines lack what others have."""


class Filling:
    """Fills in the defaults of one table.

    Args:
        defaults: fields for events that lack them, `metadata` key by key.
    """

    def __init__(self, defaults: Mapping[str, Any]) -> None:
        self._fields = {
            key: msgspec.Raw(msgspec.json.encode(value))
            for key, value in defaults.items()
            if key != "metadata"
        }
        metadata = defaults.get("metadata", {})
        self._metadata = {key: msgspec.Raw(msgspec.json.encode(value)) for key, value in metadata.items()}
        self._names = {key: f"f{number}" for number, key in enumerate(self._metadata)}
        self._asked = tuple(key for key in self._fields if key not in _CUSTOMER)
        if len(self._asked) < len(self._fields):
            self._asked += _CUSTOMER
        told = _told_type(self._asked, self._names) if all(map(may_be_a_field, metadata)) else None
        self._decoder = None if told is None else msgspec.json.Decoder(told)

    def __bool__(self) -> bool:
        """Tell whether there are defaults."""
        return bool(self._fields or self._metadata)

    def line(self, line: bytes) -> bytes:
        """Return a line with the defaults in it that it lacks; as it is where it cannot be read."""
        if not self:
            return line
        try:
            members = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
            added = self._missing(members)
            if self._metadata:
                given = bytes(members.get("metadata", b"null"))
                own = {} if given == b"null" else msgspec.json.decode(given, type=dict[str, msgspec.Raw])
                if not self._metadata.keys() <= own.keys():
                    added["metadata"] = msgspec.Raw(msgspec.json.encode(self._metadata | own))
        except ERRORS:
            return line
        return msgspec.json.encode(members | added) if added else line

    def block(self, whole: Cut) -> bytes | None:
        """Return lines with the defaults in them, joined by newlines, if they all lack the same; else None.

        Lines that are not fine before are not fine with them.
        """
        try:
            fields, inner = self._lacking(whole.data)
            if not (fields or inner):
                return whole.data
            if not inner:
                return _with_ends(whole.bodies, fields + b"}")
            if set(map(_last_of, whole.bodies)) != {_CLOSING}:
                return None  # the metadata are not the last member
            filled = _with_ends(map(_but_last_of, whole.bodies), inner + b"}" + fields + b"}")
            # What the last brace but one closes need not be the metadata.
            return None if any(self._lacking(filled)) else filled
        except (_MixedError, *ERRORS):
            return None

    def _lacking(self, block: bytes) -> tuple[bytes, bytes]:
        """Return what all lines lack, as text to stand before a closing brace: of the event, of its metadata.

        Raises:
            _MixedError: not all lack the same, or a null stands where a value is lacking.
            One of `ERRORS`: a line cannot be read.
        """
        if self._decoder is None:
            raise _MixedError
        events: list[Any] = self._decoder.decode_lines(block)
        lacking = {key for key in self._asked if _all_lack(map(attrgetter(key), events))}
        if not lacking.issuperset(_CUSTOMER):
            lacking.difference_update(_CUSTOMER)
        members = {key: value for key, value in self._fields.items() if key in lacking}
        inner: dict[str, msgspec.Raw] = {}
        if self._metadata:
            metadata = list(map(attrgetter("metadata"), events))
            if _all_lack(metadata):
                members["metadata"] = msgspec.Raw(msgspec.json.encode(self._metadata))
            else:
                inner = {
                    key: self._metadata[key]
                    for key, name in self._names.items()
                    if _all_lack(map(attrgetter(name), metadata))
                }
        return _text(members), _text(inner)

    def _missing(self, members: dict[str, Any]) -> dict[str, msgspec.Raw]:
        """Return the defaults that an event lacks; one that names its customer lacks no customer."""
        has_customer = any(bytes(members.get(key, b"null")) != b"null" for key in _CUSTOMER)
        return {
            key: value
            for key, value in self._fields.items()
            if bytes(members.get(key, b"null")) == b"null" and not (key in _CUSTOMER and has_customer)
        }


def _all_lack(values: Iterable[Any]) -> bool:
    """Tell whether all values are lacking, or none.

    Raises:
        _MixedError: some are, or one is null.
    """
    kinds = set(map(type, values))
    if kinds == {UnsetType}:
        return True
    if kinds & {UnsetType, NoneType}:
        raise _MixedError
    return False


def _with_ends(bodies: Iterable[bytes], end: bytes) -> bytes:
    """Return lines of which each lacks this end."""
    return (end + b"\n").join(bodies) + end


def _text(members: Mapping[str, msgspec.Raw]) -> bytes:
    """Return members as they stand behind others."""
    return b"," + msgspec.json.encode(members)[1:-1] if members else b""


def _told_type(asked: Iterable[str], names: Mapping[str, str]) -> type[msgspec.Struct]:
    """Return the type that tells what an event has of what there are defaults for.

    Args:
        asked: members of the event that are text.
        names: the fields for the keys of metadata.
    """
    metadata = msgspec.defstruct(
        "_Metadata",
        [(name, Value | UnsetType, UNSET) for name in names.values()],
        rename={name: key for key, name in names.items()},
        gc=False,
    )
    text = str | UnsetType | None
    return msgspec.defstruct(
        "_Told",
        [*((key, text, UNSET) for key in asked), ("metadata", metadata | UnsetType, UNSET)],
        gc=False,
    )
