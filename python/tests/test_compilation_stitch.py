"""The stitched function: what it calls and lets go of, and which of torch's layers it omits."""

from __future__ import annotations

import operator
import weakref
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from compilation_graphs import WIDTH, close, layers  # noqa: E402
from kiln_torch import report  # noqa: E402
from kiln_torch.compilation import CompilationConfig, CompilationError, KilnBackend  # noqa: E402
from kiln_torch.compilation.direct import Runnable  # noqa: E402
from kiln_torch.compilation.stitching import create_piecewise_callable  # noqa: E402
from torch import fx, nn  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    torch._dynamo.reset()
    with torch.no_grad():
        yield


def stitched(build: Callable[[fx.Graph, list[fx.Node]], Any], inputs: int, *names: str) -> Any:
    """Make a stitching graph of calls of ``names``."""
    graph = fx.Graph()
    nodes = [graph.placeholder(f"x{at}") for at in range(inputs)]
    graph.output(build(graph, nodes))
    return fx.GraphModule(nn.ModuleDict({name: nn.Identity() for name in names}), graph)


def item(graph: fx.Graph, call: fx.Node, at: int) -> fx.Node:
    return graph.call_function(operator.getitem, (call, at))


def test_values_go_from_piece_to_piece_and_are_let_go_of() -> None:
    def build(graph: fx.Graph, nodes: list[fx.Node]) -> Any:
        (x,) = nodes
        first = graph.call_module("first", (x,))
        a, b = item(graph, first, 0), item(graph, first, 2)
        second = item(graph, graph.call_module("second", (b, a, b)), 0)
        third = item(graph, graph.call_module("third", (second, a)), 0)
        return (third, None, [second, 7], {"same": a})

    held: list[weakref.ref[Any]] = []

    def first(x: Any) -> Any:
        made = (x + 1, x + 2, x + 3)
        held.extend(map(weakref.ref, made))
        return made

    def second(b: Any, a: Any, again: Any) -> Any:
        # Nobody asked for the middle one.
        assert held[1]() is None
        assert b is again
        return (a * b,)

    def third(c: Any, a: Any) -> Any:
        # What its last user had is gone.
        assert held[2]() is None
        return (c - a,)

    def boxed(given: list[Any]) -> Any:
        args = tuple(given)
        given.clear()
        return second(*args)

    gm = stitched(build, 1, "first", "second", "third")
    run = create_piecewise_callable(
        gm, {"first": first, "second": Runnable(second, boxed), "third": third}
    )
    for _ in range(3):
        held.clear()
        x = torch.ones(2)
        out, nothing, (c, number), named = run(x)
        assert (nothing, number) == (None, 7)
        assert torch.equal(c, (x + 1) * (x + 3))
        assert torch.equal(out, c - (x + 1))
        assert torch.equal(named["same"], x + 1)


def test_layers_are_left_out_after_the_first_call_and_without_gradients() -> None:
    called: list[str] = []

    def run(x: Any) -> Any:
        called.append("layers")
        return (x,)

    def boxed(given: list[Any]) -> Any:
        called.append("boxed")
        return (given[0],)

    def build(graph: fx.Graph, nodes: list[fx.Node]) -> Any:
        return (item(graph, graph.call_module("piece", (nodes[0],)), 0),)

    whole = create_piecewise_callable(stitched(build, 1, "piece"), {"piece": Runnable(run, boxed)})
    x = torch.ones(1)
    whole(x)
    whole(x)
    with torch.enable_grad():
        whole(x)
    whole(x)
    assert called == ["layers", "boxed", "layers", "boxed"]


def test_what_computes_is_no_stitching() -> None:
    def build(graph: fx.Graph, nodes: list[fx.Node]) -> Any:
        return (graph.call_function(torch.sin, (nodes[0],)),)

    with pytest.raises(CompilationError, match="no part of a stitching graph"):
        create_piecewise_callable(stitched(build, 1), {})


def backend(tmp_path: Path, *splitting: str) -> KilnBackend:
    config = CompilationConfig(
        compile_timeout=None,
        compilation_level="piecewise",
        fallback=False,
        splitting_ops=splitting or ("aten.scaled_dot_product_attention",),
    )
    return KilnBackend(config, str(tmp_path / "cache"))


def test_pieces_of_a_model_need_none_of_torchs_layers(tmp_path: Path) -> None:
    """Compiled here, then loaded: both ways the generated functions are called."""
    model = layers(2)
    for _ in range(2):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend=backend(tmp_path))
        for batch in range(3):
            x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(batch))
            close(compiled(x), model(x))
    assert "compilation.layered" not in report.stats()


def test_what_is_written_and_given_back_is_as_the_graph_has_it(tmp_path: Path) -> None:
    def updates(x: torch.Tensor, seen: torch.Tensor) -> Any:
        seen.add_(x.sum())
        return torch.tanh(x * 2) * seen, x.view(4, 2)

    seen, expected = torch.zeros(1), torch.zeros(1)
    compiled = torch.compile(updates, backend=backend(tmp_path, "aten.tanh"))
    for at in range(4):
        x = torch.full((2, 4), float(at))
        got, view = compiled(x, seen)
        want, _ = updates(x, expected)
        close(got, want)
        close(seen, expected)
        # An alias, as the graph has it: what is written to one is seen in the other.
        view.add_(5)
        close(x, torch.full((2, 4), at + 5.0))
    assert report.stats()["compilation.layered"] > 0


def writes(x: torch.Tensor) -> Any:
    return x.add_(1) * 2


def aliases(x: torch.Tensor) -> Any:
    return x * 2, x.view(-1)


def mixes(x: torch.Tensor) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return x @ x


@pytest.mark.parametrize(
    ("function", "bare"),
    [(torch.tanh, True), (torch.mm, True), (writes, False), (aliases, False), (mixes, False)],
)
def test_only_where_layers_do_nothing_are_they_left_out(
    tmp_path: Path, function: Any, bare: bool
) -> None:
    """Each of them does something that Inductor's code alone does not."""
    config = CompilationConfig(compile_timeout=None, compilation_level="full", fallback=False)
    own = KilnBackend(config, str(tmp_path / "cache"))
    found: list[Any] = []

    def backend(gm: Any, inputs: Any) -> Any:
        found.append(own(gm, inputs))
        return found[-1]

    def whole(x: torch.Tensor) -> Any:
        return function(x, x) if function is torch.mm else function(x)

    # Autocast is on around the call, as it is around a model's.
    amp = torch.autocast("cpu", dtype=torch.bfloat16, enabled=function is mixes)
    with amp:
        got = torch.compile(whole, backend=backend)(torch.ones(4, 4))
        expected = whole(torch.ones(4, 4))
    torch.testing.assert_close(got, expected)
    (run,) = found
    assert (run.boxed is not None) == bare
    assert report.stats().get("compilation.layered", 0) == (0 if bare else 1)
