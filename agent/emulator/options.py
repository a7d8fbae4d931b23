"""What an emulator is started with, and how its command line words are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from agent.address import split_host_port
from agent.emulator.auth import Token
from agent.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

ORGANIZATION_ID = UUID("92ddcaf5-fd7c-41a5-85a1-a31b062516b6")
"""The one organization that an emulator has."""


@dataclass(frozen=True, slots=True)
class Customer:
    """A customer that the organization knows."""

    id: UUID
    external_id: str | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """How an emulator behaves.

    Attributes:
        tokens: those it takes; without any it takes every token, with all scopes.
        customers: those that `customer_id` may name.
        data: the SQLite file of its events; None keeps them in memory.
        requests_per_minute: over it, 429; None for no limit.
        read_delay: seconds until a stored event can be read.
    """

    tokens: tuple[Token, ...] = ()
    customers: tuple[Customer, ...] = ()
    data: Path | None = None
    requests_per_minute: int | None = None
    read_delay: float = 0.0


def parse_token(word: str) -> Token:
    """Read `TOKEN[=scope,scope]`; without `=` the token has every scope."""
    text, equals, scopes = word.partition("=")
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise UsageError("read --token", "its value", "a token is printable ASCII without blanks")
    if not equals:
        return Token(text)
    return Token(text, frozenset(scope.strip() for scope in scopes.split(",") if scope.strip()))


def parse_customer(word: str) -> Customer:
    """Read `UUID[=EXTERNAL_ID]`."""
    text, equals, external_id = word.partition("=")
    try:
        return Customer(UUID(text), external_id if equals else None)
    except ValueError:
        raise UsageError(
            "read --customer", word, "its id is not a UUID", "write --customer UUID=YOUR_OWN_ID"
        ) from None


def parse_listen(word: str) -> tuple[str, int]:
    """Read `HOST:PORT`; port 0 is any free one."""
    try:
        return split_host_port(word)
    except ValueError:
        raise UsageError(
            "read --listen", word, "it is not HOST:PORT", "write --listen 127.0.0.1:8787"
        ) from None
