"""``PerformanceMonitor``: how long compiles and loads took, from where hits came, what failed.

Invariant: only measured times enter; memory stays the same whatever is recorded.
"""

from __future__ import annotations

import statistics
import threading
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Times that are held one by one, until they are collected: the oldest go.
_MOST_RECENT = 4096
# What missed last, to say in which way misses differ from what was there.
_MOST_MISSED = 64


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


@dataclass(frozen=True)
class Collected:
    """What was recorded since the last time it was collected."""

    compile_seconds: tuple[float, ...] = ()
    load_seconds: tuple[float, ...] = ()
    hits: int = 0
    misses: int = 0
    succeeded: int = 0
    # Kinds of failures, and rungs that stood in.
    failed: Mapping[str, int] = field(default_factory=dict)
    fallbacks: Mapping[str, int] = field(default_factory=dict)

    @property
    def failures(self) -> int:
        """All failures."""
        return sum(self.failed.values())


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
        # By kind, by rung, and those that ended well.
        self.failures: Counter[str] = Counter()
        self.fallbacks: Counter[str] = Counter()
        self.successes = 0
        self._recent: deque[float] = deque(maxlen=_MOST_RECENT)
        self._recent_loads: deque[float] = deque(maxlen=_MOST_RECENT)
        self._history: deque[float] = deque(maxlen=_MOST_RECENT)
        self._missed: deque[Mapping[str, str]] = deque(maxlen=_MOST_MISSED)
        self._collected = (0, 0, 0, Counter[str](), Counter[str]())

    def record_compilation_time(self, seconds: float) -> None:
        """Record a compile that ran."""
        with self._lock:
            self._compiles.add(seconds)
            self._recent.append(seconds)
            self._history.append(seconds)
        if self._parent is not None:
            self._parent.record_compilation_time(seconds)

    def record_cache_load_time(self, seconds: float) -> None:
        """Record what reading, verifying and loading an entry took."""
        with self._lock:
            self._loads.add(seconds)
            self._recent_loads.append(seconds)
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

    def record_cache_miss(self, parts: Mapping[str, str] | None = None) -> None:
        """Record that neither had it; ``parts``: of its key, by name."""
        with self._lock:
            self.cache_misses += 1
            if parts is not None:
                self._missed.append(parts)
        if self._parent is not None:
            self._parent.record_cache_miss(parts)

    def record_compilation_failure(self, error_type: str) -> None:
        """Record that a compile failed, and of what kind that was."""
        with self._lock:
            self.failures[error_type] += 1
        if self._parent is not None:
            self._parent.record_compilation_failure(error_type)

    def record_compilation_success(self) -> None:
        """Record that a compile gave what was asked for."""
        with self._lock:
            self.successes += 1
        if self._parent is not None:
            self._parent.record_compilation_success()

    def record_fallback_execution(self, rung: str) -> None:
        """Record that something stands in for what was asked for."""
        with self._lock:
            self.fallbacks[rung] += 1
        if self._parent is not None:
            self._parent.record_fallback_execution(rung)

    def collect_compilation_metrics(self) -> Collected:
        """Return what was recorded since the last call."""
        with self._lock:
            hits = self.memory_cache_hits + self.disk_cache_hits
            before = self._collected
            self._collected = (
                hits,
                self.cache_misses,
                self.successes,
                self.failures.copy(),
                self.fallbacks.copy(),
            )
            found = Collected(
                tuple(self._recent),
                tuple(self._recent_loads),
                hits - before[0],
                self.cache_misses - before[1],
                self.successes - before[2],
                dict(self.failures - before[3]),
                dict(self.fallbacks - before[4]),
            )
            self._recent.clear()
            self._recent_loads.clear()
        return found

    def missed(self) -> list[Mapping[str, str]]:
        """Return the parts of the keys that missed last."""
        with self._lock:
            return list(self._missed)

    def calculate_avg_compilation_time(self) -> float:
        """Return the seconds of a compile; 0 where none ran."""
        return self.avg_compilation_time

    def calculate_cache_hit_rate(self) -> float:
        """Return the hits of all lookups, 0 to 1; 0 where there was none."""
        with self._lock:
            hits = self.memory_cache_hits + self.disk_cache_hits
            return hits / (hits + self.cache_misses) if hits + self.cache_misses else 0.0

    def analyze_compilation_trends(self) -> dict[str, float]:
        """Return the median seconds of a compile, that of the newer half, and their ratio."""
        with self._lock:
            held = list(self._history)
        newer = held[len(held) // 2 :]
        whole, late = _median(held), _median(newer)
        return {"median": whole, "newer_median": late, "ratio": late / whole if whole else 1.0}

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


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0


# Of this process.
performance_monitor = PerformanceMonitor()
