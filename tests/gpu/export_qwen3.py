#!/usr/bin/env python3
"""Writes the measured model, `qwen3.Model`, as a torch.export archive without weights.

usage: PYTHONPATH=tests/gpu export_qwen3.py LAYERS TOKENS ARCHIVE.pt2
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from bench_native import strip
from qwen3 import WORDS, Model


def main():
    if len(sys.argv) != 4:
        print(__doc__, file=sys.stderr)
        return 2
    layers, tokens, path = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    with torch.no_grad(), torch.device("cuda"):
        module = Model(layers).to(torch.bfloat16).eval()
        words = torch.randint(0, WORDS, (1, tokens))
        program = torch.export.export(module, (words,))
        torch.export.save(program, path)
    print(f"{path.name}: {strip(path)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
