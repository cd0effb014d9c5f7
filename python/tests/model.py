"""A process that compiles a tiny model, and prints what its caches did as JSON.

Started by the tests with a cache folder of its own; WIDTH and GRAD vary the
model, READY, STALL and TELL are for tests in which several run at once.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

import torch
from torch._dynamo.utils import counters


class Block(torch.nn.Module):
    """Two layers; small, because the CPU's back end runs g++."""

    def __init__(self, width: int) -> None:
        """Make the weights."""
        super().__init__()
        self.up = torch.nn.Linear(width, 2 * width)
        self.down = torch.nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        return x + self.down(torch.nn.functional.gelu(self.up(x)))


def stall() -> None:
    """Stop in the middle of the compile: say so, and go on when told to."""
    from torch._inductor.graph import GraphLowering

    original = GraphLowering.compile_to_module

    def stalled(*given: object, **named: object) -> object:
        print("compiling", flush=True)
        sys.stdin.readline()
        return original(*given, **named)

    GraphLowering.compile_to_module = stalled


def tell_when_waiting() -> None:
    """Say so when this process waits for another's compile."""
    from kiln_torch import stats

    while not stats().get("waits"):
        time.sleep(0.02)
    print("waiting", flush=True)


def tell_when_asking() -> None:
    """Say so when unmodified PyTorch asks its remote cache for the first time."""
    from torch._inductor.remote_cache import RedisRemoteCacheBackend

    original = RedisRemoteCacheBackend._get

    def asking(*given: str) -> object:
        print("asking", flush=True)
        return original(*given)

    RedisRemoteCacheBackend._get = asking


def main() -> None:
    """Compile, run, report."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    width = int(os.environ.get("WIDTH", "16"))
    model, x = Block(width), torch.randn(4, width)
    if "STALL" in os.environ:
        stall()
    if "TELL" in os.environ and "KILN_ENDPOINT" in os.environ:
        threading.Thread(target=tell_when_waiting, daemon=True).start()
    elif "TELL" in os.environ:
        tell_when_asking()
    if "READY" in os.environ:
        # Torch is imported: start together.
        print("ready", flush=True)
        sys.stdin.readline()
    began = time.monotonic()
    compiled = torch.compile(model)
    if os.environ.get("GRAD") == "1":
        out = compiled(x)
        out.sum().backward()
    else:
        with torch.no_grad():
            out = compiled(x)
    seconds = time.monotonic() - began
    with torch.no_grad():
        difference = (out - model(x)).abs().max().item()
    report = {
        "seconds": seconds,
        "difference": difference,
        "out": out.detach().flatten().tolist(),
        "fx_hit": counters["inductor"]["fxgraph_cache_hit"],
        "fx_miss": counters["inductor"]["fxgraph_cache_miss"],
        "autograd_hit": counters["aot_autograd"]["autograd_cache_hit"],
        "autograd_miss": counters["aot_autograd"]["autograd_cache_miss"],
    }
    if "kiln_torch" in sys.modules:
        from kiln_torch import flush, stats

        flush()
        report["stats"] = stats()
    print("report " + json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
