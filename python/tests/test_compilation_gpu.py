"""The compilation module on a GPU: pieces in processes, and Kiln's own compiler.

Here and in ``make check`` there is none: a machine with one runs them by
``pytest tests/test_compilation_gpu.py``.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

import compilation_graphs  # noqa: E402
from cluster import Cluster, binary  # noqa: E402
from compilation_graphs import layers  # noqa: E402
from kiln_torch import report  # noqa: E402
from kiln_torch.compilation import (  # noqa: E402
    CompilationConfig,
    CompilerManager,
    KilnBackend,
    NativeAdaptor,
    make_compiler,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("KILN_CONNECT_TIMEOUT", "10")
    torch._dynamo.reset()
    with torch.no_grad():
        yield


def near(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=2e-3, rtol=2e-3)


def test_pieces_are_compiled_in_processes_that_use_the_gpu(tmp_path: Path) -> None:
    model = layers(3).cuda()
    x = torch.randn(2, 5, compilation_graphs.WIDTH, device="cuda")
    config = CompilationConfig(
        compilation_level="piecewise", fallback=False, parallel_compiles=4, compile_timeout=300.0
    )
    own = KilnBackend(config, str(tmp_path / "cache"))
    compiled = torch.compile(model, backend=own)
    # The first call goes through torch's layers, the later ones do not.
    for _ in range(3):
        near(compiled(x), model(x))
    assert own.last_result is not None
    made = [each for each in own.last_result.pieces if each.outcome == "compiled"]
    assert len(made) == 4
    assert all(each.elsewhere for each in made), report.stats()
    assert "compilation.here" not in report.stats()
    assert "compilation.layered" not in report.stats()
    torch._dynamo.reset()
    again = KilnBackend(config, str(tmp_path / "cache"))
    near(torch.compile(model, backend=again)(x), model(x))
    assert again.compiler_manager.compilation_counter.num_inductor_compiles == 0


def test_sizes_beside_the_dynamic_one(tmp_path: Path) -> None:
    model = layers(2).cuda()
    config = CompilationConfig(compile_timeout=None, compile_sizes=(4,), fallback=False)
    own = KilnBackend(config, str(tmp_path / "cache"))

    def tokens(batch: int) -> torch.Tensor:
        return torch.randn(batch, 5, compilation_graphs.WIDTH, device="cuda")

    x = tokens(3)
    torch._dynamo.mark_dynamic(x, 0)
    compiled = torch.compile(model, backend=own)
    near(compiled(x), model(x))
    assert own.last_by_size is not None, report.stats()
    assert list(own.last_by_size.static) == [4], report.stats()
    for batch in (4, 6):
        y = tokens(batch)
        near(compiled(y), model(y))


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A node that finds NVRTC: beside torch, or in CUDA's own folder."""
    kiln = binary()
    if kiln is None:
        pytest.skip("no kiln binary: set KILN_BINARY")
    folder = nvrtc()
    if folder is None:
        pytest.skip("no NVRTC beside torch, nor in /usr/local/cuda")
    before = os.environ.get("LD_LIBRARY_PATH", "")
    monkeypatch.setenv("LD_LIBRARY_PATH", os.pathsep.join(filter(None, (str(folder), before))))
    with Cluster(kiln, tmp_path, nodes=1) as running:
        monkeypatch.setenv("KILN_ENDPOINT", running.nodes[0].endpoint)
        yield running.nodes[0].endpoint


def nvrtc() -> Path | None:
    spec = importlib.util.find_spec("nvidia")
    places = [Path(each) for each in (spec.submodule_search_locations or [])] if spec else []
    found = [lib.parent for each in places for lib in each.glob("*/lib/libnvrtc.so.1[23]")]
    found += [lib.parent for lib in Path("/usr/local/cuda/lib64").glob("libnvrtc.so.1[23]")]
    return found[0] if found else None


def feed_forward() -> torch.fx.GraphModule:
    torch.manual_seed(0)
    parts = [torch.nn.LayerNorm(64), torch.nn.Linear(64, 256), torch.nn.GELU()]
    return torch.fx.symbolic_trace(torch.nn.Sequential(*parts, torch.nn.Linear(256, 64)).eval())


@pytest.mark.cluster
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_native_compiler_computes_what_the_graph_does(node: str, dtype: str) -> None:
    del node
    kind = getattr(torch, dtype)
    graph = feed_forward().cuda().to(kind)
    x = torch.randn(16, 64, device="cuda", dtype=kind)
    adaptor = make_compiler(CompilationConfig(backend="native"))
    assert isinstance(adaptor, NativeAdaptor)
    # For which GPU is read from this one.
    compiled, files = adaptor.compile(graph, [x], {})
    assert files is not None, report.stats()
    assert compiled is not None
    loaded = adaptor.load(files, graph, [x], 0)
    assert loaded is not None
    tolerance = 2e-3 if dtype == "float32" else 5e-2
    for run in (compiled, loaded, compiled):
        torch.testing.assert_close(run(x), graph(x), atol=tolerance, rtol=tolerance)
    # Other sizes: the graph itself, and it is counted.
    y = torch.randn(7, 64, device="cuda", dtype=kind)
    torch.testing.assert_close(compiled(y), graph(y))
    assert report.stats()["compilation.other_inputs"] == 1


@pytest.mark.cluster
def test_a_manager_compiles_natively_and_remembers(node: str, tmp_path: Path) -> None:
    del node
    graph, x = feed_forward().cuda(), torch.randn(16, 64, device="cuda")
    config: dict[str, Any] = {"backend": "native", "compile_timeout": None}
    manager = CompilerManager(CompilationConfig(**config), str(tmp_path / "cache"))
    for _ in range(2):
        near(manager.compile(graph, [x])(x), graph(x))
    told = manager.compilation_counter
    assert (told.num_cache_misses, told.num_cache_hits) == (1, 1)


@pytest.mark.cluster
def test_a_backend_compiles_natively(node: str, tmp_path: Path) -> None:
    del node
    model = feed_forward().cuda()
    x = torch.randn(16, 64, device="cuda")
    config = CompilationConfig(
        backend="native", compile_timeout=None, compilation_level="full", fallback=False
    )
    compiled = torch.compile(model, backend=KilnBackend(config, str(tmp_path / "cache")))
    for _ in range(2):
        near(compiled(x), model(x))
