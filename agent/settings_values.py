"""How a setting's value is read from what people write.

Each function takes a raw value (text from the environment, anything from TOML) and
returns the checked one, or raises `Invalid` with the reason and the mend. None stands
for a setting that is not given, where that is allowed.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BeforeValidator, SecretStr

from agent import places
from agent.address import is_loopback, split_host_port
from agent.units import Invalid, format_duration, format_size, parse_duration, parse_size


def duration(low: float, high: float) -> BeforeValidator:
    """Return the reader of a duration in seconds, within bounds."""

    def read(value: object) -> float:
        seconds = float(parse_duration(value))
        _within(seconds < low, seconds > high, format_duration(low), format_duration(high))
        return seconds

    return BeforeValidator(read)


def size(low: int, high: int) -> BeforeValidator:
    """Return the reader of a size in bytes, within bounds."""

    def read(value: object) -> int:
        number = parse_size(value)
        _within(number < low, number > high, format_size(low), format_size(high))
        return number

    return BeforeValidator(read)


def whole_number(low: int, high: int) -> BeforeValidator:
    """Return the reader of a whole number, within bounds."""

    def read(value: object) -> int:
        if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
            value = int(value) if len(value) <= 30 else high + 1
        if not isinstance(value, int) or isinstance(value, bool):
            raise Invalid("is no whole number", f"write a whole number from {low} to {high}")
        _within(value < low, value > high, str(low), str(high))
        return value

    return BeforeValidator(read)


def choice(*words: str) -> BeforeValidator:
    """Return the reader of one word out of several; case does not matter."""

    def read(value: object) -> str:
        word = value.strip().lower() if isinstance(value, str) else ""
        if word in words:
            return word
        near = difflib.get_close_matches(word, words, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise Invalid("is none of the possible values", f"write one of {', '.join(words)}{meant}")

    return BeforeValidator(read)


def text(value: object) -> str | None:
    """Return text without the white space around it; empty text is None."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise Invalid("is no text", "put it in quotes")
    return value.strip() or None


def secret(value: object) -> str | None:
    """Return a secret's text without the white space around it, such as the newline of `echo`."""
    return text(value.get_secret_value() if isinstance(value, SecretStr) else value)


def names(value: object) -> tuple[str, ...]:
    """Return names of users or groups: a list in TOML, separated by commas in the environment."""
    how = (
        'write names, such as ["www-data", "deploy"], or leave it out to let in all that socket_mode lets in'
    )
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(_is_name(item) for item in items):
        raise Invalid("is no list of names", how)
    found = tuple(str(item).strip() for item in items)
    if not found or not all(found):
        # An empty list could be meant as "nobody"; what it would do is the opposite.
        raise Invalid("lists no names, or an empty one", how)
    return found


def mode(value: object) -> int:
    """Return a file mode from its octal digits.

    A bare number is refused: 660 in TOML is decimal, and would be another mode than
    its writer had in mind.
    """
    digits = value.strip().removeprefix("0o") if isinstance(value, str) else ""
    if not 3 <= len(digits) <= 4 or not set(digits) <= set("01234567") or int(digits, 8) > 0o777:
        raise Invalid("is no file mode", 'write octal digits in quotes, such as "0660" or "0600"')
    return int(digits, 8)


def path(value: object) -> Path | None:
    """Return an absolute path; `~` stands for the home directory."""
    if value is None:
        return None
    if not isinstance(value, (str, Path)) or not str(value).strip() or "\0" in str(value):
        raise Invalid("is no path", 'write a path in quotes, such as "/var/lib/polar-agent"')
    try:
        expanded = Path(value).expanduser()
    except RuntimeError:
        raise Invalid("names a home directory that cannot be found", "write the whole path") from None
    # The daemon may change its directory later, and its clients have others.
    return Path(os.path.abspath(expanded))  # noqa: PTH100 - Path.resolve would follow links


def listen(value: object) -> str | None:
    """Return `HOST:PORT` to listen on."""
    address = text(value)
    if address is None:
        return None
    how = "write host and port, such as 127.0.0.1:8686 or [::1]:8686"
    try:
        _, port = split_host_port(address)
    except ValueError:
        raise Invalid("is no address to listen on", how) from None
    if not port:
        raise Invalid("names no port", how)
    return address


def api_token(value: object) -> str | None:
    """Return the token that callers of the API send; one that could be guessed is refused."""
    token = secret(value)
    if token is not None and (len(token) < 16 or not all("!" <= char <= "~" for char in token)):
        raise Invalid(
            "has less than 16 characters, or some that cannot be sent",
            "make a long one: openssl rand -hex 24",
        )
    return token


def socket_path(value: object) -> Path:
    """Return an absolute path that a Unix socket can have."""
    found = path(value)
    if found is None:
        raise Invalid("is no path", 'write a path in quotes, such as "/run/polar-agent/agent.sock"')
    return places.check_socket_path(found)


def url(value: object) -> str | None:
    """Return a server's address without the slash and the `/v1` at its end.

    Plain `http://` carries the token readable to everyone on the way, so it is
    allowed to this machine only.
    """
    address = text(value)
    if address is None:
        return None
    how = "write the server's address, such as https://api.polar.sh or http://127.0.0.1:8787"
    if not address.isascii() or not address.isprintable() or " " in address:
        raise Invalid("is no address", how)
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise Invalid("is no address", how) from None
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise Invalid("is no address of a web server", how)
    if "@" in parts.netloc:
        raise Invalid("has a user name or password in it", "leave it out; the token goes in access_token")
    if "?" in address or "#" in address:
        raise Invalid("has a query or a fragment in it", "leave out everything from the ? or # on")
    if parts.scheme == "http" and not is_loopback(host):
        raise Invalid(
            "would send the token unencrypted through the network",
            "use https://; plain http:// is for 127.0.0.1, ::1 and localhost only",
        )
    trimmed = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{parts.netloc.lower()}{trimmed}"


def _within(too_low: object, too_high: object, low: str, high: str) -> None:
    if too_low:
        raise Invalid("is too small", f"the least is {low}")
    if too_high:
        raise Invalid("is too large", f"the most is {high}")


def _is_name(item: object) -> bool:
    return isinstance(item, (str, int)) and not isinstance(item, bool)
