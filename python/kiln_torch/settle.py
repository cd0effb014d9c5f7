"""Which of the values that torch was given it then used.

Torch says so in counters alone: as many as they rose by since were used.
Invariant: never counts more than torch did; a value whose guards did not fit, or
that could not be unpickled, is not reported as loaded.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Where torch counts the entries that it took from a cache.
_COUNTERS = {
    "fx_graph": ("inductor", "fxgraph_cache_hit"),
    "autograd": ("aot_autograd", "autograd_cache_hit"),
}


class Settling:
    """Values handed out and not yet known to be used."""

    def __init__(self, used: Callable[[str], None]) -> None:
        """Report a used value's name through ``used``."""
        self._used = used
        self._lock = threading.Lock()
        self._open: dict[str, list[str]] = {}
        self._counted: dict[str, int] = {}

    def handed_out(self, family: str, name: str) -> None:
        """Record a value. One of a family that torch does not count is used at once."""
        if family not in _COUNTERS:
            self._used(name)
            return
        with self._lock:
            if not self._open.get(family):
                self._counted[family] = _counter(family)
            self._open.setdefault(family, []).append(name)

    def settle(self) -> None:
        """Report those that were used since they were handed out."""
        used: list[str] = []
        with self._lock:
            for family, names in self._open.items():
                # Below what it was: somebody cleared the counters.
                now, before = _counter(family), self._counted.get(family, 0)
                used.extend(names[: now - before if now >= before else now])
            self._open.clear()
        for name in used:
            self._used(name)


def _counter(family: str) -> int:
    utils = sys.modules.get("torch._dynamo.utils")
    if utils is None:
        return 0
    group, name = _COUNTERS[family]
    return int(utils.counters[group][name])
