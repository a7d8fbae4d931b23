"""What the machine allows: open files, memory, and the time that a supervisor gives for stopping."""

from __future__ import annotations

import os
import re
import resource
import shutil
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from agent.check import Finding, failed, ok, warning
from agent.units import MIB, format_duration, format_size, rough_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agent.settings import Settings

_OTHER_FILES = 64
_LEAST_MEMORY = 64 * MIB
_DOCKER_STOP_SECONDS = 10.0
_UNIT = "polar-agent.service"
_SPANS = {"h": 3600.0, "min": 60.0, "s": 1.0, "ms": 0.001}
_SPAN = re.compile(r"([0-9.]+)(h|min|ms|s)\b")


def look(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what is to be said of the surroundings."""
    yield _files(settings.max_connections, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    yield from secret_file(settings)
    memory = _memory_limit(Path("/sys/fs/cgroup/memory.max"))
    if memory is not None:
        yield explain_memory(memory)
    container = which_container(environ, Path("/"))
    if container is not None:
        yield explain_stop(container, settings.shutdown_timeout)
    unit = _systemd_unit()
    if unit is not None:
        yield explain_unit(unit, settings.shutdown_timeout)


def _files(connections: int, limit: int) -> Finding:
    """Tell whether every connection can have its file descriptor."""
    name = "open files"
    if limit != resource.RLIM_INFINITY and limit < connections + _OTHER_FILES:
        message = f"at most {limit}, and max_connections is {connections}"
        return warning(name, "limit", message, "raise LimitNOFILE or `ulimit -Hn`, or lower max_connections")
    return ok(name, "limit", "enough for max_connections")


def secret_file(settings: Settings) -> Iterator[Finding]:
    """Yield whether others may read the token, where it is in a file."""
    path = settings.access_token_file
    if path is None and settings.access_token is not None:
        origin = settings.sources.get("access_token", "")
        path = Path(origin) if Path(origin).is_file() else None  # it may be the name of a variable
    if path is None:
        return
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return  # the token's own check tells
    if mode & 0o004:
        yield warning("token file", str(path), "every user may read it", f"chmod o-r {path}")
    else:
        yield ok("token file", str(path), "not everybody may read it")


def explain_memory(limit: int) -> Finding:
    """Say whether a limit of memory, in bytes, is enough."""
    if limit < _LEAST_MEMORY:
        message = f"at most {format_size(limit)}: under load the agent can be killed for it"
        return warning("memory", "limit", message, f"allow at least {format_size(_LEAST_MEMORY)}")
    return ok("memory", "limit", f"{rough_size(limit)} allowed")


def which_container(environ: Mapping[str, str], root: Path) -> str | None:
    """Return what kind of container this is; None when it is none."""
    if environ.get("KUBERNETES_SERVICE_HOST"):
        return "Kubernetes"
    if (root / ".dockerenv").exists():
        return "Docker"
    if (root / "run/.containerenv").exists():
        return "Podman"
    return None


def explain_stop(container: str, shutdown_timeout: float) -> Finding:
    """Say whether the agent stops before its container is killed."""
    name = "container"
    told = f"stopping takes up to {format_duration(shutdown_timeout)} (shutdown_timeout)"
    if container != "Kubernetes" and shutdown_timeout >= _DOCKER_STOP_SECONDS - 1:
        mend = "lower shutdown_timeout, or stop with more patience: docker stop --time"
        return warning(name, container, f"{told}, and after 10 s the container is killed", mend)
    patience = (
        "terminationGracePeriodSeconds must be longer" if container == "Kubernetes" else "within its 10 s"
    )
    return ok(name, container, f"{told}: {patience}")


def explain_unit(properties: Mapping[str, str], shutdown_timeout: float) -> Finding:
    """Say how the unit stands, and whether the agent stops before systemd kills it.

    Args:
        properties: what `systemctl show` says.
        shutdown_timeout: the setting, seconds.
    """
    name, state = "systemd", properties.get("ActiveState", "unknown")
    patience = parse_span(properties.get("TimeoutStopUSec", ""))
    if state == "failed":
        message = f"the unit has failed ({properties.get('Result', 'why is unknown')})"
        return failed(name, _UNIT, message, f"journalctl -u {_UNIT}, then systemctl restart {_UNIT}")
    if patience is not None and patience <= shutdown_timeout:
        message = f"it is killed after {format_duration(patience)}, and shutdown_timeout is longer"
        return warning(name, _UNIT, message, "raise TimeoutStopSec in a drop-in, or lower shutdown_timeout")
    return ok(name, _UNIT, state)


def parse_span(text: str) -> float | None:
    """Return the seconds of a span as systemd prints it, such as `1min 30s`; None for `infinity`."""
    parts = _SPAN.findall(text)
    return sum(float(number) * _SPANS[unit] for number, unit in parts) if parts else None


def _systemd_unit() -> dict[str, str] | None:
    """Return what systemd says of our unit; None when there is none."""
    systemctl = shutil.which("systemctl")
    if systemctl is None or not os.path.isdir("/run/systemd/system"):  # noqa: PTH112  # never raises
        return None
    command = [
        systemctl,
        "show",
        "--timestamp=unix",
        "-p",
        "LoadState,ActiveState,Result,TimeoutStopUSec",
        _UNIT,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    properties = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    return properties if properties.get("LoadState") == "loaded" else None


def _memory_limit(path: Path) -> int | None:
    """Return the limit of our control group, bytes; None when there is none."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
