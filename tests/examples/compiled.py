"""A program that compiles a model with torch.compile and says what it cost: no line is about Kiln.

Needs PyTorch 2.11 or later and a C++ compiler, no GPU. Run it twice with KILN_ENDPOINT set and
kiln_torch installed (`pip install ./python`): the second process takes what the first compiled.
"""

import time

import torch
from torch import nn
from torch._dynamo.utils import counters

model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.LayerNorm(512), nn.Linear(512, 256)).eval()
x = torch.randn(16, 256)

began = time.monotonic()
with torch.no_grad():
    torch.compile(model)(x)
seconds = time.monotonic() - began

hits, misses = (counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss"))
hits += counters["aot_autograd"]["autograd_cache_hit"]
print(f"first call {seconds:.2f} s: {'compiled' if misses else 'from the cache'} ({hits} hits)")
