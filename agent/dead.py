"""Dead letters: choosing some of them, mending them, putting them back on their way. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from agent import chunk
from agent.queue import Change, Chunk, DeadLetter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent.event import Checker


_TEXTS = frozenset(
    {
        "name",
        "external_customer_id",
        "customer_id",
        "external_id",
        "parent_id",
        "member_id",
        "external_member_id",
        "organization_id",
    }
)
_CUSTOMERS = frozenset({"customer_id", "external_customer_id"})
_INSIDE = "metadata."
_NO_JSON = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class _Customers(msgspec.Struct):
    customer_id: Any = None
    external_customer_id: Any = None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which dead letters are meant; None and empty say nothing.

    Attributes:
        name: the event's name.
        status: the HTTP status of the refusal; 0 for our own.
        type: the type of one of its errors, such as ``missing``.
        reason: a part of the reason; capitals do not matter.
        external_ids: one of these.
        customer: the event's `customer_id` or `external_customer_id`.
        since: given up at this moment or later, Unix seconds.
        until: given up before this moment.
    """

    name: str | None = None
    status: int | None = None
    type: str | None = None
    reason: str | None = None
    external_ids: frozenset[str] = frozenset()
    customer: str | None = None
    since: float | None = None
    until: float | None = None

    def __bool__(self) -> bool:
        """Tell whether it says anything."""
        return self != Filter()

    def takes(self, letter: DeadLetter) -> bool:
        """Tell whether a letter is meant."""
        return (
            (self.name is None or letter.name == self.name)
            and (self.status is None or letter.status == self.status)
            and (self.type is None or any(error.get("type") == self.type for error in letter.errors))
            and (self.reason is None or self.reason.casefold() in letter.reason.casefold())
            and (not self.external_ids or letter.external_id in self.external_ids)
            and (self.since is None or letter.died_at >= self.since)
            and (self.until is None or letter.died_at < self.until)
            and (self.customer is None or self.customer in customers_of(letter))
        )


def customers_of(letter: DeadLetter) -> tuple[str, ...]:
    """Return the ids of the customer that an event carries."""
    try:
        event = msgspec.json.decode(letter.event, type=_Customers)
    except _NO_JSON:
        return ()
    return tuple(one for one in (event.external_customer_id, event.customer_id) if isinstance(one, str))


@dataclass(frozen=True, slots=True)
class Edit:
    """What is to be changed in an event; all other values stay as they were written.

    Attributes:
        sets: the text of the new values by field; ``metadata.KEY`` reaches inside.
        unsets: fields to be taken out.
    """

    sets: dict[str, str] = field(default_factory=dict)
    unsets: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Tell whether it changes anything."""
        return bool(self.sets or self.unsets)

    def apply(self, event: str) -> str:
        """Return the event with the changes.

        Raises:
            ValueError: it is no JSON object, or its metadata is none.
        """
        try:
            members = msgspec.json.decode(event, type=dict[str, msgspec.Raw])
            if len(self.sets.keys() & _CUSTOMERS) == 1:
                # An event has one kind of customer id; with both, Polar may go by the other.
                for name in _CUSTOMERS - self.sets.keys():
                    members.pop(name, None)
            self._change(members, "")
            if any(name.startswith(_INSIDE) for name in (*self.sets, *self.unsets)):
                inside = msgspec.json.decode(members.get("metadata", b"{}"), type=dict[str, msgspec.Raw])
                self._change(inside, _INSIDE)
                members["metadata"] = msgspec.Raw(msgspec.json.encode(inside))
        except _NO_JSON as error:
            raise ValueError(
                f"it cannot be changed field by field; give all of it with --event: {error}"
            ) from error
        return msgspec.json.encode(members).decode()

    def _change(self, members: dict[str, msgspec.Raw], prefix: str) -> None:
        """Change the members of the event itself, or of its metadata."""
        for name in self.unsets:
            if _is_within(name, prefix):
                members.pop(name.removeprefix(prefix), None)
        for name, text in self.sets.items():
            if _is_within(name, prefix):
                members[name.removeprefix(prefix)] = _value(name, text)


def _is_within(name: str, prefix: str) -> bool:
    """Tell whether a field belongs to the object of this prefix."""
    return name.startswith(_INSIDE) == bool(prefix)


def _value(name: str, text: str) -> msgspec.Raw:
    """Return a new value as JSON: what is written, if that is JSON of the field's kind, or else as text."""
    try:
        value = msgspec.json.decode(text)
    except _NO_JSON:
        return msgspec.Raw(msgspec.json.encode(text))
    if name in _TEXTS and value is not None and not isinstance(value, str):
        return msgspec.Raw(msgspec.json.encode(text))
    return msgspec.Raw(text.strip().encode())


@dataclass(slots=True)
class Revival:
    """What a retry of dead letters comes to.

    Attributes:
        change: what to commit.
        refused: the letters that cannot go back, with the reason: what they hold now is
            refused by our own check.
    """

    change: Change = field(default_factory=Change)
    refused: list[tuple[int, str]] = field(default_factory=list)


def revive(
    letters: Iterable[DeadLetter], edits: Mapping[int, bytes], checker: Checker, now: float, arrived_ms: int
) -> Revival:
    """Prepare the retry of dead letters under their own external ids.

    Args:
        letters: what to retry.
        edits: new lines for some of them, by number.
        checker: as for producers: what it refuses would only come back.
        now: Unix time in seconds by the server's clock.
        arrived_ms: the time of arrival to write, Unix milliseconds.
    """
    revival = Revival()
    lines: list[bytes] = []
    revived: list[int] = []
    held: list[Chunk] = []
    for letter in letters:
        line = edits.get(letter.id)
        line = with_id(letter.event.encode() if line is None else line, letter.external_id)
        checked = checker.check([line.replace(b"\n", b" ") + b"\n"], now)
        if checked.accepted != 1:
            why = checked.fates[0].refused
            where = ".".join(map(str, why[0][1].loc)) if why else ""
            reason = f"{where}: {why[0][1].msg}" if why else "not one JSON object"
            revival.refused.append((letter.id, reason.removeprefix(": ")))
            continue
        revived.append(letter.id)
        lines.extend(line for line, _ in checked.groups)
        for due_ms, held_line in checked.held:
            held.append(Chunk(held_line, 1, arrived_ms, due_ms))
    revival.change.revived = revived
    revival.change.requeued = [*chunk.pack(((line, 1) for line in lines), arrived_ms), *held]
    return revival


def is_object(line: bytes) -> bool:
    """Tell whether a line is a JSON object."""
    try:
        msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except _NO_JSON:
        return False
    return True


def with_id(line: bytes, external_id: str) -> bytes:
    """Give a line the id that its letter has, where it has none of its own and is an object."""
    try:
        members = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except _NO_JSON:
        return line  # the check will say what is wrong with it
    if bytes(members.get("external_id", b"null")) in (b"null", b'""'):
        members["external_id"] = msgspec.Raw(msgspec.json.encode(external_id))
        return msgspec.json.encode(members)
    return line
