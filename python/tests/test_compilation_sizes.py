"""Static sizes beside the dynamic one: which code runs is decided by the inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from compilation_graphs import close  # noqa: E402
from kiln_torch import report  # noqa: E402
from kiln_torch.compilation import (  # noqa: E402
    CompilationConfig,
    IncompatibleConfigError,
    KilnBackend,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    torch._dynamo.reset()
    with torch.no_grad():
        yield


def backend(tmp_path: Path, *sizes: int, **settings: Any) -> KilnBackend:
    chosen: dict[str, Any] = {"compile_timeout": None, "fallback": False, **settings}
    config = CompilationConfig(compile_sizes=sizes, **chosen)
    return KilnBackend(config, str(tmp_path / "cache"))


def model(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    half = x.shape[0] // 2
    return torch.tanh(x @ w) + x[half : half + 1]


def rows(count: int) -> torch.Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(count))


def spied(own: KilnBackend) -> list[int]:
    """Have what was compiled for a size say that it ran: 0 for the code for all sizes."""
    ran: list[int] = []
    by_size = own.last_by_size
    assert by_size is not None

    def spy(size: int, run: Any) -> Any:
        return lambda *args: ran.append(size) or run(*args)

    by_size.static = {size: spy(size, run) for size, run in by_size.static.items()}
    by_size.dynamic = spy(0, by_size.dynamic)
    return ran


@pytest.mark.parametrize("level", ["full", "piecewise"])
def test_the_inputs_choose(tmp_path: Path, level: str) -> None:
    settings = {"compilation_level": level, "splitting_ops": ("aten.tanh",)}
    own = backend(tmp_path, 6, 4, 4, **settings)
    x, w = rows(5), torch.randn(8, 8)
    torch._dynamo.mark_dynamic(x, 0)
    compiled = torch.compile(model, backend=own)
    close(compiled(x, w), model(x, w))
    ran = spied(own)
    for count, size in ((4, 4), (5, 0), (6, 6), (7, 0), (4, 4)):
        ran.clear()
        close(compiled(rows(count), w), model(rows(count), w))
        assert ran == [size]
    assert own.last_strategy is not None
    assert own.last_strategy.name == level
    told = own.compiler_manager.compilation_counter
    pieces = 3 if level == "piecewise" else 1
    assert told.num_backend_compilations == 3 * pieces
    # Another process begins like this, and finds all of them.
    torch._dynamo.reset()
    again = backend(tmp_path, 4, 6, **settings)
    x = rows(5)
    torch._dynamo.mark_dynamic(x, 0)
    close(torch.compile(model, backend=again)(x, w), model(x, w))
    assert again.compiler_manager.compilation_counter.num_inductor_compiles == 0
    assert again.last_by_size is not None
    assert sorted(again.last_by_size.static) == [4, 6]


def test_a_graph_from_elsewhere_has_sizes_as_well(tmp_path: Path) -> None:
    graph = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU()))
    own = backend(tmp_path, 4)
    run = own(graph, [rows(5)])
    ran = spied(own)
    for count, size in ((4, 4), (5, 0), (9, 0)):
        ran.clear()
        close(run(rows(count)), graph(rows(count)))
        assert ran == [size]
    assert "compilation.other_inputs" not in report.stats()


def test_where_no_size_is_a_symbol_or_a_size_is_never_called(tmp_path: Path) -> None:
    own = backend(tmp_path, 1, 4)
    x, w = rows(5), torch.randn(8, 8)
    close(torch.compile(model, backend=own, dynamic=False)(x, w), model(x, w))
    assert own.last_by_size is None
    torch._dynamo.reset()
    x = rows(5)
    torch._dynamo.mark_dynamic(x, 0)
    close(torch.compile(model, backend=own)(x, w), model(x, w))
    # Size 1 is another graph of Dynamo's: this one never meets it.
    assert own.last_by_size is not None
    assert sorted(own.last_by_size.static) == [4]
    assert report.stats()["compilation.size_failed"] == 1


def test_a_size_that_fails_costs_its_speed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kiln_torch import standalone

    original = standalone.compile_graph

    def fail_for_four(gm: Any, inputs: Any, patches: Any) -> Any:
        if any(isinstance(each, torch.Tensor) and each.shape[0] == 4 for each in inputs):
            raise ValueError("not four")
        return original(gm, inputs, patches)

    monkeypatch.setattr(standalone, "compile_graph", fail_for_four)
    own = backend(tmp_path, 4, compilation_level="full", fallback=True)
    x, w = rows(5), torch.randn(8, 8)
    torch._dynamo.mark_dynamic(x, 0)
    compiled = torch.compile(model, backend=own)
    for count in (5, 4):
        close(compiled(rows(count) if count != 5 else x, w), model(rows(count), w))
    torch._dynamo.reset()
    strict = backend(tmp_path, 4, compilation_level="full")
    x = rows(5)
    torch._dynamo.mark_dynamic(x, 0)
    with pytest.raises(Exception, match="not four"):
        torch.compile(model, backend=strict)(x, w)


@pytest.mark.parametrize("sizes", [(0,), (-1,), (1.5,), (True,), ("4",), 4])
def test_sizes_that_mean_nothing_are_refused(sizes: Any) -> None:
    with pytest.raises(IncompatibleConfigError, match="compile_sizes"):
        CompilationConfig(compile_sizes=sizes)
