"""The compilation module with KILN_ENDPOINT set: the cluster is its second tier."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from cluster import Cluster  # noqa: E402
from compilation_graphs import WIDTH, block, close, layers, rows  # noqa: E402
from kiln_torch import report  # noqa: E402
from kiln_torch.compilation import (  # noqa: E402
    CompilationConfig,
    CompilationError,
    CompilerManager,
    IncompatibleConfigError,
    KilnBackend,
    NativeAdaptor,
    make_compiler,
)
from programs import start  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.torch, pytest.mark.cluster]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("KILN_CONNECT_TIMEOUT", "10")
    torch._dynamo.reset()
    with torch.no_grad():
        yield


def config(**settings: Any) -> CompilationConfig:
    chosen: dict[str, Any] = {"compile_timeout": None, **settings}
    return CompilationConfig(**chosen)


def counted(of: CompilerManager) -> dict[str, int]:
    return {name: n for name, n in of.compilation_counter.snapshot().items() if n}


def test_what_one_node_has_another_gives(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, x = block(), rows(4)
    monkeypatch.setenv("KILN_ENDPOINT", cluster.nodes[0].endpoint)
    first = CompilerManager(config(), str(tmp_path / "a"))
    close(first.compile(graph, [x])(x), graph(x))
    assert counted(first) == {
        "num_backend_compilations": 1,
        "num_inductor_compiles": 1,
        "num_cache_misses": 1,
        "num_compiled_artifacts_saved": 1,
    }, report.stats()
    monkeypatch.setenv("KILN_ENDPOINT", cluster.nodes[2].endpoint)
    second = CompilerManager(config(), str(tmp_path / "b"))
    close(second.compile(graph, [x])(x), graph(x))
    assert counted(second) == {
        "num_backend_compilations": 1,
        "num_cache_hits": 1,
        "num_compiled_artifacts_loaded": 1,
    }, report.stats()
    # The cluster is the tier: nothing lies in the folders.
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


def test_pieces_are_shared_one_by_one(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(compilation_level="piecewise", fallback=False)
    x = torch.randn(2, 5, WIDTH)
    for node, count, compiled in ((0, 3, 4), (1, 4, 0)):
        monkeypatch.setenv("KILN_ENDPOINT", cluster.nodes[node].endpoint)
        torch._dynamo.reset()
        model, backend = layers(count), KilnBackend(settings, str(tmp_path / str(node)))
        close(torch.compile(model, backend=backend)(x), model(x))
        told = counted(backend.compiler_manager)
        assert told.get("num_inductor_compiles", 0) == compiled, (told, report.stats())
        assert told.get("num_compiled_artifacts_saved", 0) == compiled, told


@pytest.mark.parametrize("processes", [0, 2], ids=["here", "in processes"])
def test_two_that_start_together_share_the_work(
    cluster: Cluster, tmp_path: Path, processes: int
) -> None:
    """Neither waits for the other with something that the other waits for."""
    width = str(16 + 8 * processes)
    started = [
        start(
            tmp_path / str(at),
            cluster.nodes[at].endpoint,
            str(processes),
            width,
            program="compilation_model.py",
            KILN_WAIT="600",
            XDG_STATE_HOME=str(tmp_path / str(at)),
        )
        for at in range(2)
    ]
    told = [each.told() for each in started]
    for name in ("num_inductor_compiles", "num_compiled_artifacts_saved"):
        assert sum(each["counters"][name] for each in told) == told[0]["distinct"], told
    assert all(each["distinct"] == told[0]["distinct"] for each in told)


def test_a_dead_cluster_costs_a_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KILN_ENDPOINT", "http://127.0.0.1:1")
    graph, x = block(), rows(4)
    alone = CompilerManager(config(), str(tmp_path / "cache"))
    close(alone.compile(graph, [x])(x), graph(x))
    assert counted(alone) == {
        "num_backend_compilations": 1,
        "num_inductor_compiles": 1,
        "num_cache_misses": 1,
    }


def nvrtc() -> Path | None:
    """The folder of the NVRTC that torch's own wheels bring."""
    spec = importlib.util.find_spec("nvidia")
    places = [] if spec is None else spec.submodule_search_locations or []
    found = [lib.parent for each in places for lib in Path(each).glob("*/lib/libnvrtc.so.1[23]")]
    return found[0] if found else None


def test_the_native_compiler_is_a_nodes(
    kiln: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled for a GPU without one: machine code and a launch plan come back."""
    folder = nvrtc()
    if folder is None:
        pytest.skip("no NVRTC beside torch")
    monkeypatch.setenv("LD_LIBRARY_PATH", os.pathsep.join([str(folder)]))
    graph, x = block(), rows(4)
    adaptor = make_compiler(CompilationConfig(backend="native"))
    assert isinstance(adaptor, NativeAdaptor)
    with pytest.raises(IncompatibleConfigError, match="KILN_ENDPOINT"):
        adaptor.compile(graph, [x], {"target": "sm_90"})
    with Cluster(kiln, tmp_path, nodes=1) as running:
        monkeypatch.setenv("KILN_ENDPOINT", running.nodes[0].endpoint)
        compiled, files = adaptor.compile(graph, [x], {"target": "sm_90"})
        assert files is not None, report.stats()
        assert {"module.cubin", "plan.json"} <= files.keys()
        assert files["module.cubin"].startswith(b"\x7fELF")
        # Here is no GPU: it says so, and computes nothing.
        for run in (compiled, adaptor.load(files, graph, [x], 0)):
            assert run is not None
            with pytest.raises(ValueError, match="not on a GPU"):
                run(x)
        # As a backend of torch.compile, while Dynamo traces: compiled, and the same answer.
        native = config(backend="native", fallback=False, inductor_config={"target": "sm_90"})
        own = KilnBackend(native, str(tmp_path / "cache"))
        with pytest.raises(ValueError, match="not on a GPU"):
            torch.compile(graph, backend=own)(x)
        assert own.compiler_manager.compilation_counter.num_cache_misses == 1
        writes = torch.fx.symbolic_trace(lambda x: x.add_(1))
        with pytest.raises(CompilationError, match="writes to its inputs"):
            adaptor.compile(writes, [x], {"target": "sm_90"})
        with pytest.raises(IncompatibleConfigError, match="no option"):
            adaptor.merged_config({"epilogue_fusion": True}, None)
