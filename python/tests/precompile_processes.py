"""Runs the program of ``precompile_sources`` in processes, each with a folder of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import precompile_sources
from cluster import Cluster
from programs import run

SAME = 1e-4
NO_GRAD = "contexts = [torch.no_grad()]"
CLOSED = f"{NO_GRAD}; target = traced.closed(2.0)"
# The name under which the program's packages are listed.
TELL = """
import kiln_torch.precompile.beginning as beginning
asked, real = [], beginning.ask
beginning.ask = lambda *given: (asked.append(real(*given)), asked[-1])[1]
after = "told = [asked[0].name, asked[0].label]"
"""


@dataclass
class Programs:
    """Runs the program; each process has a folder of its own."""

    cluster: Cluster
    folder: Path
    made: int = 0

    def run(
        self, setup: str = NO_GRAD, before_call: str = "", *, node: int = 1, **more: Any
    ) -> dict[str, Any]:
        """Run one case in a process of its own."""
        (told,) = self.run_all([{"setup": setup, "before_call": before_call}], node=node, **more)
        return told

    def run_all(
        self,
        cases: list[dict[str, str]],
        *,
        publish: bool = True,
        node: int = 1,
        sources: Path | None = None,
        endpoint: str | None = None,
        switches: dict[str, str] | None = None,
    ) -> list[dict[str, Any]]:
        """Run cases one after another in one process, with an empty folder."""
        self.made += 1
        folder = self.folder / f"process-{self.made}"
        folder.mkdir()
        file = folder / "cases.json"
        file.write_text(json.dumps({"cases": cases, "publish": publish}))
        environment = {
            "KILN_PRECOMPILE": "1",
            # The cluster is other tests' too, and the program is the same in all of them.
            "KILN_NAMESPACE": self.folder.name,
            "PROGRAM_DIR": str(sources or self.folder / "sources"),
            **(switches or {}),
        }
        where = endpoint or self.cluster.nodes[node].endpoint
        told: Any = run(folder, where, str(file), program="precompile_program.py", **environment)
        return told

    def edited(self, **texts: str) -> Path:
        """Write the program with other sources."""
        self.made += 1
        return precompile_sources.write(self.folder / f"edited-{self.made}", **texts)


def begun(cluster: Cluster, folder: Path) -> Programs:
    """Return a program and a function of which a first process has run, on the first node."""
    precompile_sources.write(folder / "sources")
    made = Programs(cluster, folder)
    for setup in (NO_GRAD, CLOSED):
        first = made.run(setup, node=0)
        assert first["traces"] == 1, first
        assert first["stats"].get("precompile.published") == 1, first
        assert first["difference"] < SAME, first
    return made


def assert_loaded(told: dict[str, Any]) -> None:
    """Assert that nothing was traced or compiled."""
    assert (told["traces"], told["frames"], told["fx_miss"]) == (0, 0, 0), told
    assert told["stats"]["precompile.hits"] >= 1, told
    assert told["difference"] < SAME, told


def assert_traced(told: dict[str, Any], difference: float = SAME) -> None:
    """Assert that it was traced again, and is right."""
    assert told["traces"] >= 1, told
    assert told["difference"] < difference, told
    assert "bugs" not in told["stats"], told
