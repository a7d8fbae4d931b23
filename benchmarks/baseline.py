"""Has CPU per event grown since the last release? Compared so that the machine does not matter.

Beside the figures of a release `baseline.json` holds what a fixed piece of work cost on that
machine in the same minutes. The same work is measured again with each run, and figures are
compared in units of it.
"""

from __future__ import annotations

import json
import statistics
import time
import zlib
from pathlib import Path

FILE = Path(__file__).parent / "baseline.json"
TOLERANCE = 1.2
_TEXT = b"".join(
    json.dumps(
        {"name": "ai_usage", "external_customer_id": f"c{n}", "metadata": {"tokens": n * 7, "ok": True}}
    ).encode()
    + b"\n"
    for n in range(500)
)


def calibrate(rounds: int = 12) -> float:
    """Return the CPU seconds of a fixed piece of work of the same kind; the median, as load slows it too."""
    return statistics.median(_work() for _ in range(rounds))


def _work() -> float:
    began = time.thread_time()
    for line in _TEXT.split(b"\n")[:-1]:
        event = json.loads(line)
        event["metadata"]["tokens"] += len(event)
    packed = zlib.compress(_TEXT, 1)
    for _ in range(20):
        zlib.crc32(packed)
        b",".join(_TEXT.split(b"\n"))
    return time.thread_time() - began


def store(release: str, calibration: float, figures: dict[str, float]) -> None:
    """Make these the figures of the last release."""
    stored = {
        "release": release,
        "calibration_seconds": round(calibration, 6),
        "cpu_seconds_per_million": {name: round(value, 3) for name, value in figures.items()},
    }
    FILE.write_text(json.dumps(stored, indent=2) + "\n")


def compare(calibration: float, figures: dict[str, float]) -> list[tuple[str, float, float, bool]]:
    """Return for each figure that the last release has: its name, then, now, whether it grew too much.

    What it was then is given in seconds of the present machine.
    """
    if not FILE.exists():
        return []
    stored = json.loads(FILE.read_text())
    scale = calibration / stored["calibration_seconds"]
    rows = []
    for name, then in stored["cpu_seconds_per_million"].items():
        if name in figures:
            now = figures[name]
            rows.append((name, then * scale, now, now > then * scale * TOLERANCE))
    return rows
