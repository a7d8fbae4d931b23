"""Addresses: which are this machine, and what `HOST:PORT` says."""

from __future__ import annotations


def split_host_port(text: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`; an IPv6 address stands in brackets.

    Raises:
        ValueError: it is not one.
    """
    host, _, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("is not HOST:PORT")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine: 127.0.0.0/8, ::1 or localhost."""
    if host.lower() == "localhost":
        return True
    if host and host[0] not in "0123456789:":
        return False
    import ipaddress  # noqa: PLC0415 - costs start-up time, and names never need it

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
