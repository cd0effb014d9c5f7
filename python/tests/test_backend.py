"""``torch.compile(backend="kiln")`` against real nodes."""

from __future__ import annotations

import ast
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from kiln_torch import report, standalone  # noqa: E402
from kiln_torch.asked import Asked  # noqa: E402
from kiln_torch.graph import Unkeyable  # noqa: E402
from kiln_torch.key import key_of  # noqa: E402
from programs import run, start  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster import Cluster

pytestmark = pytest.mark.torch

# The static graph of the first batch size, the dynamic one of the rest.
GRAPHS = 2


@pytest.mark.cluster
def test_a_process_elsewhere_loads_what_was_compiled(cluster: Cluster, tmp_path: Path) -> None:
    first = run(tmp_path / "a", cluster.nodes[0].endpoint)
    assert first["stats"]["backend.compiled"] == GRAPHS, first
    assert first["stats"]["published"] == GRAPHS, first
    second = run(tmp_path / "b", cluster.nodes[2].endpoint)
    assert second["stats"].get("backend.loaded") == GRAPHS, second
    assert "fxgraph_cache_miss" not in second["inductor"], second
    assert "autograd_cache_miss" not in second["autograd"], second
    assert second["sums"] == first["sums"]
    print(f"compiled in {first['seconds']} s, loaded in {second['seconds']} s")


@pytest.mark.cluster
def test_two_at_once_compile_once(own_cluster: Cluster, tmp_path: Path) -> None:
    both = [
        start(tmp_path / str(n), own_cluster.nodes[n].endpoint, KILN_WAIT="600") for n in range(2)
    ]
    told = [each.told() for each in both]
    compiled = [each["stats"].get("backend.compiled", 0) for each in told]
    loaded = [each["stats"].get("backend.loaded", 0) for each in told]
    assert (sum(compiled), sum(loaded)) == (GRAPHS, GRAPHS), told
    assert told[0]["sums"] == told[1]["sums"]


@pytest.mark.cluster
def test_a_training_step_is_shared_through_inductors_caches(
    cluster: Cluster, tmp_path: Path
) -> None:
    """It has no key of its own: forward and backward are torch's entries, and counted."""
    first = run(tmp_path / "a", cluster.nodes[1].endpoint, "train")
    assert first["stats"]["backend.bypassed"] == 1, first
    assert first["stats"]["backend.bypassed.gradients"] == 1, first
    assert "backend.failed" not in first["stats"], first
    second = run(tmp_path / "b", cluster.nodes[2].endpoint, "train")
    assert second["inductor"]["fxgraph_cache_hit"] == 2, second
    assert "fxgraph_cache_miss" not in second["inductor"], second
    assert second["autograd"]["autograd_cache_hit"] == 1, second
    assert second["sums"] == first["sums"]


@pytest.mark.cluster
@pytest.mark.parametrize(("how", "reason"), [("overhead", "cuda_graphs"), ("freezing", "freezing")])
def test_what_has_no_key_is_counted_by_reason(
    cluster: Cluster, tmp_path: Path, how: str, reason: str
) -> None:
    """And shared through torch's caches, or counted as what these do not take either."""
    first = run(tmp_path / "a", cluster.nodes[1].endpoint, how)
    assert first["stats"]["backend.bypassed"] == 1, first
    assert first["stats"][f"backend.bypassed.{reason}"] == 1, first
    second = run(tmp_path / "b", cluster.nodes[2].endpoint, how)
    assert second["sums"] == first["sums"]
    hit = second["inductor"].get("fxgraph_cache_hit", 0)
    not_taken = second["stats"].get("torch.fxgraph_cache_bypass", 0)
    assert hit + not_taken == 1, second
    assert hit or how == "freezing", second


def test_what_torch_bypasses_is_counted_once() -> None:
    """As it rises, and when somebody has cleared torch's counters."""
    from kiln_torch.bypassed import TorchBypasses
    from torch._dynamo.utils import counters

    counters["inductor"]["fxgraph_cache_bypass"] = 5
    bypasses = TorchBypasses()
    bypasses.count()
    assert report.stats() == {}
    for value in (7, 7, 1):
        counters["inductor"]["fxgraph_cache_bypass"] = value
        bypasses.count()
    counters.clear()
    assert report.stats() == {"torch.fxgraph_cache_bypass": 3}


def test_each_refusal_has_a_reason() -> None:
    """What the code refuses, word for word; a new one has none until it is in the table."""
    from kiln_torch import asked, bypassed, graph, options

    said = []
    for module in (asked, graph, options, standalone):
        assert module.__file__ is not None
        nodes = ast.walk(ast.parse(Path(module.__file__).read_text()))
        calls = [node for node in nodes if isinstance(node, ast.Call)]
        said += [ast.unparse(c.args[0]) for c in calls if ast.unparse(c.func) == "Unkeyable"]
    assert len(said) > 15
    # Inductor's own words come through one of them.
    unknown = [each for each in said if bypassed.reason_of(each) == "other"]
    assert unknown == ["str(refused)"]
    assert bypassed.reason_of("graph with freezing on") == "freezing"
    bypassed.count("something new")
    assert report.stats() == {"backend.bypassed": 1, "backend.bypassed.other": 1}


def test_without_a_cluster_it_is_inductor(tmp_path: Path) -> None:
    with socket.socket() as taken:
        # Bound, but nobody listens.
        taken.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}"
        told = run(tmp_path / "a", dead, KILN_CONNECT_TIMEOUT="1")
    assert told["inductor"]["fxgraph_cache_miss"] == GRAPHS, told
    assert "backend.loaded" not in told["stats"], told
    without = run(tmp_path / "b", None)
    assert without["sums"] == told["sums"]
    print(f"dead endpoint {told['seconds']} s, none {without['seconds']} s")


def keys(
    function: Callable[..., Any], *arguments: Any, grad: bool = False, **config: Any
) -> list[str]:
    """Return the keys that are asked for when ``function`` is compiled."""
    found: list[str] = []

    def backend(gm: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        with torch._inductor.config.patch(config):
            asked = Asked.of_dynamo(gm, inputs, "default")
        found.extend(key_of(components).hex() for components in asked.candidates())
        return gm.forward

    torch._dynamo.reset()
    with torch.set_grad_enabled(grad):
        torch.compile(function, backend=backend)(*arguments)
    return found


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    hidden = torch.nn.functional.silu(x @ weight)
    return hidden * 2


def renamed(tokens: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    # Other names, another place, the same graph.
    everything = torch.nn.functional.silu(tokens @ parameters)
    return everything * 2


def other_constant(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    hidden = torch.nn.functional.silu(x @ weight)
    return hidden * 3


def test_the_key_is_the_graph_and_not_its_names() -> None:
    x, weight = torch.randn(4, 8), torch.randn(8, 8)
    (key,) = keys(linear, x, weight)
    assert keys(renamed, x, weight) == [key]
    # Values of inputs, parameters among them, are none of the compiler's business.
    assert keys(linear, x, torch.zeros(8, 8)) == [key]
    # Where a torch cache looks does not change what it would find.
    assert keys(linear, x, weight, bundled_autotune_remote_cache=True) == [key]


def test_all_that_decides_the_code_is_in_the_key() -> None:
    x, weight = torch.randn(4, 8), torch.randn(8, 8)
    (key,) = keys(linear, x, weight)
    seen = {
        "constant": keys(other_constant, x, weight),
        "shape": keys(linear, torch.randn(5, 8), weight),
        "stride": keys(linear, x, weight.t()),
        "dtype": keys(linear, x.double(), weight.double()),
        "option": keys(linear, x, weight, epilogue_fusion=False),
    }
    torch.use_deterministic_algorithms(True)
    try:
        seen["deterministic"] = keys(linear, x, weight)
    finally:
        torch.use_deterministic_algorithms(False)
    threads = torch.get_num_threads()
    with torch.autocast("cpu"):
        seen["autocast"] = keys(linear, x, weight)
    assert torch.get_num_threads() == threads
    everything = [key, *(found for each in seen.values() for found in each)]
    assert len(set(everything)) == len(everything), seen


def test_sizes_are_symbols_where_dynamo_says_so() -> None:
    weight = torch.randn(8, 8)

    def dynamic(batch: int) -> list[str]:
        x = torch.randn(batch, 8)
        torch._dynamo.mark_dynamic(x, 0)
        return keys(linear, x, weight)

    (any_size, for_16), (any_again, for_24) = dynamic(16), dynamic(24)
    assert any_size == any_again
    assert len({any_size, for_16, for_24}) == 3


def test_what_no_key_can_say_is_refused() -> None:
    base = torch.randn(8, 8)
    table = {}

    def lookup(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    with pytest.raises(Exception, match="share their memory"):
        keys(lambda x, y: x + y, base[:4], base[4:])
    with pytest.raises(Exception, match="gradients"):
        keys(lookup, torch.randn(3, requires_grad=True), grad=True)
    with pytest.raises(Exception, match="CUDA graphs"):
        keys(lookup, base, **{"triton.cudagraphs": True})
    with pytest.raises(Exception, match="freezing"):
        keys(lookup, base, freezing=True)
    assert not table
    assert issubclass(Unkeyable, Exception)


def test_guards_travel_with_the_artifact() -> None:
    """An artifact that is valid for some sizes is used for those alone."""
    weight = torch.randn(8, 8)
    loads: list[bool] = []

    def backend(gm: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        files = standalone.save(standalone.compile_graph(gm, inputs, {}), gm)
        # As if its code took the size for a multiple of 16.
        files[standalone.GUARDS] = b"L['t0'] % 16 == 0"
        loaded = standalone.load(files, gm)
        loads.append(loaded is not None)
        return loaded or gm.forward

    def call(batch: int) -> None:
        x = torch.randn(batch, 8)
        torch._dynamo.mark_dynamic(x, 0)
        torch.testing.assert_close(compiled(x, weight), linear(x, weight))

    torch._dynamo.reset()
    compiled = torch.compile(linear, backend=backend)
    with torch.no_grad():
        call(32)
        assert loads == [True]
        call(48)
        assert loads == [True], "48 is a multiple of 16: no other graph"
        call(40)
        assert loads == [True, False], "the guard is not Dynamo's"


def test_what_inductor_makes_up_does_not_become_dynamos_guard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch._dynamo.source import LocalSource
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

    environment = ShapeEnv()

    def size(name: str, hint: int) -> Any:
        made = environment.create_symbol(hint, LocalSource(name), DimDynamic.DYNAMIC)
        return environment.create_symintnode(made, hint=hint)

    theirs = size("batch", 5)

    def compile_(*_: Any, **__: Any) -> str:
        assert bool(theirs < 100)
        assert bool(size("own", 7) < 1000)
        return "compiled"

    monkeypatch.setattr(torch._inductor, "standalone_compile", compile_)
    with tracing(TracingContext(FakeTensorMode(shape_env=environment))):
        graph = torch.fx.symbolic_trace(torch.nn.Identity())
        assert standalone.compile_graph(graph, [], {}) == "compiled"
    assert [guard.expr.free_symbols for guard in environment.guards] == [{theirs.node.expr}]


def test_sizes_that_dynamo_knows_to_be_fixed_are_no_symbols() -> None:
    """They cost a tenth of a compile, and guards that nobody asked for."""
    from torch._guards import TracingContext

    made: list[set[Any]] = []

    def backend(gm: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        environment = TracingContext.get().fake_mode.shape_env
        before = set(environment.backed_var_to_val)
        compiled = standalone.compile_graph(gm, inputs, {})
        made.append(set(environment.backed_var_to_val) - before)
        return compiled

    layer, given = torch.nn.Linear(8, 4), torch.randn(3, 8)
    compiled = torch.compile(layer, backend=backend)
    with torch.no_grad():
        assert torch.allclose(compiled(given), layer(given), atol=1e-5)
        # Dynamo makes a symbol of the size that changed, and the compile none.
        changed = torch.randn(5, 8)
        assert torch.allclose(compiled(changed), layer(changed), atol=1e-5)
    assert made == [set(), set()]


@pytest.mark.parametrize(
    ("patches", "tunes"),
    [({}, False), ({"max_autotune": True}, True), ({"max_autotune": False}, False)],
)
def test_kernels_are_tried_out_where_there_is_a_choice(
    monkeypatch: pytest.MonkeyPatch, patches: dict[str, Any], tunes: bool
) -> None:
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    told: dict[str, Any] = {}
    monkeypatch.setattr(
        torch._inductor, "standalone_compile", lambda *_, options, **__: told.update(options)
    )
    graph = torch.fx.symbolic_trace(torch.nn.Identity())
    with tracing(TracingContext(FakeTensorMode(shape_env=ShapeEnv()))):
        standalone.compile_graph(graph, [], patches)
        assert told["config_patches"]["triton.autotune_at_compile_time"] is tunes
        said = {**patches, "triton.autotune_at_compile_time": not tunes}
        standalone.compile_graph(graph, [], said)
        assert told["config_patches"] == said


def test_an_empty_or_broken_artifact_is_none() -> None:
    with pytest.raises(ValueError, match="empty"):
        standalone.load({standalone.BINARY: b""}, torch.fx.symbolic_trace(torch.nn.Identity()))
    with pytest.raises(Exception, match=r".*"):
        standalone.load_binary(b"no artifact")
    assert report.stats() == {}
