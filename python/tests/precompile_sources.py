"""The small programs that the tests of precompile compile, as text: tests edit them."""

from __future__ import annotations

from pathlib import Path

TRACED = """
import math

import torch
from helpers import scaled

SCALE = 2.0


class Act(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.power = 2

    def forward(self, x):
        return torch.nn.functional.gelu(x) * math.sqrt(2.0) ** self.power


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.act, self.drop = torch.nn.Linear(4, 8), Act(), torch.nn.Dropout(0.0)

    def forward(self, x):
        return scaled(self.drop(self.act(self.up(x)))) * SCALE + divmod(7, 2)[0]


class Plain:
    def __init__(self, rate):
        self.rate = rate

    def apply(self, x):
        return x * self.rate


def make():
    return Block().eval()


def offset(x, by=1.0):
    return x + by


def closed(factor, plain=None):
    plain = plain or Plain(2.0)

    def inner(x):
        return plain.apply(offset(torch.sin(x) * factor))

    return inner


WEIGHT = torch.ones(4)


def weighed(x):
    return x * WEIGHT + SCALE


def holding(weight, model=None):
    def inner(x):
        y = x @ weight
        return y if model is None else model(y)

    return inner


def broken_in_two(x):
    y = torch.sin(x) * SCALE
    torch._dynamo.graph_break()
    return torch.cos(y) + 1


@torch.compiler.assume_constant_result
def assumed():
    return 4


def assumes(x):
    return x + assumed()
"""

HELPERS = """
FACTOR = 3


def scaled(x, by=1.5):
    return x * by + FACTOR
"""


def write(folder: Path, traced: str = TRACED, helpers: str = HELPERS) -> Path:
    """Write the modules that a program imports."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "traced.py").write_text(traced)
    (folder / "helpers.py").write_text(helpers)
    return folder
