"""A process that compiles an sm_90 matmul without a GPU, and prints what came of it."""

from __future__ import annotations

import hashlib
import json
import os
import time

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def matmul(a, b, c, n, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):  # noqa: ANN001, ANN201, N803
    """Multiply tiles on the tensor cores."""
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.program_id(1) * N + tl.arange(0, N)
    inner = tl.arange(0, K)
    total = tl.zeros((M, N), dtype=tl.float32)
    for step in range(0, k, K):
        left = tl.load(a + row[:, None] * k + (step + inner)[None, :])
        right = tl.load(b + (step + inner)[:, None] * n + column[None, :])
        total += tl.dot(left, right)
    tl.store(c + row[:, None] * n + column[None, :], total)


def compiled(tile: int) -> tuple[float, bytes]:
    """Compile one variant; return seconds and CUBIN."""
    signature = {"a": "*fp16", "b": "*fp16", "c": "*fp32", "n": "i32", "k": "i32"}
    signature.update(M="constexpr", N="constexpr", K="constexpr")
    source = ASTSource(fn=matmul, signature=signature, constexprs={"M": 64, "N": 64, "K": tile})
    began = time.monotonic()
    options = {"num_stages": int(os.environ.get("STAGES", "3"))}
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    return time.monotonic() - began, kernel.asm["cubin"]


def main() -> None:
    """Compile one to import all and hash Triton itself; what follows is measured."""
    first, _ = compiled(16)
    seconds, cubin = compiled(32)
    from kiln_torch import flush, stats

    flush()
    report = {
        "first": first,
        "seconds": seconds,
        "cubin": hashlib.sha256(cubin).hexdigest(),
        "size": len(cubin),
        "stats": stats(),
    }
    print("report " + json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
