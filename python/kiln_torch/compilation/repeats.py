"""Repeated structure: a model's equal layers, found by what they compute.

Invariant: it finds, and changes nothing; whether two pieces are one entry is
decided by their keys alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..graph import value_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import fx

# Less than this is no layer.
_LEAST_PERIOD = 4
# A longer one would be few layers of a model that is no smaller for it.
_LONGEST_PERIOD = 1000
# Above this the search would take longer than what it finds is worth.
_MOST_NODES = 20_000


@dataclass(frozen=True)
class Repeats:
    """``count`` times the same ``period`` nodes, from node ``start`` on."""

    start: int
    period: int
    count: int

    @property
    def bounds(self) -> list[int]:
        """Where each repetition begins, and where the last one ends."""
        return [self.start + at * self.period for at in range(self.count + 1)]


def find_repeats(nodes: Sequence[fx.Node]) -> Repeats | None:
    """Return the repetition that covers most nodes, by the shortest period."""
    if not 2 * _LEAST_PERIOD <= len(nodes) <= _MOST_NODES:
        return None
    marks = marks_of(nodes)
    best: tuple[int, int, int] | None = None
    for period in range(_LEAST_PERIOD, min(len(marks) // 2, _LONGEST_PERIOD) + 1):
        if best is not None and best[0] >= len(marks) - period + 1:
            break
        run = 0
        for at in range(len(marks) - period):
            run = run + 1 if marks[at] == marks[at + period] else 0
            covered = (run // period + 1) * period
            if run >= period and (best is None or covered > best[0]):
                best = covered, period, at + 1 - run
    if best is None:
        return None
    covered, period, start = best
    count = covered // period
    # The run may be longer than its whole repetitions: begin where least is in flight.
    slack = 0
    while start + slack + covered < len(marks) and (
        slack < period - 1 and marks[start + slack] == marks[start + slack + covered]
    ):
        slack += 1
    crossing = crossings(nodes)
    begin = min(range(start, start + slack + 1), key=lambda at: (crossing[at], at))
    return Repeats(begin, period, count)


def crossings(nodes: Sequence[fx.Node]) -> list[int]:
    """Return for each place, before node ``at``, how many values are in flight there."""
    place = {node: at for at, node in enumerate(nodes)}
    change = [0] * (len(nodes) + 2)
    for node, at in place.items():
        last = max((place.get(user, len(nodes)) for user in node.users), default=at)
        change[at + 1] += 1
        change[last + 1] -= 1
    found, now = [], 0
    for each in change[: len(nodes) + 1]:
        now += each
        found.append(now)
    return found


def marks_of(nodes: Sequence[fx.Node]) -> list[int]:
    """Return a number for each node: equal for equal operations on equal values."""
    known: dict[Any, int] = {}

    def argument(given: Any) -> Any:
        if hasattr(given, "op") and hasattr(given, "users"):
            # Not how far back: sizes and masks are made once, before the first layer.
            return ("node", _shape(value_of(given)))
        if isinstance(given, (tuple, list)):
            return tuple(argument(each) for each in given)
        if isinstance(given, dict):
            return tuple((name, argument(each)) for name, each in sorted(given.items()))
        return repr(given)

    marks = []
    for node in nodes:
        mark = (
            node.op,
            str(node.target) if node.op != "get_attr" else "",
            argument(node.args),
            argument(node.kwargs),
            _shape(value_of(node)),
        )
        marks.append(known.setdefault(mark, len(known)))
    return marks


def _shape(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}{[str(size) for size in value.shape]}"
    return type(value).__name__
