"""``CompilationCounter``: what was compiled, found, saved and loaded.

Invariant: what a manager counts its process counts too, once; numbers only rise.
"""

from __future__ import annotations

import os
import threading

NAMES = (
    "num_backend_compilations",
    "num_inductor_compiles",
    "num_cache_hits",
    "num_cache_misses",
    "num_compiled_artifacts_saved",
    "num_compiled_artifacts_loaded",
    # Beyond the document: entries that were deleted, corrupt or of another version.
    "num_cache_corrupted",
    # Compiles that something else stands in for.
    "num_fallbacks",
)


class CompilationCounter:
    """Counters of a manager, or of the process."""

    def __init__(self, parent: CompilationCounter | None = None) -> None:
        """Start from zero; ``parent`` counts the same as well."""
        self.num_backend_compilations = 0
        self.num_inductor_compiles = 0
        self.num_cache_hits = 0
        self.num_cache_misses = 0
        self.num_compiled_artifacts_saved = 0
        self.num_compiled_artifacts_loaded = 0
        self.num_cache_corrupted = 0
        self.num_fallbacks = 0
        self._parent = parent
        self._lock = threading.Lock()

    def count(self, name: str, by: int = 1) -> None:
        """Add to the counter ``name``."""
        if name not in NAMES:
            raise AttributeError(name)
        with self._lock:
            setattr(self, name, getattr(self, name) + by)
        if self._parent is not None:
            self._parent.count(name, by)

    @property
    def cache_hit_rate(self) -> float:
        """Hits of all lookups, 0 to 1; 0 where there was none."""
        with self._lock:
            lookups = self.num_cache_hits + self.num_cache_misses
            return self.num_cache_hits / lookups if lookups else 0.0

    def snapshot(self) -> dict[str, int]:
        """All counters, as of one moment."""
        with self._lock:
            return {name: getattr(self, name) for name in NAMES}

    def _after_fork(self) -> None:
        self._lock = threading.Lock()


# Of this process.
compilation_counter = CompilationCounter()
os.register_at_fork(after_in_child=compilation_counter._after_fork)
