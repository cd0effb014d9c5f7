"""Whether compiled pieces compute what their graphs do, on inputs made up for it.

Invariant: the caller's tensors are neither read nor written; what cannot be
compared (a graph that draws random numbers) is not called equal, but not checked.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from .. import standalone
from .errors import WrongOutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import fx

# Of the largest value. What fusing changes of the order of operations is well below.
_TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}


class Mismatch(WrongOutputError):
    """A compiled piece gives other values than its graph."""


def test_inputs(fakes: Sequence[Any], seed: int = 0) -> list[Any]:
    """Make up inputs of the sizes that ``fakes`` have now: small numbers, zeros for indices."""
    with real():
        generator = torch.Generator().manual_seed(seed)
        return [_made_up(each, generator) for each in fakes]


def test_piece_execution(
    piece: Callable[..., Any], graph: fx.GraphModule, inputs: Sequence[Any], name: str
) -> None:
    """Run a piece and its graph on ``inputs``; ``Mismatch`` where they differ."""
    if not deterministic(graph):
        return
    with real(), torch.no_grad():
        mine, theirs = _copies(inputs), _copies(inputs)
        got, expected = piece(*mine), graph(*theirs)
    verify_output_shapes(got, expected, name)
    _verify_values((got, mine), (expected, theirs), name)


def verify_output_shapes(got: Any, expected: Any, name: str) -> None:
    """Compare sizes and types."""
    pairs = _pairs(got, expected, name)
    for at, (ours, theirs) in enumerate(pairs):
        if isinstance(theirs, torch.Tensor) and (
            ours.shape != theirs.shape or ours.dtype != theirs.dtype
        ):
            raise Mismatch(
                f"{name}: output {at} is {ours.dtype} {list(ours.shape)}, "
                f"not {theirs.dtype} {list(theirs.shape)}"
            )


def verify_end_to_end_equivalence(
    whole: Callable[..., Any], graph: fx.GraphModule, inputs: Sequence[Any]
) -> None:
    """Compare the stitched pieces with the graph that they stand for."""
    test_piece_execution(whole, graph, inputs, "the whole")


def deterministic(graph: fx.GraphModule) -> bool:
    """Whether two runs give the same: no operation draws random numbers."""
    return not any(_draws(node) for node in graph.graph.nodes)


@contextlib.contextmanager
def real() -> Iterator[None]:
    """Compute with real tensors, whatever traces now."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with unset_fake_temporarily():
        yield


def _draws(node: fx.Node) -> bool:
    name = str(node.target)
    if "dropout" in name or "rand" in name or "bernoulli" in name:
        return True
    # Attention is tagged for the dropout that it could have.
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags and "dot_product_attention" not in name


def _verify_values(got: Any, expected: Any, name: str) -> None:
    for at, (ours, theirs) in enumerate(_pairs(got, expected, name)):
        if not isinstance(theirs, torch.Tensor):
            if ours != theirs:
                raise Mismatch(f"{name}: value {at} is {ours!r}, not {theirs!r}")
            continue
        allowed = _TOLERANCES.get(theirs.dtype)
        if allowed is None:
            if not torch.equal(ours, theirs):
                raise Mismatch(f"{name}: value {at} differs")
            continue
        scale = 1.0 + float(theirs.abs().nan_to_num().max()) if theirs.numel() else 1.0
        close = torch.isclose(ours, theirs, rtol=0.0, atol=allowed * scale, equal_nan=True)
        if not bool(close.all()):
            worst = float((ours.double() - theirs.double()).abs().nan_to_num().max())
            raise Mismatch(f"{name}: value {at} differs by {worst:.3g} at values up to {scale:.3g}")


def _pairs(got: Any, expected: Any, name: str) -> list[tuple[Any, Any]]:
    ours, theirs = pytree.tree_leaves(got), pytree.tree_leaves(expected)
    if len(ours) != len(theirs):
        raise Mismatch(f"{name}: {len(ours)} outputs, not {len(theirs)}")
    return list(zip(ours, theirs))


def _copies(inputs: Sequence[Any]) -> list[Any]:
    return [_copy(each) if isinstance(each, torch.Tensor) else each for each in inputs]


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor with its strides, whatever they are: compiled code relies on them."""
    extent = _extent(tensor.shape, tensor.stride())
    memory = tensor.detach().as_strided((extent,), (1,)).clone()
    return memory.as_strided(tensor.shape, tensor.stride())


def _extent(size: Sequence[int], stride: Sequence[int]) -> int:
    """Return how many elements of memory a tensor spans."""
    if 0 in size:
        return 0
    return 1 + sum((length - 1) * step for length, step in zip(size, stride))


def _made_up(fake: Any, generator: torch.Generator) -> Any:
    if isinstance(fake, torch.SymInt):
        return standalone.hints([fake])[0]
    if not isinstance(fake, torch.Tensor):
        return fake

    def now(number: Any) -> int:
        return standalone.hints([number])[0] if isinstance(number, torch.SymInt) else int(number)

    size, stride = [now(s) for s in fake.shape], [now(s) for s in fake.stride()]
    extent = _extent(size, stride)
    if fake.dtype.is_floating_point:
        numbers = torch.randn(extent, generator=generator) * 0.1
        memory = numbers.to(device=fake.device, dtype=fake.dtype)
    else:
        memory = torch.zeros(extent, dtype=fake.dtype, device=fake.device)
    return memory.as_strided(size, stride)
