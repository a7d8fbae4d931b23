"""Tokens, their kinds and scopes."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.emulator.answers import ApiError

READ = "events:read"
WRITE = "events:write"

_PERSONAL_PREFIX = "polar_pat_"
_REALM = 'Bearer realm="polar"'
_INVALID = "The access token provided is expired, revoked, malformed, or invalid for other reasons."
_INSUFFICIENT = "The request requires higher privileges than provided by the access token."


@dataclass(frozen=True, slots=True)
class Token:
    """An access token.

    Attributes:
        text: the token itself.
        scopes: what it may do.
    """

    text: str = field(repr=False)
    scopes: frozenset[str] = frozenset({READ, WRITE})

    @property
    def personal(self) -> bool:
        """Whether it belongs to a person, who must say which organization an event is of."""
        return self.text.startswith(_PERSONAL_PREFIX)

    def require(self, *scopes: str) -> None:
        """Raise 403 unless the token has one of the scopes."""
        if self.scopes.isdisjoint(scopes):
            raise ApiError(
                403,
                {"error": "insufficient_scope", "error_description": _INSUFFICIENT},
                {
                    "www-authenticate": f'{_REALM}, scope="{" ".join(scopes)}", '
                    f'error="insufficient_scope", error_description="{_INSUFFICIENT}"'
                },
            )


class Keyring:
    """The tokens that are valid here; without any, every token is."""

    def __init__(self, tokens: tuple[Token, ...]) -> None:
        self._tokens = {token.text: token for token in tokens}

    def find(self, authorization: str | None) -> Token:
        """Return the token of an `Authorization` header; raise 401 when there is no valid one."""
        scheme, _, text = (authorization or "").partition(" ")
        text = text.strip()
        if scheme.lower() != "bearer" or not text:
            raise ApiError(
                401,
                {"error": "Unauthorized", "detail": "Unauthorized"},
                {"www-authenticate": _REALM},
            )
        token = self._tokens.get(text) if self._tokens else Token(text)
        if token is None:
            raise ApiError(
                401,
                {"error": "invalid_token", "error_description": _INVALID},
                {"www-authenticate": f'{_REALM}, error="invalid_token", error_description="{_INVALID}"'},
            )
        return token
