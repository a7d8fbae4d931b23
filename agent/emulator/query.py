"""What a list asks for, as SQL conditions on the table `events e`."""

from __future__ import annotations

import json
import operator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence

Condition = tuple[str, list[object]]


class Operator(StrEnum):
    """How a clause compares."""

    eq = "eq"
    ne = "ne"
    gt = "gt"
    gte = "gte"
    lt = "lt"
    lte = "lte"
    like = "like"
    not_like = "not_like"


class Conjunction(StrEnum):
    """How the clauses of a filter are joined."""

    and_ = "and"
    or_ = "or"


class FilterClause(BaseModel):
    """One comparison of a property: `name`, `source`, `timestamp`, or a key of the metadata."""

    property: str
    operator: Operator
    value: str | int | bool

    def condition(self) -> Condition:
        """Return the clause as SQL."""
        column = {"name": "e.name", "source": "'user'", "timestamp": "e.timestamp / 1000000"}.get(
            self.property
        )
        if column is not None:
            return f"compares({column}, ?, ?)", [self.operator.value, json.dumps(self.value)]
        key = self.property.removeprefix("metadata.")
        return "metadata_compares(e.metadata, ?, ?, ?)", [
            key,
            self.operator.value,
            json.dumps(self.value),
        ]


class Filter(BaseModel):
    """Clauses and filters, joined by `and` or `or`; none at all lets everything pass."""

    conjunction: Conjunction
    clauses: list[FilterClause | Filter]

    def condition(self) -> Condition:
        """Return the filter as SQL."""
        return _join(f" {self.conjunction.value.upper()} ", [clause.condition() for clause in self.clauses])


@dataclass(frozen=True, slots=True)
class Sorting:
    """One thing to sort by."""

    column: str
    descending: bool


@dataclass(frozen=True, slots=True)
class NamesQuery:
    """What `GET /v1/events/names` asks for; None and empty mean no condition.

    Attributes:
        customers: Polar's ids and external ids of the customers asked for, which the
            caller has completed by those that belong together.
    """

    limit: int
    offset: int
    sorting: Sequence[Sorting]
    nothing: bool = False
    customers: tuple[Sequence[str], Sequence[str]] | None = None
    text: str | None = None

    def conditions(self) -> list[Condition]:
        """Return the conditions that both kinds of list have."""
        conditions: list[Condition] = []
        if self.nothing:
            conditions.append(("0", []))
        if self.customers is not None:
            ids, external_ids = self.customers
            conditions.append(
                _join(
                    " OR ", [_one_of("e.customer_id", ids), _one_of("e.external_customer_id", external_ids)]
                )
            )
        return conditions

    def where(self) -> Condition:
        """Return everything asked for as one condition."""
        conditions = self.conditions()
        if self.text is not None:
            conditions.append(("instr(lower(e.name), lower(?))", [self.text]))
        return _join(" AND ", conditions)

    def order(self) -> str:
        """Return what to sort by."""
        return ", ".join([*(_direction(item) for item in self.sorting), "e.name"])


@dataclass(frozen=True, slots=True)
class EventQuery(NamesQuery):
    """What `GET /v1/events/` asks for."""

    names: Sequence[str] = ()
    after: int | None = None
    until: int | None = None
    metadata: dict[str, list[str]] = field(default_factory=dict)
    filter: Filter | None = None
    parent_id: str | None = None
    depth: int | None = None

    def where(self) -> Condition:
        """Return everything asked for as one condition; both bounds of time are exclusive."""
        conditions = self.conditions()
        if self.names:
            conditions.append(_one_of("e.name", self.names))
        if self.after is not None:
            conditions.append(("e.timestamp > ?", [self.after]))
        if self.until is not None:
            conditions.append(("e.timestamp < ?", [self.until]))
        for key, values in self.metadata.items():
            sql, parameters = _one_of("metadata_text(e.metadata, ?)", values)
            conditions.append((sql, [key, *parameters]))
        if self.filter is not None:
            conditions.append(self.filter.condition())
        if self.text is not None:
            conditions.append(
                ("(instr(lower(e.name), lower(?)) OR instr(lower(e.metadata), lower(?)))", [self.text] * 2)
            )
        if self.depth is not None or self.parent_id is not None:
            conditions.append(self._descendants())
        return _join(" AND ", conditions)

    def order(self) -> str:
        """Return what to sort by; Polar leaves the order of equal times open, here it is that of storing."""
        last = "DESC" if self.sorting and self.sorting[0].descending else "ASC"
        return ", ".join([*(_direction(item) for item in self.sorting), f"e.number {last}"])

    def _descendants(self) -> Condition:
        """Return the condition for `parent_id` and `depth`: how many levels below it, or below the roots."""
        depth = 1 if self.depth is None else self.depth
        first, parameters = (
            ("id = ?", [self.parent_id]) if self.parent_id else ("parent_reference IS NULL", [])
        )
        least = 1 if self.parent_id else 0
        sql = (
            "e.number IN (WITH RECURSIVE tree (number, id, external_id, level) AS ("  # noqa: S608
            f"SELECT number, id, external_id, 0 FROM events WHERE {first} UNION "
            "SELECT c.number, c.id, c.external_id, level + 1 FROM tree JOIN events c "
            "ON c.parent_reference IN (tree.id, tree.external_id) WHERE level < ?) "
            "SELECT number FROM tree WHERE level >= ?)"
        )
        return sql, [*parameters, depth, least]


def register(db: sqlite3.Connection) -> None:
    """Give a connection the functions that the conditions call."""
    db.create_function("metadata_text", 2, _metadata_text, deterministic=True)
    db.create_function("metadata_compares", 4, _metadata_compares, deterministic=True)
    db.create_function("compares", 3, _compares, deterministic=True)


def _join(word: str, conditions: Sequence[Condition]) -> Condition:
    if not conditions:
        return "1", []
    sql = word.join(sql for sql, _ in conditions)
    return f"({sql})", [parameter for _, parameters in conditions for parameter in parameters]


def _one_of(column: str, values: Sequence[str]) -> Condition:
    return f"{column} IN ({', '.join('?' * len(values))})", list(values)


def _direction(item: Sorting) -> str:
    return f"{item.column} {'DESC' if item.descending else 'ASC'}"


def _look_up(metadata: str, key: str) -> Any:
    """Return the value of a key; a dot may lead into `_cost` and `_llm`."""
    value = json.loads(metadata)
    if key in value:
        return value[key]
    for part in key.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def _metadata_text(metadata: str, key: str) -> str | None:
    value = _look_up(metadata, key)
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _metadata_compares(metadata: str, key: str, name: str, wanted: str) -> bool:
    return _compares(_look_up(metadata, key), name, wanted)


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}


def _compares(value: Any, name: str, wanted: str) -> bool:
    """Compare as the server does: text with anything's text, numbers with numbers, truth with truth."""
    if value is None or isinstance(value, dict):
        return False
    other = json.loads(wanted)
    if name in {"like", "not_like"}:
        text = value if isinstance(value, str) else json.dumps(value)
        return (str(other) in text) == (name == "like")
    if isinstance(value, str):
        other = ("t" if other else "f") if isinstance(other, bool) else str(other)
    elif isinstance(value, bool):
        if not isinstance(other, bool):
            return False
    elif isinstance(other, str):
        return False
    return _COMPARE[name](value, other)
