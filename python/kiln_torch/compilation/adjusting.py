"""What can be changed of a manager while it runs: each change says what was there before.

Invariant: a change never makes anything wrong that was right: it moves bounds, and
options that are in every key.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

from .memory import COST, LRU
from .opening import open_pool
from .store import LocalStore

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .manager import CompilerManager


class Adjusting:
    """The handles of one manager."""

    def __init__(self, manager: CompilerManager) -> None:
        """Change nothing yet."""
        self._manager = manager

    @property
    def parallelism(self) -> int:
        """How many compiles run at once."""
        pool = self._manager.tiers.pool
        return 1 if pool is None else pool.most

    @property
    def entries(self) -> int:
        """How many callables stay in memory; 0 without a cache."""
        cache = self._manager.cache
        return 0 if cache is None else cache.capacity

    @property
    def disk_bytes(self) -> int:
        """How many bytes of ``cache_dir`` are used at most; 0 without one."""
        store = self._manager.tiers.store
        return store.cache.limit if isinstance(store, LocalStore) else 0

    def adjust_compilation_parallelism(self, at_once: int) -> int:
        """Run so many compiles at once; return how many it was."""
        before = self.parallelism
        self._manager.tiers.pool = open_pool(self._manager.compilation_config, at_once)
        return before

    def adjust_cache_limits(
        self, entries: int | None = None, disk_bytes: int | None = None
    ) -> tuple[int, int]:
        """Keep so many callables in memory and bytes on disk; return what it was."""
        before = self.entries, self.disk_bytes
        if entries is not None and self._manager.cache is not None:
            self._manager.cache.resize(entries)
        store = self._manager.tiers.store
        if disk_bytes is not None and isinstance(store, LocalStore):
            store.cache.set_limit(disk_bytes)
        return before

    def optimize_cache_eviction_policy(self, policy: str) -> str:
        """Let the least recently used go (``lru``), or the cheapest (``cost``)."""
        if policy not in (LRU, COST):
            raise ValueError(f"{policy!r} is no policy: {LRU} or {COST}")
        cache = self._manager.cache
        if cache is None:
            return policy
        before, cache.policy = cache.policy, policy
        return before

    def tune_inductor_config(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Compile under these options, where the caller gives none; return those before.

        They are in the keys: what was compiled under others is compiled again.
        """
        before, self._manager.tuned = self._manager.tuned, dict(options)
        return before

    def trigger_cache_cleanup(self) -> int:
        """Let go of the older half of what is in memory; return how many callables went."""
        cache = self._manager.cache
        if cache is None:
            return 0
        before, capacity = len(cache), cache.capacity
        cache.resize(max(1, before // 2))
        cache.resize(capacity)
        gc.collect()
        return before - len(cache)
