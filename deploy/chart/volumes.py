"""Another size or class of the voters' volumes, as deploy/DAY2.md brings it in.

Kubernetes refuses a change of a StatefulSet's volumeClaimTemplates, so the StatefulSet is made anew
around the pods that run.

Invariant: that restarts no pod, because size and class change the claims alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml
from rendering import helm

if TYPE_CHECKING:
    from pathlib import Path

CHANGES = ["voters.storage.size=100Gi", "voters.storage.className=fast"]
STEPS = [
    "--cascade=orphan",
    "kubectl patch pvc data-kiln-0",
    "--set voters.storage.size=",
    "--set voters.storage.className=",
    "kubectl delete pvc data-kiln-2 --wait=false",
]


def problems(chart: Path, page: Path) -> list[str]:
    """What else changes, and steps that the page lacks."""
    text = page.read_text()
    found = [f"{page.name} lacks the step {step!r}" for step in STEPS if step not in text]
    before, claims = _rendered(chart)
    for change in CHANGES:
        after, others = _rendered(chart, "--set", change)
        if others == claims:
            found.append(f"{change} changes no claim")
        if after != before:
            found.append(f"{change} changes more than the claims: pods restart")
    return found


def _rendered(chart: Path, *arguments: str) -> tuple[list[Any], list[Any]]:
    """All manifests without the claims of StatefulSets, and those claims."""
    done = helm("template", "kiln", str(chart), *arguments)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    manifests = [m for m in yaml.safe_load_all(done.stdout) if m]
    sets = [m["spec"] for m in manifests if m["kind"] == "StatefulSet"]
    return manifests, [spec.pop("volumeClaimTemplates") for spec in sets]
