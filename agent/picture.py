"""What `agent top` shows: one screen of text, made of two looks at the daemon. Pure."""

from __future__ import annotations

import textwrap
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from agent.units import rough_size, rough_span

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Document = Mapping[str, Any]

_COUNTED = ("accepted", "delivered", "duplicates", "refused", "dropped")
_HEALTH = ("live", "ready", "delivering")
_LONGEST_TROUBLE = 3


def picture(now: Document, before: Document | None, seconds: float, width: int, height: int) -> list[str]:
    """Return the lines of the screen, none wider than it.

    Args:
        now: the overview as it is.
        before: the overview of the last look; None for the first one.
        seconds: how long ago that was.
        width: of the screen.
        height: likewise.
    """
    lines = [_head(now), ""]
    lines += _queue(now)
    lines += ["", f"{'':<12}{'events':>16}{'a second':>12}"]
    lines += [
        f"{name:<12}{now['ledger'][name]:>16,}{_rate(now, before, seconds, 'ledger', name):>12}"
        for name in _COUNTED
    ]
    lines += ["", *_delivery(now, width), "", *_sources(now, before, seconds)]
    refusals = _refusals(now)
    if refusals:
        lines += ["", "recent refusals"]
    lines += refusals[: max(0, height - len(lines) - 2)]
    return [_cut(line, width) for line in lines[: height - 1]]


def troubled(document: Document) -> bool:
    """Tell whether something is wrong."""
    return not all(document["health"][name] for name in _HEALTH)


def _head(now: Document) -> str:
    health = "  ".join(name if now["health"][name] else f"NOT {name.upper()}" for name in _HEALTH)
    daemon = now["daemon"]
    memory = f", {rough_size(now['memory_bytes'])}" if now["memory_bytes"] else ""
    return f"polar-agent {now['version']}  {health}  up {rough_span(daemon['uptime_seconds'])}{memory}"


def _queue(now: Document) -> list[str]:
    queue = now["queue"]
    oldest = queue["oldest_age_seconds"]
    waits = "" if oldest is None else f", the oldest for {rough_span(oldest)}"
    lines = [f"queue       {queue['events']:,} waiting, {rough_size(queue['bytes'])}{waits}"]
    if queue["dead"]:
        lines.append(f"dead        {queue['dead']:,} letters: see `agent dead list`")
    return lines


def _delivery(now: Document, width: int) -> list[str]:
    delivery, latency = now["delivery"], now["latency"]
    following = delivery["next_attempt_in_seconds"]
    wait = "" if following is None else f", next attempt in {rough_span(following)}"
    lines = [f"delivery    {delivery['state']}{wait}"]
    if delivery["last_error"]:
        pieces = textwrap.wrap(str(delivery["last_error"]), max(width - 12, 20), break_on_hyphens=False)
        lines += [f"{'':<12}{piece}" for piece in pieces[:_LONGEST_TROUBLE]]
    requests = "  ".join(f"{result}: {count:,}" for result, count in now["requests"].items())
    lines.append(f"requests    {requests or 'none yet'}")
    times = [
        f"{word} {_time(latency[name]['p50'])}/{_time(latency[name]['p99'])}"
        for word, name in (("ack", "ack"), ("request", "request"), ("to Polar", "age"))
    ]
    lines.append(f"p50/p99     {', '.join(times)}")
    return lines


def _sources(now: Document, before: Document | None, seconds: float) -> list[str]:
    names = ("socket", *sorted(set(now["sources"]) - {"socket"}))
    connected = {"socket": now["connections"]["events"], "api": now["connections"]["api"]}
    lines = [f"{'source':<12}{'events':>16}{'a second':>12}{'refused':>12}{'connected':>12}"]
    for name in names:
        tally = now["sources"].get(name, {"accepted": 0, "refused": 0})
        rate, there = _rate(now, before, seconds, "sources", name, "accepted"), connected.get(name, "-")
        lines.append(f"{name:<12}{tally['accepted']:>16,}{rate:>12}{tally['refused']:>12,}{there:>12}")
    return lines


def _refusals(now: Document) -> list[str]:
    lines = []
    for one in now["refusals"]:
        moment = datetime.fromtimestamp(one["at"], UTC).astimezone().strftime("%H:%M:%S")
        where = [".".join(map(str, one["loc"]))] if one["loc"] else []
        times = f" (x{one['count']:,})" if one["count"] > 1 else ""
        lines.append(f"{' '.join([moment, one['source'], one['type'], *where])}{times}: {one['msg']}")
    return lines


def _rate(now: Document, before: Document | None, seconds: float, *path: str) -> str:
    """Return how fast a counter rises; nothing to tell in the first look, or after a restart."""
    new, old = _at(now, path), None if before is None else _at(before, path)
    if old is None or new is None or new < old or seconds <= 0:
        return "-"
    rate = (new - old) / seconds
    return f"{rate:,.0f}" if rate >= 10 or rate == 0 else f"{rate:.1f}"


def _at(document: Any, path: Sequence[str]) -> float | None:
    for name in path:
        document = document.get(name, {})
    return document if isinstance(document, (int, float)) else None


def _cut(line: str, width: int) -> str:
    """Return what fits; what programs wrote must not steer the terminal."""
    plain = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)
    return plain if len(plain) <= width else f"{plain[: width - 1]}\N{HORIZONTAL ELLIPSIS}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:g} ms" if seconds < 1 else rough_span(seconds)
