"""The dashboard and the alert rules in ``docs/`` ask for metrics and labels that exist, as their type allows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client import Histogram
from prometheus_client.metrics import MetricWrapperBase

from streaming.metrics import REGISTRY

DOCS = Path(__file__).resolve().parents[2] / "docs"
_OURS = re.compile(r"(sluicegate_\w+)(?:\{([^}]*)\})?(\[[^\]]+\])?")
_LABEL = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')
_BY = re.compile(r"by \(([^)]*)\)")
_COUNTS = re.compile(r"(?:rate|increase)\((\w+)")
_FROM_PROMETHEUS = {"le", "instance", "job"}


def expressions() -> Iterator[tuple[str, str]]:
    dashboard = json.loads((DOCS / "grafana-dashboard.json").read_text("utf-8"))
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield f"panel {panel['title']}", target["expr"]
    for group in yaml.safe_load((DOCS / "alert-rules.yml").read_text("utf-8"))["groups"]:
        for rule in group["rules"]:
            yield f"alert {rule['alert']}", rule["expr"]


def known() -> dict[str, tuple[str, set[str]]]:
    """Every name that a query may use, with its type and its labels."""
    names: dict[str, tuple[str, set[str]]] = {}
    for collector in REGISTRY._collector_to_names:
        if isinstance(collector, MetricWrapperBase):
            labels = set(collector._labelnames)
            if isinstance(collector, Histogram):
                names[f"{collector._name}_bucket"] = ("histogram", labels)
            elif collector._type == "counter":
                names[f"{collector._name}_total"] = ("counter", labels)
            else:
                names[collector._name] = (str(collector._type), labels)
    return names


def complaints(expression: str) -> list[str]:
    names, out, labels = known(), [], set(_FROM_PROMETHEUS)
    for name, selector, _ in _OURS.findall(expression):
        if name not in names:
            out.append(f"no metric {name}")
            continue
        labels |= names[name][1]
        out += [f"{name} has no label {label}" for label in _LABEL.findall(selector) if label not in names[name][1]]
    for group in _BY.findall(expression):
        out += [f"nothing here has a label {label}" for label in re.findall(r"\w+", group) if label not in labels]
    for name in _COUNTS.findall(expression):
        if name in names and names[name][0] == "gauge":
            out.append(f"{name} is a gauge: rate() and increase() are for counters")
    if expression.count("(") != expression.count(")"):
        out.append("a bracket is left open")
    return out


def test_it_works() -> None:
    assert complaints('sum by (outcome) (rate(sluicegate_answers_total{path="streaming"}[5m]))') == []
    assert complaints("rate(sluicegate_answer_total[5m])") == ["no metric sluicegate_answer_total"]
    assert complaints('sluicegate_sessions{sate="ACTIVE"}') == ["sluicegate_sessions has no label sate"]
    assert complaints("max by (policy) (sluicegate_sessions)") == ["nothing here has a label policy"]
    assert complaints("rate(sluicegate_sessions[5m])")[0].startswith("sluicegate_sessions is a gauge")


@pytest.mark.parametrize(("where", "expression"), [pytest.param(*found, id=found[0]) for found in expressions()])
def test_every_query_asks_for_what_there_is(where: str, expression: str) -> None:
    assert complaints(expression) == []


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    asked = " ".join(expression for where, expression in expressions() if where.startswith("panel"))
    missing = {name for name in known() if name.startswith("sluicegate_") and name not in asked}
    assert missing == {"sluicegate_store_keys"}, "the keys go with the memory"


def test_every_alert_says_what_is_wrong_and_how_much_it_matters() -> None:
    for group in yaml.safe_load((DOCS / "alert-rules.yml").read_text("utf-8"))["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert rule["annotations"]["summary"]


def test_panels_do_not_overlap_and_each_has_a_name_of_its_own() -> None:
    panels = json.loads((DOCS / "grafana-dashboard.json").read_text("utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
