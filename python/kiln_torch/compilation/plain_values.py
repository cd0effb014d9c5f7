"""The values of a graph as plain data: what a compiler asks of them, and no more.

A tensor is its dtype, sizes, strides, offset, device and flags; a size is a number
or an expression over symbols, of which the hint and the range go along.
Invariant: nothing that lives goes into it (no tensor, mode, environment or weak
reference), so what is kept with a value cannot keep it from being sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sympy
import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# How symbols of sizes are named: "s" and a number.
_SIZE = "s"


class Unsent(Exception):
    """It cannot be said in plain data: compile here."""


@dataclass(frozen=True)
class Size:
    """A symbolic size."""

    expression: sympy.Expr


@dataclass(frozen=True)
class Symbol:
    """What is known of a symbol."""

    symbol: sympy.Symbol
    hint: int
    # ``None``: without a bound.
    least: int | None
    most: int | None

    def admits(self, size: int) -> bool:
        """Whether it may have this value."""
        small = self.least is not None and size < self.least
        large = self.most is not None and size > self.most
        return not (small or large)


@dataclass(frozen=True)
class Tensor:
    """What a compiler asks of a tensor."""

    dtype: torch.dtype
    device: torch.device
    size: tuple[Any, ...]
    stride: tuple[Any, ...]
    offset: Any
    requires_grad: bool
    inference: bool
    parameter: bool
    # Tensors with one number share their memory.
    storage: int


class Writer:
    """Writes values down; meets their symbols on the way."""

    def __init__(self) -> None:
        """Have met none."""
        self.symbols: dict[sympy.Symbol, Symbol] = {}
        self._storages: dict[int, int] = {}

    def value(self, value: Any) -> Any:
        """Write down what was recorded for a node."""
        if isinstance(value, (tuple, list)):
            return [self.value(each) for each in value]
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if value is None or isinstance(value, (bool, int, float, torch.SymInt)):
            return self.number(value)
        raise Unsent(f"a value of type {type(value).__qualname__}")

    def number(self, number: Any) -> Any:
        """Write down a number, which may be a symbolic size."""
        if isinstance(number, (torch.SymFloat, torch.SymBool)):
            raise Unsent(f"a symbol that is no size: {number}")
        if not isinstance(number, torch.SymInt):
            return number
        expression = number.node.expr
        if expression.is_Integer:
            return int(expression)
        for symbol in expression.free_symbols:
            if symbol not in self.symbols:
                self.symbols[symbol] = _known(symbol, number.node.shape_env)
        return Size(expression)

    def _tensor(self, tensor: torch.Tensor) -> Tensor:
        if is_traceable_wrapper_subclass(tensor) or tensor.layout != torch.strided:
            raise Unsent(f"a tensor of type {type(tensor).__qualname__}, {tensor.layout}")
        if tensor.is_conj() or tensor.is_neg() or tensor.is_quantized:
            raise Unsent("a tensor that stands for another's conjugate, negative or scale")
        place = tensor.untyped_storage()._cdata
        return Tensor(
            dtype=tensor.dtype,
            device=tensor.device,
            size=tuple(map(self.number, tensor.size())),
            stride=tuple(map(self.number, tensor.stride())),
            offset=self.number(tensor.storage_offset()),
            requires_grad=tensor.requires_grad,
            inference=tensor.is_inference(),
            parameter=isinstance(tensor, torch.nn.Parameter),
            storage=self._storages.setdefault(place, len(self._storages)),
        )


class Reader:
    """Makes fake values of what a ``Writer`` wrote, in a mode of its own."""

    def __init__(
        self,
        mode: Any,
        symbols: Sequence[Symbol],
        shared: Mapping[int, int],
        fixed: Mapping[sympy.Symbol, int],
    ) -> None:
        """Make the symbols, less the ``fixed`` ones, which are numbers from now on.

        ``shared``: elements of the memory that several inputs share.
        """
        self._mode = mode
        self._shared = shared
        self._bases: dict[int, torch.Tensor] = {}
        self._here: dict[sympy.Symbol, sympy.Expr] = {}
        self._hints: dict[sympy.Symbol, int] = {}
        for each in symbols:
            if each.symbol in fixed:
                size = fixed[each.symbol]
                if not each.admits(size):
                    raise Unsent(f"{each.symbol} is never {size}")
                self._here[each.symbol] = sympy.Integer(size)
                continue
            self._here[each.symbol] = made = _make(mode.shape_env, each)
            self._hints[made] = each.hint

    def input(self, told: Any) -> Any:
        """Make an input's value: it may share its memory with another's."""
        return self._tensor(told, self._shared) if isinstance(told, Tensor) else self.value(told)

    def value(self, told: Any) -> Any:
        """Make a value."""
        if isinstance(told, list):
            return [self.value(each) for each in told]
        return self._tensor(told, {}) if isinstance(told, Tensor) else self.number(told)

    def number(self, told: Any) -> Any:
        """Make a number."""
        if not isinstance(told, Size):
            return told
        expression = told.expression.xreplace(self._here)
        if expression.is_Integer:
            return int(expression)
        hint = int(expression.xreplace(self._hints))
        return self._mode.shape_env.create_symintnode(expression, hint=hint)

    def _tensor(self, told: Tensor, shared: Mapping[int, int]) -> torch.Tensor:
        from torch._subclasses.fake_tensor import FakeTensor
        from torch.utils._mode_utils import no_dispatch

        size, stride = [[self.number(n) for n in part] for part in (told.size, told.stride)]
        offset = self.number(told.offset)
        with torch.inference_mode(told.inference), no_dispatch():
            meta = self._meta(told, size, stride, offset, shared)
            fake = FakeTensor(self._mode, meta, told.device)
            if told.requires_grad:
                fake.requires_grad_()
        if told.parameter:
            # As Dynamo's fake parameters are: tensors that say so.
            fake._is_param = True
        return fake

    def _meta(
        self, told: Tensor, size: Any, stride: Any, offset: Any, shared: Mapping[int, int]
    ) -> torch.Tensor:
        if told.storage in shared:
            if told.storage not in self._bases:
                memory = torch.empty(shared[told.storage], dtype=told.dtype, device="meta")
                self._bases[told.storage] = memory
            return self._bases[told.storage].as_strided(size, stride, offset)
        if isinstance(offset, int) and offset == 0:
            return torch.empty_strided(size, stride, dtype=told.dtype, device="meta")
        memory = torch.empty(_extent(size, stride) + offset, dtype=told.dtype, device="meta")
        return memory.as_strided(size, stride, offset)


def shared_memory(inputs: Sequence[Any]) -> dict[int, int]:
    """Return the elements of each storage that several of these inputs have."""
    held: dict[int, list[Tensor]] = {}
    for each in inputs:
        if isinstance(each, Tensor):
            held.setdefault(each.storage, []).append(each)
    found = {}
    for storage, tensors in held.items():
        if len(tensors) < 2:
            continue
        numbers = [n for t in tensors for n in (*t.size, *t.stride, t.offset)]
        if len({t.dtype for t in tensors}) > 1 or any(isinstance(n, Size) for n in numbers):
            raise Unsent("inputs of several types or symbolic sizes share their memory")
        found[storage] = max(_extent(t.size, t.stride) + t.offset for t in tensors)
    return found


def _extent(size: Sequence[Any], stride: Sequence[Any]) -> Any:
    """Return how many elements of memory a tensor spans."""
    if any(isinstance(length, int) and length == 0 for length in size):
        return 0
    return 1 + sum((length - 1) * step for length, step in zip(size, stride))


def _known(symbol: sympy.Symbol, environment: Any) -> Symbol:
    hint = environment.backed_var_to_val.get(symbol)
    number = symbol.name.removeprefix(_SIZE)
    if hint is None or number == symbol.name or not number.isdecimal():
        raise Unsent(f"a symbol that is no size: {symbol}")
    known = environment.var_to_range.get(symbol)
    bounds = (None, None) if known is None else (known.lower, known.upper)
    least, most = (int(b) if b is not None and b.is_Integer else None for b in bounds)
    return Symbol(symbol, int(hint), least, most)


def _make(environment: Any, told: Symbol) -> sympy.Expr:
    """Make a symbol that has the same name: the order of symbols is that of their names."""
    from torch._dynamo.source import LocalSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic
    from torch.utils._sympy.numbers import int_oo
    from torch.utils._sympy.value_ranges import ValueRanges

    number = int(told.symbol.name.removeprefix(_SIZE))
    before = environment._generate_unique_id
    environment._generate_unique_id = lambda _: number
    try:
        made = environment.create_symbol(
            told.hint,
            source=LocalSource(told.symbol.name),
            dynamic_dim=DimDynamic.DYNAMIC,
            positive=told.symbol.is_positive,
            do_not_specialize_zero_one=True,
        )
    finally:
        environment._generate_unique_id = before
    least = -int_oo if told.least is None else told.least
    most = int_oo if told.most is None else told.most
    environment.var_to_range[made] = ValueRanges(least, most)
    return made
