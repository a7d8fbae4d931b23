"""Which addresses are this machine."""

from __future__ import annotations


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
