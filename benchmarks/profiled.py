"""Runs an `agent` command with a profile of each of its threads.

    python benchmarks/profiled.py DIRECTORY run

Leaves one file for each thread in DIRECTORY when the command ends; read them with
`python -m pstats`. cProfile makes the profiled code two to three times slower, and calls
more than work: for exact shares attach py-spy to a daemon that runs without this.
"""

from __future__ import annotations

import cProfile
import sys
import threading
from pathlib import Path

from agent.cli import main


def profile_threads(directory: Path) -> None:
    """Give every thread that starts from now on a profile."""
    run = threading.Thread.run

    def profiled(thread: threading.Thread) -> None:
        profile = cProfile.Profile()
        try:
            profile.enable()
        except ValueError:  # since Python 3.12 one profile at a time
            run(thread)
            return
        try:
            run(thread)
        finally:
            profile.disable()
            profile.dump_stats(directory / f"{thread.name.replace('/', '_')}-{thread.ident}.prof")

    threading.Thread.run = profiled


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    profile_threads(target)
    sys.exit(main(sys.argv[2:]))
