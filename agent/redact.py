"""What must never be shown: access tokens.

A pure function, shared by everything that prints text that others wrote: log
lines, errors about settings, errors about answers.
"""

from __future__ import annotations

import re

HIDDEN = "[hidden]"

# Polar's tokens begin with `polar_`, two or three letters of kind and an underscore
# (`polar_oat_…` of an organization, `polar_pat_…` of a person; sessions and secrets have
# others). A bearer token of any other make can come from a gateway before the server.
_TOKEN = re.compile(
    r"((?i:\bbearer)\s+)[^\s\"',;]+|polar_(?:[op]at_[A-Za-z0-9_\-]+|[a-z]{2,3}_[A-Za-z0-9_\-]{8,})"
)


def redact(text: str) -> str:
    """Return `text` with everything in it that looks like a token replaced."""
    lowered = text.lower()
    # Nearly every line has neither word, and looking for words is ten times as fast.
    if "polar_" not in lowered and "bearer" not in lowered:
        return text
    return _TOKEN.sub(lambda match: f"{match[1] or ''}{HIDDEN}", text)
