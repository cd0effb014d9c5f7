"""``ResourceTracker``: what compiling costs this machine, and what of it does not come back.

From ``/proc``: needs neither torch nor psutil.
Invariant: a figure that cannot be read is 0, and never an error.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .metrics import get_compilation_memory_usage
from .store import LocalStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .anomalies import Sample
    from .local_cache import LocalCache
    from .manager import CompilerManager

# Growth with a cause: so much of it as the cache's own growth explains.
_EXPLAINED = 0.5
_STAT = Path("/proc/stat")


@dataclass(frozen=True)
class Resources:
    """One look: bytes, and a share of all cores."""

    memory_bytes: int
    entries: int
    disk_bytes: int
    disk_free: int
    disk_total: int
    cpu: float


class ResourceTracker:
    """The resources of one manager and its process."""

    def __init__(self, manager: CompilerManager) -> None:
        """Start to count the processor's time."""
        self._manager = manager
        self._last = _processor()

    def collect_resource_usage(self) -> Resources:
        """Look once."""
        used, free, total = self.get_disk_usage()
        cache = self._manager.cache
        return Resources(
            self.get_memory_usage(),
            0 if cache is None else len(cache),
            used,
            free,
            total,
            self.get_cpu_utilization(),
        )

    def get_memory_usage(self) -> int:
        """Return the resident bytes of this process and of those that compile for it."""
        return get_compilation_memory_usage()

    def get_disk_usage(self) -> tuple[int, int, int]:
        """Return the bytes of the cache, and those that its disk has free and in all."""
        folder = self._manager.cache_dir
        try:
            usage = shutil.disk_usage(folder if folder is not None else Path.cwd())
        except OSError:
            return 0, 0, 0
        cache = self._on_disk()
        return 0 if cache is None else cache.size(), usage.free, usage.total

    def _on_disk(self) -> LocalCache | None:
        """Return this manager's folder of entries: the process may have others'."""
        store = self._manager.tiers.store or self._manager.emergency.set_aside
        return store.cache if isinstance(store, LocalStore) else None

    def get_cpu_utilization(self) -> float:
        """Return the share of all cores' time that was used since the last call, 0 to 1."""
        busy, whole = _processor()
        before, self._last = self._last, (busy, whole)
        passed = whole - before[1]
        return min(1.0, max(0.0, (busy - before[0]) / passed)) if passed > 0 else 0.0

    def investigate_memory_usage(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return what grew, and whether the cache explains it."""
        leaked = self.identify_memory_leaks(samples)
        return {**self.analyze_cache_memory_usage(samples), "unexplained_bytes": leaked}

    def identify_memory_leaks(self, samples: Sequence[Sample]) -> int:
        """Return the bytes of growth that more entries in memory do not explain."""
        told = self.analyze_cache_memory_usage(samples)
        grown = told["grown_bytes"]
        if grown <= 0:
            return 0
        return int(grown if told["grown_entries"] <= 0 else grown * (1 - _EXPLAINED))

    def analyze_cache_memory_usage(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return how memory and the cache in it grew over ``samples``."""
        if len(samples) < 2:
            return {"grown_bytes": 0, "grown_entries": 0, "bytes_per_entry": 0}
        first, last = samples[0], samples[-1]
        grown, entries = last.memory_bytes - first.memory_bytes, last.entries - first.entries
        each = grown // entries if entries > 0 else 0
        return {"grown_bytes": grown, "grown_entries": entries, "bytes_per_entry": each}

    def cleanup_corrupted_cache(self) -> tuple[int, int]:
        """Check all entries of ``cache_dir`` and remove those of no use; how many of each."""
        cache = self._on_disk()
        if cache is None:
            return 0, 0
        try:
            return cache.sweep()
        except OSError:
            return 0, 0


def _processor() -> tuple[float, float]:
    """Return the ticks in which any core was busy, and all ticks."""
    try:
        ticks = [int(each) for each in _STAT.read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        times = os.times()
        return times.user + times.system, times.elapsed * (os.cpu_count() or 1)
    idle = sum(ticks[3:5])
    return float(sum(ticks) - idle), float(sum(ticks))
