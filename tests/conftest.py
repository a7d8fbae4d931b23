from __future__ import annotations

import os
import shutil
import signal
from functools import cache
from typing import TYPE_CHECKING

import pytest
from support import small_disk
from support.processes import Product

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAMS = (
    *(
        "strace",
        "logrotate",
        "systemd-analyze",
        "dpkg-deb",
        "unshare",
        "mkfs.ext4",
        "setpriv",
        "man",
        "promtool",
        "chromium",
    ),
    *("curl", "socat", "fish", "node", "java", "perl", "rustc", "ruby", "php"),
)
"""What some tests need beside Python; `.ci/run` installs all of it.

`unshare` stands for mount namespaces, which need more than the program, and `mkfs.ext4` for mounting a file.
"""


def pytest_configure(config: pytest.Config) -> None:
    # Thousands of processes are started: each would compile the agent anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # Users have output buffered; without that, what is left over when a write failed does not show.
    os.environ.pop("PYTHONUNBUFFERED", None)
    # A script that runs the tests in the background has them ignore it, and all that they start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "needs(program): leave the test out where this is not installed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a program that is not here; in CI, `pytest_runtest_setup` fails it."""
    if os.environ.get("CI"):
        return
    left_out = [item for item in items if _missing(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not _missing(item)]


def pytest_runtest_setup(item: pytest.Item) -> None:
    missing = _missing(item)
    if missing:
        pytest.fail(f"CI leaves no test out, and {', '.join(missing)} does not work here")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for program in PROGRAMS:
        if not _works(program):
            terminalreporter.write_line(f"left out: the tests that need {program}, which does not work here")


def _missing(item: pytest.Item) -> list[str]:
    programs = [mark.args[0] for mark in item.iter_markers("needs")]
    assert set(programs) <= set(PROGRAMS), f"add {programs} to PROGRAMS, and to .ci/run"
    return [program for program in programs if not _works(program)]


@cache
def _works(program: str) -> bool:
    if program == "mkfs.ext4":
        return small_disk.fails_available()
    return small_disk.available() if program == "unshare" else shutil.which(program) is not None


@pytest.fixture
def product(tmp_path: Path) -> Iterator[Product]:
    """Emulator, daemon and commands in a directory of their own; nothing runs yet."""
    product = Product(tmp_path)
    yield product
    product.close()
