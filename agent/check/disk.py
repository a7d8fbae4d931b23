"""The queue's directory, its disk, and what the queue holds."""

from __future__ import annotations

import os
import pwd
from contextlib import closing
from typing import TYPE_CHECKING

from agent.check import Finding, failed, ok, warning
from agent.check.mounts import IN_MEMORY, MOUNTS, OF_A_CONTAINER, OVER_THE_NETWORK, mount_of
from agent.errors import QueueError, UsageError
from agent.lock import holder
from agent.queue.destination import refuse_other_server, refuse_other_token
from agent.queue.directory import prepare_directory
from agent.queue.reader import DiskReader
from agent.token import TokenSource
from agent.units import format_size, rough_size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.settings import Settings


def look(settings: Settings) -> Iterator[Finding]:
    """Yield what is to be said of the queue's place and of the queue."""
    directory = settings.queue_dir
    access = _access(directory)
    yield access
    if access.state == "failed":
        return
    yield from _file_system(directory)
    yield _space(settings)
    yield from _queue(settings)


def nearest(path: Path) -> Path:
    """Return the path itself, or the nearest directory above it that exists."""
    return next(place for place in (path, *path.parents) if os.path.lexists(place))


def user_name(uid: int) -> str:
    """Return the name of a user, its number when it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _access(directory: Path) -> Finding:
    """Tell whether the daemon could use the directory."""
    subject, name = str(directory), "queue directory"
    place = nearest(directory)
    if place != directory:
        if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
            return ok(name, subject, "is not there yet; the agent can make it")
        reason = "it is not there, and cannot be made"
        return failed(name, subject, reason, f"let this user write to {place}, or set queue_dir")
    owner, uid = _owner(directory), os.geteuid()
    if uid == 0 and owner != uid and directory.is_dir():
        user = user_name(owner)
        mend = f"the agent must run as {user}; look as that user: runuser -u {user} -- agent check"
        return warning(name, subject, f"it belongs to {user}, and this is root", mend)
    try:
        prepare_directory(directory)  # of one that is there, it changes nothing
    except QueueError as error:
        return failed(name, error.subject, error.reason, error.hint)
    return ok(name, subject, "can be written, by its owner only")


def _owner(directory: Path) -> int:
    """Return whose a directory is; of a link that leads nowhere, whose the link is."""
    try:
        return directory.stat().st_uid
    except OSError:
        return directory.lstat().st_uid


def _file_system(directory: Path) -> Iterator[Finding]:
    """Yield what kind of disk it is on, where that matters."""
    name = "queue disk"
    try:
        mount = mount_of(nearest(directory).resolve(), MOUNTS.read_text())
    except OSError:
        return  # not Linux
    if mount is None:
        return
    where = str(mount.point)
    if mount.read_only:
        yield failed(name, where, "the file system is read-only", "mount it for writing, or set queue_dir")
    elif mount.kind in OVER_THE_NETWORK:
        message = f"{mount.kind} is a network file system: locks and syncs there cannot be relied on"
        yield failed(name, where, message, "set queue_dir to a disk of this machine")
    elif mount.kind in IN_MEMORY:
        message = f"{mount.kind} is memory: what waits in the queue is gone with the next boot"
        yield warning(name, where, message, "set queue_dir to a disk")
    elif mount.kind in OF_A_CONTAINER:
        message = "this is the container's own layer: what waits in the queue is gone with the container"
        yield warning(name, where, message, f"mount a volume at {directory}")
    else:
        yield ok(name, where, f"is on {mount.kind}")


def _space(settings: Settings) -> Finding:
    """Tell whether there is room."""
    name, directory = "disk space", settings.queue_dir
    status = os.statvfs(nearest(directory))
    free = status.f_bavail * status.f_frsize
    reserve, most = settings.disk_reserve_bytes, settings.queue_max_bytes
    told = f"{rough_size(free)} free"
    if free <= reserve:
        message = (
            f"{told}: no more than disk_reserve_bytes ({format_size(reserve)}), so the queue counts as full"
        )
        return failed(name, str(directory), message, "make room on that disk, or lower disk_reserve_bytes")
    if free - reserve < most - _used(directory):
        message = f"{told}: the disk is full before the queue has queue_max_bytes ({format_size(most)})"
        return warning(name, str(directory), message, "make room on that disk, or lower queue_max_bytes")
    return ok(name, str(directory), told)


def _used(directory: Path) -> int:
    """Return the bytes that the queue takes now."""
    try:
        return sum(entry.stat().st_size for entry in os.scandir(directory) if entry.is_file())
    except OSError:
        return 0


def _queue(settings: Settings) -> Iterator[Finding]:
    """Yield what the queue itself says, if there is one that we may read."""
    directory, token = settings.queue_dir, TokenSource.from_settings(settings)
    name, subject = "queue", str(directory)
    if not os.access(directory / "cache.db", os.R_OK):
        return
    try:
        with closing(DiskReader(directory)) as reader:
            books = reader.books()
            refuse_other_server(directory, reader.server(), settings.server_url, books)
            if token.current():
                refuse_other_token(directory, reader.oldest(), personal=token.kind == "personal")
    except (QueueError, UsageError) as error:
        yield failed(name, subject, error.reason, error.hint or "agent queue verify")
        return
    held = "" if holder(directory) is None else "; a daemon has it open"
    if books.dead:
        message = f"{books.pending} pending, and {books.dead} that Polar refused for good{held}"
        yield warning(name, subject, message, "agent dead list")
    else:
        yield ok(name, subject, f"{books.pending} pending{held}")
