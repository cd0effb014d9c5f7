"""Without Dynamo: a second process traces nothing, and one where something moved does."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import precompile_sources
from cluster import Cluster
from programs import run

pytestmark = [pytest.mark.torch, pytest.mark.cluster]

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
    """Runs the program, and keeps what g++ made: entries of torch's caches it does not."""

    cluster: Cluster
    folder: Path
    made: int = 0
    binaries: Path | None = None

    def run(
        self, setup: str = NO_GRAD, before_call: str = "", *, node: int = 1, **more: Any
    ) -> dict[str, Any]:
        """Run one process with a folder of its own."""
        self.made += 1
        folder = self.folder / f"process-{self.made}"
        if self.binaries is not None:
            ignored = shutil.ignore_patterns("fxgraph", "aotautograd", "dynamo")
            shutil.copytree(self.binaries, folder / "inductor", ignore=ignored)
        sources = more.pop("sources", None) or self.folder / "sources"
        endpoint = more.pop("endpoint", None) or self.cluster.nodes[node].endpoint
        more = {"KILN_PRECOMPILE": "1", "KILN_NAMESPACE": "precompile", **more}
        told = run(
            folder,
            endpoint,
            setup,
            before_call,
            program="precompile_program.py",
            PROGRAM_DIR=str(sources),
            **more,
        )
        if self.binaries is None:
            self.binaries = folder / "inductor"
        return told

    def edited(self, **texts: str) -> Path:
        """Write the program with other sources."""
        self.made += 1
        return precompile_sources.write(self.folder / f"edited-{self.made}", **texts)


@pytest.fixture(scope="module")
def programs(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """A program of which the first process has run, and a function of which it has."""
    folder = tmp_path_factory.mktemp("precompile")
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


def test_a_second_process_traces_nothing(programs: Programs) -> None:
    """On another node, with an empty folder; its results are those of the first, to the bit."""
    first = programs.run(node=0)
    second = programs.run(node=2)
    assert_loaded(second)
    assert second["out"] == first["out"]
    assert "precompile.published" not in second["stats"], second
    assert_loaded(programs.run(CLOSED))
