"""One fresh process of first_call.py: prints what its first call cost and did, as JSON.

usage: first_child.py LAYERS TOKENS

FIRST_CALL_BACKEND names torch.compile's backend. FIRST_CALL_PHASES=1 times phases,
whose modules it imports before: its first call is not one to compare with others.
FIRST_CALL_PROFILE names a file for Python's own profile of the first call.
"""

from __future__ import annotations

import cProfile
import hashlib
import io
import json
import os
import pstats
import sys
import time
from pathlib import Path

WARM_MODULES = ("torch._inductor.compile_fx", "torch._inductor.standalone_compile")


def watched():
    """The phases, with the seconds that importing Inductor took, or ``None``."""
    if not os.environ.get("FIRST_CALL_PHASES"):
        return None, 0.0
    import importlib

    from phases import KILN, TORCH, Phases

    began = time.perf_counter()
    for name in WARM_MODULES:
        importlib.import_module(name)
    imported = time.perf_counter() - began
    phases = Phases()
    if os.environ.get("KILN_ENDPOINT"):
        phases.watch(KILN)
    phases.watch(TORCH)
    phases.watch_collector()
    return phases, imported


def profiled(call):
    """Run ``call``, under Python's profiler where that is asked for."""
    path = os.environ.get("FIRST_CALL_PROFILE")
    if not path:
        return call()
    profile = cProfile.Profile()
    result = profile.runcall(call)
    text = io.StringIO()
    stats = pstats.Stats(profile, stream=text)
    stats.sort_stats("tottime").print_stats(45)
    stats.sort_stats("cumulative").print_stats(150)
    Path(path).write_text(text.getvalue())
    if os.environ.get("FIRST_CALL_STATS"):
        stats.dump_stats(os.environ["FIRST_CALL_STATS"])
    return result


def main() -> None:
    layers, tokens = int(sys.argv[1]), int(sys.argv[2])
    began = time.perf_counter()
    import torch
    from qwen3 import Model

    torch_imported = time.perf_counter() - began
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    net = Model(layers).to(device=device, dtype=torch.bfloat16).eval()
    ids = torch.arange(tokens, device=device).reshape(1, tokens) % 32000
    with torch.no_grad():
        wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        wait()
        imported = time.perf_counter() - began
        phases, inductor_imported = watched()
        compiled = torch.compile(net, backend=os.environ.get("FIRST_CALL_BACKEND", "inductor"))

        def call():
            out = compiled(ids)
            wait()
            return out

        began = time.perf_counter()
        out = profiled(call)
        first = time.perf_counter() - began
        eager = net(ids)
        error = ((out.float() - eager.float()).norm() / eager.float().norm()).item()
    from torch._dynamo.utils import counters

    inductor, autograd = counters["inductor"], counters["aot_autograd"]
    stats = {}
    if os.environ.get("KILN_ENDPOINT"):
        import kiln_torch

        stats = kiln_torch.stats()
    row = {
        "first_call": round(first, 3),
        "torch_imported": round(torch_imported, 3),
        "import_and_build": round(imported, 3),
        "fxgraph_cache_hit": inductor["fxgraph_cache_hit"],
        "fxgraph_cache_miss": inductor["fxgraph_cache_miss"],
        "autograd_cache_hit": autograd["autograd_cache_hit"],
        "autograd_cache_miss": autograd["autograd_cache_miss"],
        "error": error,
        "output": hashlib.sha256(out.float().cpu().numpy().tobytes()).hexdigest()[:16],
        "kiln": dict(stats),
    }
    if phases is not None:
        row["inductor_imported"] = round(inductor_imported, 3)
        row["phases"] = phases.told()
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
