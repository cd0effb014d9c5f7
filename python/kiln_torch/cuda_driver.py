"""The few calls of the CUDA driver that run a module, through ctypes.

Invariant: the library is opened at the first use, not at import, and every
status is checked; contexts and streams are torch's.
"""

from __future__ import annotations

import ctypes
import threading
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_LIBRARY = "libcuda.so.1"
_MAX_DYNAMIC_SHARED = 8
# More than this a kernel gets only if it is asked for by attribute.
_PLAIN_SHARED = 48 << 10
MAP_BYTES = 128
# CUtensorMapDataType, CUtensorMapSwizzle, CUtensorMapL2promotion.
_MAP_TYPES = {
    "u8": 0,
    "bool": 0,
    "f8e4m3": 0,
    "f8e5m2": 0,
    "i32": 3,
    "i64": 5,
    "f16": 6,
    "f32": 7,
    "f64": 8,
    "bf16": 9,
}
_SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}
_PROMOTE_256 = 3
# CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, and the first driver (CUDA
# 12.3) whose graphs keep such launches as they are.
_SERIALIZATION = 6
_RECORDS_OVERLAPS = 12_030
# CU_MEMORYTYPE_DEVICE.
_DEVICE = 2
_THREAD = threading.local()


class CudaError(RuntimeError):
    """The driver refused, or is not there."""


class LaunchConfig(ctypes.Structure):
    """``CUlaunchConfig``."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    )


class LaunchAttribute(ctypes.Structure):
    """``CUlaunchAttribute``, of which a number is the value."""

    _fields_ = (
        ("id", ctypes.c_int),
        ("_pad", ctypes.c_char * 4),
        ("number", ctypes.c_int),
        ("_rest", ctypes.c_char * 60),
    )


class Rows(ctypes.Structure):
    """``CUDA_MEMCPY2D``."""

    _fields_ = (
        *[(f"source_{name}", ctypes.c_size_t) for name in ("x", "y")],
        ("source_type", ctypes.c_uint),
        ("source_host", ctypes.c_void_p),
        ("source", ctypes.c_uint64),
        ("source_array", ctypes.c_void_p),
        ("source_pitch", ctypes.c_size_t),
        *[(f"target_{name}", ctypes.c_size_t) for name in ("x", "y")],
        ("target_type", ctypes.c_uint),
        ("target_host", ctypes.c_void_p),
        ("target", ctypes.c_uint64),
        ("target_array", ctypes.c_void_p),
        ("target_pitch", ctypes.c_size_t),
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
    )


# The launch may begin before the one before it in its stream has ended.
OVERLAP = LaunchAttribute(_SERIALIZATION, b"", 1)


@lru_cache(maxsize=1)
def overlaps() -> bool:
    """Whether the driver takes launches with :data:`OVERLAP`."""
    version = ctypes.c_int()
    check(driver().cuDriverGetVersion(ctypes.byref(version)), "ask for the driver's version")
    return version.value >= _RECORDS_OVERLAPS


@lru_cache(maxsize=1)
def driver() -> ctypes.CDLL:
    """Open the driver, or say that there is none."""
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise CudaError(f"no CUDA driver on this machine: {error}") from error
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    arguments = {
        "cuDriverGetVersion": [pointer],
        "cuModuleLoadData": [pointer, ctypes.c_char_p],
        "cuModuleUnload": [pointer],
        # To, from, bytes, stream.
        "cuMemcpyDtoDAsync_v2": [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_size_t, pointer],
        "cuMemcpy2DAsync_v2": [pointer, pointer],
        "cuModuleGetFunction": [pointer, pointer, ctypes.c_char_p],
        "cuFuncSetAttribute": [pointer, integer, integer],
        # The configuration, the function, its arguments, and extra options.
        "cuLaunchKernelEx": [pointer] * 4,
        "cuTensorMapEncodeTiled": [
            *(pointer, integer, ctypes.c_uint, pointer, pointer, pointer, pointer, pointer),
            *[integer] * 4,
        ],
        "cuCtxGetCurrent": [pointer],
        "cuCtxSetCurrent": [pointer],
        "cuDevicePrimaryCtxRetain": [pointer, integer],
        "cuGetErrorString": [integer, ctypes.POINTER(ctypes.c_char_p)],
    }
    for name, types in arguments.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise CudaError(f"the CUDA driver is too old: it has no {name}") from error
        function.argtypes, function.restype = types, ctypes.c_int
    return library


def check(status: int, doing: str) -> None:
    """Raise if the driver failed."""
    if status:
        text = ctypes.c_char_p()
        driver().cuGetErrorString(status, ctypes.byref(text))
        said = (text.value or b"unknown error").decode()
        raise CudaError(f"CUDA failed ({doing}): {said} ({status})")


def ensure_context(device: int) -> None:
    """Make torch's context of ``device`` current in a thread that has none yet.

    The CUDA runtime does so in each thread at its first call, which may come later.
    """
    if getattr(_THREAD, "has_context", False):
        return
    context = ctypes.c_void_p()
    check(driver().cuCtxGetCurrent(ctypes.byref(context)), "ask for the context")
    if not context:
        retained = driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
        check(retained, "get the device's context")
        check(driver().cuCtxSetCurrent(context), "use the device's context")
    # From here on the runtime switches contexts when torch switches devices.
    _THREAD.has_context = True


class Module:
    """Machine code in the context that is current where it is made."""

    def __init__(self, cubin: bytes) -> None:
        """Load it."""
        self._handle = ctypes.c_void_p()
        loaded = driver().cuModuleLoadData(ctypes.byref(self._handle), cubin)
        check(loaded, "load the module")

    def function(self, name: str, shared_bytes: int) -> int:
        """Return the handle of kernel ``name``, ready for that much dynamic shared memory."""
        handle = ctypes.c_void_p()
        found = driver().cuModuleGetFunction(ctypes.byref(handle), self._handle, name.encode())
        check(found, f"find kernel {name}")
        if shared_bytes > _PLAIN_SHARED:
            asked = driver().cuFuncSetAttribute(handle, _MAX_DYNAMIC_SHARED, shared_bytes)
            check(asked, f"get {shared_bytes} bytes of shared memory for {name}")
        return handle.value or 0


def copy_rows(source: int, target: int, width: int, rows: int, pitch: int, stream: int) -> None:
    """Queue a copy of rows that begin ``pitch`` bytes apart, to where they are back to back."""
    if rows == 1 or pitch == width:
        copied = driver().cuMemcpyDtoDAsync_v2(target, source, width * rows, stream)
    else:
        told = Rows(source_type=_DEVICE, source=source, source_pitch=pitch)
        told.target_type, told.target, told.target_pitch = _DEVICE, target, width
        told.width, told.height = width, rows
        copied = driver().cuMemcpy2DAsync_v2(ctypes.byref(told), stream)
    check(copied, "copy an output")


def encode_map(
    into: int,
    start: int,
    dtype: str,
    sizes: Sequence[int],
    strides: Sequence[int],
    tile: Sequence[int],
    swizzle: int,
) -> None:
    """Write the descriptor of a tensor at ``start`` to address ``into``; ``strides`` in bytes."""
    if dtype not in _MAP_TYPES or swizzle not in _SWIZZLES:
        raise CudaError(f"no tensor map has elements of {dtype} and a swizzle of {swizzle}")
    if start % 16 or any(stride % 16 for stride in strides):
        raise CudaError("a tensor map whose rows start at no multiple of 16 bytes")
    rank = len(sizes)
    longs, words = ctypes.c_uint64 * rank, ctypes.c_uint32 * rank
    steps = words(*[1] * rank)
    # Strides: one fewer than sizes.
    status = driver().cuTensorMapEncodeTiled(
        into,
        _MAP_TYPES[dtype],
        rank,
        start,
        longs(*sizes),
        longs(*strides),
        words(*tile),
        steps,
        *(0, _SWIZZLES[swizzle], _PROMOTE_256, 0),
    )
    check(status, "encode a tensor map")
