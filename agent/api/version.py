"""The header `Polar-Version`: which versions of Polar's API are answered, as Polar does it. Pure.

Polar answers 404 to a version that it does not know, on every path. A later one than those
that we know may be one that it has by now. Its events are taken: a program whose library is
newer than the agent must not lose them. Whoever reads is told by Polar itself.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.httpd.message import as_json
from agent.polar_json import VERSIONS

if TYPE_CHECKING:
    from agent.httpd.message import Request, Response

_HEADER = "polar-version"
_VERSION = re.compile(r"\d{4}-\d{2}", re.ASCII)


def refused(request: Request) -> Response | None:
    """Return the answer to a version that there is not; None when the request may go on."""
    version = request.headers.get(_HEADER)
    if version is None or version in VERSIONS or not request.raw_path.startswith("/v1"):
        return None
    if _VERSION.fullmatch(version) and version > max(VERSIONS):
        return None
    return as_json(404, {"detail": "Not Found"})


def stamped(request: Request, response: Response) -> Response:
    """Return an answer with the version that it follows, where it is one of Polar's calls."""
    if not request.raw_path.startswith("/v1"):
        return response
    version = request.headers.get(_HEADER)
    followed = version if version in VERSIONS else VERSIONS[0]
    return replace(response, headers={**response.headers, _HEADER: followed})
