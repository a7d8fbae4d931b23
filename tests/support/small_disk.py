"""A real file system of a few MiB, in a mount namespace of its own: to be filled, and mounted read-only."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

_BLOCK = 4096


def _unshare() -> list[str]:
    """Return the command for a new mount namespace; who is not root needs one of users, too."""
    how = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", "--mount", "--propagation", "private", *how, "--"]


def available() -> bool:
    """Tell whether this machine lets us have such a file system."""
    if not all(map(shutil.which, ("unshare", "nsenter", "mount"))):
        return False
    script = "mount -t tmpfs tmpfs /mnt"
    return subprocess.run([*_unshare(), "sh", "-c", script], capture_output=True, check=False).returncode == 0


class SmallDisk:
    """One such file system.

    Args:
        directory: where it is mounted, for those who are started with `prefix`.
        size: bytes.
        inodes: how many files it can have; 0: as many as it likes.

    Attributes:
        prefix: what to put before a command that is to see it.
        seen: the way to it from outside.
    """

    def __init__(self, directory: Path, *, size: int, inodes: int = 0) -> None:
        directory.mkdir()
        self._directory = directory
        self._mount(f"-t tmpfs -o size={size},nr_inodes={inodes},mode=700 tmpfs")

    def _mount(self, what: str) -> None:
        """Mount it in a namespace of its own."""
        script = f"mount {what} '{self._directory}' && echo && read end"
        self._holder = subprocess.Popen(
            [*_unshare(), "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"\n", "no file system could be mounted"
        pid = str(self._holder.pid)
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        self.prefix = ["nsenter", "--target", pid, "--mount", *user, "--"]
        self.seen = Path(f"/proc/{pid}/root{self._directory}")

    def free(self) -> int:
        """Return how many bytes are free."""
        disk = os.statvfs(self.seen)
        return disk.f_bavail * disk.f_frsize

    def fill(self, *, leave: int = 0) -> None:
        """Take all room, but for `leave` bytes, as somebody else would."""
        with (self.seen / "hog").open("ab", buffering=0) as hog:
            try:
                while self.free() > leave:
                    hog.write(b"x" * _BLOCK)
            except OSError:
                assert leave == 0

    def take_names(self) -> None:
        """Make files until no more can be made."""
        (self.seen / "names").mkdir(exist_ok=True)
        number = len(list((self.seen / "names").iterdir()))
        try:
            while True:
                (self.seen / "names" / str(number)).touch()
                number += 1
        except OSError:
            return

    def relieve(self) -> None:
        """Give everything back that `fill` and `take_names` took."""
        (self.seen / "hog").unlink(missing_ok=True)
        shutil.rmtree(self.seen / "names", ignore_errors=True)

    def remount(self, options: str) -> None:
        """Mount it anew with these options."""
        command = [*self.prefix, "mount", "-o", f"remount,{options}", str(self._directory)]
        subprocess.run(command, check=True)

    def close(self) -> None:
        """Let go of it; it ends with the last process that uses it."""
        with self._holder:
            self._holder.kill()


def fails_available() -> bool:
    """Tell whether this machine lets us have a `FailingDisk`."""
    if os.geteuid() != 0 or not available() or not all(map(shutil.which, ("mkfs.ext4", "e2fsck"))):
        return False
    with tempfile.TemporaryDirectory() as place:
        try:
            FailingDisk(Path(place) / "disk", size=8 << 20).close()
        except AssertionError:
            return False
    return True


class FailingDisk(SmallDisk):
    """A file system that makes itself read-only for good when it is asked to, as upon an error of its own.

    Args:
        directory: as of a `SmallDisk`.
        size: bytes.
    """

    def __init__(self, directory: Path, *, size: int) -> None:
        directory.mkdir()
        self._directory = directory
        self._image = directory.with_name("disk.image")
        with self._image.open("wb") as image:
            image.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", self._image], check=True)
        self._mount(f"-o loop '{self._image}'")

    def fail(self) -> None:
        """Make it read-only; nothing makes it writable again but to take it away and mend it."""
        self.remount("abort")

    def mend(self) -> None:
        """Take it away, which nobody may use then, mend it, and mount it again."""
        subprocess.run([*self.prefix, "umount", str(self._directory)], check=True)
        super().close()
        mended = subprocess.run(["e2fsck", "-f", "-y", self._image], capture_output=True, check=False)
        assert mended.returncode in (0, 1), mended.stdout
        self._mount(f"-o loop '{self._image}'")
