"""Events as Polar gives them back: what can be asked for, and what comes.

No I/O. Values keep the JSON that came, whole: a field that this version does not know is
not lost, and integers keep all their digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

# Polar treats more as this.
MAX_LIMIT = 100


@dataclass(frozen=True, slots=True)
class Event:
    """One event as Polar has it.

    Attributes:
        raw: the JSON object that came.
    """

    raw: Mapping[str, Any]

    @property
    def id(self) -> str:
        """Polar's own id; the `external_id` that was sent does not come back."""
        return _string(self.raw, "id")

    @property
    def name(self) -> str:
        """The event's name."""
        return _string(self.raw, "name")

    @property
    def timestamp(self) -> str:
        """When it happened, RFC 3339."""
        return _string(self.raw, "timestamp")

    @property
    def source(self) -> str:
        """``user`` for what was ingested, ``system`` for what Polar made itself."""
        return _string(self.raw, "source")

    @property
    def customer_id(self) -> str | None:
        """Polar's id of the customer, if it was sent with one."""
        return _string(self.raw, "customer_id") or None

    @property
    def external_customer_id(self) -> str | None:
        """The sender's id of the customer."""
        value = self.raw.get("external_customer_id")
        return None if value is None else str(value)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What was sent with it."""
        value = self.raw.get("metadata")
        return value if isinstance(value, dict) else {}


@dataclass(frozen=True, slots=True)
class EventName:
    """One name that events have.

    Attributes:
        raw: the JSON object that came.
    """

    raw: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name."""
        return _string(self.raw, "name")

    @property
    def source(self) -> str:
        """``user`` or ``system``."""
        return _string(self.raw, "source")

    @property
    def occurrences(self) -> int:
        """How many events have it."""
        value = self.raw.get("occurrences")
        return value if isinstance(value, int) else 0

    @property
    def first_seen(self) -> str:
        """The timestamp of the earliest one, RFC 3339."""
        return _string(self.raw, "first_seen")

    @property
    def last_seen(self) -> str:
        """The timestamp of the latest one, RFC 3339."""
        return _string(self.raw, "last_seen")


Item = TypeVar("Item", Event, EventName)


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """One page of a list.

    Attributes:
        items: what is on it; empty beyond the last page.
        total_count: how many there are on all pages.
        max_page: the number of the last page; 0 when there is nothing.
    """

    items: tuple[Item, ...]
    total_count: int
    max_page: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """Which events, and in which order; what is left out does not filter.

    Attributes:
        name: any of these names.
        customer_id: any of these customers, by Polar's ids.
        external_customer_id: any of these customers, by the sender's ids.
        organization_id: any of these organizations.
        source: any of ``user`` and ``system``.
        start_timestamp: only later ones; RFC 3339 with its offset from UTC.
        end_timestamp: only earlier ones; likewise.
        metadata: pairs of key and value, all of which match.
        filter: a filter in Polar's own words, as JSON text.
        meter_id: only those that this meter counts.
        query: text to look for; Polar wants `organization_id` with it.
        parent_id: only children of this event, by Polar's id.
        depth: how many levels of children, 0 to 5.
        sorting: ``timestamp`` or ``-timestamp``.
    """

    name: Sequence[str] = ()
    customer_id: Sequence[str] = ()
    external_customer_id: Sequence[str] = ()
    organization_id: Sequence[str] = ()
    source: Sequence[str] = ()
    start_timestamp: str | None = None
    end_timestamp: str | None = None
    metadata: Sequence[tuple[str, str]] = ()
    filter: str | None = None
    meter_id: str | None = None
    query: str | None = None
    parent_id: str | None = None
    depth: int | None = None
    sorting: Sequence[str] = ()

    def parameters(self) -> list[tuple[str, str]]:
        """Return the parameters of the request."""
        found = [(f"metadata[{key}]", value) for key, value in self.metadata]
        return _parameters(self, _EVENT_FIELDS) + found


@dataclass(frozen=True, slots=True, kw_only=True)
class NameFilter:
    """Which names, and in which order; what is left out does not filter.

    Attributes:
        customer_id: names of events of these customers, by Polar's ids.
        external_customer_id: names of events of these customers, by the sender's ids.
        organization_id: any of these organizations.
        source: any of ``user`` and ``system``.
        query: a part of the name.
        sorting: ``name``, ``occurrences``, ``first_seen``, ``last_seen``, or one with ``-`` before it.
    """

    customer_id: Sequence[str] = ()
    external_customer_id: Sequence[str] = ()
    organization_id: Sequence[str] = ()
    source: Sequence[str] = ()
    query: str | None = None
    sorting: Sequence[str] = ()

    def parameters(self) -> list[tuple[str, str]]:
        """Return the parameters of the request."""
        return _parameters(self, _NAME_FIELDS)


_EVENT_FIELDS = (
    "name",
    "customer_id",
    "external_customer_id",
    "organization_id",
    "source",
    "start_timestamp",
    "end_timestamp",
    "filter",
    "meter_id",
    "query",
    "parent_id",
    "depth",
    "sorting",
)
_NAME_FIELDS = ("customer_id", "external_customer_id", "organization_id", "source", "query", "sorting")


def pages(fetch: Callable[[int], Page[Item]], first: int = 1) -> Iterator[Page[Item]]:
    """Yield the pages from `first` to the last, each without what the one before it had.

    Polar counts pages from the newest event, so what arrives meanwhile pushes events from
    one page to the next, where they come again.
    """
    number = first
    before: frozenset[str] = frozenset()
    while True:
        page = fetch(number)
        if not page.items:
            return
        here = [(_string(item.raw, "id"), item) for item in page.items]
        yield Page(
            tuple(item for key, item in here if not key or key not in before), page.total_count, page.max_page
        )
        if number >= page.max_page:
            return
        before = frozenset(key for key, _ in here)
        number += 1


def _parameters(where: object, names: Sequence[str]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name in names:
        value = getattr(where, name)
        if value is None:
            continue
        several = (value,) if isinstance(value, (str, int)) else value
        found.extend((name, str(one)) for one in several)
    return found


def _string(raw: Mapping[str, Any], key: str) -> str:
    value = raw.get(key)
    return value if isinstance(value, str) else ""
