"""The splitter: where graphs are cut, and that the pieces are the graph."""

from __future__ import annotations

import operator
import random
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from compilation_graphs import WIDTH, layers  # noqa: E402
from kiln_torch.compilation import CompilationConfig, CompilationError, SplitItem  # noqa: E402
from kiln_torch.compilation.complexity import (  # noqa: E402
    analyze_graph_complexity,
    calculate_complexity_scores,
    calls,
    estimate_memory_requirements,
    identify_split_points,
)
from kiln_torch.compilation.splitting import (  # noqa: E402
    analyze_graph_for_splitting,
    split_graph_into_pieces,
    validate_split_consistency,
)
from kiln_torch.compilation.stitching import create_split_graph_module  # noqa: E402
from kiln_torch.compilation.tracing import trace  # noqa: E402
from kiln_torch.graph import form  # noqa: E402
from torch import fx  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402

pytestmark = pytest.mark.torch

SEED = 20261127
GRAPHS = 300
ATTENTION = "aten.scaled_dot_product_attention"


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def traced(count: int) -> fx.GraphModule:
    graph = torch._dynamo.export(layers(count))(torch.randn(2, 5, WIDTH)).graph_module
    return trace(graph, [torch.randn(2, 5, WIDTH)]).gm


def split(gm: fx.GraphModule, **settings: Any) -> tuple[list[SplitItem], tuple[str, ...]]:
    strategy = analyze_graph_for_splitting(gm, CompilationConfig(**settings))
    return split_graph_into_pieces(gm, strategy), strategy.reasons


def test_named_operations_are_pieces_of_their_own() -> None:
    gm = traced(3)
    points = identify_split_points(gm, [ATTENTION])
    assert len(points) == 3
    items, reasons = split(gm)
    assert reasons == ("3 named operations",)
    assert [item.index for item in items] == list(range(7))
    for item in items[1::2]:
        assert len(item.nodes) == 1
        assert "attention" in item.nodes[0]
    # As Dynamo has it, before it is aten's.
    dynamo = torch._dynamo.export(layers(2))(torch.randn(2, 5, WIDTH)).graph_module
    assert len(identify_split_points(dynamo, [ATTENTION])) == 2
    assert not identify_split_points(dynamo, ["vllm.scaled_dot_product_attention"])


def test_equal_layers_are_found_without_being_named() -> None:
    gm = traced(4)
    items, reasons = split(gm, splitting_ops=())
    assert len(reasons) == 1
    assert "times the same" in reasons[0]
    # What decides their keys. Three equal ones at least: an end may be cut elsewhere.
    forms = [form(item.graph, guarded=False) for item in items]
    assert max(forms.count(each) for each in forms) >= 3


def test_large_runs_are_cut_by_budget_and_balanced() -> None:
    gm = traced(2)
    most = 10
    items, _ = split(gm, splitting_ops=(), max_piece_nodes=most)
    assert len(items) > 1
    assert all(len(item.nodes) <= 1.5 * most for item in items)
    whole = sum(estimate_memory_requirements(gm)[node] for node in calls(gm))
    by_bytes, _ = split(gm, splitting_ops=(), max_piece_bytes=whole // 4)
    assert len(by_bytes) >= 4
    assert sum(item.memory_bytes for item in by_bytes) == whole
    assert sum(item.complexity for item in items) == sum(calculate_complexity_scores(gm).values())


def test_complexity_says_what_a_graph_has() -> None:
    told = analyze_graph_complexity(traced(3), [ATTENTION])
    assert (told.split_points, told.nodes) == (3, len(calls(traced(3))))
    assert told.repeats is not None
    assert told.repeats.count >= 2
    assert told.memory_bytes > 0
    assert told.score > told.nodes


def test_a_set_that_is_not_the_graph_is_refused() -> None:
    gm = traced(1)
    nodes = calls(gm)
    half = len(nodes) // 2
    validate_split_consistency(gm, [nodes[:half], nodes[half:]])
    for pieces, why in (
        ([nodes[:half], nodes[half + 1 :]], "no piece"),
        ([nodes[: half + 1], nodes[half:]], "is in pieces"),
        ([nodes[half:], nodes[:half]], "order"),
        ([nodes, []], "no nodes"),
    ):
        with pytest.raises(CompilationError, match=why):
            validate_split_consistency(gm, pieces)


def random_graph(numbers: random.Random) -> fx.GraphModule:
    """Make a graph with views, writes in place, several outputs and unused values."""
    graph = fx.Graph()
    values = [graph.placeholder(f"x{at}") for at in range(numbers.randint(1, 3))]
    for _ in range(numbers.randint(1, 25)):
        kind = numbers.randrange(7)
        one, other = numbers.choice(values), numbers.choice(values)
        if kind == 0:
            new = graph.call_function(operator.add, (one, other))
        elif kind == 1:
            new = graph.call_function(torch.tanh, (one,))
        elif kind == 2:
            # A view: what is written to it later is seen through the other.
            new = graph.call_method("t", (one,))
        elif kind == 3:
            new = graph.call_method("add_", (one, numbers.randint(1, 3)))
        elif kind == 4:
            parts = graph.call_function(torch.chunk, (one, 2))
            new = graph.call_function(torch.cat, (parts, 0))
        elif kind == 5:
            new = graph.call_function(operator.matmul, (one, other))
        else:
            graph.call_method("mul_", (one, 0.5))
            continue
        values.append(new)
    outputs = tuple(numbers.choice(values) for _ in range(numbers.randint(1, 3)))
    graph.output(outputs)
    graph.lint()
    return fx.GraphModule(torch.nn.Module(), graph)


def test_stitched_pieces_are_the_graph() -> None:
    """On random graphs, with what is written to their inputs."""
    print(f"seed {SEED}")
    cut = 0
    for number in range(GRAPHS):
        numbers = random.Random(SEED + number)  # noqa: S311 - reproducible on purpose
        gm = random_graph(numbers)
        items, _ = split(
            gm,
            splitting_ops=numbers.choice([(), ("tanh",), ("matmul", "t")]),
            max_piece_nodes=numbers.randint(1, 8),
        )
        cut += len(items) > 1
        stitched = create_split_graph_module(gm, items)
        width = len([n for n in gm.graph.nodes if n.op == "placeholder"])
        generator = torch.Generator().manual_seed(number)
        inputs = [torch.randn(4, 4, generator=generator) for _ in range(width)]
        mine, theirs = [x.clone() for x in inputs], [x.clone() for x in inputs]
        got, expected = stitched(*mine), gm(*theirs)
        for ours, other in zip([*got, *mine], [*expected, *theirs]):
            torch.testing.assert_close(ours, other, equal_nan=True, msg=f"graph {number}")
    assert cut > GRAPHS // 2


def test_what_nobody_uses_is_not_passed() -> None:
    gm = traced(2)
    items, _ = split(gm)
    stitched = create_split_graph_module(gm, items)
    got = [n for n in stitched.graph.nodes if n.target is operator.getitem]
    assert all(node.users for node in got)
    # FX lets a value go after its last use.
    assert stitched.code.count("= None") >= len(items)


def test_a_branch_goes_with_the_piece_that_takes_it() -> None:
    def branches(x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(x)
        return torch.relu(torch.cond(y.sum() > 0, torch.sin, torch.cos, (y,)))

    x = torch.randn(4)
    gm = torch._dynamo.export(branches)(x).graph_module
    assert any(node.op == "get_attr" for node in gm.graph.nodes)
    items, _ = split(gm, splitting_ops=(), max_piece_nodes=1)
    assert len(items) == len(calls(gm))
    for each in (x, x.abs(), -x.abs()):
        (got,) = pytree.tree_leaves(create_split_graph_module(gm, items)(each))
        torch.testing.assert_close(got, branches(each))
