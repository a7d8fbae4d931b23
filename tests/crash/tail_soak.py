"""A million lines through logrotate and kill -9: `python tests/crash/tail_soak.py --rotation create`.

One program writes numbered lines as fast as it can, logrotate rotates the file every second, and the
daemon that tails it is killed again and again, at random moments. No lock keeps them apart, and no
rotated file is thrown away. In the end each line must be stored once.

`copytruncate` itself loses what is written between its copy and its truncation. Such lines are in none
of the files that are left, and are counted as its own; a line that is in a file and was not
stored is lost by us. Ends with 1 when a line was, or was stored twice, and leaves the directory as it is.
"""

from __future__ import annotations

import argparse
import gzip
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from array import array
from pathlib import Path

from support.processes import PATIENCE, Product, wait_until

WRITER = """
import os, sys, time
path, lines, rate, follows = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "follows"
started = time.monotonic()
descriptor, inode, count = -1, 0, 0
while count < lines:
    if follows:
        # As programs do that are told to open their log again: now and then, and in any state of it.
        try:
            there = os.stat(path).st_ino
        except FileNotFoundError:
            there = 0
        if there != inode or descriptor < 0:
            if descriptor >= 0:
                os.close(descriptor)
            descriptor = -1
    if descriptor < 0:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        inode = os.fstat(descriptor).st_ino
    for number in range(count, min(count + 100, lines)):
        os.write(descriptor, b'{"name":"line","external_customer_id":"c","metadata":{"n":%d},'
                 b'"timestamp":"2026-01-01T00:00:%02d.%06dZ"}\\n' % (number, number // 10**6, number % 10**6))
    count = min(count + 100, lines)
    ahead = count / rate - (time.monotonic() - started) if rate else 0
    if ahead > 0:
        time.sleep(ahead)
"""
NUMBER = re.compile(rb'"n": ?(\d+)')


def main() -> int:
    """Run; see the module."""
    parser = argparse.ArgumentParser(description="Tail a file through logrotate and kill -9.")
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--rotation", choices=("create", "copytruncate"), default="create")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rate", type=float, default=0, help="lines a second; 0: as fast as it goes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dir", help="where to make the directory")
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="tail-soak-", dir=args.dir))
    product = Product(directory, requests_per_minute=100_000, max_batch_events=1000)
    try:
        if not run(product, args):
            say(f"left as it is: {directory}")
            return 1
    finally:
        product.close()
    shutil.rmtree(directory)
    return 0


def run(product: Product, args: argparse.Namespace) -> bool:
    """Write, rotate and kill; tell whether each line is stored once."""
    logs = product.directory / "logs"
    logs.mkdir()
    log = logs / "app.log"
    log.touch()
    product.set(tail__0__path=str(log))
    product.start_emulator()
    product.start_daemon()
    # Of files that are rotated away before the agent looked for the first time ever, nobody knows.
    wait_until(lambda: '"message": "ready"' in product.log.read_text())
    chance = random.Random(args.seed)
    over = threading.Event()
    rotations = threading.Thread(target=rotate, args=(log, args.rotation, over))
    started = time.monotonic()
    way = "follows" if args.rotation == "create" else "holds"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(log), str(args.lines), str(args.rate), way])
    rotations.start()
    try:
        pause = threading.Event()
        for _ in range(args.kills):
            pause.wait(chance.uniform(0.1, 1.5))
            product.stop_daemon(signal.SIGKILL)
            pause.wait(chance.choice((0.0, 0.0, 0.5, 2.0)))
            product.start_daemon()
        if writer.wait(600):
            raise SystemExit("the writer failed")
    finally:
        writer.kill()
        over.set()
        rotations.join()
    written = time.monotonic() - started
    wait_until(lambda: settled(product), seconds=600, what="an end of reading and delivering")
    return report(product, logs, args.lines, written, time.monotonic() - started)


def rotate(log: Path, how: str, over: threading.Event) -> None:
    """Have logrotate rotate the file every second."""
    config = log.parent.parent / "rotate.conf"
    user = "su root root\n" if os.geteuid() == 0 else ""
    config.write_text(f"{log} {{\n{user}rotate 10000\nmissingok\n{how}\n}}\n")
    config.chmod(0o600)
    while not over.wait(1.0):
        command = ["logrotate", "-f", "-s", str(config.with_suffix(".state")), str(config)]
        subprocess.run(command, check=True, timeout=PATIENCE)


def settled(product: Product) -> bool:
    """Tell whether all is read and delivered, and stays so for some seconds."""
    pause = threading.Event()
    before = product.stats()["events_stored"]
    pause.wait(5.0)
    return product.status()["queue"]["events"] == 0 and product.stats()["events_stored"] == before


def report(product: Product, logs: Path, lines: int, written: float, took: float) -> bool:
    """Compare what is stored with what is in the files, and say it."""
    stored = array("B", bytes(lines))
    with urllib.request.urlopen(f"{product.url}/_emulator/events", timeout=PATIENCE) as answer:
        for line in answer:
            match = NUMBER.search(line)
            if match is not None:
                number = int(match[1])
                stored[number] = min(255, stored[number] + 1)
    in_files = array("B", bytes(lines))
    rotated = 0
    for path in logs.iterdir():
        rotated += path.name != "app.log"
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for match in NUMBER.finditer(data):
            in_files[int(match[1])] = 1
    lost = [number for number in range(lines) if in_files[number] and not stored[number]]
    twice = [number for number in range(lines) if stored[number] > 1]
    window = sum(1 for number in range(lines) if not in_files[number] and not stored[number])
    ledger = product.status()["ledger"]
    say(
        f"{lines:,} lines written in {written:.1f} s, all delivered after {took:.1f} s; {rotated} rotations\n"
        f"stored once {stored.count(1):,} · twice {len(twice):,} · lost {len(lost):,}"
        f" · lost by copytruncate itself {window:,}\n"
        f"read again after a kill (known to Polar) {ledger['duplicates']:,} · accepted {ledger['accepted']:,}"
    )
    if lost or twice:
        say(f"lost: {lost[:10]} … twice: {twice[:10]} …")
    return not lost and not twice and (window == 0 or "copytruncate" in sys.argv)


def say(text: str) -> None:
    """Print."""
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
