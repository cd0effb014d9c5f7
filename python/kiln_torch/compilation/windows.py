"""Statistics that a few odd values do not move: medians, and deviations from them.

Invariant: a window holds so many values and no more; of too few it says nothing.
"""

from __future__ import annotations

import bisect
import statistics
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# What makes the median of deviations that of a normal distribution's own.
_NORMAL = 1.4826
# How much a median of n values spreads more than their mean.
_OF_MEDIANS = 1.2533


class Window:
    """The last values of one figure."""

    def __init__(self, size: int, least: int) -> None:
        """Hold ``size`` values; say nothing before there are ``least``."""
        self._values: deque[float] = deque()
        # The same, the least first: a median is asked for in each cycle.
        self._sorted: list[float] = []
        self._size = size
        self._least = least

    def add(self, values: Iterable[float]) -> None:
        """Take newer values."""
        for each in values:
            self._values.append(each)
            bisect.insort(self._sorted, each)
            if len(self._values) > self._size:
                oldest = self._values.popleft()
                del self._sorted[bisect.bisect_left(self._sorted, oldest)]

    def __len__(self) -> int:
        """How many there are."""
        return len(self._values)

    @property
    def enough(self) -> bool:
        """Whether there are enough of them to judge by."""
        return len(self._values) >= self._least

    @property
    def values(self) -> Sequence[float]:
        """All of them, the oldest first."""
        return tuple(self._values)

    @property
    def median(self) -> float:
        """The value in the middle."""
        middle = len(self._sorted) // 2
        if len(self._sorted) % 2:
            return self._sorted[middle]
        return (self._sorted[middle - 1] + self._sorted[middle]) / 2

    @property
    def spread(self) -> float:
        """How far values are from the median, as a standard deviation."""
        return spread(self._values)


def spread(values: Iterable[float]) -> float:
    """Return the median deviation from the median, as a standard deviation."""
    held = list(values)
    middle = statistics.median(held)
    return _NORMAL * statistics.median(abs(each - middle) for each in held)


def deviation(now: Sequence[float], history: Window) -> float:
    """Return by how many of its own deviations the median of ``now`` is above the history's."""
    if not now or not history.enough:
        return 0.0
    off = statistics.median(now) - history.median
    expected = history.spread * _OF_MEDIANS / len(now) ** 0.5
    if expected == 0:
        return 0.0 if off == 0 else float("inf") if off > 0 else float("-inf")
    return off / expected
