"""NVRTC and the CUDA driver by ctypes: what `measure.py` compiles and launches with."""

import ctypes
import glob
import os
import sys


def _library(names, folders):
    for folder in folders:
        for name in names:
            for path in sorted(glob.glob(os.path.join(folder, name)), reverse=True):
                return ctypes.CDLL(path)
    raise SystemExit(f"not found: {names[0]} in {folders}")


def _check(code, what):
    if code != 0:
        raise RuntimeError(f"{what}: error {code}")


class Nvrtc:
    """Compiles CUDA C++ for one architecture."""

    def __init__(self, target="sm_90a"):
        folders = [os.environ.get("KILN_NVRTC_DIR", "")] + glob.glob("/usr/local/cuda*/lib64")
        for path in sys.path:
            folders += glob.glob(os.path.join(path, "nvidia/*/lib"))
        self.library = _library(["libnvrtc.so.1[23]"], folders)
        self.target = target

    def cubin(self, source):
        program = ctypes.c_void_p()
        library, size = self.library, ctypes.c_size_t()
        create = library.nvrtcCreateProgram
        _check(create(ctypes.byref(program), source.encode(), b"k.cu", 0, None, None), "create")
        options = [f"--gpu-architecture={self.target}", "--std=c++17", "--no-cache"]
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = library.nvrtcCompileProgram(program, len(options), array)
        if failed:
            library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            library.nvrtcGetProgramLog(program, log)
            raise RuntimeError(log.value.decode())
        _check(library.nvrtcGetCUBINSize(program, ctypes.byref(size)), "size")
        cubin = ctypes.create_string_buffer(size.value)
        _check(library.nvrtcGetCUBIN(program, cubin), "cubin")
        library.nvrtcDestroyProgram(ctypes.byref(program))
        return cubin.raw


class Kernel:
    """One kernel of a module in the current context."""

    def __init__(self, cubin, name, shared):
        self.cuda = ctypes.CDLL("libcuda.so.1")
        module, self.function, self.shared = ctypes.c_void_p(), ctypes.c_void_p(), shared
        _check(self.cuda.cuModuleLoadData(ctypes.byref(module), cubin), "load")
        get = self.cuda.cuModuleGetFunction
        _check(get(ctypes.byref(self.function), module, name.encode()), "function")
        _check(self.cuda.cuFuncSetAttribute(self.function, 8, shared), "shared memory")

    def launch(self, grid, threads, arguments, stream):
        """`arguments`: ctypes values, in order."""
        array = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
        launched = self.cuda.cuLaunchKernel(
            self.function,
            grid,
            1,
            1,
            threads,
            1,
            1,
            self.shared,
            ctypes.c_void_p(stream),
            array,
            None,
        )
        _check(launched, "launch")

    def tensor_map(self, pointer, sizes, pitch, tile, half):
        """128 bytes at a multiple of 64, swizzled by 128; `sizes` inner dimension first."""
        held = (ctypes.c_uint8 * 192)()
        start = -ctypes.addressof(held) % 64
        encoded = (ctypes.c_uint8 * 128).from_buffer(held, start)
        encode = self.cuda.cuTensorMapEncodeTiled
        u64, u32 = ctypes.c_uint64, ctypes.c_uint32
        failed = encode(
            ctypes.c_void_p(ctypes.addressof(encoded)), 6 if half else 9, 2,
            ctypes.c_void_p(pointer), (u64 * 2)(*sizes), (u64 * 1)(pitch), (u32 * 2)(*tile),
            (u32 * 2)(1, 1), 0, 3, 2, 0,
        )  # fmt: skip
        _check(failed, "tensor map")
        return encoded
