"""Looks at a queue over and over, as its operators do, until standard input ends.

Prints how often it looked, and what it saw last. Whatever goes wrong ends it with an
exit code that is not 0.
"""

from __future__ import annotations

import io
import json
import select
import sys
from contextlib import redirect_stdout
from typing import Any

from agent.cli import main


def look(*words: str) -> Any:
    """Run one command and return its document."""
    output = io.StringIO()
    with redirect_stdout(output):
        code = main([*words, "--json"])
    if code:
        raise SystemExit(f"agent {' '.join(words)} ended with {code}")
    return json.loads(output.getvalue())


def run() -> None:
    looks, accepted = 0, 0
    while not looks or not select.select([sys.stdin], [], [], 0.005)[0]:
        status = look("status")
        ledger = status["ledger"]
        ends = sum(ledger[end] for end in ("delivered", "duplicates", "dead", "dropped"))
        assert ledger["accepted"] == status["queue"]["events"] + ends, status
        assert ledger["accepted"] >= accepted, "the books went back"
        accepted = ledger["accepted"]
        letters = look("dead", "list")["items"]
        assert len(letters) >= ledger["dead"], "a dead letter is in the books alone"
        looks += 1
    print(json.dumps({"looks": looks, "accepted": accepted}))  # noqa: T201  # what the test reads


if __name__ == "__main__":
    run()
