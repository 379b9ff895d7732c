"""The alert rules and the dashboard of deploy/prometheus: valid, tested, and only of metrics that refresher has."""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from refresher.observers.metrics import Counts, Row, grants_of, render
from refresher.operations.events import happened
from tests.conftest import need
from tests.support.documents import DOCUMENTS, section
from tests.support.prometheus import missing, promtool

HERE = Path(__file__).parent.parent.parent / "deploy/prometheus"
ALERTS = yaml.safe_load((HERE / "alerts.yaml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((HERE / "dashboard.json").read_text())
PANELS = DASHBOARD["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel.get("targets", ())]

COUNTS = Counts()
COUNTS.observe([happened("linear", "rotated", outcome="rotated")])
TEXT = render(
    COUNTS,
    grants_of([Row("linear", "active", 1.0, 1.0, client_ends=(("certificate", 1.0),))]),
    last_run=1.0,
    dropped={"history": 0},
    hook_failures={"on_failing": 0},
)[0].decode()
METRICS = set(re.findall(r"^# TYPE (\S+)", TEXT, re.MULTILINE))
SERIES = METRICS | {f"{name}_{suffix}" for name in METRICS for suffix in ("bucket", "sum", "count")}
LABELS = set(re.findall(r'[{,](\w+)="', TEXT)) | {"job", "instance"}


def test_the_rules_are_valid_and_each_alert_fires_when_it_has_to_and_not_else() -> None:
    """If it failed, Prometheus would refuse the file, or nobody would hear of a token that has expired."""
    need(missing())
    assert f"SUCCESS: {len(ALERTS)} rules found" in promtool("check", "rules", str(HERE / "alerts.yaml"))
    assert "SUCCESS" in promtool("test", "rules", str(HERE / "alerts_test.yaml"))
    tests = [
        each
        for test in yaml.safe_load((HERE / "alerts_test.yaml").read_text())["tests"]
        for each in test["alert_rule_test"]
    ]
    for rule in ALERTS:
        cases = [bool(test.get("exp_alerts")) for test in tests if test["alertname"] == rule["alert"]]
        assert set(cases) == {True, False}, f"{rule['alert']}: no test fires it, or none does not"


def test_each_alert_says_what_to_do_with_a_command() -> None:
    """If it failed, a person would be woken by an alert and not know what to type."""
    for rule in ALERTS:
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        if rule["alert"] != "RefresherEventsDropped":  # the log says what to do
            assert "'refresher " in rule["annotations"]["description"], rule["alert"]


def test_rules_and_queries_use_only_series_and_labels_that_refresher_has() -> None:
    """If it failed, an alert would never fire and a panel would stay empty, because a name is wrong."""
    for expression in [*QUERIES, *(rule["expr"] for rule in ALERTS)]:
        names = set(re.findall(r"refresher_\w+", expression))
        assert names
        assert names <= SERIES, expression
        grouped = re.findall(r"\b(?:by|on) \(([^)]*)\)", expression)
        labels = set(re.findall(r"(\w+)=~?\"", expression)) | {
            each.strip() for group in grouped for each in group.split(",")
        }
        assert labels <= LABELS | {"le"}, expression


def test_the_reference_lists_each_metric_and_no_other() -> None:
    """If it failed, a user would have to find a metric in the source, or look for one that does not exist."""
    named = set(re.findall(r"^\| `(refresher_\w+)", section("refresher/README.md", "Metrics"), re.MULTILINE))
    assert named == METRICS


def test_the_document_names_each_alert() -> None:
    """If it failed, a person could not look up what an alert means before it fires."""
    assert [rule["alert"] for rule in ALERTS if f"`{rule['alert']}`" not in DOCUMENTS["deploy/README.md"]] == []


def cells(panel: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """Return each cell of the grid that a panel covers."""
    place = panel["gridPos"]
    for x in range(place["x"], place["x"] + place["w"]):
        for y in range(place["y"], place["y"] + place["h"]):
            yield x, y


def test_the_dashboard_can_be_imported_and_its_panels_do_not_overlap() -> None:
    """If it failed, Grafana would refuse or rearrange the dashboard, or ask for a data source that nobody has."""
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert all(0 <= x < 24 and y >= 0 for panel in PANELS for x, y in cells(panel))
    for one, other in combinations(PANELS, 2):
        assert not {*cells(one)} & {*cells(other)}, (one["title"], other["title"])
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        if panel["type"] == "row":
            continue
        assert panel["description"]
        assert [target["refId"] for target in panel["targets"]] == list("ABC")[: len(panel["targets"])]
        assert all(each["datasource"] == source for each in (panel, *panel["targets"])), panel["title"]
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - {"__rate_interval", "__all"}
    assert used == set(variables)
