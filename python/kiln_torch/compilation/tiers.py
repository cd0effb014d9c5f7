"""The tiers that the requests of a manager share: memory, then a store; and the numbers.

Invariant: an entry that is corrupt, or of another version, is deleted where that
can be done, counted, and never used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import report
from ..manifest import Artifact
from .errors import CacheCorruptedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..asked import Asked
    from .counter import CompilationCounter
    from .memory import MemoryCache
    from .monitor import PerformanceMonitor
    from .pool import Pool
    from .store import Store


class Tiers:
    """What all requests of a manager share."""

    def __init__(
        self,
        counter: CompilationCounter,
        monitor: PerformanceMonitor,
        memory: MemoryCache | None,
        store: Store | None,
        pool: Pool | None,
    ) -> None:
        """Without ``memory`` and ``store`` everything is compiled."""
        self.counter = counter
        self.monitor = monitor
        self.memory = memory
        self.store = store
        self.pool = pool

    @property
    def namespace(self) -> str:
        """The tenant under which keys are made."""
        return "local" if self.store is None else self.store.namespace

    def checked(self, key: bytes, get: Callable[[bytes], Any], asked: Asked | None) -> Any:
        """Get an entry; one that is corrupt or of another version is deleted first."""
        try:
            answer = get(key)
            if not isinstance(answer, Artifact) or compatible(answer, asked):
                return answer
            report.log.warning("%s is of another version: compiled again", key.hex())
        except CacheCorruptedError as error:
            report.log.warning("%s", error)
        self.counter.count("num_cache_corrupted")
        return get(key) if self.discard(key) else None

    def discard(self, key: bytes) -> bool:
        """Remove an entry from memory and from the store; ``False``: the store keeps it."""
        if self.memory is not None:
            self.memory.remove(key.hex())
        return self.store is not None and self.store.discard(key)


def compatible(artifact: Artifact, asked: Asked | None) -> bool:
    """Whether the versions that made ``artifact`` are those that are asked for."""
    return asked is None or artifact.manifest.fingerprint == asked.fingerprint
