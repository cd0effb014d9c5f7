"""Renders the chart as helm does, for every file of values and version of Kubernetes.

Invariant: each rendering is of `helm template` itself, without a cluster, and
nothing but a kind, a name and an API version is assumed of what it holds.
"""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

RELEASE = "kiln"
NAMESPACE = "kiln-system"

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Rendering:
    """What one file of values gives for one version of Kubernetes."""

    values: str
    version: str
    text: str
    manifests: tuple[Manifest, ...]

    def __str__(self) -> str:
        """For a message."""
        return f"{self.values}, Kubernetes {self.version}"

    def of(self, kind: str) -> list[Manifest]:
        """All manifests of a kind."""
        return [m for m in self.manifests if m["kind"] == kind]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs helm and leaves the judgement of its answer to the caller."""
    return subprocess.run(["helm", *arguments], capture_output=True, text=True, check=False)  # noqa: S607


def values_files(chart: Path) -> list[Path]:
    """The value files that together turn every switch."""
    return sorted((chart / "ci").glob("*-values.yaml"))


def render(chart: Path, values: Path | None, version: str, namespace: str = NAMESPACE) -> Rendering:
    """Renders; a refusal of helm ends the check with its words."""
    arguments = ["template", RELEASE, str(chart), "--namespace", namespace]
    arguments += ["--kube-version", version]
    arguments += [] if values is None else ["--values", str(values)]
    done = helm(*arguments)
    name = "default" if values is None else values.name.replace("-values.yaml", "")
    if done.returncode != 0:
        raise SystemExit(f"{name}, Kubernetes {version}: {done.stderr}")
    manifests = tuple(m for m in yaml.safe_load_all(done.stdout) if m)
    return Rendering(name, version, done.stdout, manifests)


def render_all(chart: Path, versions: Iterable[str]) -> list[Rendering]:
    """Every file of values with every version."""
    jobs = [(v, f) for v in versions for f in (None, *values_files(chart))]
    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(lambda job: render(chart, job[1], job[0]), jobs))
