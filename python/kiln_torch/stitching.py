"""How pieces make a whole (``src/native/split/stitch``), read and checked.

Invariant: a stitching that was read refers to nothing that it does not have, reads
no value before it is made, and makes each output once; laid out, values that are
alive together share no byte but where a call works in place.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import plan, sizes
from .plan import CONSTANT, Memory, Plan, Tensor
from .sizes import BrokenArtifact, value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .sizes import Expr

FILE = "stitching.json"
VERSION = 1
# Most of anything in it.
_MOST = 1 << 16
# Bytes at which every value starts.
_ALIGNMENT = 256


@dataclass(frozen=True)
class Spec:
    """A tensor of a piece, as far as it is known before a call."""

    dtype: str
    shape: tuple[int | None, ...]
    constant: bool


@dataclass(frozen=True)
class Interface:
    """What a piece takes and gives."""

    takes: tuple[Spec, ...]
    gives: tuple[Spec, ...]


@dataclass(frozen=True)
class Value:
    """A dense tensor that one call leaves to others or to the caller."""

    dtype: str
    shape: tuple[Expr, ...]
    memory: Memory
    # The call that makes it, and the last that reads it.
    made: int
    read: int


@dataclass(frozen=True)
class Step:
    """One call of a piece; an argument is ``("input", 0)``, ``("value", 3)`` or a constant."""

    piece: int
    args: tuple[tuple[str, int], ...]
    results: tuple[int, ...]
    in_place: int | None


@dataclass(frozen=True)
class Copy:
    """An output that is a copy."""

    output: int
    source: tuple[str, int]


@dataclass(frozen=True)
class Place:
    """Where a value lies: in an output or the workspace, from a byte on."""

    base: str
    at: int
    offset: int
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class Stitching:
    """Which pieces are called in which order, and on which memory."""

    # What the whole takes and gives: no kernels.
    whole: Plan
    pieces: tuple[Interface, ...]
    values: tuple[Value, ...]
    steps: tuple[Step, ...]
    copies: tuple[Copy, ...]

    def places(self, symbols: Sequence[int], outputs: Sequence[plan.Layout]) -> list[Place]:
        """Where every value lies, in memory that there is."""
        end = value(self.whole.workspace_bytes, symbols)
        places = [self._place(at, symbols, outputs, end) for at in range(len(self.values))]
        self._check_overlap(places)
        return places

    def _place(
        self, at: int, symbols: Sequence[int], outputs: Sequence[plan.Layout], end: int
    ) -> Place:
        told = self.values[at]
        shape = tuple(value(each, symbols) for each in told.shape)
        size = plan.width(told.dtype)
        for length in shape:
            size *= length
        if told.memory.base == "output":
            output = value(told.memory.at, ())
            same = outputs[output].shape == shape
            if not same or self.whole.outputs[output].dtype != told.dtype:
                raise _broken(f"output {output} is not made once, as it says")
            return Place("output", output, 0, shape, size)
        offset = value(told.memory.at, symbols)
        if min(shape, default=0) < 0 or offset < 0 or offset + size > end or offset % _ALIGNMENT:
            raise _broken(f"value {at} lies outside of the memory that there is")
        return Place("workspace", 0, offset, shape, size)

    def _check_overlap(self, places: Sequence[Place]) -> None:
        alive: list[int] = []
        for at, step in enumerate(self.steps):
            alive = [each for each in alive if self.values[each].read >= at]
            replaced = None if step.in_place is None else step.args[step.in_place]
            for result in step.results:
                new = places[result]
                for other in alive:
                    old = places[other]
                    apart = (
                        new.offset + new.bytes <= old.offset or old.offset + old.bytes <= new.offset
                    )
                    same = (old.offset, old.bytes) == (new.offset, new.bytes)
                    if (
                        new.base == "workspace"
                        and not apart
                        and (replaced != ("value", other) or not same)
                    ):
                        raise _broken(f"values {other} and {result} share memory")
                if new.bytes and new.base == "workspace":
                    alive.append(result)


def read(data: bytes) -> Stitching:
    """Read ``stitching.json``."""
    try:
        told = json.loads(data)
        if told["version"] != VERSION:
            raise _broken(f"version {told['version']}, not {VERSION}")
        names = ("symbols", "inputs", "outputs", "pieces", "values", "calls", "copies")
        if any(len(told[name]) > _MOST for name in names):
            raise _broken(f"more than {_MOST} of something")
        inputs = tuple(plan.read_tensor(each) for each in told["inputs"])
        whole = Plan(
            target="any",
            symbols=tuple(plan.read_symbol(each) for each in told["symbols"]),
            inputs=inputs,
            outputs=tuple(plan.read_tensor(each) for each in told["outputs"]),
            workspace_bytes=sizes.read(told["workspace_bytes"]),
            kernels=(),
            given=tuple(i for i, each in enumerate(inputs) if each.kind != CONSTANT),
        )
        stitching = Stitching(
            whole,
            tuple(_interface(each) for each in told["pieces"]),
            tuple(_value(each) for each in told["values"]),
            tuple(_step(each) for each in told["calls"]),
            tuple(Copy(_position(each["output"]), _arg(each["from"])) for each in told["copies"]),
        )
    except BrokenArtifact:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(f"it cannot be read: {error!r}") from error
    plan.check_symbols(whole, FILE)
    _check_steps(stitching)
    _check_outputs(stitching)
    return stitching


def misfit(interface: Interface, piece: Plan) -> str | None:
    """Say how ``piece`` is another plan than the one that was stitched."""
    sides = (("input", interface.takes, piece.inputs), ("output", interface.gives, piece.outputs))
    for what, specs, tensors in sides:
        if len(specs) != len(tensors):
            return f"it has {len(tensors)} {what}s, not {len(specs)}"
        for at, (spec, tensor) in enumerate(zip(specs, tensors)):
            constant = spec.constant == (tensor.kind == CONSTANT)
            if not constant or not _agrees(tensor, spec):
                shape = sizes.shape_shown(tensor.shape)
                described = f"{tensor.kind} {tensor.dtype} {shape}"
                return f"its {what} {at}, {described}, is not what is stitched"
    return None


def _check_steps(told: Stitching) -> None:
    made = [False] * len(told.values)
    last = [each.made for each in told.values]
    for at, step in enumerate(told.steps):
        if step.piece >= len(told.pieces):
            raise _broken(f"call {at} is of piece {step.piece}, which is not there")
        piece = told.pieces[step.piece]
        if (len(piece.takes), len(piece.gives)) != (len(step.args), len(step.results)):
            raise _broken(f"call {at} has not the arguments and results of its piece")
        for position, (arg, spec) in enumerate(zip(step.args, piece.takes)):
            kind, source = arg
            if kind == "value" and source < len(made):
                if not made[source]:
                    raise _broken(f"call {at} reads value {source} before it is made")
                last[source] = at
            if not _fits(told, arg, spec):
                raise _broken(f"call {at}: argument {position} is not what the piece takes")
        for position, (result, spec) in enumerate(zip(step.results, piece.gives)):
            known = result < len(made) and not spec.constant
            if not known or not _agrees(told.values[result], spec):
                raise _broken(f"call {at}: result {position} is not what the piece gives")
            if made[result]:
                raise _broken(f"value {result} is made twice")
            if told.values[result].made != at:
                raise _broken(f"value {result} is not made where it says")
            made[result] = True
        if step.in_place is not None and not _may_replace(told, at, step):
            raise _broken(f"call {at} cannot work in place")
    for at, each in enumerate(told.values):
        if not made[at]:
            raise _broken(f"value {at} is not made where it says")
        if each.read != last[at]:
            raise _broken(f"value {at} does not live as long as it says")


def _check_outputs(told: Stitching) -> None:
    outputs = told.whole.outputs
    made = [0] * len(outputs)
    for at, each in enumerate(told.values):
        place = each.memory
        if place.base == "output" and isinstance(place.at, int) and 0 <= place.at < len(made):
            made[place.at] += 1
        elif place.base != "workspace":
            raise _broken(f"value {at} lies outside of the memory that there is")
    for copy in told.copies:
        if copy.output >= len(made):
            raise _broken(f"output {copy.output} is not there")
        kind, source = copy.source
        output = outputs[copy.output]
        same = False
        if kind == "input" and source in told.whole.given:
            given = told.whole.inputs[source]
            same = (given.dtype, given.shape) == (output.dtype, output.shape)
        elif kind == "value" and source < len(told.values):
            # The memory of others is gone by then.
            left = told.values[source]
            same = left.memory.base == "output" and left.dtype == output.dtype
        made[copy.output] += 1 if same else 2
    for at, count in enumerate(made):
        if count != 1:
            raise _broken(f"output {at} is not made once, as it says")


def _fits(told: Stitching, arg: tuple[str, int], spec: Spec) -> bool:
    kind, at = arg
    if kind == CONSTANT:
        return spec.constant
    if kind == "input":
        known = at in told.whole.given
        return known and not spec.constant and _agrees(told.whole.inputs[at], spec)
    return at < len(told.values) and not spec.constant and _agrees(told.values[at], spec)


def _may_replace(told: Stitching, at: int, step: Step) -> bool:
    if step.in_place is None or step.in_place >= len(step.args) or len(step.results) != 1:
        return False
    arg = step.args[step.in_place]
    if arg[0] != "value" or step.args.count(arg) != 1:
        return False
    given, result = told.values[arg[1]], told.values[step.results[0]]
    same = (given.shape, given.memory) == (result.shape, result.memory)
    width = plan.width(given.dtype) == plan.width(result.dtype)
    return same and width and given.memory.base == "workspace" and given.read == at


def _agrees(tensor: Tensor | Value, spec: Spec) -> bool:
    def size(own: Expr, wanted: int | None) -> bool:
        return wanted is None or not isinstance(own, int) or own == wanted

    ranks = len(tensor.shape) == len(spec.shape)
    return tensor.dtype == spec.dtype and ranks and all(map(size, tensor.shape, spec.shape))


def _interface(told: dict[str, Any]) -> Interface:
    takes, gives = (tuple(_spec(each) for each in told[side]) for side in ("takes", "gives"))
    return Interface(takes, gives)


def _spec(told: dict[str, Any]) -> Spec:
    shape = tuple(None if each is None else _position(each) for each in told["shape"])
    return Spec(str(told["dtype"]), shape, bool(told.get("constant")))


def _value(told: dict[str, Any]) -> Value:
    shape = tuple(map(sizes.read, told["shape"]))
    made, last = _position(told["from"]), _position(told["to"])
    return Value(str(told["dtype"]), shape, plan.read_memory(told["memory"]), made, last)


def _step(told: dict[str, Any]) -> Step:
    in_place = told.get("in_place")
    return Step(
        _position(told["piece"]),
        tuple(map(_arg, told["args"])),
        tuple(map(_position, told["results"])),
        None if in_place is None else _position(in_place),
    )


def _arg(told: Any) -> tuple[str, int]:
    if told == CONSTANT:
        return CONSTANT, 0
    ((kind, at),) = told.items()
    if kind not in ("input", "value"):
        raise _broken(f"{kind!r} is no argument")
    return kind, _position(at)


def _position(told: Any) -> int:
    if not isinstance(told, int) or isinstance(told, bool) or told < 0:
        raise _broken(f"{told!r} is no position")
    return told


def _broken(why: str) -> BrokenArtifact:
    return BrokenArtifact(f"{FILE}: {why}")
