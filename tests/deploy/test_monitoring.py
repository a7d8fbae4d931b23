"""The alert rules and the dashboard, against Prometheus' own tools and the metrics that there are."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.flusher import Delivery
from agent.meters import Meters
from agent.process import Process
from agent.prometheus import render
from agent.queue import Books
from agent.stats import Detail, Snapshot

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "polar-agent.json").read_text())


def exposition() -> str:
    meters = Meters()
    meters.took("socket", 1, 1, 0.1)
    meters.answered("200", 1, 0.1)
    detail = Detail(
        None, None, None, meters, {"events": 1}, {"events": 1}, 1, 0.0, Process(1, 1.0, 1), started_at=1.0
    )
    return render(Snapshot(Path("/q"), Books(), None, Delivery(), 1, 1.0, detail), detail)


def names_there_are() -> set[str]:
    """Return the names of all series, and the labels that each has, as `name{label}`."""
    found = set()
    for family in text_string_to_metric_families(exposition()):
        for sample in family.samples:
            found.add(sample.name)
            found |= {f"{sample.name}{{{label}}}" for label in sample.labels}
    return found


def promtool(*words: str, stdin: str = "") -> None:
    done = subprocess.run(
        ["promtool", *words],
        cwd=RULES.parent,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs("promtool")
def test_prometheus_finds_nothing_to_complain_of_in_the_metrics() -> None:
    promtool("check", "metrics", stdin=exposition())


@pytest.mark.needs("promtool")
def test_the_alert_rules_are_valid_and_fire_when_they_should() -> None:
    promtool("check", "rules", "alerts.yml")
    promtool("test", "rules", "alerts_test.yml")
    promtool("check", "config", "prometheus.yml")


def expressions() -> list[str]:
    rules = re.findall(r"expr: (.*)", RULES.read_text())
    panels: list[dict[str, Any]] = DASHBOARD["panels"]
    return rules + [target["expr"] for panel in panels for target in panel["targets"]]


def test_rules_and_panels_ask_for_series_that_there_are() -> None:
    known = names_there_are()
    asked = {
        name
        for expression in expressions()
        for name in re.findall(r"(?:polar_agent|process)_\w+", expression)
    }

    assert asked - known == set()
    assert len(asked) > 20


@pytest.mark.needs("promtool")
def test_every_expression_of_the_dashboard_is_one(tmp_path: Path) -> None:
    rules = [
        {
            "record": f"x:{number}",
            "expr": expression.replace("$__rate_interval", "5m").replace("$instance", ".*"),
        }
        for number, expression in enumerate(expressions())
    ]
    file = tmp_path / "rules.json"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))

    promtool("check", "rules", str(file))


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
