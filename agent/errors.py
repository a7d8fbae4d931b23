"""The errors of this package.

Every error says what was being done (operation), to which thing (subject), what
went wrong, and what to do next (hint). The hint is what `agent status` and the
command line print.
"""

from __future__ import annotations

import errno

_MORE = "let the agent have more: LimitNPROC, TasksMax and MemoryMax of its unit, or ulimit -u and -v"
_HINTS = {
    errno.EAGAIN: _MORE,
    errno.EIO: "see the disk's health, and the kernel's log",
    errno.EMFILE: "raise the limit of open files: LimitNOFILE, or ulimit -n",
    errno.ENFILE: "raise the system's limit of open files: sysctl fs.file-max",
    errno.ENOMEM: _MORE,
    errno.ENOSPC: "make room on it",
}


class AgentError(Exception):
    """Something failed in a way that a person can understand and mend.

    Args:
        operation: what was being done, as a verb phrase: ``"open the queue"``.
        subject: the thing it was done to: a path, a setting, an address.
        reason: what went wrong, in words.
        hint: what to do next; may be empty when nothing can be done.
    """

    exit_code = 1

    def __init__(self, operation: str, subject: str, reason: str, hint: str = "") -> None:
        super().__init__(operation, subject, reason, hint)
        self.operation = operation
        self.subject = subject
        self.reason = reason
        self.hint = hint

    def __str__(self) -> str:
        """Return everything, the hint on a line of its own."""
        text = f"cannot {self.operation}: {self.subject}: {self.reason}"
        return f"{text}\n  {self.hint}" if self.hint else text


class UsageError(AgentError):
    """Wrong usage or wrong settings: exit code 2."""

    exit_code = 2


class SettingsError(UsageError):
    """Something is wrong with the settings.

    Args:
        problems: each one's subject, reason and hint.
    """

    def __init__(
        self,
        operation: str,
        subject: str,
        reason: str,
        hint: str = "",
        problems: tuple[tuple[str, str, str], ...] = (),
    ) -> None:
        super().__init__(operation, subject, reason, hint)
        self.problems = problems


class QueueError(AgentError):
    """The queue on disk cannot be opened, read or written."""


class QueueFullError(QueueError):
    """There is no room on the disk for what was to be written; nothing of it was."""


class QueueLockedError(QueueError):
    """Another process holds the queue."""


class DaemonError(AgentError):
    """The running daemon cannot be reached, or answered that it failed."""


def reason_of(error: BaseException) -> str:
    """Return the text of an exception that is not ours, for people."""
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


def hint_of(error: BaseException) -> str:
    """Return what to do about what the system refuses a process; empty where that is not known."""
    if isinstance(error, OSError):
        return _HINTS.get(error.errno or 0, "")
    return _HINTS[errno.ENOMEM] if isinstance(error, (MemoryError, RuntimeError)) else ""
