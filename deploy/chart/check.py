"""Everything that must hold of the chart, and can be judged without a cluster.

    python3 deploy/chart/check.py [--kiln target/debug/kiln]

Invariant: exits with 0 only if every check ran and found nothing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

import client_pods
import configuration
import judgements
import metric_names
import policy
import promtool
import readme
import refusals
import rendering
import schemas
import switches
import volumes

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/kiln"
CLIENTS = ROOT / "deploy/clients"
FEWEST_FILES = 8
FEWEST_REFUSALS = 15
# The one that tests/kube runs.
OLDEST = "1.20.0"


def lint() -> list[str]:
    """`helm lint --strict`, with the defaults and each file of values."""
    found = []
    for file in (None, *rendering.values_files(CHART)):
        values = [] if file is None else ["--values", str(file)]
        done = rendering.helm("lint", "--strict", "--quiet", str(CHART), *values)
        if done.returncode != 0:
            found.append(f"helm lint, {file}: {done.stdout}{done.stderr}")
    return found


def once(problems: Iterable[str]) -> list[str]:
    """The same problem of several versions is one."""
    seen: dict[str, str] = {}
    for problem in problems:
        seen.setdefault(problem.split(": ", 1)[-1], problem)
    return list(seen.values())


def main() -> None:
    """Runs all checks and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kiln", type=Path, help="the program that must take each kiln.toml")
    kiln: Path | None = parser.parse_args().kiln

    began = time.monotonic()
    versions = schemas.versions()
    files = rendering.values_files(CHART)
    renderings = rendering.render_all(CHART, [OLDEST, *versions])
    newest = [r for r in renderings if r.version == versions[-1]]
    checkov = policy.Checkov(newest)
    strict = [r for r in renderings if r.version != OLDEST]
    kinds = f"{len(renderings)} renderings"
    checks = [
        ("helm lint --strict", f"{len(files) + 1} files of values", lint()),
        (
            f"schemas of {versions[0]} to {versions[-1]}, strict",
            f"{sum(len(r.manifests) for r in strict)} manifests",
            once(p for r in strict for p in schemas.problems(r)),
        ),
        ("promises", kinds, once(p for r in renderings for p in judgements.problems(r))),
        ("switches", f"{len(files)} files of values", switches.problems(CHART, files)),
        ("refusals", f"{len(refusals.REFUSED)} wrong values", refusals.problems(CHART)),
        ("metrics", "alerts and dashboard", metric_names.problems(CHART, ROOT)),
        ("clients", "deploy/clients", client_pods.problems(CHART, CLIENTS, versions[-1])),
        ("volumes", "another size or class", volumes.problems(CHART, ROOT / "deploy/DAY2.md")),
        ("README", "generated", readme.problems(CHART)),
        ("checkov", f"{len(policy.SKIPPED)} rules skipped", checkov.problems()),
    ]
    if kiln is not None:
        tried = configuration.problems(kiln.resolve(), newest)
        checks.append(("kiln.toml", "as the program reads it", tried))
    tool = promtool.find()
    if tool is None:
        print("     promtool is not installed (Debian's package prometheus): alerts are not tried")
    else:
        checks.append(("promtool rules", "alerts, and when they fire", promtool.rules(tool, CHART)))
        if kiln is not None:
            page = promtool.metrics(tool, kiln.resolve(), ROOT)
            checks.append(("promtool metrics", "a node's page", page))
    if len(files) < FEWEST_FILES or len(refusals.REFUSED) < FEWEST_REFUSALS:
        checks.append(("tables", "too short", ["the tables of checks are too short"]))

    failed = False
    for name, scope, problems in checks:
        failed |= bool(problems)
        print(f"{'FAIL' if problems else 'ok  '} {name} ({scope})")
        for problem in problems:
            print(f"       {problem}")
    print(f"{time.monotonic() - began:.0f} s")
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
