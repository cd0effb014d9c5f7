"""The few calls of the CUDA driver that run a module, through ctypes.

Invariant: the library is opened at the first use, not at import, and every
status is checked; contexts and streams are torch's.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

_LIBRARY = "libcuda.so.1"
_MAX_DYNAMIC_SHARED = 8
# More than this a kernel gets only if it is asked for by attribute.
_PLAIN_SHARED = 48 << 10


class CudaError(RuntimeError):
    """The driver refused, or is not there."""


@lru_cache(maxsize=1)
def _driver() -> ctypes.CDLL:
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise CudaError(f"no CUDA driver on this machine: {error}") from error
    pointer, unsigned = ctypes.c_void_p, ctypes.c_uint
    arguments = {
        "cuModuleLoadData": [ctypes.POINTER(pointer), ctypes.c_char_p],
        "cuModuleUnload": [pointer],
        "cuModuleGetFunction": [ctypes.POINTER(pointer), pointer, ctypes.c_char_p],
        "cuFuncSetAttribute": [pointer, ctypes.c_int, ctypes.c_int],
        "cuLaunchKernel": [pointer, *[unsigned] * 7, pointer, ctypes.POINTER(pointer), pointer],
        "cuCtxGetCurrent": [ctypes.POINTER(pointer)],
        "cuCtxSetCurrent": [pointer],
        "cuDevicePrimaryCtxRetain": [ctypes.POINTER(pointer), ctypes.c_int],
        "cuGetErrorString": [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)],
    }
    for name, types in arguments.items():
        function = getattr(driver, name)
        function.argtypes, function.restype = types, ctypes.c_int
    return driver


def _check(status: int, doing: str) -> None:
    if status:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(text))
        said = (text.value or b"unknown error").decode()
        raise CudaError(f"CUDA failed ({doing}): {said} ({status})")


def ensure_context(device: int) -> None:
    """Make torch's context of ``device`` current in a thread that has none yet.

    The CUDA runtime does so in each thread at its first call, which may come later.
    """
    context = ctypes.c_void_p()
    _check(_driver().cuCtxGetCurrent(ctypes.byref(context)), "ask for the context")
    if not context:
        retained = _driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
        _check(retained, "get the device's context")
        _check(_driver().cuCtxSetCurrent(context), "use the device's context")


class Module:
    """Machine code in the context that is current where it is made."""

    def __init__(self, cubin: bytes) -> None:
        """Load it."""
        self._handle = ctypes.c_void_p()
        loaded = _driver().cuModuleLoadData(ctypes.byref(self._handle), cubin)
        _check(loaded, "load the module")

    def function(self, name: str, shared_bytes: int) -> Function:
        """Return the kernel ``name``, ready for that much dynamic shared memory."""
        handle = ctypes.c_void_p()
        found = _driver().cuModuleGetFunction(ctypes.byref(handle), self._handle, name.encode())
        _check(found, f"find kernel {name}")
        if shared_bytes > _PLAIN_SHARED:
            asked = _driver().cuFuncSetAttribute(handle, _MAX_DYNAMIC_SHARED, shared_bytes)
            _check(asked, f"get {shared_bytes} bytes of shared memory for {name}")
        return Function(name, handle)


class Function:
    """One kernel."""

    def __init__(self, name: str, handle: ctypes.c_void_p) -> None:
        """Take over a handle."""
        self._name = name
        self._handle = handle

    def launch(
        self,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared_bytes: int,
        stream: int,
        arguments: ctypes.Array[ctypes.c_void_p],
    ) -> None:
        """Launch on ``stream``; the arguments' values are taken before this returns."""
        status = _driver().cuLaunchKernel(
            self._handle, *grid, *block, shared_bytes, stream, arguments, None
        )
        _check(status, f"launch {self._name}")
