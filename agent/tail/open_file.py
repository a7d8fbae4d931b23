"""A file that is open for reading, plain or compressed: its bytes at any place, and its size."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
import zlib
from typing import Protocol

_LINUX = sys.platform.startswith("linux")
_F_SETSIG = 10
_PIECE = 64 * 1024
_GZIP = 31  # window bits of zlib that stand for a gzip header and trailer
_MAGIC = b"\x1f\x8b"
LENGTH_MODULUS = 1 << 32


class OpenFile(Protocol):
    """What is read."""

    @property
    def compressed(self) -> bool:
        """True when the bytes are read through gzip."""
        ...

    @property
    def place(self) -> int:
        """How far reading came, in bytes as they lie on the disk."""
        ...

    def status(self) -> os.stat_result:
        """Return how the file is now."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes at a place; fewer where the file ends.

        Raises:
            OSError: it cannot be read.
        """
        ...

    def read_behind(self, offset: int, before: int, length: int) -> tuple[bytes, bytes]:
        """Return so many bytes before a place, and those from there on.

        If the former are what they were, the latter follow them: the file was not cut in between.

        Raises:
            OSError: it cannot be read.
        """
        ...

    def told_length(self) -> int | None:
        """How many bytes a compressed file says it has, modulo `LENGTH_MODULUS`; None for a plain one.

        It need not be true: of a file with several members it is the length of the last one.

        Raises:
            OSError: it cannot be read.
        """
        ...

    def is_written(self) -> bool | None:
        """Tell whether a process has it open for writing; None when that cannot be told."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


class NotAFileError(OSError):
    """What is there is no regular file."""


def open_file(path: str) -> OpenFile:
    """Open a file; one that begins like gzip, which no line of JSON does, is decompressed.

    Raises:
        OSError: it cannot be opened.
        NotAFileError: it is a pipe, a directory or the like.
    """
    # Of a pipe nobody writes to, opening would wait.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotAFileError(errno.EINVAL, "not a regular file", path)
    try:
        if os.pread(descriptor, 2, 0) == _MAGIC:
            return _Gzipped(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    return _Plain(descriptor)


def as_it_is_now(file: OpenFile) -> OpenFile:
    """Return the same open file, decompressed if it has come to be gzip since it was opened empty.

    Raises:
        OSError: it cannot be read.
    """
    if isinstance(file, _Plain) and file.read(0, 2) == _MAGIC:
        return _Gzipped(file.descriptor)
    return file


class _Plain:
    """A file as it is."""

    compressed = False

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.place = 0

    def status(self) -> os.stat_result:
        return os.fstat(self.descriptor)

    def read(self, offset: int, length: int) -> bytes:
        data = os.pread(self.descriptor, length, offset)
        self.place = offset + len(data)
        return data

    def read_behind(self, offset: int, before: int, length: int) -> tuple[bytes, bytes]:
        data = self.read(offset, length)
        return (os.pread(self.descriptor, before, offset - before) if before else b""), data

    def told_length(self) -> int | None:
        return None

    def is_written(self) -> bool | None:
        """Ask for a lease for reading: Linux grants it only while nobody has the file open for writing.

        It is given back at once. Whoever opens the file in between makes the kernel send us a signal:
        one that is ignored, not the usual one, which would end us.
        """
        if not _LINUX:
            return None
        try:
            fcntl.fcntl(self.descriptor, _F_SETSIG, 23)  # SIGURG
            fcntl.fcntl(self.descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except BlockingIOError:
            return True
        except OSError:
            return None  # not our file, or a file system without leases
        fcntl.fcntl(self.descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False

    def close(self) -> None:
        os.close(self.descriptor)


class _Gzipped:
    """A compressed file, decompressed from its beginning as far as somebody asks.

    What was given last stays at hand, so that reading on does not begin anew.
    """

    compressed = True

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._begin()

    def _begin(self) -> None:
        """Go back to the beginning."""
        self.place = 0  # of the next compressed byte
        self._start = 0  # of `_ready`, in the decompressed bytes
        self._ready = b""
        self._unzip = zlib.decompressobj(_GZIP)
        self._pending = b""

    def status(self) -> os.stat_result:
        return os.fstat(self._descriptor)

    def read(self, offset: int, length: int) -> bytes:
        if offset < self._start:
            self._begin()
        while self._start + len(self._ready) < offset + length:
            more = self._more()
            if not more:
                break
            # What is before the wanted bytes is of no use.
            keep = max(0, min(offset - self._start, len(self._ready)))
            self._ready = self._ready[keep:] + more
            self._start += keep
        begin = offset - self._start
        return self._ready[begin : begin + length] if begin >= 0 else b""

    def read_behind(self, offset: int, before: int, length: int) -> tuple[bytes, bytes]:
        data = self.read(offset - before, before + length)
        return data[:before], data[before:]

    def _more(self) -> bytes:
        """Decompress some more; nothing at the end of what is there."""
        while True:
            if not self._pending:
                self._pending = os.pread(self._descriptor, _PIECE, self.place)
                self.place += len(self._pending)
                if not self._pending:
                    return b""
            if self._unzip.eof:
                if not self._pending.startswith(b"\x1f"):
                    return b""  # padding, not another member
                self._unzip = zlib.decompressobj(_GZIP)
            try:
                data = self._unzip.decompress(self._pending, _PIECE * 4)
            except zlib.error as error:
                raise OSError(errno.EIO, f"damaged gzip data: {error}") from error
            self._pending = self._unzip.unconsumed_tail or self._unzip.unused_data
            if data:
                return data

    def told_length(self) -> int | None:
        """Return what the last four bytes say."""
        end = os.fstat(self._descriptor).st_size
        return int.from_bytes(os.pread(self._descriptor, 4, max(0, end - 4)), "little")

    def is_written(self) -> bool | None:
        """Tell by the end of the compressed data whether some is still to come."""
        return not self._unzip.eof

    def close(self) -> None:
        os.close(self._descriptor)
