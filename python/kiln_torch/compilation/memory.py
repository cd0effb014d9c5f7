"""The process's own cache of what is compiled and loaded already.

Invariant: never more entries than its capacity; the least recently used goes, or
among those used longest ago the one that was cheapest to make.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Cached:
    """A callable over all inputs of its graph, and the condition on sizes for it."""

    run: Callable[..., Any]
    guards: str = ""
    # What its compile took, here or wherever it was; 0 where that is not known.
    seconds: float = 0.0
    # The GPU that it runs on, where its key does not say so.
    index: int | None = None


# Which entry goes: the least recently used, or the cheapest of the older half.
LRU = "lru"
COST = "cost"


class MemoryCache:
    """A bounded dictionary by full key."""

    def __init__(self, capacity: int) -> None:
        """Hold at most ``capacity`` entries."""
        self._capacity = capacity
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, Cached] = OrderedDict()
        self.evictions = 0
        self.policy = LRU

    @property
    def capacity(self) -> int:
        """How many entries it holds at most."""
        return self._capacity

    def resize(self, capacity: int) -> None:
        """Hold at most ``capacity`` from now on."""
        with self._lock:
            self._capacity = max(1, capacity)
            self._evict()

    def lookup(self, cache_key: str) -> Cached | None:
        """Return the entry, which is then the most recently used one."""
        with self._lock:
            found = self._entries.get(cache_key)
            if found is not None:
                self._entries.move_to_end(cache_key)
            return found

    def store(self, cache_key: str, entry: Cached) -> None:
        """Keep ``entry``; evict what no longer fits."""
        with self._lock:
            self._entries[cache_key] = entry
            self._entries.move_to_end(cache_key)
            self._evict()

    def _evict(self) -> None:
        while len(self._entries) > self._capacity:
            oldest = list(itertools.islice(self._entries, (len(self._entries) + 1) // 2))
            gone = oldest[0]
            if self.policy == COST:
                gone = min(oldest, key=lambda each: self._entries[each].seconds)
            del self._entries[gone]
            self.evictions += 1

    def remove(self, cache_key: str) -> None:
        """Forget one entry."""
        with self._lock:
            self._entries.pop(cache_key, None)

    def clear(self) -> None:
        """Forget all entries."""
        with self._lock:
            self._entries.clear()

    def __len__(self) -> int:
        """How many there are."""
        with self._lock:
            return len(self._entries)

    def __contains__(self, cache_key: object) -> bool:
        """Whether there is an entry; does not use it."""
        with self._lock:
            return cache_key in self._entries
