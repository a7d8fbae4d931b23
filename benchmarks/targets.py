"""What is measured: a process, started in a directory of its own, seen through /proc."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
TICK = os.sysconf("SC_CLK_TCK")


def wait_until(condition, seconds: float, what: str):
    """Return the first true answer of `condition`, asked every few milliseconds."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.005)


def stat_of(pid: int) -> list[str]:
    """Return the fields of a process's `stat` from its state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def status_of(pid: int, key: str) -> int:
    """Return a number of a process's `status`, mostly in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise KeyError(key)


class Sink:
    """The sink in a process of its own."""

    def __init__(self, latency_ms: float) -> None:
        command = [sys.executable, str(HERE / "sink.py"), "--latency-ms", str(latency_ms)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().strip()

    def stats(self) -> dict:
        with urllib.request.urlopen(f"{self.url}/_stats") as answer:  # noqa: S310 - our own loopback server
            return json.load(answer)

    def hold(self, *, on: bool) -> None:
        path = "_hold" if on else "_release"
        urllib.request.urlopen(f"{self.url}/{path}", data=b"").close()  # noqa: S310 - as above

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()


class Target:
    """A running daemon; subclasses say how it is started.

    Args:
        directory: for its socket, its queue and its log.
        sink: where it delivers to.
        flush: how many seconds a part of a batch may wait; None for the daemon's own default.
    """

    name = ""
    acknowledges = True

    def __init__(self, directory: Path, sink: Sink, flush: float | None = None) -> None:
        self.directory = directory
        self.sink = sink
        self.flush = flush
        self.socket = directory / "in.sock"
        self.started_at = 0.0
        self.process: subprocess.Popen | None = None

    def command(self) -> tuple[list[str], dict[str, str]]:
        """Return the command and what it needs in the environment."""
        raise NotImplementedError

    def start(self) -> None:
        self.directory.mkdir(mode=0o700, exist_ok=True)
        words, environment = self.command()
        with (self.directory / "log").open("ab") as log:
            self.started_at = time.monotonic()
            self.process = subprocess.Popen(
                words, env=environment, cwd=self.directory, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        wait_until(self.accepts, 60, f"{self.name} listens")

    def accepts(self) -> bool:
        if self.process.poll() is not None:
            raise SystemExit(f"{self.name} ended: {(self.directory / 'log').read_text()[-2000:]}")
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def stop(self, kill_after: float = 30) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(kill_after)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def cpu(self) -> float:
        """CPU seconds of it and of what it started, in steps of 10 ms; with ended threads and processes."""
        own, *started = map(stat_of, [self.process.pid, *self.helpers()])
        ticks = sum(map(int, own[11:15])) + sum(int(ticks) for one in started for ticks in one[11:13])
        return ticks / TICK

    def helpers(self) -> list[int]:
        """Return the processes that it has started."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                parent = stat_of(int(place.name))[1]
            except OSError:
                continue
            if int(parent) == self.process.pid:
                found.append(int(place.name))
        return found

    def fine_cpu(self) -> float:
        """The same to the microsecond, of the threads that run now."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def bytes_read(self) -> int:
        """Bytes that it read from anything since the start."""
        return int(Path(f"/proc/{self.process.pid}/io").read_text().split()[1])

    def memory(self, key: str) -> float:
        """Resident memory in MiB: `VmRSS` now, `VmHWM` at most; with what is its helpers' alone."""
        own = status_of(self.process.pid, key)
        return (own + sum(status_of(pid, "RssAnon") for pid in self.helpers())) / 1024

    def forget_peak(self) -> None:
        """Let VmHWM begin anew."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


class Agent(Target):
    """`agent run` of this source tree.

    Args:
        settings: further `POLAR_AGENT_…` variables, without the prefix.
        profile: a directory for profiles, to run under the profiler.
        environment: other variables.
    """

    name = "agent"

    def __init__(
        self,
        directory: Path,
        sink: Sink,
        flush: float | None = None,
        *,
        settings: dict[str, str] | None = None,
        profile: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        super().__init__(directory, sink, flush)
        self.settings = settings or {}
        self.profile = profile
        self.more_environment = environment or {}

    def environment(self) -> dict[str, str]:
        ours = {
            "BASE_URL": self.sink.url,
            "QUEUE_DIR": str(self.directory / "queue"),
            "SOCKET_PATH": str(self.socket),
            "REQUESTS_PER_MINUTE": "1000000",
            **({} if self.flush is None else {"FLUSH_INTERVAL": str(self.flush)}),
            **self.settings,
        }
        others = {key: value for key, value in os.environ.items() if not key.startswith("POLAR_")}
        return (
            others
            | {"POLAR_ACCESS_TOKEN": "x"}
            | {f"POLAR_AGENT_{key}": value for key, value in ours.items()}
        )

    def command(self) -> tuple[list[str], dict[str, str]]:
        words = [sys.executable, "-m", "agent", "run"]
        if self.profile is not None:
            words = [sys.executable, str(HERE / "profiled.py"), str(self.profile), "run"]
        return words, self.environment() | self.more_environment

    def status(self) -> dict:
        words = [sys.executable, "-m", "agent", "status", "--json"]
        done = subprocess.run(words, env=self.environment(), capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1) or not done.stdout:
            raise SystemExit(f"agent status failed: {done.stderr}")
        return json.loads(done.stdout)


class FluentBit(Target):
    """Fluent Bit with the settings nearest to what the agent promises: every chunk synced."""

    name = "fluent-bit"
    acknowledges = False

    @staticmethod
    def found() -> str | None:
        return shutil.which("fluent-bit")

    def command(self) -> tuple[list[str], dict[str, str]]:
        config = self.directory / "fluent-bit.conf"
        config.write_text(
            f"""\
[SERVICE]
    flush {self.flush or 1}
    daemon off
    log_level error
    storage.path {self.directory}/storage
    storage.sync full
    storage.checksum on
    storage.max_chunks_up 128
[INPUT]
    name unix_socket
    socket_path {self.socket}
    format json
    chunk_size 256
    buffer_size 4096
    storage.type filesystem
{self.output()}"""
        )
        return [self.found(), "-c", str(config)], dict(os.environ)

    def output(self) -> str:
        """Return the part of the configuration that says where events go."""
        host, _, port = self.sink.url.removeprefix("http://").rpartition(":")
        return f"""\
[OUTPUT]
    name http
    match *
    host {host}
    port {port}
    uri /v1/events/ingest
    format json
    json_date_key false
    retry_limit no_limits
"""


class TailingAgent(Agent):
    """The same, with a file to tail."""

    def environment(self) -> dict[str, str]:
        return super().environment() | {"POLAR_AGENT_TAIL__0__PATH": str(self.directory / "tailed" / "*.log")}


class TailingFluentBit(FluentBit):
    """Fluent Bit with a file to tail: its place in it kept in a database, its chunks in files."""

    sync = "full"

    def command(self) -> tuple[list[str], dict[str, str]]:
        parsers = self.directory / "parsers.conf"
        parsers.write_text("[PARSER]\n    name json\n    format json\n")
        config = self.directory / "fluent-bit.conf"
        config.write_text(
            f"""\
[SERVICE]
    flush {self.flush or 1}
    daemon off
    log_level error
    parsers_file {parsers}
    storage.path {self.directory}/storage
    storage.sync {self.sync}
    storage.checksum {"on" if self.sync == "full" else "off"}
    storage.max_chunks_up 128
[INPUT]
    name tail
    path {self.directory}/tailed/*.log
    read_from_head on
    refresh_interval 1
    parser json
    db {self.directory}/offsets.db
    buffer_chunk_size 1M
    buffer_max_size 2M
    storage.type filesystem
{self.output()}"""
        )
        return [self.found(), "-c", str(config)], dict(os.environ)

    def accepts(self) -> bool:
        return self.process.poll() is None


class TailingFluentBitUnsynced(TailingFluentBit):
    """The same as it comes: nothing is synced, nor covered by checksums."""

    name = "fluent-bit, no sync"
    sync = "normal"


class SyslogNg(Target):
    """syslog-ng with its reliable disk buffer, which it never syncs."""

    name = "syslog-ng"
    acknowledges = False

    @staticmethod
    def found() -> str | None:
        return shutil.which("syslog-ng", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

    def command(self) -> tuple[list[str], dict[str, str]]:
        config = self.directory / "syslog-ng.conf"
        config.write_text(
            f"""\
@version: 3.38
options {{ stats-freq(0); }};
source s {{
    unix-stream("{self.socket}" flags(no-parse) max-connections(1100)
        log-iw-size(110000) log-fetch-limit(1000));
}};
destination d {{
    http(
        url("{self.sink.url}/v1/events/ingest") method("POST") headers("Content-Type: application/json")
        body("$MSG") body-prefix("[") delimiter(",") body-suffix("]")
        batch-lines(1000) batch-timeout({int((self.flush or 1) * 1000)}) workers(4) persist-name("d")
        disk-buffer(reliable(yes) disk-buf-size(8589934592) mem-buf-size(33554432) dir("{self.directory}"))
    );
}};
log {{ source(s); destination(d); flags(flow-control); }};
"""
        )
        words = [self.found(), "--foreground", "--no-caps", "-f", str(config)]
        words += [
            option
            for name in ("persist-file", "control", "pidfile")
            for option in (f"--{name}", f"{self.directory}/{name}")
        ]
        return words, dict(os.environ)
