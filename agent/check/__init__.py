"""What `agent check` looks at: findings, each with its mend.

Looking changes nothing: no file is made, no event is sent, and a daemon that runs is asked
no more than `agent status` asks it. A finding is *ok*, a *warning* (it works, but see to
it) or *failed* (it does not work); only the last makes the check fail.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what was looked at, a stable word: ``settings``, ``token``, ``clock`` …
        state: how it stands.
        subject: the thing itself: a path, a setting, an address.
        message: how it stands, in words.
        mend: what to do; empty when nothing is to be done.
    """

    check: str
    state: State
    subject: str
    message: str
    mend: str = ""


def ok(check: str, subject: str, message: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(check, "ok", subject, message)


def warning(check: str, subject: str, message: str, mend: str) -> Finding:
    """Return a finding of something that works, and should be seen to."""
    return Finding(check, "warning", subject, message, mend)


def failed(check: str, subject: str, message: str, mend: str) -> Finding:
    """Return a finding of something that does not work."""
    return Finding(check, "failed", subject, message, mend)


def passed(findings: Sequence[Finding]) -> bool:
    """Tell that nothing has failed."""
    return all(finding.state != "failed" for finding in findings)


def document(findings: Sequence[Finding], version: str) -> dict[str, Any]:
    """Return the document of `agent check --json`."""
    return {"ok": passed(findings), "version": version, "findings": [asdict(finding) for finding in findings]}
