"""The access token: from the settings or from a file that may change at any time.

`TokenSource` promises never to raise and never to show the token: what is wrong is kept
as a sentence in `problem`, with what to do. What the file says now is what counts: a
token that was taken away from it is not used any more.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from agent.settings import Settings

Kind = Literal["organization", "personal"]

PERSONAL_PREFIX = "polar_pat_"
_MOST_BYTES = 16_384


@dataclass(frozen=True, slots=True, repr=False)
class _Reading:
    """What was found, and the identity of the file that it was found in."""

    stamp: tuple[int, ...] | None
    token: str | None
    problem: str | None


class TokenSource:
    """Gives the token as it is now; may be used by several threads at once.

    Args:
        token: the token itself, from the settings.
        file: or the file that holds it; looked at on each call, read when it changed. It wins over `token`.
    """

    def __init__(self, token: str | None = None, file: Path | None = None) -> None:
        self._file = file
        if token is None and file is None:
            missing = (
                "no access token is set; set POLAR_ACCESS_TOKEN, or access_token_file to a file that holds it"
            )
            self._reading = _Reading(None, None, missing)
        else:
            self._reading = _checked(None, token or "", "the access token")

    @classmethod
    def from_settings(cls, settings: Settings) -> TokenSource:
        """Return the source that the settings name."""
        token = settings.access_token
        return cls(None if token is None else token.get_secret_value(), settings.access_token_file)

    def become(self, other: TokenSource) -> None:
        """Give from now on what another source gives."""
        self._file, self._reading = other._file, other._reading

    def current(self) -> str | None:
        """Return the token, or None; then `problem` says why."""
        return self._refresh().token

    @property
    def problem(self) -> str | None:
        """Why there is no token now, and what to do; None when there is one."""
        return self._refresh().problem

    @property
    def kind(self) -> Kind:
        """Whose token it is; one that Polar's prefixes do not tell is an organization's."""
        return "personal" if (self.current() or "").startswith(PERSONAL_PREFIX) else "organization"

    def __repr__(self) -> str:
        """Return what is safe to print."""
        return f"TokenSource(file={str(self._file)!r})" if self._file else "TokenSource(token=[hidden])"

    def _refresh(self) -> _Reading:
        """Return the newest reading.

        No lock: a reading is one immutable object, so that two threads that find a change
        at the same time only do the work twice.
        """
        if self._file is None:
            return self._reading
        old = self._reading
        try:
            if old.stamp is not None and _stamp(self._file.stat()) == old.stamp:
                return old
            new = _read(self._file)
        except OSError as error:
            new = _Reading(None, None, f"{_named(self._file)} {_why(error)}")
        self._reading = new
        return new


def _read(path: Path) -> _Reading:
    """Read the token file; raises OSError."""
    # O_NONBLOCK: opening a pipe would else wait for a writer, for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        # The stamp is older than the contents, so a change in between is seen next time.
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            reason = "is no regular file; write the token to a file, and set access_token_file to its path"
            return _Reading(None, None, f"{_named(path)} {reason}")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(_MOST_BYTES + 1)
    finally:
        os.close(descriptor)
    stamp = _stamp(status)
    if len(content) > _MOST_BYTES:
        return _Reading(stamp, None, f"{_named(path)} is too large for a token; let it hold the token alone")
    try:
        # Editors on Windows put a byte order mark in front.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return _Reading(stamp, None, f"{_named(path)} holds no text; let it hold the token alone")
    return _checked(stamp, text, _named(path))


def _checked(stamp: tuple[int, ...] | None, text: str, name: str) -> _Reading:
    """Return the reading of a token that was found, if it can be sent in a header."""
    token = text.strip()
    if not token:
        return _Reading(stamp, None, f"{name} is empty; put the token in")
    if token.lower().startswith("bearer "):
        return _Reading(stamp, None, f"{name} begins with the word Bearer; leave that word out")
    wrong = next((place for place, char in enumerate(token, 1) if not "!" <= char <= "~"), None)
    if wrong is not None:
        return _Reading(
            stamp,
            None,
            f"{name} has a character that no token has, at position {wrong}; "
            "copy the token again, alone and on one line",
        )
    return _Reading(stamp, token, None)


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes whenever a file is written or replaced."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _named(path: Path) -> str:
    return f"the token file {path}"


def _why(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "does not exist; create it, or correct access_token_file"
    if isinstance(error, PermissionError):
        return "may not be read by this user; change its owner or its mode"
    return f"cannot be read: {error.strerror or error}; mend that, or correct access_token_file"
