"""Rules, dashboard and autoscaling name metrics and labels that a verifier has, in queries that parse.

What a verifier has is in docs/metrics.md, which is held against a running one in tests/e2e/test_http_operator.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest

from tests.deploy.files import DEPLOY, ROOT, documents

ADDED = {"instance", "job", "namespace", "pod", "le"}  # by Prometheus and by Kubernetes
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
RULES = [rule for group in documents(DEPLOY / "prometheus" / "rules.yml")[0]["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((DEPLOY / "grafana" / "pilotfish.json").read_text(encoding="utf-8"))
ADAPTER = documents(DEPLOY / "kubernetes" / "adapter-values.yaml")[0]["rules"]["custom"]


def product() -> dict[str, set[str]]:
    """Series that a verifier has, and their labels."""
    found = {"up": set[str]()}
    for name, kind, labels in re.findall(r"^\| `(pilotfish_\w+)` \| (\w+) \| ([\w, ]*)\|", PAGE, flags=re.MULTILINE):
        names = [f"{name}_{part}" for part in ("bucket", "sum", "count")] if kind == "histogram" else [name]
        found |= {one: {label.strip() for label in labels.split(",") if label.strip()} for one in names}
    assert len(found) > 40
    return found


PRODUCT = product()
RECORDED = {rule["record"]: set[str]() for rule in RULES if "record" in rule}


def queries() -> Iterator[tuple[str, str]]:
    """Where each stands, and what it says."""
    for rule in RULES:
        yield rule.get("record") or rule["alert"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")
    for rule in ADAPTER:
        text = rule["metricsQuery"].replace("<<.LabelMatchers>>", 'namespace="pilotfish"')
        yield rule["name"]["as"], text.replace("<<.GroupBy>>", "pod")
        yield rule["name"]["as"], rule["seriesQuery"]


def wrong(query: str) -> list[str]:
    """What it names and nobody has. Raises ValueError where it does not parse."""
    complaints, selected, grouped = [], set[str](), set[str]()

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            name = str(node.name)
            selected.add(name)
            for matcher in node.matchers.matchers:
                if matcher.name not in ADDED | PRODUCT.get(name, set()):
                    complaints.append(f"{name} has no label {matcher.name}")
        if isinstance(node, promql_parser.MatrixSelector):
            visit(node.vector_selector)
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            grouped.update(node.modifier.labels)
        return True

    promql_parser.walk(promql_parser.parse(query), visit)
    assert selected
    complaints += [f"nothing is called {name}" for name in selected if name not in PRODUCT | RECORDED]
    known = ADDED.union(*(PRODUCT.get(name, set()) for name in selected))
    return complaints + [f"nothing there has the label {label}" for label in grouped - known]


@pytest.mark.parametrize(("where", "query"), list(queries()))
def test_a_query_names_what_there_is(where: str, query: str) -> None:
    assert wrong(query) == [], where


@pytest.mark.parametrize(
    "query",
    [
        "rate(pilotfish_tokens_total[5m])",
        'pilotfish_sequences{status="waiting"}',
        "sum by (door) (pilotfish_sequences)",
        "pilotfish_queue_seconds",
    ],
)
def test_what_there_is_not_is_found(query: str) -> None:
    assert wrong(query)


def test_what_does_not_parse_is_found() -> None:
    with pytest.raises(ValueError, match="unclosed"):
        wrong("rate(pilotfish_steps_total[5m]")


def test_alerts_say_what_is_wrong() -> None:
    alerts = [rule for rule in RULES if "alert" in rule]
    assert len({rule["alert"] for rule in alerts}) == len(alerts) > 5
    for rule in alerts:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}


def test_kinds_of_errors_exist() -> None:
    errors = (ROOT / "shared" / "pilotfish_core" / "errors.py").read_text(encoding="utf-8")
    kinds = set(re.findall(r'^    kind = "(\w+)"', errors, flags=re.MULTILINE))
    for rule in RULES:
        for named in re.findall(r'kind!~"([\w|]+)"', rule["expr"]):
            assert set(named.split("|")) <= kinds


def test_the_dashboard_is_one() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    source = documents(DEPLOY / "grafana" / "datasources.yaml")[0]["datasources"][0]["uid"]
    places = set()
    for panel in DASHBOARD["panels"]:
        assert panel["datasource"]["uid"] == source
        assert panel["title"]
        at = panel["gridPos"]
        places |= {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24
    assert len(places) == sum(panel["gridPos"]["w"] * panel["gridPos"]["h"] for panel in DASHBOARD["panels"])


def test_the_autoscaler_knows_its_metrics() -> None:
    (scaler,) = documents(DEPLOY / "kubernetes" / "autoscaling.yaml")
    asked = {metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]}
    assert asked == {rule["name"]["as"] for rule in ADAPTER}
