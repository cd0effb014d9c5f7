"""Launch plans of the native compiler (``src/native/plan.rs``), read and checked.

Invariant: a plan that was read hangs together: its kernels name inputs, outputs
and scratch memory that exist; a call has only pointers into these.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import sizes
from .sizes import BrokenArtifact, shape_shown, value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .sizes import Expr

# Those that are read; the later one is that of plans that change some of their inputs.
VERSIONS = (2, 3)
# What every tensor that the caller holds must be aligned to, in bytes.
ALIGNMENT = 16
CONSTANT = "constant"
# Blocks of a grid, at most.
_MOST_BLOCKS = (2**31 - 1, 65_535, 65_535)
_BYTES = {"f64": 8, "i64": 8, "f32": 4, "i32": 4, "f16": 2, "bf16": 2, "i16": 2}


@dataclass(frozen=True)
class Symbol:
    """A size that the caller decides: ``(size - offset) / scale`` of an input's dimension."""

    min: int
    max: int | None
    input: int
    dim: int
    scale: int
    offset: int


@dataclass(frozen=True)
class Tensor:
    """A tensor that the caller holds."""

    name: str
    kind: str
    dtype: str
    shape: tuple[Expr, ...]
    strides: tuple[Expr, ...]
    # An input in which each run leaves what the next one finds there.
    updated: bool = False


@dataclass(frozen=True)
class Memory:
    """A pointer: ``("input", 3)``, ``("output", 0)`` or ``("workspace", offset)``."""

    base: str
    at: Expr


@dataclass(frozen=True)
class TensorMap:
    """A view of memory for the tensor memory accelerator, innermost dimension first."""

    memory: Memory
    offset: Expr
    dtype: str
    sizes: tuple[Expr, ...]
    strides: tuple[Expr, ...]
    tile: tuple[int, ...]
    swizzle: int


@dataclass(frozen=True)
class Kernel:
    """One launch; an argument that is none of the classes is a size."""

    name: str
    grid: tuple[Expr, Expr, Expr]
    block: tuple[int, int, int]
    shared_bytes: int
    # It waits for what it reads, so that it may begin before the launch before it ended.
    overlaps: bool
    # It waits for what it reads of user inputs too: see Launch.begins.
    follows: bool
    args: tuple[Memory | TensorMap | Expr, ...]


@dataclass(frozen=True)
class Plan:
    """How to run a module."""

    target: str
    symbols: tuple[Symbol, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    workspace_bytes: Expr
    kernels: tuple[Kernel, ...]
    # Positions of the inputs that a call gives: constants are in the module.
    given: tuple[int, ...] = field(default=())


@dataclass(frozen=True)
class Layout:
    """A tensor's sizes and strides."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Pointer:
    """Bytes from the start of ``("input", 3)``, ``("output", 0)`` or ``("workspace", 0)``."""

    base: str
    at: int
    offset: int


@dataclass(frozen=True)
class Tile:
    """A tensor map whose sizes are known, in bytes."""

    start: Pointer
    dtype: str
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    tile: tuple[int, ...]
    swizzle: int


@dataclass(frozen=True)
class Launch:
    """One kernel's launch: its position, its blocks, and its arguments' values."""

    kernel: int
    grid: tuple[int, int, int]
    values: tuple[Pointer | Tile | int, ...]
    # The first of a piece, and not all of it waits for what others leave it: it must
    # not begin while the launch before it runs.
    begins: bool = False


@dataclass(frozen=True)
class Copied:
    """An output that is filled by a copy, after all launches; it is dense."""

    output: int
    source: Pointer
    # How that lies; its sizes are the output's.
    layout: Layout
    # Bytes of an element.
    width: int


@dataclass(frozen=True)
class Call:
    """What one call launches; kernels without blocks are left out."""

    inputs: tuple[Layout, ...]
    outputs: tuple[Layout, ...]
    workspace_bytes: int
    launches: tuple[Launch, ...]
    copies: tuple[Copied, ...] = ()


def read(data: bytes) -> Plan:
    """Read ``plan.json``."""
    try:
        told = json.loads(data)
        if told["version"] not in VERSIONS:
            raise BrokenArtifact(f"plan.json: version {told['version']}, not {VERSIONS[-1]}")
        inputs = tuple(read_tensor(each) for each in told["inputs"])
        plan = Plan(
            target=told["target"],
            symbols=tuple(read_symbol(each) for each in told["symbols"]),
            inputs=inputs,
            outputs=tuple(read_tensor(each) for each in told["outputs"]),
            workspace_bytes=sizes.read(told["workspace_bytes"]),
            kernels=tuple(_kernel(each) for each in told["kernels"]),
            given=tuple(i for i, each in enumerate(inputs) if each.kind != CONSTANT),
        )
    except BrokenArtifact:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenArtifact(f"plan.json cannot be read: {error!r}") from error
    check_symbols(plan, "plan.json")
    for kernel in plan.kernels:
        memory = [a.memory if isinstance(a, TensorMap) else a for a in kernel.args]
        places = [each for each in memory if isinstance(each, Memory)]
        if not (all(kernel.block) and all(_exists(plan, place) for place in places)):
            raise BrokenArtifact(f"plan.json: kernel {kernel.name} cannot be launched")
    return plan


def check_symbols(plan: Plan, file: str) -> None:
    """Refuse symbols that no size of an input decides."""
    for symbol in plan.symbols:
        if symbol.input not in plan.given or symbol.dim >= len(plan.inputs[symbol.input].shape):
            raise BrokenArtifact(f"{file}: a symbol has no dimension")


def runs_on(target: str, capability: tuple[int, int]) -> bool:
    """Whether machine code for ``target`` runs there: its architecture, or a later minor one."""
    digits = target.removeprefix("sm_").removesuffix("a")
    if not target.startswith("sm_") or not digits.isdecimal():
        raise BrokenArtifact(f"target {target!r} is not machine code")
    wanted, here = int(digits), 10 * capability[0] + capability[1]
    if target.endswith("a"):
        return wanted == here
    return wanted // 10 == here // 10 and wanted <= here


def call(plan: Plan, shapes: Sequence[Sequence[int]]) -> Call:
    """Return what a call with inputs of these shapes launches: one shape for each ``given``.

    ``ValueError``: the plan does not admit them.
    """
    symbols, inputs, outputs = laid_out(plan, shapes)
    launches = []
    for index, kernel in enumerate(plan.kernels):
        x, y, z = (value(blocks, symbols) for blocks in kernel.grid)
        if any(n > most for n, most in zip((x, y, z), _MOST_BLOCKS)):
            raise ValueError(f"an input is too large for kernel {kernel.name}: {x, y, z} blocks")
        if min(x, y, z) > 0:
            values = tuple(_value(each, symbols) for each in kernel.args)
            launches.append(Launch(index, (x, y, z), values))
    return Call(inputs, outputs, value(plan.workspace_bytes, symbols), tuple(launches))


def laid_out(
    plan: Plan, shapes: Sequence[Sequence[int]]
) -> tuple[list[int], tuple[Layout, ...], tuple[Layout, ...]]:
    """Return the symbols' values and how inputs and outputs lie: one shape for each ``given``.

    ``ValueError``: the plan does not admit them.
    """
    given = dict(zip(plan.given, map(tuple, shapes)))
    symbols = [_bound(plan, i, given) for i in range(len(plan.symbols))]

    def layout(tensor: Tensor) -> Layout:
        shape = tuple(value(each, symbols) for each in tensor.shape)
        return Layout(shape, tuple(value(each, symbols) for each in tensor.strides))

    inputs = tuple(layout(plan.inputs[at]) for at in plan.given)
    for at, wanted in zip(plan.given, inputs):
        if wanted.shape != given[at]:
            raise ValueError(_disagreement(plan, at, given[at], wanted.shape, symbols))
    return symbols, inputs, tuple(map(layout, plan.outputs))


def width(dtype: str) -> int:
    """Return the bytes of an element."""
    return _BYTES.get(dtype, 1)


def _bound(plan: Plan, index: int, given: dict[int, tuple[int, ...]]) -> int:
    symbol = plan.symbols[index]
    tensor, shape = plan.inputs[symbol.input], given[symbol.input]
    named = f"input {tensor.name} ({tensor.kind})"
    if len(shape) != len(tensor.shape):
        raise ValueError(f"{named} has shape {list(shape)}, not {shape_shown(tensor.shape)}")
    bound, left = divmod(shape[symbol.dim] - symbol.offset, symbol.scale)
    wrong = f"{named} has shape {list(shape)}: dimension {symbol.dim}"
    if left:
        size = sizes.shown(tensor.shape[symbol.dim])
        raise ValueError(f"{wrong} is {size} for no whole s{index}")
    if bound < symbol.min or (symbol.max is not None and bound > symbol.max):
        most = "any" if symbol.max is None else symbol.max
        raise ValueError(f"{wrong} makes s{index} {bound}: compiled for {symbol.min} to {most}")
    return bound


def _disagreement(
    plan: Plan, at: int, given: tuple[int, ...], wanted: tuple[int, ...], symbols: list[int]
) -> str:
    tensor = plan.inputs[at]
    why = f"input {tensor.name} ({tensor.kind}) has shape {list(given)}, not {list(wanted)}"
    for i, symbol in enumerate(plan.symbols):
        used = any(f"s{i}" in sizes.shown(each) for each in tensor.shape)
        if used and symbol.input != at:
            first = plan.inputs[symbol.input].name
            why += f": s{i} is {symbols[i]} by dimension {symbol.dim} of {first}"
    return why


def _pointer(memory: Memory, symbols: Sequence[int], offset: int = 0) -> Pointer:
    if memory.base == "workspace":
        return Pointer(memory.base, 0, value(memory.at, symbols) + offset)
    return Pointer(memory.base, value(memory.at, ()), offset)


def _value(arg: Memory | TensorMap | Expr, symbols: Sequence[int]) -> Pointer | Tile | int:
    if isinstance(arg, Memory):
        return _pointer(arg, symbols)
    if isinstance(arg, TensorMap):
        bytes_each = width(arg.dtype)
        return Tile(
            start=_pointer(arg.memory, symbols, value(arg.offset, symbols) * bytes_each),
            dtype=arg.dtype,
            sizes=tuple(value(each, symbols) for each in arg.sizes),
            strides=tuple(value(each, symbols) * bytes_each for each in arg.strides),
            tile=arg.tile,
            swizzle=arg.swizzle,
        )
    return value(arg, symbols)


def read_symbol(told: dict[str, Any]) -> Symbol:
    """Read a symbol as JSON has it."""
    most = told.get("max")
    numbers = (told["min"], told["input"], told["dim"], told["scale"], told["offset"])
    low, at, dim, scale, offset = map(int, numbers)
    if scale <= 0 or dim < 0:
        raise BrokenArtifact("plan.json: a symbol has no dimension")
    return Symbol(low, None if most is None else int(most), at, dim, scale, offset)


def read_tensor(told: dict[str, Any]) -> Tensor:
    """Read a tensor as JSON has it."""
    shape, strides = (tuple(map(sizes.read, told[each])) for each in ("shape", "strides"))
    updated = bool(told.get("updated"))
    return Tensor(told["name"], told["kind"], told["dtype"], shape, strides, updated)


def _kernel(told: dict[str, Any]) -> Kernel:
    (gx, gy, gz), (bx, by, bz) = map(sizes.read, told["grid"]), told["block"]
    args = tuple(_arg(kind, each) for arg in told["args"] for kind, each in arg.items())
    overlaps, follows = bool(told.get("overlaps")), bool(told.get("follows"))
    grid, block = (gx, gy, gz), (bx, by, bz)
    return Kernel(told["name"], grid, block, told["shared_bytes"], overlaps, follows, args)


def _arg(kind: str, told: Any) -> Memory | TensorMap | Expr:
    if kind == "memory":
        return read_memory(told)
    if kind == "size":
        return sizes.read(told)
    if kind != "map":
        raise BrokenArtifact(f"plan.json: {kind!r} is no argument")
    lengths, strides = (tuple(map(sizes.read, told[each])) for each in ("sizes", "strides"))
    tile, swizzle = tuple(map(int, told["tile"])), int(told["swizzle"])
    if not 1 <= len(lengths) == len(tile) == len(strides) + 1:
        raise BrokenArtifact("plan.json: a tensor map of no rank")
    memory, offset = read_memory(told["memory"]), sizes.read(told["offset"])
    return TensorMap(memory, offset, told["dtype"], lengths, strides, tile, swizzle)


def read_memory(told: dict[str, Any]) -> Memory:
    """Read a place as JSON has it."""
    ((base, at),) = told.items()
    return Memory(base, sizes.read(at))


def _exists(plan: Plan, place: Memory) -> bool:
    if place.base == "input":
        return place.at in plan.given
    if place.base == "output":
        return isinstance(place.at, int) and 0 <= place.at < len(plan.outputs)
    known = isinstance(place.at, int) and isinstance(plan.workspace_bytes, int)
    return place.base == "workspace" and (not known or place.at <= plan.workspace_bytes)  # type: ignore[operator]
