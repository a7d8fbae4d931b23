"""A daemon whose wall clock is wrong by as many seconds as a file says (`$CLOCK_OFFSET`).

Nothing of this is in the product: run as a program, this file replaces the one place
where the product reads the time, and then calls its command line.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

VARIABLE = "CLOCK_OFFSET"


def main() -> int:
    from agent.cli import main as agent  # noqa: PLC0415  # the product comes in only where it is to run
    from agent.clock import SystemClock  # noqa: PLC0415

    offset = Path(os.environ[VARIABLE])
    SystemClock.wall = lambda _: time.time() + float(offset.read_text())  # type: ignore[method-assign]
    return agent(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
