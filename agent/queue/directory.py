"""The directory that a queue lies in: whose it is, and who may look into it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from agent.errors import QueueError, hint_of, reason_of
from agent.queue.raw import sync_directory

_OURS = ("cache.db", "ballast", "lock")
_MOST_LINKS = 40  # as many as Linux follows


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
        if directory.is_symlink():
            _refuse_unsafe_link(directory)
        missing = [path for path in (directory, *directory.parents) if not path.exists()]
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for made in missing:
            sync_directory(made.parent)
        _check(directory, directory.stat())
    except (FileExistsError, NotADirectoryError) as error:
        raise QueueError(
            "use the queue directory",
            subject,
            "it is not a directory, or lies below a file",
            "move that file away, or set queue_dir to another place",
        ) from error
    except OSError as error:
        raise QueueError(
            "use the queue directory" if os.path.lexists(directory) else "make the queue directory",
            subject,
            reason_of(error),
            hint_of(error) or "set queue_dir to a directory that you may write",
        ) from error


def _refuse_unsafe_link(link: Path) -> None:
    """See that nobody but this user and root can have a link lead elsewhere; raises OSError, QueueError.

    systemd makes such links: with `DynamicUser=`, the state directory is one to
    ``/var/lib/private``. Every link on the way must be root's or ours, and
    no directory on the way may let others put another thing in its place.
    """
    ahead = [*link.parts[:0:-1]]
    place, links = Path(link.anchor), 0
    while ahead:
        _refuse_unless_ours_to_change(link, place)
        found = place / ahead.pop()
        status = found.lstat()
        if not stat.S_ISLNK(status.st_mode):
            place = found
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if status.st_uid not in (0, os.geteuid()):
            raise _unsafe_link(link, f"{found} belongs to user {status.st_uid}, who may change it")
        target = found.readlink()
        ahead += [part for part in reversed(target.parts) if part != target.anchor]
        place = Path(target.anchor) if target.is_absolute() else place


def _refuse_unless_ours_to_change(link: Path, place: Path) -> None:
    """See that others cannot rename or replace what is in a directory on the way of a link."""
    status = place.stat()
    if status.st_uid not in (0, os.geteuid()):
        raise _unsafe_link(link, f"{place} belongs to user {status.st_uid}, who may change what is in it")
    if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
        raise _unsafe_link(link, f"others may write in {place}")


def _unsafe_link(link: Path, reason: str) -> QueueError:
    target = link.resolve()
    return QueueError(
        "use the queue directory",
        str(link),
        f"it is a symbolic link to {target}, and {reason}",
        f"set queue_dir to {target} itself",
    )


def _check(directory: Path, status: os.stat_result) -> None:
    """See that a directory is ours alone, that it can be written, and that the files in it are ours."""
    subject, uid = str(directory), os.geteuid()
    if status.st_uid != uid:
        raise _owned_by_other(directory, directory, status.st_uid)
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise QueueError(
            "use the queue directory",
            subject,
            "others may look into it or write there",
            f"chmod 700 {subject}",
        )
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        if os.statvfs(directory).f_flag & os.ST_RDONLY:
            reason, hint = "its file system is read-only", "mount it for writing again"
        else:
            reason, hint = "it may not be written", f"chmod 700 {subject}"
        raise QueueError("use the queue directory", subject, reason, hint)
    for file in directory.iterdir():
        if file.name.startswith(_OURS) and file.lstat().st_uid != uid:
            # Another user's daemon wrote it, and this one could not.
            raise _owned_by_other(directory, file, file.lstat().st_uid)


def _owned_by_other(directory: Path, path: Path, owner: int) -> QueueError:
    uid = os.geteuid()
    return QueueError(
        "use the queue directory",
        str(path),
        f"it belongs to user {owner}, and this is user {uid}",
        f"run this as user {owner}, or `chown -R {uid} {directory}` if the queue is to be this user's",
    )
