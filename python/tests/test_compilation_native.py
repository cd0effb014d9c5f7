"""What the native compiler sends to a node, without a node and without a GPU."""

from __future__ import annotations

import io

import pytest

torch = pytest.importorskip("torch")

from kiln_torch.compilation import native  # noqa: E402
from kiln_torch.compilation.tracing import trace  # noqa: E402

pytestmark = pytest.mark.torch


def test_a_graph_is_exported_in_the_context_in_which_pieces_are_compiled() -> None:
    graph = torch.fx.symbolic_trace(torch.nn.Linear(4, 3))
    traced = trace(graph, [torch.randn(2, 4)], runtime_shape=1)
    with traced.context():
        archive = native._exported(traced)
    program = torch.export.load(io.BytesIO(archive))
    assert program.example_inputs is None
    targets = [str(node.target) for node in program.graph.nodes]
    assert any("addmm" in target or "linear" in target for target in targets)
