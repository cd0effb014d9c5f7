"""The store and the processes that a configuration asks for, opened.

Invariant: a store that cannot be used is said once and left out: it is a cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import report
from ..client import Client
from . import metrics
from .local_cache import LocalCache
from .pool import shared
from .signing import LocalKey, UnsafeKey
from .store import ClusterStore, LocalStore

if TYPE_CHECKING:
    from pathlib import Path

    from .config import CompilationConfig
    from .pool import Pool
    from .store import Store


def open_store(cache_dir: Path, config: CompilationConfig) -> Store | None:
    """Return the cluster where KILN_ENDPOINT names one, else ``cache_dir``."""
    client = Client.from_env()
    if client is not None:
        return ClusterStore(client)
    try:
        cache = LocalCache(cache_dir, LocalKey(), config.disk_cache_bytes)
    except (OSError, UnsafeKey) as error:
        report.once("cache_dir", "%s is not used: %s", cache_dir, error)
        return None
    metrics.watch(cache)
    return LocalStore(cache)


def open_pool(config: CompilationConfig, at_once: int | None = None) -> Pool | None:
    """Return processes that compile, ``at_once`` of them; ``None``: this one does."""
    most = at_once or config.parallel_compiles
    bound = config.compile_timeout is not None or config.compile_memory_bytes is not None
    if most == 1 and not bound:
        return None
    pool = shared(most, config.compile_memory_bytes)
    metrics.watch(pool)
    return pool
