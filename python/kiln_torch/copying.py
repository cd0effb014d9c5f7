"""Copies on the device, of what lies in strides to what is dense.

Invariant: the strips of a tensor cover each of its elements once, and their targets
lie one behind the other.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .plan import Layout

# Most strips of one tensor.
_MOST = 1 << 14


@dataclass(frozen=True)
class Strip:
    """Rows of equal length at equal distances; all of it is bytes.

    Where they are copied to they lie back to back.
    """

    source: int
    target: int
    width: int
    rows: int
    pitch: int


def strips(layout: Layout, width: int) -> list[Strip]:
    """Return the strips of a tensor whose elements have so many bytes."""
    if 0 in layout.shape:
        return []
    shape, strides = layout.shape, layout.strides
    # What lies in a row, from the innermost dimension outwards.
    row, inner = 1, len(shape)
    while inner and (shape[inner - 1] == 1 or strides[inner - 1] == row):
        row *= shape[inner - 1]
        inner -= 1
    # The next dimension makes rows, if they are at least as far apart as they are long.
    rows, pitch, outer = 1, row, inner
    if inner and strides[inner - 1] >= row:
        rows, pitch, outer = shape[inner - 1], strides[inner - 1], inner - 1
    if math.prod(shape[:outer]) > _MOST:
        raise ValueError("an output is an input that lies in too many strips: give it dense")
    found = []
    for number, at in enumerate(itertools.product(*map(range, shape[:outer]))):
        source = sum(i * stride for i, stride in zip(at, strides))
        target = number * row * rows
        found.append(Strip(source * width, target * width, row * width, rows, pitch * width))
    return found
