"""Which proxy leads to a server, by the environment."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from agent.address import is_loopback
from agent.errors import UsageError


def proxy_for(scheme: str, host: str) -> tuple[str, tuple[str, str] | None] | None:
    """Return the proxy's address and its user and password, or None for the direct way.

    Raises:
        UsageError: the environment names a proxy that cannot be used.
    """
    if is_loopback(host) or proxy_bypass(host):
        return None
    proxies = getproxies()
    given = proxies.get(scheme) or proxies.get("all")
    if not given:
        return None
    try:
        parts = urlsplit(given if "://" in given else f"http://{given}")
        usable = parts.scheme == "http" and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not parts.hostname:
        # The value stays untold: it may hold a password.
        raise UsageError(
            "use the proxy",
            f"{scheme.upper()}_PROXY or ALL_PROXY",
            "only a proxy with an http:// address is supported",
            "write it as http://host:port, or put Polar's host into NO_PROXY to go without",
        )
    auth = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    host_part = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"http://{host_part}:{parts.port or 80}", auth
