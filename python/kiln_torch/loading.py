"""``kiln_torch.load``: a compiled artifact as a callable over torch tensors.

Artifacts of the native compiler (``module.cubin`` and ``plan.json``) run through
the CUDA driver on torch's current stream; standalone artifacts of Inductor
through torch.

Invariant: nothing is launched unless every tensor has the type, sizes, strides,
device and alignment of the plan; nothing is copied, and all memory is torch's.
"""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import cuda_driver, plan
from .client import Client
from .manifest import Artifact
from .plan import ALIGNMENT
from .sizes import BrokenArtifact, shape_shown
from .standalone import BINARY, load_binary

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeAlias

    Source: TypeAlias = str | bytes | Path | Artifact

CUBIN = "module.cubin"
PLAN = "plan.json"
_DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}
_KEY_BYTES = 32


def load(source: Source) -> Callable[..., Any]:
    """Load an artifact: a key (bytes or hex), what ``Client.fetch`` gave, or a folder.

    A folder is what ``kiln get KEY -o DIR`` or ``kiln compile -o DIR`` wrote.
    ``KeyError``: the cluster has none. ``BrokenArtifact``: fetch it again.
    """
    files, artifact = _files(source)
    if BINARY in files:
        loaded: Callable[..., Any] = load_binary(bytes(files[BINARY]))
    else:
        missing = [name for name in (CUBIN, PLAN) if name not in files]
        if missing:
            raise BrokenArtifact(f"it has no {missing[0]}: nothing that can be loaded")
        loaded = Native(bytes(files[CUBIN]), bytes(files[PLAN]))
    client = Client.from_env()
    if artifact is not None and client is not None:
        client.loaded([artifact.key])
    return loaded


class Native:
    """A graph that the native compiler compiled: call it with all of its inputs.

    They are those of the exported program, in its order: parameters, buffers,
    arguments; ``bind`` fixes the first of them. Returns a tensor, or a tuple of
    them where the graph has several outputs.
    """

    def __init__(self, cubin: bytes, plan_json: bytes) -> None:
        """Check both files; the module is loaded on each device at its first call."""
        self.plan = plan.read(plan_json)
        if not cubin.startswith(b"\x7fELF"):
            raise BrokenArtifact(f"{CUBIN}: no machine code")
        self._cubin = cubin
        self._given = [self.plan.inputs[at] for at in self.plan.given]
        unknown = {t.dtype for t in (*self._given, *self.plan.outputs)} - _DTYPES.keys()
        if unknown:
            raise BrokenArtifact(f"{PLAN}: element types {sorted(unknown)}")
        self._lock = threading.Lock()
        self._on: dict[int, _OnDevice] = {}

    def bind(self, *first: torch.Tensor) -> Callable[..., Any]:
        """Fix the first inputs, parameters for example; they are held, not copied."""

        def bound(*rest: torch.Tensor) -> Any:
            return self(*first, *rest)

        return bound

    def __call__(self, *tensors: torch.Tensor) -> Any:
        """Run once, on torch's current stream of the tensors' device."""
        device, call = self._check(tensors)
        with torch.cuda.device(device):
            cuda_driver.ensure_context(device.index)
            ready = self._ready(device)
            outputs = [
                torch.empty_strided(
                    layout.shape, layout.strides, dtype=_DTYPES[t.dtype], device=device
                )
                for t, layout in zip(self.plan.outputs, call.outputs)
            ]
            scratch = torch.empty(call.workspace_bytes, dtype=torch.uint8, device=device)
            stream = torch.cuda.current_stream(device).cuda_stream
            ready.run(call, tensors, outputs, scratch, stream)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _check(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.device, plan.Call]:
        if len(tensors) != len(self._given):
            wanted = ", ".join(
                f"{t.name} ({t.kind} {t.dtype} {shape_shown(t.shape)})" for t in self._given
            )
            raise TypeError(f"{len(tensors)} inputs, not {len(self._given)}: {wanted}")
        for tensor, wanted in zip(tensors, self._given):
            why = _unlike(tensor, wanted)
            if why is not None:
                raise ValueError(f"input {wanted.name} ({wanted.kind}) {why}")
        call = plan.call(self.plan, [tensor.shape for tensor in tensors])
        device = None
        for tensor, wanted, layout in zip(tensors, self._given, call.inputs):
            why = _elsewhere(tensor, layout, device)
            if why is not None:
                raise ValueError(f"input {wanted.name} ({wanted.kind}) {why}")
            device = tensor.device
        if device is None:
            device = torch.device("cuda", torch.cuda.current_device())
        return device, call

    def _ready(self, device: torch.device) -> _OnDevice:
        with self._lock:
            ready = self._on.get(device.index)
            if ready is None:
                capability = torch.cuda.get_device_capability(device)
                if not plan.runs_on(self.plan.target, capability):
                    here = f"sm_{capability[0]}{capability[1]}"
                    raise RuntimeError(
                        f"the artifact is for {self.plan.target}, {device} is {here}: "
                        f"compile with --target {here}"
                    )
                ready = self._on[device.index] = _OnDevice(self.plan, self._cubin)
            return ready


class _OnDevice:
    """The module on one device."""

    def __init__(self, told: plan.Plan, cubin: bytes) -> None:
        self._kernels = told.kernels
        self._module = cuda_driver.Module(cubin)
        self._functions = [self._module.function(k.name, k.shared_bytes) for k in told.kernels]
        # Inputs by their place among those given: constants are in the module.
        self._places = {at: place for place, at in enumerate(told.given)}

    def run(
        self,
        call: plan.Call,
        inputs: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
        scratch: torch.Tensor,
        stream: int,
    ) -> None:
        def word(value: object) -> int:
            if isinstance(value, int):
                return value
            if not isinstance(value, plan.Pointer):
                raise BrokenArtifact("tensor maps are not supported")
            if value.base == "input":
                start = inputs[self._places[value.at]].data_ptr()
            elif value.base == "output":
                start = outputs[value.at].data_ptr()
            else:
                start = scratch.data_ptr()
            return start + value.offset

        for launch in call.launches:
            words = (ctypes.c_int64 * max(len(launch.values), 1))(*map(word, launch.values))
            start, step = ctypes.addressof(words), ctypes.sizeof(ctypes.c_int64)
            pointers = [start + step * i for i in range(len(launch.values))]
            arguments = (ctypes.c_void_p * max(len(pointers), 1))(*pointers)
            kernel, function = self._kernels[launch.kernel], self._functions[launch.kernel]
            function.launch(launch.grid, kernel.block, kernel.shared_bytes, stream, arguments)


def _unlike(tensor: torch.Tensor, wanted: plan.Tensor) -> str | None:
    """Say how ``tensor`` is not what the plan wants."""
    if not isinstance(tensor, torch.Tensor):
        return f"is no tensor but a {type(tensor).__name__}"
    if tensor.dtype != _DTYPES[wanted.dtype]:
        return f"has elements of {tensor.dtype}, not {_DTYPES[wanted.dtype]}"
    return None


def _elsewhere(
    tensor: torch.Tensor, wanted: plan.Layout, device: torch.device | None
) -> str | None:
    """Say how ``tensor`` does not lie where and as the plan wants it."""
    # Where a dimension has one element its stride means nothing.
    steps = zip(tensor.shape, tensor.stride(), wanted.strides)
    if any(size > 1 and step != want for size, step, want in steps):
        return f"has strides {list(tensor.stride())}, not {list(wanted.strides)}"
    if tensor.device.type != "cuda":
        return f"is on {tensor.device}, not on a GPU"
    if device is not None and tensor.device != device:
        return f"is on {tensor.device}, others on {device}"
    if tensor.data_ptr() % ALIGNMENT:
        return f"does not start at a multiple of {ALIGNMENT} bytes"
    if tensor.requires_grad and torch.is_grad_enabled():
        return "requires a gradient, and there is none: call it under torch.no_grad()"
    return None


def _files(source: Source) -> tuple[Mapping[str, Any], Artifact | None]:
    if isinstance(source, Artifact):
        return source.files, source
    if not isinstance(source, bytes) and Path(source).is_dir():
        paths = [each for each in Path(source).iterdir() if each.is_file()]
        return {each.name: each.read_bytes() for each in paths}, None
    try:
        key = source if isinstance(source, bytes) else bytes.fromhex(str(source))
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise ValueError(f"neither a folder nor a key: {source!r}")
    client = Client.from_env()
    artifact = client.fetch(key) if client is not None else None
    if artifact is None:
        why = "KILN_ENDPOINT is not set" if client is None else "the cluster has no such artifact"
        raise KeyError(f"{key.hex()}: {why}")
    return artifact.files, artifact
