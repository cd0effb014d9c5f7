"""Mega-caches through real nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("torch")

from programs import run

if TYPE_CHECKING:
    from pathlib import Path

    from cluster import Cluster


@pytest.mark.torch
@pytest.mark.cluster
def test_a_mega_cache_fills_the_caches_of_another_process(cluster: Cluster, tmp_path: Path) -> None:
    first = run(tmp_path / "a", cluster.nodes[0].endpoint, "mega", "toy")
    assert first["mega"] == [False, True], first
    assert first["inductor"]["fxgraph_cache_miss"] == 1, first
    second = run(tmp_path / "b", cluster.nodes[2].endpoint, "mega", "toy")
    assert second["mega"] == [True, False], second
    assert second["autograd"]["autograd_cache_hit"] == 1, second
    assert "fxgraph_cache_miss" not in second["inductor"], second
    assert second["sums"] == first["sums"]
    other = run(tmp_path / "c", cluster.nodes[1].endpoint, "mega", "another tag")
    assert other["mega"][0] is False, other


@pytest.mark.torch
def test_without_a_cluster_there_is_none(tmp_path: Path) -> None:
    assert run(tmp_path, None, "mega", "toy")["mega"] == [False, False]
