"""A process that compiles a model with ``backend="kiln"``, and tells how. Prints one JSON line."""

from __future__ import annotations

import json
import sys
import time

import kiln_torch
import torch
from torch import nn
from torch._dynamo.utils import counters

WIDTH = 48


class Model(nn.Module):
    """Some fusible arithmetic and a buffer that is written to."""

    def __init__(self) -> None:
        """Make random weights."""
        super().__init__()
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.norm = nn.LayerNorm(2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute."""
        self.seen += x.shape[0]
        return x + self.down(torch.nn.functional.gelu(self.norm(self.up(x))))


def infer() -> list[float]:
    """Run three batch sizes: the first is static, the others one dynamic graph."""
    torch.manual_seed(0)
    model = Model().eval()
    compiled = torch.compile(model, backend="kiln")
    sums, rows = [], 0
    with torch.no_grad():
        for batch in (8, 16, 24):
            x = torch.randn(batch, WIDTH, generator=torch.Generator().manual_seed(batch))
            got = compiled(x)
            rows += batch
            assert model.seen.item() == rows, "the buffer was not written to"
            torch.testing.assert_close(got, model(x), atol=1e-5, rtol=1e-5)
            model.seen.fill_(rows)
            sums.append(got.double().sum().item())
    return sums


def train() -> list[float]:
    """Take a step: the gradients are those of eager mode."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 1))
    x = torch.randn(8, WIDTH)
    expected = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    compiled = torch.compile(model, backend="kiln")
    got = torch.autograd.grad(compiled(x).sum(), list(model.parameters()))
    for ours, theirs in zip(got, expected):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    return [each.double().sum().item() for each in got]


def special(**how: object) -> list[float]:
    """Compile for inference in a way that has no key of Kiln's own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 1)).eval()
    x = torch.randn(8, WIDTH)
    with torch.no_grad():
        got = torch.compile(model, backend="kiln", **how)(x)
        torch.testing.assert_close(got, model(x), atol=1e-5, rtol=1e-5)
    return [got.double().sum().item()]


SPECIAL = {
    "overhead": {"mode": "reduce-overhead"},
    "freezing": {"options": {"freezing": True}},
}


def main() -> None:
    """Do what the arguments say: "mega TAG", "train", one of SPECIAL, or infer."""
    started = time.monotonic()
    tag = sys.argv[2] if sys.argv[1:2] == ["mega"] else None
    loaded = tag is not None and kiln_torch.load_mega_cache(tag)
    if sys.argv[1:2] == ["train"]:
        sums = train()
    elif sys.argv[1:] and sys.argv[1] in SPECIAL:
        sums = special(**SPECIAL[sys.argv[1]])
    else:
        sums = infer() if tag is None else plain()
    saved = tag is not None and not loaded and kiln_torch.save_mega_cache(tag)
    kiln_torch.flush()
    told = {
        "sums": sums,
        "seconds": round(time.monotonic() - started, 2),
        "stats": kiln_torch.stats(),
        "inductor": dict(counters["inductor"]),
        "autograd": dict(counters["aot_autograd"]),
        "mega": [loaded, saved],
    }
    print(json.dumps(told))


def plain() -> list[float]:
    """Compile with Inductor itself."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 1)).eval()
    x = torch.randn(8, WIDTH)
    with torch.no_grad():
        got = torch.compile(model)(x)
        torch.testing.assert_close(got, model(x), atol=1e-5, rtol=1e-5)
    return [got.double().sum().item()]


if __name__ == "__main__":
    main()
