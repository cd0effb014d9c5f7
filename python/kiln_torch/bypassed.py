"""Why a graph is not asked for under a key of Kiln's own: counters by reason.

What is bypassed compiles as ``backend="inductor"`` does, and torch's own caches share
what they can of it: forward and backward of training, graphs with CUDA graphs.
Invariant: each bypass is counted once in all and once under one reason; a reason that
is not known here is counted as ``other``, never left out.
"""

from __future__ import annotations

import sys

from . import report

# The counter's last part, and words of what ``graph.Unkeyable`` says.
REASONS = (
    ("gradients", "needs gradients"),
    ("gradients", "turns gradients on"),
    ("cuda_graphs", "CUDA graphs"),
    ("freezing", "freezing"),
    ("caches_disabled", "caches are disabled"),
    ("shared_inputs", "share their memory"),
    ("sizes", "a size "),
    ("sizes", "no size:"),
    ("constants", "by value"),
    ("functions", "not torch's"),
    ("values", "of type"),
    ("values", "without metadata"),
    ("operations", "an operation of kind"),
    ("architectures", "several architectures"),
)
# Where torch counts what its caches do not take.
_TORCH = (
    ("inductor", "fxgraph_cache_bypass"),
    ("aot_autograd", "autograd_cache_bypass"),
)


def reason_of(said: str) -> str:
    """Return the counter's last part for what was said."""
    return next((name for name, words in REASONS if words in said), "other")


def count(said: str) -> None:
    """Count one that has no key, for what ``Unkeyable`` said."""
    report.count("backend.bypassed")
    report.count(f"backend.bypassed.{reason_of(said)}")


class TorchBypasses:
    """What torch's own caches did not take since this was asked last."""

    def __init__(self) -> None:
        """Count from what torch has counted so far."""
        self._counted = self._now()

    def count(self) -> None:
        """Take over torch's counters."""
        now = self._now()
        for name, value in now.items():
            before = self._counted.get(name, 0)
            # Below what it was: somebody cleared the counters.
            rose = value - before if value >= before else value
            if rose:
                report.count(f"torch.{name}", rose)
        self._counted = now

    @staticmethod
    def _now() -> dict[str, int]:
        utils = sys.modules.get("torch._dynamo.utils")
        if utils is None:
            return {}
        return {name: int(utils.counters[group][name]) for group, name in _TORCH}
