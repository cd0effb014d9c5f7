"""``get_compilation_metrics``: the process's numbers, in the document's shape.

Invariant: every figure is counted or measured when it is asked for; torch is
not imported for it.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .counter import compilation_counter
from .monitor import performance_monitor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .local_cache import LocalCache
    from .pool import Pool

# Programs that compilers start, by the names that the kernel shows.
_COMPILERS = frozenset(
    ("g++", "gcc", "cc1plus", "cc1", "c++", "as", "ld", "clang", "clang++", "ptxas", "nvcc")
)
# Inductor's own workers, and those of this module.
_WORKERS = ("torch/_inductor/compile_worker", "kiln_torch.compilation.forking")

_caches: weakref.WeakSet[LocalCache] = weakref.WeakSet()
_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def watch(part: LocalCache | Pool) -> None:
    """Include a part of a manager in the figures, as long as it lives."""
    if hasattr(part, "pids"):
        _pools.add(part)  # pyrefly: ignore
    else:
        _caches.add(part)  # pyrefly: ignore


def get_compilation_metrics() -> dict[str, Any]:
    """Return counts, times and resources of all compiling in this process."""
    counter, monitor = compilation_counter, performance_monitor
    return {
        "compilation_stats": {
            "total_compilations": counter.num_backend_compilations,
            "inductor_compilations": counter.num_inductor_compiles,
            "cache_hits": counter.num_cache_hits,
            "cache_misses": counter.num_cache_misses,
            "artifacts_saved": counter.num_compiled_artifacts_saved,
            "artifacts_loaded": counter.num_compiled_artifacts_loaded,
        },
        "performance": {
            "cache_hit_rate": counter.cache_hit_rate,
            "avg_compilation_time": monitor.avg_compilation_time,
            "avg_cache_load_time": monitor.avg_cache_load_time,
            "total_compilation_time": monitor.total_compilation_time,
        },
        "resources": {
            "cache_disk_usage": get_cache_disk_usage(),
            "memory_usage_mb": get_compilation_memory_usage() / 1024**2,
            "active_compiler_processes": get_active_compiler_count(),
        },
    }


def get_cache_disk_usage() -> int:
    """Return the bytes of all entries in the cache folders of this process's managers."""
    folders = {cache.folder.resolve(): cache for cache in _caches}
    return sum(cache.size() for cache in folders.values())


def get_compilation_memory_usage() -> int:
    """Return the resident bytes of this process and of those that compile for it."""
    pids = [os.getpid(), *(pid for pid, _ in _compiling())]
    return sum(map(_resident, pids))


def get_active_compiler_count() -> int:
    """Return how many processes compile for this one now: idle workers do not count."""
    programs = sum(name in _COMPILERS for _, name in _compiling())
    return programs + sum(pool.active for pool in _pools)


def _compiling() -> Iterator[tuple[int, str]]:
    """Yield the descendants of this process that are compilers or their workers."""
    children: dict[int, list[tuple[int, str]]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (facts := _facts(entry)) is not None:
            name, parent = facts
            children.setdefault(parent, []).append((int(entry.name), name))
    todo = [os.getpid()]
    while todo:
        for pid, name in children.get(todo.pop(), ()):
            todo.append(pid)
            if name in _COMPILERS or any(word in _command(pid) for word in _WORKERS):
                yield pid, name


def _facts(entry: Path) -> tuple[str, int] | None:
    try:
        head, tail = (entry / "stat").read_text().rsplit(")", 1)
    except (OSError, ValueError):
        return None
    return head.split("(", 1)[1], int(tail.split()[1])


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
