"""The results as a page: `docs/benchmarks.md` is made by `make bench ARGS=--write` and not by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"

_HEAD = """# Benchmarks

Made by `make bench ARGS='{arguments}'` on {date}; do not edit by hand.

The daemon, the load generator and the sink are processes of their own on one machine and share its
CPUs; the queue is on a real disk and every check is on. CPU and memory are the daemon's, all of
its threads and helpers, the kernel's work included. Where several daemons are measured they take turns, and
ratios are made pair by pair, so that a slow moment of the machine hits both. Medians are shown.

The machine: {cpus} CPUs, Python {python}, Linux {kernel}, {filesystem}; `fdatasync` after 4 KiB takes
{fdatasync:.2f} ms; load average before and after: {load}. A load above a few tenths at the
start means that other programs ran meanwhile: then events a second are lower than they could be, for
every daemon alike, and CPU seconds are higher; only the ratios hold.

## Repeat it

    make bench                         # a few minutes; says at the end of each bar whether it is met
    make bench ARGS=--full             # with 10 million events and backlogs of that size
    make bench ARGS='--write'          # the same, and this page
    make bench ARGS='--store'          # for a release: what later runs are compared with

Fluent Bit and syslog-ng are measured where `fluent-bit` and `syslog-ng` are installed (Debian:
`syslog-ng-core`, `syslog-ng-mod-http`); the slow disk where `gcc` is. Fluent Bit runs with
`storage.sync full` and checksums; syslog-ng with its reliable disk buffer, which never syncs. Neither
acknowledges anything. A growth of more than 20 % in CPU per event against the last release, counted in
units of a fixed piece of work that is measured in the same minutes, fails the run.
"""


def table(rows: list[dict], first: str) -> str:
    """Return a Markdown table of rows with the same keys; `first` names the left column."""
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key != first]
    lines = [
        "| " + " | ".join([first, *(key.replace("_", " ") for key in keys)]) + " |",
        "|---|" + "---:|" * len(keys),
    ]
    lines += [
        "| " + " | ".join([str(row[first]), *(number(row.get(key)) for key in keys)]) + " |" for row in rows
    ]
    return "\n".join(lines)


def number(value: object) -> str:
    """Return a number as people read it."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def write(machine: dict, arguments: str, parts: list[tuple[str, str, list[dict]]]) -> None:
    """Write the page.

    Args:
        machine: what `bench.machine` says.
        arguments: of this run.
        parts: title, name of the left column and rows of each table.
    """
    page = _HEAD.format(
        arguments=arguments,
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        fdatasync=machine["fdatasync_4k_ms"],
        **{key: machine[key] for key in ("cpus", "python", "kernel", "filesystem", "load")},
    )
    for title, first, rows in parts:
        page += f"\n## {title}\n\n{table(rows, first)}\n"
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page)
