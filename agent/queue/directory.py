"""The directory that a queue lies in: whose it is, and who may look into it."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from agent.errors import QueueError, reason_of
from agent.queue.raw import sync_directory

if TYPE_CHECKING:
    from pathlib import Path


def prepare_directory(directory: Path) -> None:
    """Make `directory` for its owner only, or check that it is so.

    Raises:
        QueueError: it cannot be made, is not ours, or others may look into it.
    """
    subject = str(directory)
    if "$" in subject or not directory.is_absolute():
        # diskcache expands variables and `~` in the path that it is given.
        raise QueueError("use the queue directory", subject, "the path must be absolute and hold no `$`")
    try:
        missing = [path for path in (directory, *directory.parents) if not path.exists()]
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for made in missing:
            sync_directory(made.parent)
        status = directory.stat()
    except FileExistsError as error:
        raise QueueError("use the queue directory", subject, "it is not a directory") from error
    except OSError as error:
        raise QueueError(
            "make the queue directory",
            subject,
            reason_of(error),
            "set queue_dir to a directory that you may write",
        ) from error
    if status.st_uid != os.geteuid():
        raise QueueError(
            "use the queue directory",
            subject,
            f"it belongs to user {status.st_uid}, and this is user {os.geteuid()}",
            f"chown -R {os.geteuid()} {subject}",
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise QueueError(
            "use the queue directory",
            subject,
            "others may look into it or write there",
            f"chmod 700 {subject}",
        )
