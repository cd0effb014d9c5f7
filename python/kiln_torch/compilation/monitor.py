"""``PerformanceMonitor``: how long compiles and loads took, and from where hits came.

Invariant: only measured times enter; memory stays the same whatever is recorded.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass
class _Times:
    """Seconds, summed."""

    count: int = 0
    total: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.total += seconds

    @property
    def average(self) -> float:
        return self.total / self.count if self.count else 0.0


@dataclass(frozen=True)
class Piecewise:
    """One piecewise compile: the pieces' own seconds, and what it took as a whole."""

    piece_seconds: tuple[float, ...]
    wall_seconds: float
    workers: int


class PerformanceMonitor:
    """Times of a manager, or of the process."""

    def __init__(self, parent: PerformanceMonitor | None = None) -> None:
        """Start empty; ``parent`` records the same as well."""
        self._parent = parent
        self._lock = threading.Lock()
        self._compiles = _Times()
        self._loads = _Times()
        self.memory_cache_hits = 0
        self.disk_cache_hits = 0
        self.cache_misses = 0
        self.piecewise_compilations = 0
        self.last_piecewise: Piecewise | None = None

    def record_compilation_time(self, seconds: float) -> None:
        """Record a compile that ran."""
        with self._lock:
            self._compiles.add(seconds)
        if self._parent is not None:
            self._parent.record_compilation_time(seconds)

    def record_cache_load_time(self, seconds: float) -> None:
        """Record what reading, verifying and loading an entry took."""
        with self._lock:
            self._loads.add(seconds)
        if self._parent is not None:
            self._parent.record_cache_load_time(seconds)

    def record_memory_cache_hit(self) -> None:
        """Record a hit in the process's own cache."""
        with self._lock:
            self.memory_cache_hits += 1
        if self._parent is not None:
            self._parent.record_memory_cache_hit()

    def record_disk_cache_hit(self) -> None:
        """Record a hit in ``cache_dir``, or in the cluster."""
        with self._lock:
            self.disk_cache_hits += 1
        if self._parent is not None:
            self._parent.record_disk_cache_hit()

    def record_cache_miss(self) -> None:
        """Record that neither had it."""
        with self._lock:
            self.cache_misses += 1
        if self._parent is not None:
            self._parent.record_cache_miss()

    def record_piecewise_compilation_complete(
        self, piece_seconds: tuple[float, ...], wall_seconds: float, workers: int
    ) -> float:
        """Record a piecewise compile; return its parallel efficiency."""
        with self._lock:
            self.piecewise_compilations += 1
            self.last_piecewise = Piecewise(piece_seconds, wall_seconds, workers)
        if self._parent is not None:
            self._parent.record_piecewise_compilation_complete(piece_seconds, wall_seconds, workers)
        return self.calculate_parallel_efficiency()

    def calculate_parallel_efficiency(self) -> float:
        """Return the share of the workers' time in which they compiled, the last time.

        1: all workers compiled all the time. 0 where nothing was compiled.
        """
        with self._lock:
            last = self.last_piecewise
        if last is None or last.wall_seconds <= 0:
            return 0.0
        return sum(last.piece_seconds) / (last.wall_seconds * last.workers)

    @property
    def avg_compilation_time(self) -> float:
        """Seconds of a compile; 0 where none ran."""
        with self._lock:
            return self._compiles.average

    @property
    def avg_cache_load_time(self) -> float:
        """Seconds of a load from disk or cluster; 0 where none ran."""
        with self._lock:
            return self._loads.average

    @property
    def total_compilation_time(self) -> float:
        """Seconds of all compiles."""
        with self._lock:
            return self._compiles.total


# Of this process.
performance_monitor = PerformanceMonitor()
