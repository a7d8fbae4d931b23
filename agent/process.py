"""What this process takes of the machine (Linux; nothing where that is not told)."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_KEPT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Process:
    """What it takes; None where the system does not say."""

    memory_bytes: int | None
    cpu_seconds: float
    open_files: int | None


def measure() -> Process:
    """Return what this process takes now."""
    memory = files = None
    with suppress(OSError, ValueError, IndexError):
        pages = Path("/proc/self/statm").read_text("ascii").split()[1]
        memory = int(pages) * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError):
        files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # names are enough
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Process(memory, used.ru_utime + used.ru_stime, files)


def keep_freed_memory() -> None:
    """Let up to 2 MiB of freed memory of each thread stay with it, where the C library is glibc.

    glibc gives what is freed back to the system at once, in pieces as large as a request's body, and
    the system clears every page of it before it gives it out anew. It learns what a program
    frees: after a block of this size it keeps twice as much (mallopt(3), M_MMAP_THRESHOLD).
    """
    bytes(_KEPT_BYTES)


def raise_file_limit() -> None:
    """Allow as many open files as the system lets us: each connection is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # then they are as many as before
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
