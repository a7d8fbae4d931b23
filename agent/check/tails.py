"""Whether the files of `[[tail]]` are there, and may be read."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from agent.check import Finding, failed, ok, warning
from agent.errors import reason_of
from agent.tail.glob import excluder, find
from agent.units import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.settings import Settings
    from agent.tail import Table

_ABSENT = "no such directory"


def look(settings: Settings) -> Iterator[Finding]:
    """Yield what is to be said of each table."""
    for table in settings.tail:
        yield _table(table)


def _table(table: Table) -> Finding:
    """Tell whether there is something to read, and nothing that this user may not."""
    name, subject = "tail", table.path
    found, excluded = find(table.path), excluder(table.exclude)
    closed = {path: reason for path, reason in found.problems.items() if reason != _ABSENT}
    files = []
    for path in found.paths:
        if not excluded(path):
            try:
                status = os.stat(path)  # noqa: PTH116 - as the tail does
            except FileNotFoundError:
                continue  # a path without wildcards, or a link that leads nowhere yet
            except OSError as error:
                closed[path] = reason_of(error)
                continue
            if stat.S_ISREG(status.st_mode):
                files.append(path)
    closed |= {path: "this user may not read it" for path in files if not os.access(path, os.R_OK)}
    if closed:
        path, reason = next(iter(closed.items()))
        more = f"; {len(closed) - 1} more like it" if len(closed) > 1 else ""
        mend = "let the agent's user read it, by its group say; and run this check as that user"
        return failed(name, subject, f"{path}: {reason}{more}", mend)
    if not files:
        message = "no file is there yet; one that comes is read"
        return warning(name, subject, message, "if there should be one, correct the path")
    return ok(name, subject, f"{counted(len(files), 'file')}, may be read")
