"""Imports without what is not needed.

structlog and httpx import rich, pygments and click whenever these are installed, for
tracebacks and a command line that the agent never shows. Other programs of the same
environment often bring them, and in the daemon they cost 5 MiB and some 40 ms.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Within the block, these modules look as if they were not installed.

    Modules that are imported already stay as they are. Use it for imports when a
    program starts: other threads that import the same modules at that moment fail.
    """
    # None in sys.modules makes an import fail: documented in the language reference, 5.3.1.
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
