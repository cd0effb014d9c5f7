"""The documents' scenario 2 on real torch: pieces, stitched and checked; the backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from compilation_graphs import WIDTH, close, layers  # noqa: E402
from kiln_torch import report  # noqa: E402
from kiln_torch.compilation import (  # noqa: E402
    CompilationConfig,
    IncompatibleConfigError,
    KilnBackend,
    checking,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.torch

HERE: dict[str, Any] = {
    "compile_timeout": None,
    "compilation_level": "piecewise",
    "fallback": False,
}
# Before the first attention, attention, between two, after the last.
DISTINCT = 4


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    torch._dynamo.reset()
    with torch.no_grad():
        yield


def backend(tmp_path: Path, **settings: Any) -> KilnBackend:
    return KilnBackend(CompilationConfig(**{**HERE, **settings}), str(tmp_path / "cache"))


def tokens(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 5, WIDTH, generator=torch.Generator().manual_seed(batch))


def counted(of: KilnBackend) -> dict[str, int]:
    counter = of.compiler_manager.compilation_counter
    return {name: n for name, n in counter.snapshot().items() if n}


def test_scenario_2_pieces_in_processes_of_their_own(tmp_path: Path) -> None:
    """Equal layers are one entry; the result is the model's; a second run compiles nothing."""
    model, count = layers(4), 4
    first = backend(tmp_path, compile_timeout=600.0, parallel_compiles=2)
    compiled = torch.compile(model, backend=first)
    close(compiled(tokens()), model(tokens()))
    pieces = 2 * count + 1
    assert counted(first) == {
        "num_backend_compilations": pieces,
        "num_inductor_compiles": DISTINCT,
        "num_cache_misses": DISTINCT,
        "num_cache_hits": pieces - DISTINCT,
        "num_compiled_artifacts_saved": DISTINCT,
    }
    result = first.last_result
    assert result is not None
    assert [each.index for each in result.pieces] == list(range(pieces))
    assert len({each.key for each in result.pieces}) == DISTINCT
    outcomes = [each.outcome for each in result.pieces]
    assert (outcomes.count("compiled"), outcomes.count("shared")) == (DISTINCT, pieces - DISTINCT)
    assert 0 < result.parallel_efficiency <= 1
    monitor = first.compiler_manager.performance_monitor
    assert monitor.calculate_parallel_efficiency() == result.parallel_efficiency
    assert len(list((tmp_path / "cache").iterdir())) == DISTINCT
    # Another process would begin like this.
    torch._dynamo.reset()
    second = backend(tmp_path)
    close(torch.compile(model, backend=second)(tokens()), model(tokens()))
    assert counted(second) == {
        "num_backend_compilations": pieces,
        "num_cache_hits": pieces,
        "num_compiled_artifacts_loaded": DISTINCT,
    }
    # More layers of the same kind: nothing new.
    torch._dynamo.reset()
    longer, third = layers(6), backend(tmp_path)
    close(torch.compile(longer, backend=third)(tokens()), longer(tokens()))
    assert "num_inductor_compiles" not in counted(third)


def test_sizes_of_dynamos_graphs_may_be_symbols(tmp_path: Path) -> None:
    model = layers(2)
    first = backend(tmp_path)
    x = tokens(2)
    torch._dynamo.mark_dynamic(x, 0)
    compiled = torch.compile(model, backend=first)
    close(compiled(x), model(x))
    made = counted(first)["num_inductor_compiles"]
    close(compiled(tokens(3)), model(tokens(3)))
    # One graph for both sizes.
    assert counted(first)["num_inductor_compiles"] == made == DISTINCT


def test_a_graph_from_elsewhere_is_split_as_well(tmp_path: Path) -> None:
    model = layers(2)
    graph = torch._dynamo.export(model)(tokens()).graph_module
    own = backend(tmp_path)
    run = own(graph, [tokens()])
    close(run(tokens()), model(tokens()))
    close(run(tokens(3)), model(tokens(3)))
    assert "compilation.other_inputs" not in report.stats()
    assert counted(own)["num_inductor_compiles"] == DISTINCT


def test_a_failing_piece_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs uncompiled, and says why; what the others gave is kept."""
    from kiln_torch import standalone

    original = standalone.compile_graph

    def fail_for_attention(gm: Any, *given: Any) -> Any:
        if "scaled_dot_product_attention" in gm.code:
            raise ValueError("no attention today")
        return original(gm, *given)

    monkeypatch.setattr(standalone, "compile_graph", fail_for_attention)
    model = layers(2)
    first = backend(tmp_path, fallback=True)
    close(torch.compile(model, backend=first)(tokens()), model(tokens()))
    assert first.last_result is not None
    for each in first.last_result.pieces:
        assert (each.outcome == "eager") == (each.index % 2 == 1), each
        assert ("no attention today" in each.error) == (each.index % 2 == 1), each
    assert len(list((tmp_path / "cache").iterdir())) == DISTINCT - 1
    torch._dynamo.reset()
    strict = backend(tmp_path)
    with pytest.raises(Exception, match="no attention today"):
        torch.compile(model, backend=strict)(tokens())


def test_a_wrong_piece_is_found_named_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kiln_torch import standalone

    original = standalone.compile_graph

    class Wrong:
        def __init__(self, compiled: Any) -> None:
            self._compiled = compiled

        def __call__(self, *args: Any) -> Any:
            return [each * 1.01 for each in self._compiled(*args)]

        def __getattr__(self, name: str) -> Any:
            return getattr(self._compiled, name)

    def wrong_attention(gm: Any, *given: Any) -> Any:
        compiled = original(gm, *given)
        return Wrong(compiled) if "scaled_dot_product_attention" in gm.code else compiled

    monkeypatch.setattr(standalone, "compile_graph", wrong_attention)
    model = layers(2)
    first = backend(tmp_path)
    with pytest.raises(Exception, match="piece_1: value 0 differs"):
        torch.compile(model, backend=first)(tokens())
    assert len(list((tmp_path / "cache").iterdir())) == DISTINCT - 1
    assert report.stats()["compilation.mismatch"] == 1
    assert first.compiler_manager.cache is not None
    assert len(first.compiler_manager.cache) == DISTINCT - 1


def test_shapes_and_values_are_compared() -> None:
    x = torch.zeros(3)
    checking.verify_output_shapes((x,), (x,), "it")
    with pytest.raises(checking.Mismatch, match=r"output 0 is torch.float32 \[3\]"):
        checking.verify_output_shapes((x,), (torch.zeros(4),), "it")
    with pytest.raises(checking.Mismatch, match="1 outputs, not 2"):
        checking.verify_output_shapes((x,), (x, x), "it")
    graph = torch.fx.symbolic_trace(lambda x: x + 1)
    checking.verify_end_to_end_equivalence(lambda x: 1 + x, graph, [x])
    with pytest.raises(checking.Mismatch, match="the whole"):
        checking.verify_end_to_end_equivalence(lambda x: x + 1.01, graph, [x])
    # What is written to an input counts as well, and the caller's is left alone.
    writes = torch.fx.symbolic_trace(lambda x: x.add_(1))
    with pytest.raises(checking.Mismatch):
        checking.verify_end_to_end_equivalence(lambda x: x + 1, writes, [x])
    assert x.sum() == 0
    # Code relies on strides: what is made up has those of the graph, gaps and overlaps too.
    for like in (torch.empty(4, 6)[:, :3], torch.empty(3).expand(2, 3), torch.empty(2, 3).t()):
        (made,) = checking.test_inputs([like])
        assert (made.shape, made.stride()) == (like.shape, like.stride())
        seen: list[torch.Tensor] = []
        checking.test_piece_execution(
            lambda x, seen=seen: seen.append(x) or x + 1, graph, [made], "it"
        )
        assert seen[0].stride() == like.stride()
        assert seen[0].data_ptr() != made.data_ptr()


def test_the_strategy_follows_from_the_graph_and_says_why(tmp_path: Path) -> None:
    graph = torch._dynamo.export(layers(3))(tokens()).graph_module
    auto = backend(tmp_path, compilation_level="auto")
    complexity = auto.analyze_graph_complexity(graph)
    chosen = auto.select_compilation_strategy(complexity)
    assert (chosen.name, auto._should_use_piecewise_compilation(graph)) == ("full", False)
    assert "nodes are few" in chosen.reasons[0]
    small = backend(tmp_path, compilation_level="auto", max_nodes=10)
    chosen = small.select_compilation_strategy(complexity)
    assert (chosen.name, small._should_use_piecewise_compilation(graph)) == ("piecewise", True)
    assert "more than 10" in chosen.reasons[0]
    assert "3 named operations" in chosen.reasons[1]
    assert backend(tmp_path).select_compilation_strategy(complexity).name == "piecewise"
    full = backend(tmp_path, compilation_level="full", max_nodes=10)
    assert full.select_compilation_strategy(complexity).name == "full"


def subtract(graph: torch.fx.Graph) -> None:
    """A pass that a test can see: what is added is subtracted."""
    for node in graph.nodes:
        if node.target is torch.ops.aten.add.Tensor:
            node.target = torch.ops.aten.sub.Tensor


def test_passes_run_and_count_in_the_key(tmp_path: Path) -> None:
    def model(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) + y

    x, y = torch.full((4,), 0.5), torch.full((4,), 2.0)
    full = {"compilation_level": "full", "validate": False}
    plain = backend(tmp_path, **full)
    close(torch.compile(model, backend=plain)(x, y), model(x, y))
    torch._dynamo.reset()
    passing = backend(tmp_path, **full)
    passing.register_pass(subtract)
    close(torch.compile(model, backend=passing)(x, y), torch.tanh(x) - y)
    assert counted(passing)["num_inductor_compiles"] == 1
    # The same pass again: a hit; another id: another entry.
    for uuid, hits in ((None, 1), ("mine", 0)):
        torch._dynamo.reset()
        again = backend(tmp_path, **full)
        again.register_pass(subtract, uuid)
        close(torch.compile(model, backend=again)(x, y), torch.tanh(x) - y)
        assert counted(again).get("num_cache_hits", 0) == hits
    depends = 3
    with pytest.raises(IncompatibleConfigError, match="give a uuid"):
        passing.register_pass(lambda graph: graph.lint() or depends)


def test_training_goes_inductors_own_way(tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 1)
    training = backend(tmp_path, compilation_level="full")
    with torch.enable_grad():
        compiled = torch.compile(model, backend=training)
        x = torch.randn(3, 4)
        got = torch.autograd.grad(compiled(x).sum(), list(model.parameters()))
        expected = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    for ours, theirs in zip(got, expected):
        close(ours, theirs)
    assert "num_compiled_artifacts_saved" not in counted(training)
