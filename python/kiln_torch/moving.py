"""Moves what Inductor compiled for one GPU to another: code, kernels and fields.

Invariant: what is returned is for the GPU that was asked for alone, and what was given
is left as it was; what cannot be moved, or is not seen through, is ``Refused``.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
import pickle
import re
from typing import TYPE_CHECKING, Any

import torch
from torch._inductor.codecache import get_hash
from torch._inductor.cudagraph_utils import BoxedDeviceIndex
from torch._inductor.output_code import CompiledFxGraph
from torch._inductor.runtime.hints import DeviceProperties

from . import device_text
from .device_text import Refused
from .devices import GPU

if TYPE_CHECKING:
    from collections.abc import Callable

# Of what was compiled: for those who read logs. Nothing runs it.
_TOLD = (
    "runnable_graph_str",
    "inductor_post_grad_graph_str",
    "inductor_provenance_mapping_str",
    "inductor_provenance_stack_traces_str",
    "aot_joint_graph_str",
    "aot_forward_graph_str",
    "aot_backward_graph_str",
)
_TOLD_INDEX = re.compile(rf"(\b{GPU}:|\btype='{GPU}', index=)\d+")


def on(graph: CompiledFxGraph) -> set[int]:
    """Return the indices of the GPUs that a compiled graph is for."""
    return set(graph.device_idxs) if GPU in graph.device_types else set()


def _whole(move: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
    """Refuse what another torch has in other places."""

    @functools.wraps(move)
    def refusing(made: Any, index: int) -> Any:
        try:
            return move(made, index)
        except Refused:
            raise
        except Exception as error:
            raise Refused(f"not as it is known here: {error!r}") from error

    return refusing


@_whole
def graph(compiled: CompiledFxGraph, index: int) -> CompiledFxGraph:
    """Return a compiled graph for GPU ``index``; as it is loaded, or saved: not to be called."""
    found = on(compiled)
    if found <= {index}:
        return compiled
    if len(found) > 1:
        raise Refused("a graph for several GPUs")
    if any(_on_gpu(each) for each in (compiled.constants or {}).values()):
        raise Refused("the graph holds tensors of its GPU")
    if compiled.torchbind_constants or getattr(compiled, "_serialized_original_gm", None):
        raise Refused("the graph holds more than code")
    source, kernels = device_text.moved(compiled.source_code, index)
    new = copy.copy(compiled)
    # Whose copy is deleted takes the original's partitions along.
    new.prepare_for_serialization()
    new.source_code = source
    # Names the file that is run: as `PyCodeCache.write` has it.
    new.cache_key = get_hash(source.strip())
    new.device_idxs = type(compiled.device_idxs)([index])
    new.fx_kwargs = {name: _boxed(each, index) for name, each in compiled.fx_kwargs.items()}  # type: ignore[assignment]
    new._triton_bundle = _bundle(compiled._triton_bundle, kernels, index)
    _tell(new, index)
    _check(new, index)
    return new


@_whole
def entry(cached: Any, index: int) -> Any:
    """Return an entry of AOTAutograd's cache for GPU ``index``: what is not its graphs."""
    new = copy.copy(cached)
    meta = cached.runtime_metadata
    if getattr(meta, "graphsafe_rng_state_index", None) not in (None, index):
        new.runtime_metadata = copy.copy(meta)
        new.runtime_metadata.graphsafe_rng_state_index = index
    if cached.serialized_bw_module is not None:
        new.serialized_bw_module = copy.copy(cached.serialized_bw_module)
        new.serialized_bw_module.args = _module(cached.serialized_bw_module.args, index)
    _tell(new, index)
    parts = {name: each for name, each in vars(new).items() if not name.startswith("compiled_")}
    _look(parts, index)
    return new


def _module(args: tuple[Any, ...], index: int) -> tuple[Any, ...]:
    """Return what a graph module is made of again, for the other GPU."""
    state, *rest = args
    if not isinstance(state, dict) or not isinstance(state.get("_code"), str):
        raise Refused("a module that is not code")
    code, _ = device_text.moved(state["_code"], index)
    return ({**state, "_code": code}, *rest)


def _bundle(bundle: Any, kernels: dict[str, str], index: int) -> Any:
    if bundle is None:
        return None
    from torch._inductor.async_compile import CompiledTritonKernels

    # A kernel that is ready to run is found by its source.
    keys = {CompiledTritonKernels.key(old): new for old, new in kernels.items()}
    ready = []
    for each in bundle.static_autotuners:
        if each.cache_key not in keys:
            raise Refused(f"the kernel {each.kernel_name} is not in the code")
        new = CompiledTritonKernels.key(keys[each.cache_key])
        moved = _autotuner(each.kernel, index)
        ready.append(dataclasses.replace(each, cache_key=new, kernel=moved))
    files = [
        dataclasses.replace(each, device=_index(each.device, index))
        for each in bundle.kernel_artifacts
    ]
    return dataclasses.replace(bundle, kernel_artifacts=files, static_autotuners=ready)


def _autotuner(kernel: Any, index: int) -> Any:
    new = copy.copy(kernel)
    before = kernel.device_props
    new.device_props = before._replace(index=_index(before.index, index))
    new.triton_meta = _with_device(kernel.triton_meta, index)
    new.compile_results = []
    for result in kernel.compile_results:
        again = copy.copy(result)
        again.compile_meta = _with_device(result.compile_meta, index)
        new.compile_results.append(again)
    return new


def _with_device(meta: dict[str, Any], index: int) -> dict[str, Any]:
    return {**meta, "device": _index(meta["device"], index)}


def _index(before: int | None, index: int) -> int | None:
    """Return the new index; a kernel without one is for any GPU."""
    return None if before is None else index


def _boxed(value: Any, index: int) -> Any:
    if isinstance(value, BoxedDeviceIndex) and value.value is not None:
        return BoxedDeviceIndex(index)
    return value


def _tell(made: Any, index: int) -> None:
    for name in _TOLD:
        text = getattr(made, name, None)
        if isinstance(text, str):
            setattr(made, name, _TOLD_INDEX.sub(rf"\g<1>{index}", text))


def _check(made: CompiledFxGraph, index: int) -> None:
    """Refuse if another GPU is left anywhere."""
    seen = copy.copy(made)
    seen._triton_bundle = None
    # Not its files: they are large, and have no GPU in them.
    ready = [] if made._triton_bundle is None else made._triton_bundle.static_autotuners
    _look([seen, *(each.kernel for each in ready)], index)


def _look(parts: Any, index: int) -> None:
    _Looking(index).dump(parts)


class _Looking(pickle.Pickler):
    """Sees all that would be pickled, and keeps nothing of it."""

    def __init__(self, index: int) -> None:
        super().__init__(_Nowhere())
        self._index = index

    def reducer_override(self, value: Any) -> Any:
        """Refuse a GPU that is not the one; else pickle as ever."""
        device: Any = None
        if isinstance(value, (torch.device, DeviceProperties)):
            device = value.index if value.type == GPU else None
        elif isinstance(value, BoxedDeviceIndex):
            device = value.value
        elif _on_gpu(value):
            raise Refused("a tensor of a GPU")
        if device not in (None, self._index):
            raise Refused(f"a field names GPU {device}")
        return NotImplemented


class _Nowhere(io.RawIOBase):
    def write(self, data: Any) -> int:
        return len(data)


def _on_gpu(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == GPU
