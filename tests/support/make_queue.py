"""Makes a small queue of this version's format, as a killed daemon leaves it, for `tests/data/queues`.

    cd tests && python -m support.make_queue data/queues/v1

writes `queue.tar.gz` (the directory) and `expected.json` (what is in it). To be run once
for each version of the format, by a program that writes it; the result is kept for ever,
since a newer program must read it.
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from pathlib import Path

import msgspec

from agent.lock import QueueLock
from agent.queue import Change, Chunk, DeadLetter, Settlement
from agent.queue.disk import DiskQueue

SERVER = "http://127.0.0.1:8787"
ARRIVED = 1_795_435_200_000
FAR = 4_102_444_800_000  # 2100


def line(number: int, *, filler: int = 0) -> str:
    """Return one event, as the agent writes it."""
    event = {
        "name": "usage",
        "external_customer_id": f"c{number % 7}",
        "metadata": {"n": number, "filler": "x" * filler},
        "external_id": f"event-{number}",
        "timestamp": "2026-11-23T00:00:00.000Z",
    }
    return json.dumps(event, separators=(",", ":"))


def chunk_of(numbers: range, *, due_ms: int = 0, filler: int = 0) -> Chunk:
    """Return events as a chunk."""
    lines = "\n".join(line(number, filler=filler) for number in numbers)
    return Chunk(lines.encode(), len(numbers), ARRIVED, due_ms)


def letter(number: int) -> DeadLetter:
    """Return the dead letter of an event."""
    return DeadLetter(
        event=line(number),
        external_id=f"event-{number}",
        name="usage",
        status=422,
        reason="customer_id: Customer not found",
        errors=[{"type": "customer_id", "loc": ["customer_id"], "msg": "Customer not found"}],
        attempts=1,
        first_attempt=1_795_435_201.5,
        died_at=1_795_435_202.5,
        batch="b1",
    )


def fill(directory: Path) -> DiskQueue:
    """Make a queue that holds one of everything; the last commits are in the log only."""
    queue = DiskQueue(directory, server=SERVER)
    full, small = queue.commit(
        Change(appends=[chunk_of(range(500)), chunk_of(range(500, 503))], refused=7, dropped=2)
    )
    queue.close()
    queue = DiskQueue(directory, server=SERVER)
    queue.commit(Change(settlements=[Settlement(small, None, delivered=3)]))
    queue.commit(
        Change(
            appends=[chunk_of(range(503, 543), filler=100), chunk_of(range(543, 545), due_ms=FAR)],
            settlements=[
                Settlement(
                    full,
                    chunk_of(range(123, 500)),
                    delivered=100,
                    duplicates=20,
                    dead=[letter(120), letter(121), letter(122)],
                )
            ],
        )
    )
    queue.commit(Change(revived=[2], requeued=[chunk_of(range(121, 122))], purged=[3]))
    return queue


def main() -> None:
    """Write the two files."""
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "queue"
        directory.mkdir(mode=0o700)
        lock = QueueLock(directory)
        queue = fill(directory)
        with tarfile.open(target / "queue.tar.gz", "w:gz") as archive:
            archive.add(
                directory, "queue", filter=lambda file: None if "ballast" in file.name else file
            )  # which holds nothing
        expected = {
            "server": SERVER,
            "books": msgspec.to_builtins(queue.books()),
            "pending": [[123, 500], [503, 543], [543, 545], [121, 122]],
            "held": [543, 545],
            "dead": [120],
        }
        queue.close()
        lock.release()
    (target / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main()
