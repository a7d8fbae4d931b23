"""What the daemon has to reach, and whether a run of the benchmark shows that it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PEER = "fluent-bit"
CPU, RATE, PEAK = "CPU-s_per_million", "events/s_delivered", "peak_MiB"


def judged(results: dict[str, list[dict]]) -> list[dict]:
    """Return a row for each bar that was measured: the bar, what was measured, whether it is met.

    Args:
        results: the tables of a run by title, each with the daemon or the case in its first column.
    """
    return [
        {
            "bar": bar,
            "at": f"{'≥' if least else '≤'} {limit:g}",
            "measured": measured,
            "verdict": "met" if (measured >= limit if least else measured <= limit) else "MISSED",
        }
        for bar, limit, measured, least in _bars(results)
    ]


def _bars(results: dict[str, list[dict]]) -> Iterator[tuple[str, float, float, bool]]:
    """Yield words, limit, what was measured, and whether it is to be at least the limit."""
    for title, rows in results.items():
        table = {str(next(iter(row.values()))): row for row in rows}
        yield from _compared(title, table)
        yield from _alone(title, table.get("agent", {}))
        if title.startswith("Taking an event with a backlog"):
            first, last = rows[0], rows[-1]
            growth = last[CPU] / first[CPU]
            yield f"CPU per event at {last['backlog']} of backlog ÷ at {first['backlog']}", 1.1, growth, False
        elif title.startswith("Filling and draining"):
            value = {row["what"]: row["value"] for row in rows}
            many = f"a backlog of {value['events']:,}"
            yield f"start to first ack with {many}, ms", 400, value["restart to first ack ms"], False
            yield f"peak memory draining {many}, MiB", 100, value["drain peak mib"], False


def _compared(title: str, table: dict[str, dict]) -> Iterator[tuple[str, float, float, bool]]:
    """Yield the same of a table of what the agent's figures are in units of its peers'."""
    if title == "Tailing, compared":
        for peer, row in table.items():
            yield f"events/s of a tailed file, in units of those of {peer}", 1.5, row[RATE], True
    elif title == "The same, compared" and PEER in table:
        yield "events/s, in units of Fluent Bit's", 1.5, table[PEER][RATE], True
        yield "CPU per event, in units of Fluent Bit's", 0.6, table[PEER][CPU], False
    elif title == "The same, compared " and PEER in table:
        yield "CPU per event in small writes, in units of Fluent Bit's", 1.0, table[PEER][CPU], False


def _alone(title: str, agent: dict) -> Iterator[tuple[str, float, float, bool]]:
    """Yield the same of the agent's row of a table."""
    if title.endswith("producer(s)") and RATE in agent:
        yield "CPU-s per million events", 2.0, agent[CPU], False
    elif title.startswith("Tailing a file"):
        yield "CPU-s per million lines of a tailed file", 2.0, agent[CPU], False
        yield "peak memory tailing a large file, MiB", 80, agent[PEAK], False
    elif "p99_ms" in agent:
        fsync = f"{agent['fdatasync_ms']:.2g} ms here"
        yield f"p99 of an ack, ms, where fdatasync takes 0.1 ms ({fsync})", 1.0, agent["p99_ms"], False
        yield "p99 of an ack among 1,000 producers, ms", 30, agent["p99_ms_of_1000_producers"], False
        yield "idle memory, MiB", 45, agent["idle_mib"], False
        yield "idle CPU, %", 0.1, agent["idle_cpu_percent"], False
        yield "start to first ack, ms", 400, agent["start_to_first_ack_ms"], False
