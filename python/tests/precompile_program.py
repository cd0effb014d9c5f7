"""A process that compiles a small program, and prints what was traced as JSON.

Started by the tests with a folder of its own. The functions are in a module that
the test wrote (PROGRAM_DIR), so that it can be edited between two processes; the
code in the argument runs before the compile, that in the second before the call.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

sys.path.insert(0, os.environ["PROGRAM_DIR"])


# What becomes of a package.
ENDS = {f"precompile.{each}" for each in ("published", "already", "unpublished", "too_large")}
# A bound, not an expectation.
SOON = 60.0


def settle(stats: Callable[[], dict[str, int]]) -> None:
    """Wait for what is published in the background, where anything will be."""
    from kiln_torch.precompile.publishing import busy

    end = time.monotonic() + SOON
    while busy() and not ENDS & stats().keys() and time.monotonic() < end:
        time.sleep(0.02)


def main(setup: str = "", before_call: str = "") -> None:
    """Compile, run, report."""
    import traced  # pyrefly: ignore

    torch.manual_seed(0)
    torch.set_num_threads(1)
    scope: dict[str, Any] = {
        "torch": torch,
        "traced": traced,
        "contexts": [],
        "options": {},
        "inputs": (torch.arange(8.0).reshape(2, 4) / 8,),
        "calls": 1,
    }
    scope["target"] = traced.make()
    exec(setup, scope)  # noqa: S102
    compiled = torch.compile(scope["target"], **scope["options"])
    exec(before_call, scope)  # noqa: S102
    sums = []
    with contextlib.ExitStack() as stack:
        for context in scope["contexts"]:
            stack.enter_context(context)
        for _ in range(scope["calls"]):
            out = compiled(*scope["inputs"])
            expected = scope["target"](*scope["inputs"])
            sums.append((out - expected).abs().max().item())
        if out.requires_grad:
            out.sum().backward()
    exec(scope.get("after", ""), scope)  # noqa: S102
    from kiln_torch import stats
    from torch._dynamo.utils import counters

    settle(stats)

    told = {
        "difference": max(sums),
        "out": out.detach().float().flatten().tolist(),
        "traces": counters["stats"]["unique_graphs"],
        "frames": counters["frames"]["total"],
        "fx_miss": counters["inductor"]["fxgraph_cache_miss"],
        "fx_hit": counters["inductor"]["fxgraph_cache_hit"],
        "aot_miss": counters["aot_autograd"]["autograd_cache_miss"],
        "told": scope.get("told"),
        "stats": stats(),
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
