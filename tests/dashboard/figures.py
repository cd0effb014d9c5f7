"""What the page shows, and what `/metrics` says of it.

Invariant: a figure is read from the page as a person reads it, not from the view behind it.
"""

from __future__ import annotations

import re
import urllib.request
from typing import Any

from browser import until
from demo_cluster import Cluster, Node, require
from load import KERNELS

TIERS = ("memory", "disk", "peer", "object")


def metric(node: Node, name: str, **labels: str) -> int:
    """Sum of a metric over the labels that are not named."""
    with urllib.request.urlopen(f"http://{node.http}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found = 0
    for line in lines:
        series, _, value = line.rpartition(" ")
        has = all(f'{label}="{wanted}"' in series for label, wanted in labels.items())
        if series.split("{")[0] == name and has:
            found += int(float(value))
    return found


def number(text: str) -> int:
    """A number as the page writes it."""
    digits = re.sub(r"[^0-9]", "", text)
    require(bool(digits), f"{text!r} is no number")
    return int(digits)


def figure(page: Any, name: str, node: Node | None = None) -> str:  # noqa: ANN401
    """What the page shows of it."""
    of = f'[data-node="{node.id}"]' if node is not None else ":not([data-node])"
    return page.locator(f'[data-figure="{name}"]{of}').first.inner_text()


def figures_equal_metrics(cluster: Cluster, page: Any, seen: list[str]) -> None:  # noqa: ANN401
    """Once the load is over, every figure is what `/metrics` of its node says."""
    checked = 0

    def differing() -> list[str]:
        nonlocal checked
        pairs: list[tuple[str, int, int]] = []
        for node in cluster.nodes:
            for name in ("resp_hits", "resp_misses"):
                told = metric(node, f"kiln_{name}_total")
                pairs.append((f"{name} of {node.id}", number(figure(page, name, node)), told))
            told = metric(node, "kiln_requests_total", outcome="hit")
            pairs.append((f"hits of {node.id}", number(figure(page, "hits", node)), told))
            told = metric(node, "kiln_requests_total", outcome="compiled")
            pairs.append((f"compiled of {node.id}", number(figure(page, "compiled", node)), told))
            for tier in ("memory", "disk"):
                cell = page.locator(f'[data-figure="{tier}_bytes"][data-node="{node.id}"]').first
                told = metric(node, "kiln_tier_bytes", tier=tier)
                pairs.append((f"{tier} of {node.id}", int(cell.get_attribute("data-value")), told))
        for tier in TIERS:
            told = sum(
                metric(n, "kiln_requests_total", outcome="hit", tier=tier) for n in cluster.nodes
            )
            pairs.append((f"hits from {tier}", number(figure(page, f"hits_{tier}")), told))
        entries = metric(cluster.nodes[0], "kiln_index_entries")
        pairs.append(("entries", number(figure(page, "entries")), entries))
        checked = len(pairs)
        return [f"{name}: {shown}, not {told}" for name, shown, told in pairs if shown != told]

    until(page, "view that is as late as /metrics", lambda: not differing(), 15)
    require(not differing(), "; ".join(differing()))
    hits = sum(metric(n, "kiln_requests_total", outcome="hit") for n in cluster.nodes)
    require(hits >= KERNELS * 3, f"only {hits} hits: there was no load")
    seen.append(f"{checked} figures equal, {hits} hits among them")
