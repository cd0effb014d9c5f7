"""Alerts and the dashboard ask for metrics that nodes export, by labels that these have.

Invariant: the list of metrics is read from the page that a test holds against the
node's source; a name or a label that is not there fails the check.
"""

from __future__ import annotations

import importlib
import json
import re
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_promql: Any = importlib.import_module("promql_parser")

# A row of the page of metrics: name, kind, labels, what it says.
ROW = re.compile(r"^\| `(kiln_\w+)` \| (counter|gauge|histogram) \| ([^|]*) \|", re.MULTILINE)
LABEL = re.compile(r"`(\w+)`")
FEWEST_METRICS = 50
# What Prometheus itself adds to whatever it reads.
SCRAPED = {"job", "namespace", "service", "pod", "instance", "endpoint", "container"}


def exported(root: Path) -> dict[str, set[str]]:
    """Name and labels of each series."""
    found: dict[str, set[str]] = {"up": set()}
    rows = ROW.findall((root / "deploy/METRICS.md").read_text())
    if len(rows) < FEWEST_METRICS:
        raise SystemExit(f"deploy/METRICS.md has only {len(rows)} metrics")
    for name, kind, labels in rows:
        named = set(LABEL.findall(labels))
        if kind == "histogram":
            found[name + "_bucket"] = named | {"le"}
            found[name + "_sum"] = found[name + "_count"] = named
        else:
            found[name] = named
    return found


def problems(chart: Path, root: Path) -> list[str]:
    """Expressions that Prometheus refuses, or that ask for what is not there."""
    known = exported(root)
    found = []
    for where, text in [*_alerts(chart), *_panels(chart)]:
        try:
            parsed = _promql.parse(_without_variables(text))
        except ValueError as e:
            found.append(f"{where}: {e}: {text}")
            continue
        for selector in _selectors(parsed):
            if selector.name not in known:
                found.append(f"{where}: no node exports {selector.name}")
                continue
            asked = {matcher.name for matcher in selector.matchers.matchers}
            unknown = asked - known[selector.name] - SCRAPED
            if unknown:
                found.append(f"{where}: {selector.name} has no label {', '.join(unknown)}")
    return found


def _without_variables(text: str) -> str:
    """Grafana puts durations where these are."""
    return re.sub(r"\$__(rate_interval|range|interval)", "5m", text)


def _alerts(chart: Path) -> Iterator[tuple[str, str]]:
    for group in yaml.safe_load((chart / "files/alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield f"alerts.yaml: {rule['alert']}", rule["expr"]


def _panels(chart: Path) -> Iterator[tuple[str, str]]:
    dashboard = json.loads((chart / "files/dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield f"dashboard.json: {panel['title']}", target["expr"]


def _selectors(node: Any) -> Iterator[Any]:  # noqa: ANN401
    if type(node).__name__ == "VectorSelector":
        yield node
    for part in ("lhs", "rhs", "expr", "args", "vector_selector"):
        child = getattr(node, part, None)
        if child is not None:
            for each in child if isinstance(child, list) else [child]:
                yield from _selectors(each)
