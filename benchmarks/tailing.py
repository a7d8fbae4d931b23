"""Measures tailing: a file that is there → fsync → HTTP, beside Fluent Bit doing the same."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from loadgen import build_pool
from targets import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from targets import Target

FEW = 1000  # events in the file that is read first: imports, connections, the first commit


def make_file(path: Path, size: int) -> int:
    """Write events of the usual kind to a file of about so many bytes; return how many they are."""
    pool = build_pool(llm=0, bad=0, seed=1)
    times = max(1, size // len(pool.data))
    with path.open("wb") as file:
        for _ in range(times):
            file.write(pool.data)
    return times * len(pool.ends)


def tailing(target: Target, big: Path, events: int) -> dict:
    """Have a large file appear in the directory that is tailed, and wait until all of it is delivered.

    The clock runs from when the first megabyte of it was read: how soon a new file is noticed is
    another question.

    Args:
        target: a daemon that tails `tailed/*.log` in its directory; it is started here.
        big: the file, on the same file system; it is there again afterwards.
        events: how many are in it.
    """
    logs = target.directory / "tailed"
    logs.mkdir(mode=0o700, parents=True)
    pool = build_pool(llm=0, bad=0, seed=2)
    (logs / "few.log").write_bytes(pool.data[: pool.bytes_of(FEW)])
    target.start()
    wait_until(lambda: target.sink.stats()["events"] == FEW, 60, "the first events are delivered")
    target.forget_peak()
    before, cpu, read = target.sink.stats(), target.cpu(), target.bytes_read()
    (logs / "big.log").hardlink_to(big)
    wait_until(lambda: target.bytes_read() > read + (1 << 20), 60, "the file is read")
    started = time.monotonic()
    deadline = started + 1800
    while (stats := target.sink.stats())["events"] < FEW + events:
        if time.monotonic() > deadline:
            raise SystemExit(f"{target.name}: {FEW + events - stats['events']} events are not delivered")
        time.sleep(0.1)
    time.sleep(0.5)  # the last answers are being settled
    if stats["events"] != FEW + events:
        raise SystemExit(f"{target.name}: {stats['events'] - FEW - events} events came twice")
    return {
        "events/s_delivered": events / (stats["last_at"] - started),
        "CPU-s_per_million": (target.cpu() - cpu) / events * 1e6,
        "peak_MiB": target.memory("VmHWM"),
        "events_per_request": (stats["events"] - before["events"])
        / max(1, stats["requests"] - before["requests"]),
    }
