"""A graph in pieces: at named operations, at repeated structure, then by budgets.

Pieces are runs of nodes in the graph's own order, so that writes keep their order
and no cycle can arise.
Invariant: every node that computes is in exactly one piece, and a piece uses
nothing but the graph's inputs and what it or an earlier piece gives; a set that
is not so is refused.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from ..graph import value_of
from .complexity import (
    calculate_complexity_scores,
    calls,
    estimate_memory_requirements,
    identify_split_points,
)
from .errors import CompilationError
from .repeats import crossings, find_repeats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .config import CompilationConfig


@dataclass(frozen=True)
class SplitStrategy:
    """Where a graph is cut: each piece's nodes, in order, and why."""

    pieces: tuple[tuple[fx.Node, ...], ...]
    reasons: tuple[str, ...]


@dataclass
class SplitItem:
    """One piece: its graph, what goes in and comes out, and what it may cost."""

    index: int
    graph: fx.GraphModule
    # Nodes of the whole graph, by name: those that it takes, gives and has.
    inputs: list[str]
    outputs: list[str]
    nodes: list[str] = field(repr=False)
    memory_bytes: int
    complexity: float

    @property
    def name(self) -> str:
        """Its name in the stitching graph."""
        return f"piece_{self.index}"


def analyze_graph_for_splitting(gm: fx.GraphModule, config: CompilationConfig) -> SplitStrategy:
    """Decide where to cut."""
    nodes = calls(gm)
    reasons = []
    points = set(identify_split_points(gm, config.splitting_ops))
    bounds = {0, len(nodes)}
    for at, node in enumerate(nodes):
        if node in points:
            bounds |= {at, at + 1}
    if points:
        reasons.append(f"{len(points)} named operations")
    else:
        repeats = find_repeats(nodes)
        if repeats is not None:
            bounds |= set(repeats.bounds)
            reasons.append(f"{repeats.count} times the same {repeats.period} nodes")
    cuts = sorted(bounds)
    runs = [nodes[a:b] for a, b in itertools.pairwise(cuts) if a < b]
    memory = estimate_memory_requirements(gm)
    pieces: list[tuple[fx.Node, ...]] = []
    for run in runs:
        parts = _within_budget(run, memory, config)
        if len(parts) > 1:
            reasons.append(f"{len(run)} nodes into {len(parts)} by budget")
        pieces.extend(parts)
    return SplitStrategy(tuple(pieces), tuple(reasons))


def split_graph_into_pieces(gm: fx.GraphModule, strategy: SplitStrategy) -> list[SplitItem]:
    """Make the pieces' graphs."""
    validate_split_consistency(gm, strategy.pieces)
    memory = estimate_memory_requirements(gm)
    scores = calculate_complexity_scores(gm)
    items = []
    for index, nodes in enumerate(strategy.pieces):
        graph, inputs, outputs = extract_subgraph(gm, nodes)
        items.append(
            SplitItem(
                index=index,
                graph=graph,
                inputs=[node.name for node in inputs],
                outputs=[node.name for node in outputs],
                nodes=[node.name for node in nodes],
                memory_bytes=sum(memory[node] for node in nodes),
                complexity=sum(scores.get(node, 1.0) for node in nodes),
            )
        )
    return items


def extract_subgraph(
    gm: fx.GraphModule, nodes: Sequence[fx.Node]
) -> tuple[fx.GraphModule, list[fx.Node], list[fx.Node]]:
    """Return the graph of ``nodes``, with the nodes that it takes and gives."""
    own = set(nodes)
    inputs: dict[fx.Node, None] = {}
    held: dict[fx.Node, None] = {}
    for node in nodes:
        for each in node.all_input_nodes:
            if each.op == "get_attr":
                # A graph of its own, as a branch is: it goes along, it is no value.
                held.setdefault(each)
            elif each not in own:
                inputs.setdefault(each)
    for size in _sizes_of(gm, list(inputs)):
        inputs.setdefault(size)
    outputs = [node for node in nodes if any(user not in own for user in node.users)]
    graph = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    for at, node in enumerate(inputs):
        known[node] = graph.placeholder(f"in_{at}")
        known[node].meta = dict(node.meta)
    for node in (*held, *nodes):
        known[node] = graph.node_copy(node, lambda given: known[given])
    graph.output(tuple(known[node] for node in outputs))
    graph.lint()
    return fx.GraphModule(gm, graph), list(inputs), outputs


def validate_split_consistency(gm: fx.GraphModule, pieces: Sequence[Sequence[fx.Node]]) -> None:
    """Refuse pieces that are not the graph, or that could not run one after another."""
    where: dict[fx.Node, int] = {}
    for index, nodes in enumerate(pieces):
        if not nodes:
            raise CompilationError(f"piece {index} has no nodes")
        for node in nodes:
            if node in where:
                raise CompilationError(f"{node.name} is in pieces {where[node]} and {index}")
            where[node] = index
    wanted = calls(gm)
    missing = [node.name for node in wanted if node not in where]
    if missing or len(where) != len(wanted):
        raise CompilationError(f"nodes in no piece: {', '.join(missing) or 'of another graph'}")
    order = {node: at for at, node in enumerate(wanted)}
    flat = [order[node] for nodes in pieces for node in nodes]
    if flat != sorted(flat):
        # Reordered nodes may be right for values, but not for what is written in place.
        raise CompilationError("pieces do not follow the graph's order")
    for node, index in where.items():
        for given in node.all_input_nodes:
            if given in where and where[given] > index:
                raise CompilationError(f"{node.name} of piece {index} needs {given.name}, later")


def _sizes_of(gm: fx.GraphModule, inputs: Sequence[fx.Node]) -> list[fx.Node]:
    """Return the graph's inputs that are the symbolic sizes of ``inputs``."""
    sizes = {}
    for node in gm.graph.nodes:
        value = value_of(node) if node.op == "placeholder" else None
        if isinstance(value, torch.SymInt):
            sizes[value.node.expr] = node
    found: set[Any] = set()
    for node in inputs:
        value = value_of(node)
        if isinstance(value, torch.Tensor):
            for number in (*value.shape, *value.stride(), value.storage_offset()):
                if isinstance(number, torch.SymInt):
                    found |= number.node.expr.free_symbols
        elif isinstance(value, torch.SymInt):
            found |= value.node.expr.free_symbols
    return [sizes[symbol] for symbol in sorted(found, key=str) if symbol in sizes]


def _within_budget(
    run: Sequence[fx.Node], memory: dict[fx.Node, int], config: CompilationConfig
) -> list[tuple[fx.Node, ...]]:
    """Cut a run into balanced parts, at places where few values are in flight."""
    needed = max(
        math.ceil(len(run) / config.max_piece_nodes),
        math.ceil(sum(memory[node] for node in run) / config.max_piece_bytes),
    )
    count = min(needed, len(run))
    if count < 2:
        return [tuple(run)]
    crossing = crossings(run)
    reach = max(len(run) // (4 * count), 0)
    cuts = [0]
    for part in range(1, count):
        ideal = part * len(run) // count
        least = max(cuts[-1] + 1, ideal - reach)
        most = max(least, min(len(run) - (count - part), ideal + reach))
        cuts.append(min(range(least, most + 1), key=lambda at: (crossing[at], abs(at - ideal))))
    cuts.append(len(run))
    return [tuple(run[a:b]) for a, b in itertools.pairwise(cuts)]
