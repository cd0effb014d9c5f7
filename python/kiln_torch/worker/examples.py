"""What a program is traced with.

Invariant: as exported, or every symbolic size the one that the request fixes and
the exported range allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .program import Program
from .refused import INVALID_INPUT, Refused


def example_inputs(program: Program, runtime_shape: int | None) -> tuple[Sequence[Any], str]:
    """What is traced with, and how standalone_compile is to see its shapes."""
    import torch

    if runtime_shape is None:
        return program.fakes, "from_graph"
    dims = [d for f in program.fakes for d in ([f] if not hasattr(f, "shape") else f.shape)]
    symbolic = [d for d in dims if isinstance(d, torch.SymInt)]
    symbols = sorted({s for d in symbolic for s in d.node.expr.free_symbols}, key=str)
    if len(symbols) > 1:
        names = ", ".join(map(str, symbols))
        raise Refused(INVALID_INPUT, f"runtime_shape is one size, and the program has {names}")
    for symbol in symbols:
        allowed = symbolic[0].node.shape_env.var_to_range.get(symbol)
        if allowed is not None and runtime_shape not in allowed:
            why = f"runtime_shape {runtime_shape} is not in {allowed.lower}..{allowed.upper}"
            raise Refused(INVALID_INPUT, f"{why}, the exported range")

    def fixed(dim: Any) -> int:
        if isinstance(dim, torch.SymInt):
            return int(dim.node.expr.subs(dict.fromkeys(symbols, runtime_shape)))
        return dim

    def real(fake: Any) -> Any:
        if not isinstance(fake, torch.Tensor):
            return fixed(fake)
        size, stride = [fixed(s) for s in fake.shape], [fixed(s) for s in fake.stride()]
        return torch.empty_strided(size, stride, dtype=fake.dtype, device=fake.device)

    return [real(fake) for fake in program.fakes], "from_example_inputs"
