"""A graph that the native compiler compiled, as a callable over torch tensors.

Invariant: nothing is launched unless every tensor has the type, sizes, strides,
device and alignment of the plan; all memory is torch's, and nothing is copied but, once,
fixed inputs that the program writes to. Those are written to where they are, and are no
other input as well.
"""

from __future__ import annotations

import operator
import threading
from typing import TYPE_CHECKING, Any

import torch

from . import apart, binding, cuda_driver, plan
from .launching import DTYPES, Loaded, Prepared
from .plan import ALIGNMENT
from .program import Program, Whole
from .sizes import BrokenArtifact, shape_shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Shapes for which launches are kept ready: the oldest goes.
_MOST_PREPARED = 64


class Native:
    """A compiled graph: call it with all of its inputs.

    They are those of the exported program, in its order: parameters, buffers,
    arguments; ``bind`` fixes some of them. Returns a tensor, or a tuple of
    them where the graph has several outputs.
    """

    def __init__(self, cubin: bytes, plan_json: bytes, signature: bytes | None = None) -> None:
        """Check the files; the module is loaded on each device at its first call."""
        self._hold(Whole(plan.read(plan_json), cubin), signature)

    @classmethod
    def of(cls, program: Program, signature: bytes | None = None) -> Native:
        """Make one of a program that was read before: one that is stitched, for example."""
        native = cls.__new__(cls)
        native._hold(program, signature)
        return native

    def _hold(self, program: Program, signature: bytes | None) -> None:
        self.program, self.plan = program, program.plan
        self.given = [self.plan.inputs[at] for at in self.plan.given]
        unknown = {t.dtype for t in (*self.given, *self.plan.outputs)} - DTYPES.keys()
        if unknown:
            raise BrokenArtifact(f"plan.json: element types {sorted(unknown)}")
        self.names = binding.names_of(self.plan, signature)
        # With the program's own names, where they are known: for messages.
        self.named = binding.named(self.plan, self.names)
        self._lock = threading.Lock()
        self._on: dict[int, Loaded] = {}
        self._all = Bound(self, {})

    def bind(self, *first: Any) -> Bound:
        """Fix inputs, parameters for example; they are held, not copied.

        Tensors: the first inputs. Or one mapping by the names that the graph or
        the module has for them (a ``state_dict``), an ``nn.Module``, or the
        ``ExportedProgram``: then all parameters and buffers are fixed.
        """
        if len(first) != 1 or isinstance(first[0], torch.Tensor):
            if len(first) > len(self.given):
                raise TypeError(f"{len(first)} inputs, at most {len(self.given)}")
            return Bound(self, dict(enumerate(first)))
        return Bound(self, binding.by_name(self.plan, self.names, first[0]))

    def graphed(self, *example: torch.Tensor) -> Graphed:
        """Record one run as a CUDA graph, to replay for inputs of the same shapes."""
        return self._all.graphed(*example)

    def __call__(self, *tensors: torch.Tensor) -> Any:
        """Run once, on torch's current stream of the tensors' device."""
        return self._all(*tensors)

    def loaded(self, device: torch.device) -> Loaded:
        """Return the module on ``device``, whose context is current."""
        with self._lock:
            loaded = self._on.get(device.index)
            if loaded is None:
                capability = torch.cuda.get_device_capability(device)
                if not plan.runs_on(self.plan.target, capability):
                    here = f"sm_{capability[0]}{capability[1]}"
                    name = torch.cuda.get_device_name(device)
                    raise RuntimeError(
                        f"the artifact is for {self.plan.target}, {device} ({name}) is {here}: "
                        f"compile with --target {here}"
                    )
                loaded = self._on[device.index] = Loaded(self.program, device)
            return loaded

    def shown(self, position: int) -> str:
        """Return what an input that is given is called, for messages."""
        tensor = self.named.inputs[self.plan.given[position]]
        return f"{tensor.name} ({tensor.kind})"


class Bound:
    """A graph some of whose inputs are fixed: call it with the others, in their order."""

    def __init__(self, native: Native, fixed: dict[int, torch.Tensor]) -> None:
        """Hold the fixed tensors; they are checked at the first call."""
        self.native = native
        self.plan = native.plan
        self._fixed = fixed
        self._open = [at for at in range(len(native.given)) if at not in fixed]
        self._needs_grad = any(getattr(each, "requires_grad", False) for each in fixed.values())
        is_updated = [tensor.updated for tensor in native.given]
        self._written = [fixed[at] for at in fixed if is_updated[at]]
        # As they were: what `reset` makes of them again.
        tensors = [each for each in self._written if isinstance(each, torch.Tensor)]
        self._initial = [(each, each.detach().clone()) for each in tensors]
        self.changes = [at for at, position in enumerate(self._open) if is_updated[position]]
        self._is_updated = is_updated
        # Where the fixed inputs lie, once they are known to be tensors.
        self._apart: apart.Apart | None = None
        self._prepared: dict[Any, tuple[Prepared, int, apart.Given | None]] = {}

    def __call__(self, *tensors: torch.Tensor) -> Any:
        """Run once, on torch's current stream of the tensors' device."""
        try:
            key = tuple([(t.shape, t.stride(), t.dtype, t.device) for t in tensors])
        except AttributeError:
            key = None
        ready = self._prepared.get(key) if key else None
        if ready is None:
            ready = self._prepare(tensors, key)
        prepared, device, places = ready
        pointers = [(at, tensor.data_ptr()) for at, tensor in zip(self._open, tensors)]
        for at, pointer in pointers:
            if pointer % ALIGNMENT:
                raise self._wrong(at, f"does not start at a multiple of {ALIGNMENT} bytes")
        if places is not None:
            self._refuse(places.shared(pointers))
        if torch.is_grad_enabled():
            self._refuse_gradients(tensors)
        if torch.cuda.current_device() != device:
            with torch.cuda.device(device):
                found = self._run(prepared, pointers, device)
        else:
            found = self._run(prepared, pointers, device)
        if self._written or self.changes:
            changed(*self._written, *(tensors[at] for at in self.changes))
        return found

    def graphed(self, *example: torch.Tensor) -> Graphed:
        """Record one run as a CUDA graph, to replay for inputs of the same shapes."""
        return Graphed(self, example)

    def reset(self) -> None:
        """Make the fixed inputs that runs have changed what they were when they were fixed.

        Buffers that the program writes to, for example a cache of keys and values.
        """
        with torch.no_grad():
            for mine, was in self._initial:
                mine.copy_(was)

    @property
    def written(self) -> list[torch.Tensor]:
        """The fixed inputs that a run changes."""
        return self._written

    def _run(self, prepared: Prepared, pointers: list[tuple[int, int]], device: int) -> Any:
        cuda_driver.ensure_context(device)
        return prepared.run(pointers, _stream(device))

    def _prepare(
        self, tensors: Sequence[torch.Tensor], key: Any
    ) -> tuple[Prepared, int, apart.Given | None]:
        if len(tensors) != len(self._open):
            given = self.native.given
            wanted = ", ".join(
                f"{self.native.shown(at)} {given[at].dtype} {shape_shown(given[at].shape)}"
                for at in self._open
            )
            raise TypeError(f"{len(tensors)} inputs, not {len(self._open)}: {wanted}")
        whole = {**self._fixed, **dict(zip(self._open, tensors))}
        inputs = [whole[at] for at in range(len(self.native.given))]
        device, call = self._check(inputs)
        with torch.cuda.device(device):
            cuda_driver.ensure_context(device.index)
            prepared = Prepared(self.native.loaded(device), call)
        # A fixed input is where it is for good.
        fixed = {at: tensor.data_ptr() for at, tensor in self._fixed.items()}
        prepared.place([*fixed.items()])
        places = None
        if self._apart is not None:
            found = ((at, apart.place(inputs[at])) for at in self._open)
            # What is empty shares nothing, wherever it is.
            nothing = apart.Place(device, 0, apart.Form(0, (), 0))
            places = apart.Given(self._apart, [(at, place or nothing) for at, place in found])
        while len(self._prepared) >= _MOST_PREPARED:
            self._prepared.pop(next(iter(self._prepared)), None)
        self._prepared[key] = ready = prepared, device.index, places
        return ready

    def _check(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.device, plan.Call]:
        for at, tensor in enumerate(tensors):
            wanted = self.native.given[at]
            if not isinstance(tensor, torch.Tensor):
                raise self._wrong(at, f"is no tensor but a {type(tensor).__name__}")
            if tensor.dtype != DTYPES[wanted.dtype]:
                raise self._wrong(at, f"has elements of {tensor.dtype}, not {DTYPES[wanted.dtype]}")
        shapes = [tensor.shape for tensor in tensors]
        call = self.native.program.call(self.native.named, shapes)
        self.refuse_shared([tensors[at] for at in self._open])
        device = None
        for at, (tensor, layout) in enumerate(zip(tensors, call.inputs)):
            why = _elsewhere(tensor, layout, device)
            if why is not None:
                raise self._wrong(at, why)
            device = tensor.device
        if device is None:
            device = torch.device("cuda", torch.cuda.current_device())
        return device, call

    def _refuse_gradients(self, tensors: Sequence[torch.Tensor]) -> None:
        if self._needs_grad or any([tensor.requires_grad for tensor in tensors]):  # noqa: C419
            raise ValueError(
                "an input requires a gradient, and there is none: call it under torch.no_grad()"
            )

    def refuse_shared(self, tensors: Sequence[torch.Tensor]) -> None:
        """Refuse inputs, those that are not fixed, that share memory which a run writes to."""
        if not any(self._is_updated):
            return
        if self._apart is None:
            self._apart = apart.Apart(self._is_updated, self._fixed)
        places = ((at, apart.place(each)) for at, each in zip(self._open, tensors))
        self._refuse(self._apart.shared(places))

    def _refuse(self, pair: apart.Shared | None) -> None:
        if pair is not None:
            names = self.native.shown(pair.written), self.native.shown(pair.other)
            raise apart.refusal(pair, *names)

    def _wrong(self, at: int, why: str) -> ValueError:
        return ValueError(f"input {self.native.shown(at)} {why}")


class Graphed:
    """A run recorded as a CUDA graph, with inputs and outputs that stay where they are.

    A call copies its tensors there, unless they are ``inputs`` themselves, and
    returns the same tensors each time: what the call before returned is overwritten.
    """

    def __init__(self, bound: Callable[..., Any], example: Sequence[torch.Tensor]) -> None:
        """Run twice: once to load what is needed, once to record."""
        # What a run changes: fixed inputs, and those of its own that a call gets back.
        self._written = list(getattr(bound, "written", ()))
        self._changes = list(getattr(bound, "changes", ()))
        with torch.no_grad():
            self.inputs = [tensor.detach().clone() for tensor in example]
            changing = [*self._written, *(self.inputs[at] for at in self._changes)]
            were = [(each, each.clone()) for each in changing]
            current = torch.cuda.current_stream()
            side = torch.cuda.Stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):
                bound(*self.inputs)
            current.wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self.outputs = bound(*self.inputs)
            # The run before the recording was nobody's.
            for mine, was in were:
                mine.copy_(was)
        # The graph has their addresses.
        self._bound = bound
        self._refuse_shared: Callable[..., None] | None = getattr(bound, "refuse_shared", None)

    def __call__(self, *tensors: torch.Tensor) -> Any:
        """Replay it for these inputs."""
        if len(tensors) != len(self.inputs):
            raise TypeError(f"{len(tensors)} inputs, not {len(self.inputs)}")
        # Its own were copied: they share nothing.
        if self._refuse_shared is not None and any(map(operator.is_not, tensors, self.inputs)):
            self._refuse_shared(tensors)
        for at, (mine, given) in enumerate(zip(self.inputs, tensors)):
            if given is mine:
                continue
            if given.shape != mine.shape or given.dtype != mine.dtype:
                recorded = f"{mine.dtype} {list(mine.shape)}"
                got = f"{given.dtype} {list(given.shape)}"
                raise ValueError(f"input {at} is {got}: the graph was recorded for {recorded}")
            with torch.no_grad():
                mine.copy_(given)
        self._graph.replay()
        with torch.no_grad():
            for at in self._changes:
                if tensors[at] is not self.inputs[at]:
                    tensors[at].copy_(self.inputs[at])
        changed(*self._written)
        return self.outputs


def changed(*tensors: torch.Tensor) -> None:
    """Tell autograd that kernels that it does not know have written to these."""
    for tensor in tensors:
        if not tensor.is_inference():
            torch.autograd.graph.increment_version(tensor)


def _stream(device: int) -> int:
    """Return torch's current stream of ``device``."""
    # What Inductor's code calls: a stream's object costs more than a launch.
    raw = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return raw(device) if raw else torch.cuda.current_stream(device).cuda_stream


def _elsewhere(
    tensor: torch.Tensor, wanted: plan.Layout, device: torch.device | None
) -> str | None:
    """Say how ``tensor`` does not lie where and as the plan wants it."""
    # Where a dimension has one element its stride means nothing.
    steps = zip(tensor.shape, tensor.stride(), wanted.strides)
    if 0 not in tensor.shape and any(size > 1 and step != want for size, step, want in steps):
        return f"has strides {list(tensor.stride())}, not {list(wanted.strides)}"
    if tensor.device.type != "cuda":
        return f"is on {tensor.device}, not on a GPU"
    if device is not None and tensor.device != device:
        return f"is on {tensor.device}, others on {device}"
    if tensor.data_ptr() % ALIGNMENT:
        return f"does not start at a multiple of {ALIGNMENT} bytes"
    return None
