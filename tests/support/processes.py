"""The product as real processes, in a directory of their own."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.daemon import call
from agent.errors import DaemonError
from support import emulators

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 30.0
TOKEN = "polar_oat_test"


def wait_until(
    condition: Callable[[], Any], *, seconds: float = PATIENCE, what: str = "the condition"
) -> Any:
    """Wait for something that another process does; return what the condition returned."""
    pause = threading.Event()
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {seconds} s")
        pause.wait(0.01)


class Product:
    """Emulator, daemon and commands that share one directory.

    Everything is started through the public command line and ends with `close`.
    """

    def __init__(self, directory: Path, **settings: object) -> None:
        self.directory = directory
        self.socket = directory / "agent.sock"
        self.queue = directory / "queue"
        self._port = _free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("POLAR_")},
            "POLAR_ACCESS_TOKEN": TOKEN,
            "POLAR_AGENT_BASE_URL": self.url,
            "POLAR_AGENT_SOCKET_PATH": str(self.socket),
            "POLAR_AGENT_QUEUE_DIR": str(self.queue),
            "POLAR_AGENT_FLUSH_INTERVAL": "0.1",
            "POLAR_AGENT_BACKOFF_MAX": "0.5",
            "POLAR_AGENT_REQUESTS_PER_MINUTE": "60000",
            "POLAR_AGENT_DISK_RESERVE_BYTES": "0",
            "POLAR_AGENT_LOG_LEVEL": "info",
        }
        self.set(**settings)
        self.prefix: list[str] = []
        """What stands before every command: see `support.small_disk`."""
        self.emulator: emulators.EmulatorProcess | None = None
        self.daemon: subprocess.Popen[str] | None = None
        self.log = directory / "daemon.log"

    def set(self, **settings: object) -> None:
        """Set settings for the processes that are started from now on."""
        for name, value in settings.items():
            self.environ[f"POLAR_AGENT_{name.upper()}"] = str(value)

    # -- the emulator ------------------------------------------------------------------

    def start_emulator(self, *options: str) -> None:
        """Start it, on the same port and data as before."""
        data = str(self.directory / "polar.db")
        self.emulator = emulators.start(["--listen", f"127.0.0.1:{self._port}", "--data", data, *options])
        self._processes = [*getattr(self, "_processes", []), self.emulator]

    def stop_emulator(self, number: int = signal.SIGTERM) -> None:
        """Stop it; its events stay in its file."""
        assert self.emulator is not None
        _end(self.emulator, number)

    def faults(self, **faults: object) -> None:
        """Have the emulator misbehave; nothing: behave."""
        data = json.dumps(faults).encode()
        method = "PUT" if faults else "DELETE"
        request = urllib.request.Request(f"{self.url}/_emulator/faults", data=data or None, method=method)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            answer.read()

    def stored(self) -> Iterator[dict[str, Any]]:
        """Yield what the emulator has stored."""
        for line in self.stored_text().splitlines():
            yield json.loads(line)

    def stored_text(self) -> bytes:
        """Return the same as lines of JSON."""
        with urllib.request.urlopen(f"{self.url}/_emulator/events", timeout=PATIENCE) as answer:
            return answer.read()

    def stats(self) -> dict[str, Any]:
        """Return the emulator's counters."""
        with urllib.request.urlopen(f"{self.url}/_emulator/stats", timeout=PATIENCE) as answer:
            return json.loads(answer.read())

    # -- the daemon --------------------------------------------------------------------

    def start_daemon(self, *, wait: bool = True) -> None:
        """Start it and wait until it takes connections."""
        with self.log.open("a") as log:
            self.daemon = self.spawn("run", stderr=log)
        if wait:
            wait_until(self._takes_connections, what="the daemon's socket")

    def _takes_connections(self) -> bool:
        assert self.daemon is not None
        assert self.daemon.poll() is None, self.log.read_text()
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
            return True

    def stop_daemon(self, number: int = signal.SIGTERM) -> int:
        """End it with a signal; return its exit code."""
        assert self.daemon is not None
        return _end(self.daemon, number)

    # -- commands ----------------------------------------------------------------------

    def spawn(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command of the product."""
        process = subprocess.Popen(
            [*self.prefix, sys.executable, "-m", "agent", *words], env=self.environ, text=True, **options
        )
        self._processes = [*getattr(self, "_processes", []), process]
        return process

    def run(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command of the product to its end."""
        return subprocess.run(
            [*self.prefix, sys.executable, "-m", "agent", *words],
            env=self.environ,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        """Return `agent status --json`."""
        done = self.run("status", "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def polled(self) -> dict[str, Any]:
        """Return the same for `wait_until`: without a process, where a daemon answers."""
        with suppress(DaemonError):
            answer = call(self._api_socket, "GET", "/status", timeout=PATIENCE)
            if answer is not None:
                return answer
        return self.status()

    @property
    def _api_socket(self) -> Path:
        named = self.environ.get("POLAR_AGENT_API_SOCKET_PATH")
        return Path(named) if named else Path(self.environ["POLAR_AGENT_SOCKET_PATH"]).with_name("api.sock")

    def close(self) -> None:
        """End everything that still runs."""
        for process in getattr(self, "_processes", []):
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


class Line:
    """A producer's connection, by hand."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(str(path))
        self._rest = b""

    def send(self, *events: object) -> None:
        """Send events, each as a line; bytes go as they are."""
        data = b"".join(
            event if isinstance(event, bytes) else json.dumps(event).encode() + b"\n" for event in events
        )
        self.sock.sendall(data)

    def half_close(self) -> None:
        """Say that nothing more will come."""
        self.sock.shutdown(socket.SHUT_WR)

    def answer(self) -> dict[str, Any]:
        """Return the next answer."""
        while b"\n" not in self._rest:
            data = self.sock.recv(65536)
            assert data, "the daemon closed the connection"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def answers(self) -> list[dict[str, Any]]:
        """Return all answers up to the end of the connection."""
        data = [self._rest]
        while piece := self.sock.recv(65536):
            data.append(piece)
        return [json.loads(line) for line in b"".join(data).splitlines()]

    def acked(self, lines: int) -> list[dict[str, Any]]:
        """Return the answers up to the one that acknowledges so many lines, without it."""
        others = []
        while True:
            answer = self.answer()
            if answer.get("ack") == lines:
                return others
            if "ack" not in answer:
                others.append(answer)

    def silent(self) -> bool:
        """Tell that no answer is there."""
        return not self._rest and not select.select([self.sock], [], [], 0)[0]

    def close(self) -> None:
        """Close at once."""
        self.sock.close()


def balanced(status: dict[str, Any]) -> bool:
    """Tell whether the books of a status balance."""
    ledger = status["ledger"]
    ends = sum(ledger[end] for end in ("delivered", "duplicates", "dead", "dropped"))
    return ledger["accepted"] == status["queue"]["events"] + ends


def _end(process: subprocess.Popen[str] | emulators.EmulatorProcess, number: int) -> int:
    if process.poll() is None:
        process.send_signal(number)
    return process.wait(PATIENCE)


def _free_port() -> int:
    """Return a port that nobody has, and that the system gives to nobody as the port of a connection."""
    while True:
        port = random.SystemRandom().randrange(10_240, 32_768)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
