"""The node's core operations (``src/native/core.rs``), each computed by PyTorch.

Invariant: a result has the type and the sizes that the program says, or it is
``BrokenArtifact``; operands are never written to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from . import core_numbers as numbers
from .sizes import BrokenArtifact, read, value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class Step:
    """One operation, with what it reads."""

    reads: Sequence[torch.Tensor]
    dtype: torch.dtype
    shape: tuple[int, ...]
    symbols: Sequence[int]
    device: torch.device

    def size(self, told: Any) -> int:
        """Return a size's value."""
        return value(read(told), self.symbols)

    def number(self, told: Any) -> bool | int | float:
        """Return a number's value."""
        ((kind, held),) = told.items()
        if kind == "Size":
            return self.size(held)
        return float(held) if kind == "Float" else held


def compute(name: str, told: Any, step: Step) -> torch.Tensor:
    """Compute the operation ``name``; ``told``: its attributes."""
    try:
        made = _OPS[name](step, told)
    except (KeyError, TypeError, AttributeError) as error:
        raise BrokenArtifact(f"graph.json: {name} {told!r}: {error!r}") from error
    if tuple(made.shape) != step.shape:
        raise BrokenArtifact(f"graph.json: {name} gives {list(made.shape)}, not {step.shape}")
    return numbers.cast(made, step.dtype)


def known(name: str, told: Any) -> bool:
    """Whether there is such an operation."""
    if name == "Map":
        return isinstance(told, dict) and numbers.knows(str(told["fun"]), str(told["domain"]))
    return name in _OPS


def _map(step: Step, told: Any) -> torch.Tensor:
    domain = told["domain"]
    dtype = numbers.arithmetic([*(each.dtype for each in step.reads), step.dtype])
    args = []
    for arg in told["args"]:
        ((kind, held),) = arg.items()
        if kind == "Number":
            number = step.number(held)
            made = torch.tensor(number, device=step.device, dtype=_literal(number, domain, dtype))
        else:
            made = step.reads[held]
        if domain == "Float":
            args.append(made.to(dtype))
        else:
            args.append((made != 0 if domain == "Bool" else made).to(torch.int64))
    fun = {"Float": numbers.float_, "Int": numbers.int_, "Bool": numbers.truth}[domain]
    return fun(told["fun"], args).expand(step.shape)


def _literal(number: bool | int | float, domain: str, dtype: torch.dtype) -> torch.dtype:
    if domain == "Float":
        return dtype
    return torch.float64 if isinstance(number, float) else torch.int64


def _rows(x: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    """Return ``x`` with ``dims`` as one last dimension."""
    kept = [dim for dim in range(x.dim()) if dim not in dims]
    moved = x.permute(*kept, *dims)
    return moved.reshape(*moved.shape[: len(kept)], math.prod(x.shape[dim] for dim in dims))


def _reduce(step: Step, told: Any) -> torch.Tensor:
    (x,), how = step.reads, told["how"]
    rows = _rows(x, told["dims"])
    wide = _wide(rows, step)
    if how == "Sum":
        return wide.sum(-1)
    if how == "Prod":
        return wide.prod(-1)
    if how in ("Any", "All"):
        return (rows != 0).any(-1) if how == "Any" else (rows != 0).all(-1)
    if how in ("Max", "Min"):
        return wide.amax(-1) if how == "Max" else wide.amin(-1)
    return {"ArgMax": wide.argmax, "ArgMin": wide.argmin}[how](-1)


def _wide(x: torch.Tensor, step: Step) -> torch.Tensor:
    """Return ``x`` in the type in which sums of it are made."""
    if x.dtype not in numbers.FLOATS:
        return x.to(torch.int64)
    return x.to(numbers.arithmetic([x.dtype, step.dtype]))


def _top_k(step: Step, told: Any) -> torch.Tensor:
    (x,) = step.reads
    found, positions = _wide(x, step).sort(dim=-1, descending=told["largest"], stable=True)
    return (positions if told["positions"] else found)[..., : told["k"]]


def _mat_mul(step: Step, _: Any) -> torch.Tensor:
    a, b = (_wide(each, step) for each in step.reads)
    if a.dtype == torch.int64 and step.device.type != "cpu":
        # There is no such product on a GPU.
        return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)
    return a @ b


def _attention(step: Step, told: Any) -> torch.Tensor:
    q, k, v = (_wide(each, step) for each in step.reads[:3])
    mask = step.reads[3] if len(step.reads) > 3 else None
    group = q.shape[1] // max(k.shape[1], 1)
    k, v = (each.repeat_interleave(group, dim=1) for each in (k, v))
    scores = float(told["scale"]) * (q @ k.transpose(-1, -2))
    shape = scores.shape[-2:]
    seen = torch.ones(shape, dtype=torch.bool, device=step.device)
    seen = seen.tril() if told["causal"] else seen
    scores = scores.masked_fill(~seen, -math.inf)
    if mask is not None and mask.dtype == torch.bool:
        scores = torch.where(~mask & seen, float(told.get("hidden", "-inf")), scores)
    elif mask is not None:
        scores = scores + mask.to(scores.dtype)
    weights = torch.softmax(scores, dim=-1)
    empty = told.get("empty", "ByMask")
    if empty == "Zero" or (empty == "ByMask" and (mask is None or mask.dtype == torch.bool)):
        nothing = (scores == -math.inf).all(-1, keepdim=True)
        weights = weights.masked_fill(nothing, 0.0)
    if bool(torch.isfinite(v).all()):
        return weights @ v
    # What is not seen does not count, whatever it is.
    each = weights.unsqueeze(-1) * v.unsqueeze(-3)
    return each.masked_fill(weights.unsqueeze(-1) == 0, 0.0).sum(-2)


def _slice(step: Step, told: Any) -> torch.Tensor:
    (x,), dim, by = step.reads, told["dim"], told["step"]
    start, taken = step.size(told["start"]), step.shape[dim]
    if taken == 0:
        return x.narrow(dim, 0, 0)
    return x.narrow(dim, start, (taken - 1) * by + 1)[
        (slice(None),) * dim + (slice(None, None, by),)
    ]


def _pad(step: Step, told: Any) -> torch.Tensor:
    (x,) = step.reads
    whole = _full(step, told["value"])
    inside = whole
    for dim, before in enumerate(told["before"]):
        inside = inside.narrow(dim, step.size(before), x.shape[dim])
    inside.copy_(x)
    return whole


def _window(step: Step, told: Any) -> torch.Tensor:
    (x,), dim = step.reads, told["dim"]
    windows, length = step.shape[dim], step.shape[-1]
    if 0 in step.shape:
        return x.new_empty(step.shape)
    found = x.unfold(dim, (length - 1) * told["dilation"] + 1, told["step"])
    return found[..., :: told["dilation"]].narrow(dim, 0, windows)


def _index(step: Step, told: Any) -> torch.Tensor:
    x, *positions = step.reads
    dims = told["dims"]
    others = [dim for dim in range(x.dim()) if dim not in dims]
    at = []
    for dim, each in zip(dims, positions):
        whole = each.to(torch.int64)
        # Out of range, where it does not count from the end: torch says so.
        at.append(whole if told["wrap"] else torch.where(whole < 0, x.shape[dim], whole))
    return x.permute(*dims, *others)[tuple(at)]


def _gather(step: Step, told: Any) -> torch.Tensor:
    x, positions = step.reads
    return torch.gather(x, told["dim"], positions.to(torch.int64))


def _iota(step: Step, told: Any) -> torch.Tensor:
    start, by = step.number(told["start"]), step.number(told["step"])
    count = torch.arange(step.shape[0], device=step.device)
    if isinstance(start, float) or isinstance(by, float):
        return float(start) + float(by) * count.to(torch.float64)
    return int(start) + int(by) * count


def _full(step: Step, told: Any) -> torch.Tensor:
    number = step.number(told)
    wide = torch.float64 if isinstance(number, float) else torch.int64
    one = numbers.cast(torch.tensor(number, dtype=wide, device=step.device), step.dtype)
    return one.expand(step.shape).clone()


_OPS: dict[str, Callable[[Step, Any], torch.Tensor]] = {
    "Map": _map,
    "Reduce": _reduce,
    "CumSum": lambda step, told: _wide(step.reads[0], step).cumsum(told["dim"]),
    "TopK": _top_k,
    "MatMul": _mat_mul,
    "Attention": _attention,
    "Reshape": lambda step, _: step.reads[0].reshape(step.shape),
    "Permute": lambda step, order: step.reads[0].permute(*order),
    "Expand": lambda step, _: step.reads[0].expand(step.shape),
    "Slice": _slice,
    "Flip": lambda step, dims: step.reads[0].flip(dims),
    "Roll": lambda step, told: step.reads[0].roll(step.size(told["shift"]), told["dim"]),
    "Pad": _pad,
    "Cat": lambda step, told: torch.cat(list(step.reads), told["dim"]),
    "Window": _window,
    "Gather": _gather,
    "Index": _index,
    "Iota": _iota,
    "Full": _full,
}
