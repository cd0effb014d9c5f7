"""What bench_native.py measures: modules in bf16 and their arguments.

Invariant: the same case on the same device is the same numbers, whoever asks for it.
"""

from __future__ import annotations

ROWS, COLUMNS, LAYERS = 16384, 8192, 16


def case(name: str, device: str, small: bool):
    """The module in bf16, its arguments, and the bytes that it must move, if that bounds it."""
    if name.partition("-")[0] in ("decode", "moe", "int4", "fp8"):
        from serving_cases import serving

        return serving(name, device)
    import qwen3
    import torch
    from torch import nn
    from torch.nn import functional

    torch.manual_seed(0)
    bf16 = torch.bfloat16
    rows, columns, side, layers = ROWS, COLUMNS, 4096, LAYERS
    heads, length = 32, 2048
    if small:
        rows, columns, side, layers, heads, length = 64, 128, 64, 2, 2, 32

    def random(*shape):
        return torch.randn(*shape, device=device, dtype=bf16)

    class Softmax(nn.Module):
        def forward(self, x):
            return torch.softmax(x, -1)

    class SwiGlu(nn.Module):
        def forward(self, gate, up):
            return functional.silu(gate) * up

    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(side, side)

        def forward(self, x):
            return functional.gelu(self.linear(x))

    class Attention(nn.Module):
        def forward(self, q, k, v):
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    wide = rows * columns * 2
    with torch.device(device):
        if name == "rmsnorm":
            made = qwen3.Norm(columns), (random(rows, columns),), 2 * wide
        elif name == "softmax":
            made = Softmax(), (random(rows, columns),), 2 * wide
        elif name == "layernorm":
            made = nn.LayerNorm(columns), (random(rows, columns),), 2 * wide
        elif name == "swiglu":
            made = SwiGlu(), (random(rows, columns), random(rows, columns)), 3 * wide
        elif name == "matmul":
            made = Product(), (random(side, side),), None
        elif name == "sdpa":
            shape = (4, heads, length, 128)
            made = Attention(), tuple(random(*shape) for _ in range(3)), None
        else:
            kind, _, sizes = name.partition("-")
            batch, tokens = (int(n) for n in sizes.split("x"))
            if kind in ("block", "large"):
                sizes = qwen3.LARGE if kind == "large" and not small else {}
                cos, sin = qwen3.waves(tokens, device, bf16)
                x = random(batch, tokens, sizes.get("hidden", qwen3.HIDDEN))
                made = qwen3.Layer(**sizes), (x, cos, sin), None
            else:
                ids = torch.randint(0, qwen3.WORDS, (batch, tokens), device=device)
                made = qwen3.Model(layers), (ids,), None
            if batch * tokens <= 64:
                # Each weight is read once; of the embedding a row for each token.
                own = dict(made[0].named_parameters())
                own.pop("embed.weight", None)
                made = made[0], made[1], sum(2 * each.numel() for each in own.values())
    module, arguments, moved = made
    return module.to(bf16).eval(), arguments, moved
