"""Who may do what on the local API. Pure.

| | health | use: ingest, read, status, metrics, page | operate: flush, dead letters | own: purge, edits |
|---|---|---|---|---|
| Unix socket, the agent's own user and root | yes | yes | yes | yes |
| Unix socket, others whom mode and lists let in | yes | yes | no | no |
| TCP on loopback without `api_token` | yes | yes | yes | no |
| TCP with `api_token`, the token is sent | yes | yes | yes | yes |
| TCP with `api_token`, no token or another | yes | no | no | no |

A browser on this machine can be made to send requests to a loopback port by any page
that it shows. So a request over TCP must name us in `Host` when there is no token (a page
may have pointed its own name at 127.0.0.1), and must not come from another origin.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from agent.address import is_loopback
from agent.httpd.message import refusal

if TYPE_CHECKING:
    from agent.collector.peers import AllowList, Peer
    from agent.httpd.message import Request, Response

OUR_MISTAKE_HINT = "run this as the agent's own user, or as root"
_CHALLENGE = 'Bearer realm="polar-agent", Basic realm="polar-agent"'


class Right(enum.IntEnum):
    """What a request needs; who has one has those before it."""

    HEALTH = 0
    USE = 1
    OPERATE = 2
    OWN = 3


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of one daemon.

    Args:
        allowed: who may use the Unix socket, of those whom its mode lets in.
        owner: the daemon's own user.
        token: what callers over TCP have to send; None: nothing.
    """

    allowed: AllowList
    owner: int
    token: str | None = None

    def knows(self, peer: Peer | None) -> bool:
        """Tell whether somebody may be at the Unix socket at all; None where the kernel does not tell."""
        return peer is None or self._owns(peer) or self.allowed.allows(peer)

    def check(self, request: Request, needed: Right) -> Response | None:
        """Return the refusal of a request that needs a right; None when it has it."""
        if request.via == "unix":
            return self._check_peer(request.peer, needed)
        foreign = _from_elsewhere(request)
        if foreign is not None:
            return foreign
        if needed is Right.HEALTH:
            return None
        if self.token is None:
            return _check_open(request, needed)
        if not _same(_sent_token(request), self.token):
            headers = {"www-authenticate": _CHALLENGE}
            return refusal(401, "Unauthorized", "send the agent's api_token as a Bearer token", "", headers)
        return None

    def _check_peer(self, peer: Peer | None, needed: Right) -> Response | None:
        # Where the kernel does not tell who connects, the socket is its owner's alone.
        if peer is None or self._owns(peer):
            return None
        if not self.allowed.allows(peer):
            detail = f"user {peer.uid} is neither in allowed_users nor in allowed_groups"
            return refusal(403, "NotAllowed", detail, "have an operator add the user to one of them")
        if needed >= Right.OPERATE:
            detail = f"user {peer.uid} may send and read events, but not operate the agent"
            return refusal(403, "NotAllowed", detail, OUR_MISTAKE_HINT)
        return None

    def _owns(self, peer: Peer) -> bool:
        return peer.uid in (0, self.owner)


def _check_open(request: Request, needed: Right) -> Response | None:
    """Check a request to a loopback port that wants no token."""
    host = request.headers.get("host", "")
    if not _names_loopback(host):
        detail = f"the Host header names {host[:100]!r}, and this is localhost"
        return refusal(403, "NotAllowed", detail, "use http://127.0.0.1 or http://localhost")
    if needed is Right.OWN:
        detail = "this is not done over a port that everybody on this machine can reach"
        return refusal(403, "NotAllowed", detail, "use the command line, or set api_token")
    return None


def _from_elsewhere(request: Request) -> Response | None:
    """Refuse what a page of another origin has a browser send."""
    origin = request.headers.get("origin")
    host = request.headers.get("host", "")
    same = origin is None or urlsplit(origin).netloc.lower() == host.lower() != ""
    # Browsers tell it even where they send no Origin; to follow a link to the status page is fine.
    site = request.headers.get("sec-fetch-site", "none")
    link = request.method == "GET" and request.path == "/"
    if same and (link or site in ("none", "same-origin")):
        return None
    return refusal(403, "NotAllowed", "a page of another origin may not call the agent")


def _names_loopback(host: str) -> bool:
    """Tell whether a Host header is one of this machine itself."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name is not None and "@" not in host and is_loopback(name)


def _sent_token(request: Request) -> str:
    """Return the token of a request: Bearer, or what a browser asks for as a password."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


def _same(sent: str, token: str) -> bool:
    """Compare without telling by the time it takes how much of it is right."""
    return hmac.compare_digest(sent.encode("utf-8", "replace"), token.encode())
