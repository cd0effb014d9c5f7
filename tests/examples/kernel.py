"""A Triton kernel of one's own, shared by all processes of a cluster. NEEDS A GPU.

    export KILN_ENDPOINT=http://127.0.0.1:7400
    export TRITON_CACHE_MANAGER=triton.runtime.cache:RemoteCacheManager
    export TRITON_REMOTE_CACHE_BACKEND=kiln_torch.triton:KilnBackend
    python kernel.py

Without a GPU Triton has nothing to launch it on; `python kernel.py --compile-only` compiles it
for sm_90 there, through the same cache.
"""

import sys

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def saxpy(x, y, n, a, BLOCK: tl.constexpr):  # noqa: ANN001, ANN201, N803
    """Adds a * x to y."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    total = a * tl.load(x + at, mask=inside) + tl.load(y + at, mask=inside)
    tl.store(y + at, total, mask=inside)


def compile_only() -> None:
    """Machine code for Hopper, without a device."""
    signature = {"x": "*fp32", "y": "*fp32", "n": "i32", "a": "fp32", "BLOCK": "constexpr"}
    source = ASTSource(fn=saxpy, signature=signature, constexprs={"BLOCK": 1024})
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    print(f"{len(kernel.asm['cubin'])} bytes for sm_90")


def launch() -> None:
    """Runs it and compares it with PyTorch."""
    x, y = torch.randn(2, 1 << 20, device="cuda")
    wanted = 2.0 * x + y
    saxpy[(triton.cdiv(x.numel(), 1024),)](x, y, x.numel(), 2.0, BLOCK=1024)
    torch.testing.assert_close(y, wanted)
    print("saxpy on the GPU is right")


if __name__ == "__main__":
    compile_only() if "--compile-only" in sys.argv else launch()
