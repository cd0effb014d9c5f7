"""Where the time of a compile went, by torch's own clock.

Invariant: only what torch measured is told; a torch that measures other things, or
nothing, costs the figures and no more.
"""

from __future__ import annotations


def torchs() -> dict[str, float]:
    """Return the seconds of each phase in this process so far; some are within others."""
    try:
        from torch._dynamo.utils import compilation_time_metrics as measured

        return {name: sum(times) for name, times in measured.items()}
    except (ImportError, TypeError):
        return {}
