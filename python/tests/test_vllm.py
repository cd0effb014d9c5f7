"""vLLM's real ``vllm.compilation`` package, on CPU, without an engine: ``make test-vllm``.

Needs a Python that has vLLM; the model and its splitting operation are
``vllm_model.py``'s. The second process has another cache root and another node.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
from programs import run, start

if TYPE_CHECKING:
    from pathlib import Path

    from cluster import Cluster, Node

PYTHON = os.environ.get("VLLM_PYTHON", sys.executable)
# Pieces of the toy's graph, and how many of them are different.
PIECES, DIFFERENT = 4, 3

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.cluster,
    pytest.mark.skipif(
        "VLLM_PYTHON" not in os.environ and importlib.util.find_spec("vllm") is None,
        reason="no vLLM: make test-vllm",
    ),
]

# As KilnAdaptor is asked for, without AOT files that would leave it nothing to do.
ADAPTOR = {"KILN_VLLM_COMPILER": "1", "KILN_VLLM_AOT": "0"}
NO_AOT = {"VLLM_USE_MEGA_AOT_ARTIFACT": "0", "VLLM_USE_AOT_COMPILE": "0"}


def toy(folder: Path, endpoint: str | None, **environment: str) -> dict[str, Any]:
    """Run the toy model to its end."""
    return run(folder, endpoint, program="vllm_model.py", python=PYTHON, **environment)


def test_the_aot_model_is_restored(cluster: Cluster, tmp_path: Path) -> None:
    first = toy(tmp_path / "a", cluster.nodes[0].endpoint)
    assert first["vllm"]["num_inductor_compiles"] == PIECES, first
    # Each piece is an entry of Inductor's too, for a model with another source.
    assert first["stats"]["published"] == 1 + PIECES, first
    second = toy(tmp_path / "b", cluster.nodes[2].endpoint)
    assert second["stats"].get("vllm.loaded") == 1, second
    assert second["vllm"]["num_aot_artifacts_loaded"] == 1, second
    assert second["vllm"]["num_aot_compiles"] == 0, second
    assert second["vllm"]["num_inductor_compiles"] == 0, second
    assert second["vllm"]["num_compiled_artifacts_loaded"] == PIECES, second
    assert second["sums"] == first["sums"]


@pytest.mark.parametrize("more", [{}, NO_AOT], ids=["aot", "plain"])
def test_kiln_is_the_compiler(own_cluster: Cluster, tmp_path: Path, more: dict[str, str]) -> None:
    first = toy(tmp_path / "a", own_cluster.nodes[0].endpoint, **ADAPTOR, **more)
    assert first["backend"].endswith("KilnAdaptor"), first
    assert first["vllm"]["num_inductor_compiles"] == DIFFERENT, first
    assert first["stats"]["published"] == DIFFERENT, first
    second = toy(tmp_path / "b", own_cluster.nodes[2].endpoint, **ADAPTOR, **more)
    assert second["vllm"]["num_inductor_compiles"] == 0, second
    assert second["vllm"]["num_compiled_artifacts_loaded"] == DIFFERENT, second
    assert second["stats"]["vllm.loaded"] == DIFFERENT, second
    assert "fxgraph_cache_miss" not in second["inductor"], second
    assert second["sums"] == first["sums"]


def resp(node: Node) -> dict[str, str]:
    """Return the environment of an unmodified vLLM: Inductor's own remote caches."""
    return {
        "KILN_DISABLE": "1",
        "TORCHINDUCTOR_FX_GRAPH_REMOTE_CACHE": "1",
        "TORCHINDUCTOR_AUTOGRAD_REMOTE_CACHE": "1",
        "TORCHINDUCTOR_REDIS_URL": f"redis://{node.resp}?socket_timeout=120",
    }


def test_by_the_environment_alone(own_cluster: Cluster, tmp_path: Path) -> None:
    first = toy(tmp_path / "a", None, **NO_AOT, **resp(own_cluster.nodes[0]))
    assert first["inductor"]["fxgraph_cache_miss"] == DIFFERENT, first
    second = toy(tmp_path / "b", None, **NO_AOT, **resp(own_cluster.nodes[2]))
    assert second["autograd"]["autograd_cache_hit"] == PIECES, second
    assert "autograd_cache_miss" not in second["autograd"], second
    assert "fxgraph_cache_miss" not in second["inductor"], second
    assert second["sums"] == first["sums"]


def test_two_at_once_compile_once(own_cluster: Cluster, tmp_path: Path) -> None:
    both = [
        start(
            tmp_path / str(n),
            own_cluster.nodes[n].endpoint,
            program="vllm_model.py",
            python=PYTHON,
            KILN_WAIT="600",
        )
        for n in range(2)
    ]
    told = [each.told() for each in both]
    assert sorted(each["vllm"]["num_aot_compiles"] for each in told) == [0, 1], told
    assert told[0]["sums"] == told[1]["sums"]


def test_another_source_replaces_the_model(own_cluster: Cluster, tmp_path: Path) -> None:
    """What vLLM finds to be of another source is compiled and published anew."""
    first = toy(tmp_path / "a", own_cluster.nodes[0].endpoint)
    assert first["stats"]["published"] == 1 + PIECES, first
    stale = toy(tmp_path / "b", own_cluster.nodes[1].endpoint, KILN_TEST_STALE="1")
    assert stale["stats"].get("vllm.stale") == 1, stale
    assert stale["vllm"]["num_aot_compiles"] == 1, stale
    assert stale["stats"].get("published") == 1, stale
    assert stale["sums"] == first["sums"]


def test_without_a_cluster_vllm_is_as_it_was(tmp_path: Path) -> None:
    told = toy(tmp_path, None, KILN_VLLM_COMPILER="1")
    assert told["backend"] == "inductor", told
    assert told["vllm"]["num_inductor_compiles"] == PIECES, told
    assert told["stats"] == {}, told
