"""Which file system a path is on, as far as the queue must care."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")

IN_MEMORY = frozenset({"tmpfs", "ramfs"})
OVER_THE_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "fuse.sshfs"}
)
OF_A_CONTAINER = frozenset({"overlay", "aufs"})

_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted file system.

    Attributes:
        point: where.
        kind: its type, as the kernel names it.
        read_only: nothing can be written there.
    """

    point: Path
    kind: str
    read_only: bool


def mount_of(path: Path, mountinfo: str) -> Mount | None:
    """Return what a path is on.

    Args:
        path: absolute, without symbolic links; it need not exist.
        mountinfo: the text of /proc/self/mountinfo, see proc(5).
    """
    best: Mount | None = None
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        try:
            separator = fields.index("-", 6)
            point = Path(_ESCAPE.sub(lambda code: chr(int(code[1], 8)), fields[4]))
            options = {*fields[5].split(","), *fields[separator + 3].split(",")}
            mount = Mount(point, fields[separator + 1], "ro" in options)
        except (ValueError, IndexError):
            continue
        # Of mounts on one point, the last covers the others.
        if path.is_relative_to(point) and (best is None or len(point.parts) >= len(best.point.parts)):
            best = mount
    return best
