"""A process whose kernel does not compile, and that lives on with the error in hand."""

from __future__ import annotations

import gc
import json
import os
import sys
import time

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def scale(x, n, BLOCK: tl.constexpr):  # noqa: ANN001, ANN201, N803
    """Refuse large blocks, as kernels do that an autotuner tries."""
    tl.static_assert(BLOCK < 1024)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + at, tl.load(x + at, at < n) * 3.0, at < n)


def main() -> None:
    """Compile one kernel; say what came of it; wait for a line before the end."""
    # A server freezes or disables it: nothing may depend on when it runs.
    gc.disable()
    late = os.environ["FAILS"] == "late"
    signature = {"x": "*fp32", "n": "i32", "BLOCK": "constexpr"}
    constexprs = {"BLOCK": 64 if late else 1024}
    source = ASTSource(fn=scale, signature=signature, constexprs=constexprs)
    # Early: in the front end. Late: in the assembler, when files were put already.
    options = {"ptx_options": "--no-such-option"} if late else {}
    error: BaseException | None = None
    try:
        triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    except Exception as caught:
        # As a debugger does, or a logger, or an autotuner that collects errors.
        error = caught
    print("tried " + type(error).__name__, flush=True)
    sys.stdin.readline()
    from kiln_torch import stats

    # Bound, not expectation: what a process gives up, it gives up soon.
    end = time.monotonic() + 60
    while "abandoned" not in stats() and time.monotonic() < end:
        time.sleep(0.01)
    print("report " + json.dumps({"stats": stats()}), flush=True)
    del error


if __name__ == "__main__":
    main()
