"""Exports a small model for `kiln compile`: `python export.py model.pt2 inputs.safetensors`.

Needs PyTorch 2.11 or later, no GPU. The second file has the parameters and an input by the
names that `kiln exec` looks for. The same program gives the same key, whatever the weights.
"""

import json
import struct
import sys
from pathlib import Path

import torch
from torch import nn


class Block(nn.Module):
    """A gated feed-forward block, as decoders have it."""

    def __init__(self, hidden: int = 64, inner: int = 128) -> None:
        """Random weights: they are inputs of the compiled program, and no part of its key."""
        super().__init__()
        self.norm = nn.RMSNorm(hidden)
        self.gate = nn.Linear(hidden, inner, bias=False)
        self.up = nn.Linear(hidden, inner, bias=False)
        self.down = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output, added to what came in."""
        y = self.norm(x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


def write_safetensors(path: str, tensors: dict[str, torch.Tensor]) -> None:
    """The format in 20 lines, so that this script needs PyTorch alone; float32 only."""
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = tensor.detach().contiguous().numpy().tobytes()
        place = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": place}
        data += raw
    text = json.dumps(header).encode()
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)


def main() -> None:
    """Exports the block for any number of rows from 2 to 512."""
    archive, inputs = sys.argv[1:]
    block, x = Block().eval(), torch.randn(8, 64)
    rows = torch.export.Dim("rows", min=2, max=512)
    program = torch.export.export(block, (x,), dynamic_shapes=({0: rows},))
    torch.export.save(program, archive)
    write_safetensors(inputs, {**block.state_dict(), "x": x})
    print(f"{archive}: {len(list(program.graph.nodes))} nodes")


if __name__ == "__main__":
    main()
