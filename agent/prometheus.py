"""The metrics as Prometheus' text format has them, made of one Snapshot. Pure.

Names and units follow its conventions: `…_total` for counters, seconds and bytes as units.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent.meters import Histogram
    from agent.stats import Detail, Snapshot

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STATES = ("idle", "sending", "retrying", "throttled", "blocked")


class _Text:
    """Lines as they come together."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(
        self, name: str, kind: str, meaning: str, samples: Iterable[tuple[Mapping[str, str], float | None]]
    ) -> None:
        """Add one metric; a sample that is None is left out."""
        name = f"polar_agent_{name}" if not name.startswith("process_") else name
        self._lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
        for labels, value in samples:
            if value is not None:
                self._lines.append(f"{name}{_labels(labels)} {_number(value)}")

    def one(self, name: str, kind: str, meaning: str, value: float | None) -> None:
        """Add a metric without labels."""
        self.add(name, kind, meaning, [({}, value)])

    def histogram(self, name: str, meaning: str, histogram: Histogram) -> None:
        """Add a distribution."""
        name = f"polar_agent_{name}"
        self._lines += [f"# HELP {name} {meaning}", f"# TYPE {name} histogram"]
        counts, total = list(histogram.counts), histogram.total
        seen = 0
        for bound, count in zip((*histogram.bounds, float("inf")), counts, strict=True):
            seen += count
            self._lines.append(f"{name}_bucket{_labels({'le': _number(bound)})} {seen}")
        self._lines += [f"{name}_sum {_number(total)}", f"{name}_count {seen}"]

    def __str__(self) -> str:
        return "\n".join(self._lines) + "\n"


def render(snapshot: Snapshot, detail: Detail) -> str:
    """Return all metrics."""
    text = _Text()
    text.add("build_info", "gauge", "The version that runs.", [({"version": __version__}, 1)])
    _books(text, snapshot)
    _delivery(text, snapshot, detail)
    _work(text, detail)
    text.one("process_resident_memory_bytes", "gauge", "Memory in use.", detail.process.memory_bytes)
    text.one("process_cpu_seconds_total", "counter", "Processor time.", detail.process.cpu_seconds)
    text.one("process_open_fds", "gauge", "Open files and sockets.", detail.process.open_files)
    text.one("process_start_time_seconds", "gauge", "When it started, Unix seconds.", detail.started_at)
    return str(text)


def _books(text: _Text, snapshot: Snapshot) -> None:
    books = snapshot.books
    for name, value, meaning in (
        ("events_accepted_total", books.accepted, "Events that were made durable; survives restarts."),
        ("events_refused_total", books.refused, "Events that were refused; survives restarts."),
        ("events_repeated_total", books.repeated, "Events that came again and were not stored again."),
        ("events_delivered_total", books.delivered, "Events that Polar stored."),
        ("events_duplicate_total", books.duplicates, "Events that Polar had already."),
        ("events_dropped_total", books.dropped, "Events dropped by an operator's choice or lost to damage."),
        ("events_lost_total", books.lost, "Events lost to damage; part of the dropped."),
    ):
        text.one(name, "counter", meaning, value)
    text.one("dead_letters", "gauge", "Events that Polar refuses for good, and are kept.", books.dead)
    text.one("queue_events", "gauge", "Events that wait for delivery.", books.pending)
    text.one("queue_bytes", "gauge", "Disk that they take.", books.bytes)
    age = snapshot.oldest_age or 0.0
    text.one("queue_oldest_age_seconds", "gauge", "How long the oldest has waited; 0 without any.", age)


def _delivery(text: _Text, snapshot: Snapshot, detail: Detail) -> None:
    delivery = snapshot.delivery
    text.one("queue_max_bytes", "gauge", "Disk that they may take (queue_max_bytes).", detail.queue_max_bytes)
    text.add(
        "delivery_state",
        "gauge",
        "1 for the state that delivery is in.",
        [({"state": state}, float(state == delivery.state)) for state in STATES],
    )
    text.one("live", "gauge", "1 while all threads move.", float(detail.sick is None))
    text.one("ready", "gauge", "1 while events can be made durable.", float(detail.unready is None))
    text.one("delivering", "gauge", "0 while events wait too long.", float(detail.stalled is None))
    text.one(
        "delivery_last_success_timestamp_seconds",
        "gauge",
        "When Polar last took a batch, Unix seconds; 0 when it has not yet.",
        delivery.last_success or 0.0,
    )
    text.one(
        "delivery_clock_offset_seconds",
        "gauge",
        "How far Polar's clock is ahead.",
        detail.clock_offset,
    )


def _work(text: _Text, detail: Detail) -> None:
    meters = detail.meters
    text.add(
        "requests_total",
        "counter",
        "Requests to Polar that ended, by status or by why there was none.",
        [({"result": result}, count) for result, count in sorted(dict(meters.requests).items())],
    )
    sources = sorted(dict(meters.sources).items())
    text.add(
        "source_events_total",
        "counter",
        "Events that were made durable since the start, by kind of source.",
        [({"source": name}, tally.accepted) for name, tally in sources],
    )
    text.add(
        "source_refused_total",
        "counter",
        "Events that were refused since the start, by kind of source.",
        [({"source": name}, tally.refused) for name, tally in sources],
    )
    text.add(
        "connections",
        "gauge",
        "Programs that are connected.",
        [({"socket": name}, count) for name, count in detail.connections.items()],
    )
    text.add(
        "peers_refused_total",
        "counter",
        "Connections of users who are not on the list.",
        [({"socket": name}, count) for name, count in detail.peers_refused.items()],
    )
    text.histogram("ack_duration_seconds", "From the hand-over of lines until they are durable.", meters.ack)
    text.histogram("batch_events", "Events in a request to Polar.", meters.batch)
    text.histogram("request_duration_seconds", "What requests to Polar took.", meters.request)
    text.histogram(
        "delivery_age_seconds", "From arrival to Polar's answer, by the oldest event of a batch.", meters.age
    )


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if value == int(value) else repr(float(value))
