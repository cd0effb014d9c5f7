"""``kiln_torch.metrics()``: compile and cache figures in the document's shape.

Invariant: the figures are a node's own, from one call; the shape is that of
``kiln_torch.compilation.get_compilation_metrics``, with more keys and none missing.
"""

from __future__ import annotations

from typing import Any

from . import wire
from .client import Client

_STATS = (
    "total_compilations",
    "inductor_compilations",
    "cache_hits",
    "coalesced",
    "cache_misses",
    "artifacts_saved",
    "artifacts_loaded",
)
_PERFORMANCE = (
    "cache_hit_rate",
    "avg_compilation_time",
    "p50_compilation_time",
    "p99_compilation_time",
    "avg_cache_load_time",
    "p50_cache_load_time",
    "p99_cache_load_time",
    "total_compilation_time",
    "compilation_time_saved",
)
_RESOURCES = ("cache_disk_usage", "memory_usage_mb", "active_compiler_processes")


def metrics(*, cluster: bool = False, client: Client | None = None) -> dict[str, Any]:
    """Return counts, times in seconds and resources of a node, or of all that answer.

    The node is the first of KILN_ENDPOINT that answers, unless ``client`` names others.
    Without KILN_ENDPOINT the figures are those of this process's own compiling, which
    ``kiln_torch.compilation.get_compilation_metrics`` returns. Raises
    ``errors.Unreachable`` where no node answers.
    """
    client = client or Client.from_env()
    if client is None:
        from .compilation.metrics import get_compilation_metrics

        return get_compilation_metrics()
    answer = client.metrics(cluster=cluster)
    return shaped(answer.compilation)


def shaped(figures: Any) -> dict[str, Any]:
    """Return a ``CompilationMetrics`` message in the document's shape."""
    groups = {
        "compilation_stats": _STATS,
        "performance": _PERFORMANCE,
        "resources": _RESOURCES,
    }
    return {group: {n: getattr(figures, n) for n in names} for group, names in groups.items()}


def described() -> set[str]:
    """Return the names of all figures that the wire format has."""
    return {field.name for field in wire.CompilationMetrics.DESCRIPTOR.fields}
