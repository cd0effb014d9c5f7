#!/usr/bin/env python3
"""First-call seconds without Dynamo: torch's local folder against the cluster's packages.

usage: precompile.py KILN [--layers 16] [--tokens 256] [--runs 5] [--only PHASE ...]

Fresh processes of the Qwen3-shaped model (bf16, random weights). `local`: cold, then
a warm local folder. `torch`: torch's own precompile packages in a local folder.
`kiln`: KILN_PRECOMPILE=1, filled through node 1, then hit from node 2 with an empty
folder each. The seconds are those of `torch.compile(...)` and of the first call
together: a package is installed in the former. Prints one JSON line a process and a
table. Exits 1 where a hit traced, ran Triton's assembler or gave other numbers.

On the GPU machine, with kiln_torch (and its entry points) importable.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench import measured
from first_call import FirstCall

PHASES = ("local", "torch", "kiln")


def child(layers: int, tokens: int) -> None:
    """One fresh process: prints what its first call cost and what it traced."""
    began = time.perf_counter()
    import torch
    from qwen3 import Model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    torch.manual_seed(0)
    net = Model(layers).to(device=device, dtype=torch.bfloat16).eval()
    ids = torch.arange(tokens, device=device).reshape(1, tokens) % 32000
    with torch.no_grad():
        wait()
        built = time.perf_counter() - began
        began = time.perf_counter()
        compiled = torch.compile(net)
        made = time.perf_counter() - began
        began = time.perf_counter()
        out = compiled(ids)
        wait()
        first = time.perf_counter() - began
        for _ in range(5):
            compiled(ids)
        wait()
        began = time.perf_counter()
        for _ in range(50):
            compiled(ids)
        wait()
        each = (time.perf_counter() - began) / 50
        eager = net(ids)
        error = ((out.float() - eager.float()).norm() / eager.float().norm()).item()
    from torch._dynamo.utils import counters

    stats = {}
    if os.environ.get("KILN_ENDPOINT"):
        import kiln_torch
        from kiln_torch.precompile.publishing import busy

        while busy():
            time.sleep(0.02)
        stats = kiln_torch.stats()
    if os.environ.get("TORCH_CACHING_PRECOMPILE") == "1":
        from torch._dynamo.precompile_context import PrecompileContext

        PrecompileContext.save_to_dynamo_cache()
    told = {
        "compile_and_first": round(made + first, 3),
        "compile": round(made, 3),
        "first_call": round(first, 3),
        "a_call_ms": round(each * 1000, 3),
        "import_and_build": round(built, 3),
        "traces": counters["stats"]["unique_graphs"],
        "fxgraph_cache_hit": counters["inductor"]["fxgraph_cache_hit"],
        "fxgraph_cache_miss": counters["inductor"]["fxgraph_cache_miss"],
        "error": error,
        "output": hashlib.sha256(out.float().cpu().numpy().tobytes()).hexdigest()[:16],
        "kiln": dict(stats),
    }
    print(json.dumps(told), flush=True)


class Precompile(FirstCall):
    """The phases."""

    def start(self, name, door, node, namespace, cache, wipe=True, more=()):
        if wipe and cache.exists():
            shutil.rmtree(cache)
        cache.mkdir(parents=True, exist_ok=True)
        env = self.environment(cache, "kiln_torch" if door == "kiln" else "none", node, namespace)
        if door == "kiln":
            env["KILN_PRECOMPILE"] = "1"
        elif door == "torch":
            env["TORCH_CACHING_PRECOMPILE"] = "1"
        env |= dict(more)
        command = [sys.executable, __file__, "child", str(self.args.layers), str(self.args.tokens)]
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        return name, cache, process, time.perf_counter()

    def hit(self, name, door, node, namespace, cache, wipe):
        row = self.one(name, door, node, namespace, cache, fed=True, wipe=wipe)
        if door != "none" and row.get("traces"):
            self.failed = True

    def run(self):
        only = self.args.only or PHASES
        if "local" in only:
            cache = self.folder / "local"
            self.one("cold", "none", 0, "", cache)
            for _ in range(self.args.runs):
                self.hit("warm local folder", "none", 0, "", cache, wipe=False)
        if "torch" in only:
            cache = self.folder / "torch"
            self.one("torch's packages: fill", "torch", 0, "", cache)
            for _ in range(self.args.runs):
                self.hit("torch's packages: local", "torch", 0, "", cache, wipe=False)
        if "kiln" in only:
            cache = self.folder / "kiln"
            self.one("KILN_PRECOMPILE: fill", "kiln", 0, "precompile", cache)
            for _ in range(self.args.runs):
                self.hit("KILN_PRECOMPILE: hit", "kiln", 1, "precompile", cache, wipe=True)

    def table(self):
        phases = dict.fromkeys(name for name, _ in self.rows)
        heads = ("phase", "n", "compile + first call, s", "a call, ms", "traces")
        print("\n{:26} {:>2} {:>28} {:>11} {:>7}".format(*heads))
        for phase in phases:
            rows = [row for name, row in self.rows if name == phase]
            took = sorted(row["compile_and_first"] for row in rows)
            spread = f"{statistics.median(took):.3f} ({took[0]:.3f} to {took[-1]:.3f})"
            calls = statistics.median(row["a_call_ms"] for row in rows)
            traces = sorted({row["traces"] for row in rows})
            print(f"{phase:26} {len(rows):2} {spread:>28} {calls:11.3f} {traces!s:>7}")
        outputs = {row["output"] for _, row in self.rows}
        print(f"{len(outputs)} different outputs")


def main() -> int:
    if len(sys.argv) > 1 and sys.argv[1] == "child":
        child(int(sys.argv[2]), int(sys.argv[3]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kiln", type=Path)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=PHASES)
    args = parser.parse_args()
    return measured(Precompile, args)


if __name__ == "__main__":
    sys.exit(main())
