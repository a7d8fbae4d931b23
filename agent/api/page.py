"""The status page: one file, made of itself alone.

Nothing is loaded from elsewhere, and the policy that is sent with it lets the browser run
only the script and use only the style that stand in the file.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from agent.httpd.message import Response

_FILE = Path(__file__).with_name("page.html")


def page() -> Response:
    """Return the page; it is read each time, since it is asked for seldom."""
    body = _FILE.read_bytes()
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash_of('script', body)}",
            f"style-src {_hash_of('style', body)}",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    headers = {
        "content-security-policy": policy,
        "cache-control": "no-store",
        "cross-origin-resource-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
    }
    return Response(200, body, "text/html; charset=utf-8", headers)


def _hash_of(tag: str, body: bytes) -> str:
    """Return the source expression for what stands in the one element of a kind (CSP level 3)."""
    found = re.search(f"<{tag}>(.*?)</{tag}>".encode(), body, re.DOTALL)
    assert found is not None  # noqa: S101  # it is our own file
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1]).digest()).decode()}'"
