"""How the tables of `[[tail]]` are read: from TOML, or from nested variables of the environment."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from agent.tail import Table
from agent.units import Invalid

_KEYS = ("path", "start", "defaults", "exclude")
_DEFAULTS = ("name", "external_customer_id", "metadata")
_STARTS = ("beginning", "end")
_HOW = 'write [[tail]] and below it path = "/var/log/app/*.log"'


def tables(value: object) -> tuple[Table, ...]:
    """Return the tables: a list in TOML; in the environment JSON, or parts such as `TAIL__0__PATH`."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise Invalid("is no JSON", 'write a list, such as [{"path": "/var/log/app/*.log"}]') from None
    if isinstance(value, dict) and value and all(str(key).isdecimal() for key in value):
        value = [value[key] for key in sorted(value, key=int)]
    if not isinstance(value, (list, tuple)):
        raise Invalid("is no list of tables", _HOW)
    return tuple(
        item if isinstance(item, Table) else _table(f"tail.{number}", item)
        for number, item in enumerate(value)
    )


def _table(where: str, value: object) -> Table:
    """Return one table."""
    if not isinstance(value, dict):
        raise Invalid(f"{where} is no table", _HOW)
    _known(where, value, _KEYS)
    start = value.get("start", "beginning")
    if start not in _STARTS:
        raise Invalid(
            f"{where}.start is {start!r}, none of the possible values", f"write one of {', '.join(_STARTS)}"
        )
    return Table(
        _path(f"{where}.path", value.get("path")),
        start,
        _defaults(f"{where}.defaults", value.get("defaults", {})),
        _exclude(f"{where}.exclude", value.get("exclude", ())),
    )


def _known(where: str, value: dict[Any, Any], keys: tuple[str, ...]) -> None:
    """Refuse keys that there are not."""
    for key in value:
        if key not in keys:
            near = difflib.get_close_matches(str(key).lower(), keys, n=1, cutoff=0.5)
            meant = f"did you mean {near[0]}? If not, " if near else ""
            raise Invalid(f"{where}.{key} is no setting", f"{meant}remove it; there are {', '.join(keys)}")


def _path(where: str, value: object) -> str:
    """Return an absolute pattern."""
    if value is None:
        raise Invalid(f"{where} is missing", 'name the files, such as "/var/log/app/*.log"')
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise Invalid(
            f"{where} is {value!r}, no path", 'write a path in quotes, such as "/var/log/app/*.log"'
        )
    path = str(Path(value.strip()).expanduser())
    if not path.startswith("/"):
        raise Invalid(f"{where} is {value!r}, not absolute", "write the whole path, from / on")
    return path


def _defaults(where: str, value: object) -> dict[str, Any]:
    """Return the fields for events that lack them."""
    if not isinstance(value, dict):
        raise Invalid(f"{where} is {value!r}, no table", 'write defaults = { name = "ai_usage" }')
    _known(where, value, _DEFAULTS)
    for key in ("name", "external_customer_id"):
        if key in value and not isinstance(value[key], str):
            raise Invalid(f"{where}.{key} is {value[key]!r}, no text", "put it in quotes")
    metadata = value.get("metadata", {})
    if not isinstance(metadata, dict):
        raise Invalid(f"{where}.metadata is {metadata!r}, no table", 'write metadata = { region = "eu" }')
    for key, item in metadata.items():
        if not isinstance(item, (str, int, float)) or item == "":
            raise Invalid(
                f"{where}.metadata.{key} is {item!r}", "write text that is not empty, a number, true or false"
            )
    return dict(value)


def _exclude(where: str, value: object) -> tuple[str, ...]:
    """Return the patterns of files that are not read."""
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(
        isinstance(item, str) and item.strip() for item in items
    ):
        raise Invalid(f"{where} is {value!r}, no list of patterns", 'write exclude = ["*.gz"]')
    return tuple(item.strip() for item in items)
