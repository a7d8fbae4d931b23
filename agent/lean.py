"""Imports without what is not needed.

structlog and httpx import rich, pygments and click whenever these are installed, for
tracebacks and a command line that the agent never shows. Other programs of the same
environment often bring them, and in the daemon they cost 5 MiB and some 40 ms. All of them,
and pydantic-settings, import asyncio for uses that the agent has not: 2 MiB and 20 ms.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

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


class _Deferred(ModuleType):
    """Stands in for a module until something of it is used; then it is the module."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def deferred(*names: str) -> Iterator[None]:
    """Within the block, importing these modules (as a whole) puts their loading off until they are used.

    Modules that are imported already stay as they are. Use it as `without`.
    """
    absent = [name for name in names if name not in sys.modules]
    for name in absent:
        sys.modules[name] = _Deferred(name)
    try:
        yield
    finally:
        for name in absent:
            if isinstance(sys.modules.get(name), _Deferred):
                del sys.modules[name]
