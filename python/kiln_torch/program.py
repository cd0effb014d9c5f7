"""What a compiled graph launches: one plan's kernels, or those of stitched pieces.

Invariant: the pointers of a call lie in the whole's inputs, outputs and workspace;
of a stitched whole a call exists only where every piece takes what it is given, as
it lies, and leaves what the stitching says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from . import plan, stitching
from .plan import CONSTANT, Call, Copied, Kernel, Launch, Layout, Plan, Pointer, Tile
from .sizes import BrokenArtifact, value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .stitching import Place, Step, Stitching

CUBIN = "module.cubin"
PLAN = "plan.json"
_ALIGNMENT = 256


@dataclass(frozen=True)
class Code:
    """Machine code, and the kernels that are called in it."""

    cubin: bytes
    kernels: tuple[Kernel, ...]


class Program(Protocol):
    """A compiled graph that is on no device yet."""

    @property
    def plan(self) -> Plan:
        """What it takes and gives; its kernels are those of all codes, in order."""

    @property
    def codes(self) -> Sequence[Code]:
        """Its modules."""

    def call(self, named: Plan, shapes: Sequence[Sequence[int]]) -> Call:
        """Return what a call launches; ``named`` is its plan with the program's names."""


class Whole:
    """One plan and its module."""

    def __init__(self, told: Plan, cubin: bytes) -> None:
        """Check the machine code."""
        self.plan = told
        self.codes = (_code(cubin, told),)

    def call(self, named: Plan, shapes: Sequence[Sequence[int]]) -> Call:
        """Return what a call launches."""
        return plan.call(named, shapes)


class Stitched:
    """Pieces, put together as a stitching says.

    The workspace is what pieces leave each other and, behind it, one scratch area, in
    which each piece has its own workspace while it runs.
    """

    def __init__(
        self, told: Stitching, pieces: Sequence[tuple[bytes, Plan]], names: Sequence[str]
    ) -> None:
        """Check that the pieces are those that were stitched; names are for messages."""
        if len(pieces) != len(told.pieces):
            raise BrokenArtifact(f"{stitching.FILE}: {len(pieces)} pieces, not {len(told.pieces)}")
        self._told, self._names = told, names
        self._plans = [own for _, own in pieces]
        codes = []
        for (cubin, own), interface, name in zip(pieces, told.pieces, names):
            why = stitching.misfit(interface, own)
            if own.target != self._plans[0].target:
                why = why or f"it is for {own.target}, piece 0 for {self._plans[0].target}"
            if why is not None:
                raise BrokenArtifact(f"{name}: {why}")
            try:
                codes.append(_code(cubin, own))
            except BrokenArtifact as error:
                raise BrokenArtifact(f"{name}: {error}") from error
        self.codes = tuple(codes)
        self._first = [0]
        for code in codes:
            self._first.append(self._first[-1] + len(code.kernels))
        kernels = tuple(kernel for code in codes for kernel in code.kernels)
        target = self._plans[0].target if self._plans else "any"
        self.plan = replace(told.whole, target=target, kernels=kernels)

    def call(self, named: Plan, shapes: Sequence[Sequence[int]]) -> Call:
        """Return what a call launches: all pieces, in their order."""
        told = self._told
        symbols, inputs, outputs = plan.laid_out(named, shapes)
        for tensor, layout in zip(told.whole.outputs, outputs):
            if not _same(layout, _dense(layout.shape)):
                raise BrokenArtifact(f"{stitching.FILE}: {tensor.name} is not dense")
        places = told.places(symbols, outputs)
        given = dict(zip(told.whole.given, inputs))
        left = value(told.whole.workspace_bytes, symbols)
        scratch = -(-left // _ALIGNMENT) * _ALIGNMENT
        launches: list[Launch] = []
        most = 0
        known: dict[tuple[int, tuple[tuple[int, ...], ...]], Call] = {}
        for at, step in enumerate(told.steps):
            # Constants are in the module: nothing is given for them.
            takes = zip(step.args, self._plans[step.piece].inputs)
            args = [arg for arg, tensor in takes if tensor.kind != CONSTANT]
            layouts = [
                given[where] if kind == "input" else _dense(places[where].shape)
                for kind, where in args
            ]
            key = (step.piece, tuple(layout.shape for layout in layouts))
            own = known.get(key)
            if own is None:
                own = known[key] = self._own(at, step, key[1])
            self._check(at, step, own, layouts, places)
            moved = _Moved(step, places, scratch)
            begins = not self._waits(step, own)
            for index, launch in enumerate(own.launches):
                values = tuple(moved.value(each) for each in launch.values)
                kernel = self._first[step.piece] + launch.kernel
                launches.append(Launch(kernel, launch.grid, values, begins=begins and index == 0))
            most = max(most, own.workspace_bytes)
        copies = []
        for copy in told.copies:
            kind, where = copy.source
            layout = given[where] if kind == "input" else _dense(places[where].shape)
            if layout.shape != outputs[copy.output].shape:
                raise BrokenArtifact(f"{stitching.FILE}: output {copy.output} is no copy")
            base = ("input", where) if kind == "input" else ("output", places[where].at)
            width = plan.width(told.whole.outputs[copy.output].dtype)
            copies.append(Copied(copy.output, Pointer(*base, 0), layout, width))
        memory = scratch + most if most else left
        return Call(inputs, outputs, memory, tuple(launches), tuple(copies))

    def _waits(self, step: Step, own: Call) -> bool:
        """Whether all that a piece reads of other pieces, each of its kernels waits for."""
        told = self._plans[step.piece]
        # Only what a user gives is waited for.
        given = zip(step.args, told.inputs)
        users = all(kind != "value" or tensor.kind == "user" for (kind, _), tensor in given)
        return users and all(told.kernels[launch.kernel].follows for launch in own.launches)

    def _own(self, at: int, step: Step, shapes: tuple[tuple[int, ...], ...]) -> Call:
        try:
            return plan.call(self._plans[step.piece], shapes)
        except ValueError as error:
            raise type(error)(f"{self._names[step.piece]}, call {at}: {error}") from error

    def _check(
        self, at: int, step: Step, own: Call, layouts: list[Layout], places: list[Place]
    ) -> None:
        where = f"{self._names[step.piece]}, call {at}"
        for position, (wanted, layout) in enumerate(zip(own.inputs, layouts)):
            if not _same(wanted, layout):
                strides = f"{list(layout.strides)}, not {list(wanted.strides)}"
                raise BrokenArtifact(f"{where}: its input {position} has strides {strides}")
        for position, (made, result) in enumerate(zip(own.outputs, step.results)):
            wanted = _dense(places[result].shape)
            if not _same(made, wanted):
                shapes = f"{list(made.shape)}, not {list(wanted.shape)} and dense"
                raise BrokenArtifact(f"{where}: its output {position} is {shapes}")


class _Moved:
    """Arguments of a piece's kernels, in the memory of the whole."""

    def __init__(self, step: Step, places: Sequence[Place], scratch: int) -> None:
        self._step, self._places, self._scratch = step, places, scratch

    def value(self, told: Pointer | Tile | int) -> Pointer | Tile | int:
        if isinstance(told, Pointer):
            return self._pointer(told)
        if isinstance(told, Tile):
            return replace(told, start=self._pointer(told.start))
        return told

    def _pointer(self, told: Pointer) -> Pointer:
        if told.base == "workspace":
            return Pointer(told.base, 0, self._scratch + told.offset)
        if told.base == "output":
            place = self._places[self._step.results[told.at]]
        else:
            kind, where = self._step.args[told.at]
            if kind == "input":
                return Pointer("input", where, told.offset)
            place = self._places[where]
        return Pointer(place.base, place.at, place.offset + told.offset)


def _code(cubin: bytes, told: Plan) -> Code:
    if not cubin.startswith(b"\x7fELF"):
        raise BrokenArtifact(f"{CUBIN}: no machine code")
    return Code(cubin, told.kernels)


def _dense(shape: tuple[int, ...]) -> Layout:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return Layout(shape, tuple(reversed(strides)))


def _same(a: Layout, b: Layout) -> bool:
    """Whether two layouts are one: a stride of one element, or of none, means nothing."""
    steps = zip(a.shape, a.strides, b.strides)
    return a.shape == b.shape and (
        0 in a.shape or all(size <= 1 or one == other for size, one, other in steps)
    )
