"""Modules on one device, and its launches made ready for inputs of certain shapes.

Invariant: what a launch reads was written before it, under a lock: its arguments'
values lie in memory of this module, and change only where a tensor moved.
"""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING

import torch

from . import cuda_driver, plan
from .copying import strips

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .program import Program

DTYPES = {
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
    "f8e4m3": torch.float8_e4m3fn,
    "f8e5m2": torch.float8_e5m2,
}
_WORD = ctypes.sizeof(ctypes.c_uint64)


class Loaded:
    """A program in the context of one device."""

    def __init__(self, told: Program, device: torch.device) -> None:
        """Load it there; equal machine code is loaded once."""
        self.plan = told.plan
        self.device = device
        self._modules: dict[bytes, cuda_driver.Module] = {}
        self.functions = []
        for code in told.codes:
            module = self._modules.get(code.cubin)
            if module is None:
                module = self._modules[code.cubin] = cuda_driver.Module(code.cubin)
            self.functions += [module.function(k.name, k.shared_bytes) for k in code.kernels]


class Prepared:
    """All launches of one call, for inputs of certain shapes."""

    def __init__(self, loaded: Loaded, call: plan.Call) -> None:
        """Lay out the arguments; pointers come with the first run."""
        told = loaded.plan
        self._device = loaded.device
        self._lock = threading.Lock()
        self._outputs = [
            (layout.shape, layout.strides, DTYPES[tensor.dtype])
            for tensor, layout in zip(told.outputs, call.outputs)
        ]
        self._scratch_bytes = call.workspace_bytes
        # Bases: the inputs that are given, the outputs, the workspace.
        inputs = {at: base for base, at in enumerate(told.given)}
        self._first_output = len(inputs)
        self._scratch = len(inputs) + len(told.outputs)
        self._starts = [-1] * (self._scratch + 1)
        # For each base: where its pointers go, and the maps that start there.
        self._slots: list[list[tuple[int, int]]] = [[] for _ in self._starts]
        self._maps: list[list[tuple[int, plan.Tile]]] = [[] for _ in self._starts]

        def base(pointer: plan.Pointer) -> int:
            if pointer.base == "workspace":
                return self._scratch
            if pointer.base == "output":
                return self._first_output + pointer.at
            return inputs[pointer.at]

        values = [value for launch in call.launches for value in launch.values]
        maps = sum(isinstance(value, plan.Tile) for value in values)
        self._words = (ctypes.c_uint64 * max(len(values), 1))()
        # Tensor maps start at multiples of their size.
        self._map_room = (ctypes.c_uint8 * (cuda_driver.MAP_BYTES * (maps + 1)))()
        next_map = -(-ctypes.addressof(self._map_room) // cuda_driver.MAP_BYTES)
        self._pointers, self._configs, self._launches = [], [], []
        word, start = 0, ctypes.addressof(self._words)
        for launch in call.launches:
            addresses = []
            for value in launch.values:
                address = start + _WORD * word
                if isinstance(value, plan.Pointer):
                    self._slots[base(value)].append((word, value.offset))
                elif isinstance(value, plan.Tile):
                    address = next_map * cuda_driver.MAP_BYTES
                    self._maps[base(value.start)].append((address, value))
                    next_map += 1
                else:
                    self._words[word] = value & (2**64 - 1)
                addresses.append(address)
                word += 1
            kernel = told.kernels[launch.kernel]
            pointers = (ctypes.c_void_p * max(len(addresses), 1))(*addresses)
            config = cuda_driver.LaunchConfig(launch.grid, kernel.block, kernel.shared_bytes)
            # The first one follows what others queued.
            follows = bool(self._configs) and not launch.begins
            if kernel.overlaps and follows and cuda_driver.overlaps():
                config.attributes = ctypes.addressof(cuda_driver.OVERLAP)
                config.attribute_count = 1
            self._pointers.append(pointers)
            self._configs.append(config)
            self._launches.append(
                (
                    ctypes.addressof(config),
                    loaded.functions[launch.kernel],
                    ctypes.addressof(pointers),
                    kernel.name,
                )
            )
        # Where from, where to, and which bytes.
        self._copies = [
            (base(copy.source), self._first_output + copy.output, strip)
            for copy in call.copies
            for strip in strips(copy.layout, copy.width)
        ]
        self._stream = 0
        self._launch: Callable[..., int] = cuda_driver.driver().cuLaunchKernelEx

    def run(
        self, inputs: Sequence[tuple[int, int]], stream: int
    ) -> tuple[torch.Tensor, ...] | torch.Tensor:
        """Launch on ``stream``; ``inputs`` are bases and addresses, those that may have moved."""
        device = self._device
        outputs = tuple(
            [
                torch.empty_strided(shape, strides, dtype=dtype, device=device)
                for shape, strides, dtype in self._outputs
            ]
        )
        scratch = None
        if self._scratch_bytes:
            scratch = torch.empty(self._scratch_bytes, dtype=torch.uint8, device=device)
        with self._lock:
            starts = self._starts
            for base, start in inputs:
                if starts[base] != start:
                    self._move(base, start)
            for base, output in enumerate(outputs, self._first_output):
                start = output.data_ptr()
                if starts[base] != start:
                    self._move(base, start)
            if scratch is not None:
                start = scratch.data_ptr()
                if starts[self._scratch] != start:
                    self._move(self._scratch, start)
            if self._stream != stream:
                for config in self._configs:
                    config.stream = stream
                self._stream = stream
            launch = self._launch
            for config_at, function, pointers_at, name in self._launches:
                status = launch(config_at, function, pointers_at, None)
                if status:
                    cuda_driver.check(status, f"launch {name}")
            for source, target, strip in self._copies:
                at = starts[source] + strip.source, starts[target] + strip.target
                cuda_driver.copy_rows(*at, strip.width, strip.rows, strip.pitch, stream)
        return outputs[0] if len(outputs) == 1 else outputs

    def place(self, inputs: Sequence[tuple[int, int]]) -> None:
        """Set inputs that stay where they are: bases and addresses."""
        with self._lock:
            for base, start in inputs:
                self._move(base, start)

    def _move(self, base: int, start: int) -> None:
        for word, offset in self._slots[base]:
            self._words[word] = start + offset
        for address, tile in self._maps[base]:
            cuda_driver.encode_map(
                address,
                start + tile.start.offset,
                *(tile.dtype, tile.sizes, tile.strides, tile.tile, tile.swizzle),
            )
        self._starts[base] = start
