"""A process that compiles small programs, and prints what was traced as JSON.

Started by the tests with a folder of its own and a file of cases. The functions are
in modules that the test wrote (PROGRAM_DIR), so that they can be edited between two
processes; each case imports them anew. Of a case, ``setup`` runs before the compile,
``before_call`` between that and the first call, ``after`` at its end.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
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


def run(case: dict[str, Any]) -> dict[str, Any]:
    """Compile, run, report."""
    from torch._dynamo import symbolic_convert
    from torch._dynamo.utils import counters

    for name in ("traced", "helpers"):
        sys.modules.pop(name, None)
    torch._dynamo.reset()
    # torch keeps the modules of the case before.
    getattr(symbolic_convert._import_module, "cache_clear", int)()
    counters.clear()
    import traced  # pyrefly: ignore

    torch.manual_seed(0)
    torch.set_num_threads(1)
    scope: dict[str, Any] = {
        "torch": torch,
        "traced": traced,
        "contexts": [],
        "options": {},
        "inputs": (torch.arange(8.0).reshape(2, 4) / 8,),
        "target": traced.make(),
    }
    exec(case.get("setup", ""), scope)  # noqa: S102
    scope["compiled"] = torch.compile(scope["target"], **scope["options"])
    exec(case.get("before_call", ""), scope)  # noqa: S102
    with contextlib.ExitStack() as stack:
        for context in scope["contexts"]:
            stack.enter_context(context)
        out = scope["compiled"](*scope["inputs"])
        expected = scope["target"](*scope["inputs"])
        difference = (out - expected).abs().max().item()
        if out.requires_grad:
            out.sum().backward()
    exec(scope.get("after", ""), scope)  # noqa: S102
    told = {
        "difference": difference,
        "out": out.detach().float().flatten().tolist(),
        "traces": counters["stats"]["unique_graphs"],
        "frames": counters["frames"]["total"],
        "fx_miss": counters["inductor"]["fxgraph_cache_miss"],
        "told": scope.get("told"),
    }
    exec(case.get("undo", ""), scope)  # noqa: S102
    return told


def main(file: str) -> None:
    """Run all cases of a file; what they publish, only the last one waits for."""
    from kiln_torch import report, stats

    read = json.loads(Path(file).read_text())
    if not read["publish"]:
        from kiln_torch.precompile import publishing

        publishing.Publisher.send = lambda *_: None  # pyrefly: ignore
    told = []
    for case in read["cases"]:
        report.reset()
        result = run(case)
        settle(stats)
        told.append({**result, "stats": stats()})
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
