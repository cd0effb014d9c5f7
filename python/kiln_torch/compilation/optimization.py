"""``OptimizationEngine``: what would make compiles faster or smaller, and doing it.

Invariant: nothing is done outside of its bounds, or without ``apply``; what is done
says by which figures, can be undone, and is undone where its figure got worse.
"""

from __future__ import annotations

import os
import statistics
from collections import Counter, deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .. import report
from .adjusting import Adjusting
from .memory import COST

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .anomalies import Sample
    from .manager import CompilerManager

PARALLELISM = "parallelism"
ENTRIES = "memory_entries"
DISK = "disk_bytes"
EVICTION = "eviction_policy"
OPTIONS = "inductor_options"

APPLIED, KEPT, UNDONE, ROLLED_BACK = "applied", "kept", "undone", "rolled_back"

# Cycles with a figure after which a decision is judged, and how much worse is worse.
_JUDGED_AFTER = 3
_WORSE = 1.1
_MOST_DECISIONS = 64
# What costs compile time for speed at run time.
_UNTUNED = {"max_autotune": False, "coordinate_descent_tuning": False}
_BUSY, _IDLE = 0.9, 0.5


@dataclass(frozen=True)
class Bounds:
    """How far it may go."""

    most_parallel: int = max(1, (os.cpu_count() or 1) // 2)
    least_entries: int = 16
    most_entries: int = 1024
    most_disk_bytes: int = 64 << 30
    # Of what the disk has free.
    disk_share: float = 0.25
    # Options change keys: what was compiled before is compiled again.
    options: bool = False


@dataclass(frozen=True)
class Recommendation:
    """One change, and why."""

    what: str
    value: Any
    why: str
    # The figure that it is to make smaller.
    figure: str


@dataclass(frozen=True)
class Decision:
    """A change that was made."""

    number: int
    what: str
    before: Any
    after: Any
    why: str
    figure: str
    # The figure before it, and since.
    was: float | None
    since: tuple[float, ...] = ()
    state: str = APPLIED


class OptimizationEngine:
    """Recommends, and with ``apply`` does."""

    def __init__(
        self, manager: CompilerManager, *, apply: bool = False, bounds: Bounds | None = None
    ) -> None:
        """Work on ``manager`` within ``bounds``."""
        self._manager = manager
        self._handles = Adjusting(manager)
        self.apply = apply
        self.bounds = bounds or Bounds()
        self.decisions: deque[Decision] = deque(maxlen=_MOST_DECISIONS)
        self._count = 0
        self._figures: dict[str, deque[float]] = {}

    def investigate_slow_compilation(self, sample: Sample) -> list[Recommendation]:
        """Return what would make compiles faster."""
        return self.suggest_optimization_strategies(self.analyze_compilation_bottlenecks(sample))

    def analyze_compilation_bottlenecks(self, sample: Sample) -> str:
        """Return what compiles wait for: ``cpu``, ``processes``, or ``compiler`` itself."""
        if sample.cpu >= _BUSY:
            return "cpu"
        pool = self._manager.tiers.pool
        if pool is not None and pool.active >= pool.most and sample.cpu < _IDLE:
            return "processes"
        return "compiler"

    def suggest_optimization_strategies(self, bottleneck: str) -> list[Recommendation]:
        """Return the changes that fit a bottleneck."""
        now = self._handles.parallelism
        if bottleneck == "cpu" and now > 1:
            why = "all cores are busy: fewer compiles at once end sooner"
            return [Recommendation(PARALLELISM, max(1, now // 2), why, "compile_seconds")]
        if bottleneck == "processes" and now < self.bounds.most_parallel:
            why = "compiles wait for processes, and cores are idle"
            more = min(2 * now, self.bounds.most_parallel)
            return [Recommendation(PARALLELISM, more, why, "compile_seconds")]
        if bottleneck == "compiler":
            why = "the compiler itself is slow: without a search for the fastest kernels it is not"
            return [Recommendation(OPTIONS, _UNTUNED, why, "compile_seconds")]
        return []

    def analyze_cache_efficiency(self) -> list[Recommendation]:
        """Return what would make more lookups hit."""
        return self.suggest_cache_optimizations(self.identify_cache_miss_patterns())

    def identify_cache_miss_patterns(self) -> Counter[str]:
        """Count, for the misses of late, the part of the key that differed from the one before.

        ``several``: more than one did.
        """
        found: Counter[str] = Counter()
        missed = self._manager.performance_monitor.missed()
        for at, parts in enumerate(missed[1:], 1):
            nearest = min(missed[:at], key=lambda other: len(_differing(other, parts)))
            differing = _differing(nearest, parts)
            if not differing:
                found["the same again"] += 1
            else:
                found[differing[0] if len(differing) == 1 else "several"] += 1
        return found

    def suggest_cache_optimizations(self, patterns: Mapping[str, int]) -> list[Recommendation]:
        """Return the changes that fit how lookups missed."""
        found = []
        cache, bounds = self._manager.cache, self.bounds
        evicted = 0 if cache is None else cache.evictions
        if evicted and self._handles.entries < bounds.most_entries:
            more = min(2 * self._handles.entries, bounds.most_entries)
            why = f"{evicted} callables left memory for others"
            found.append(Recommendation(ENTRIES, more, why, "miss_rate"))
            if cache is not None and cache.policy != COST:
                why = "what was dear to compile is to stay"
                found.append(Recommendation(EVICTION, COST, why, "miss_rate"))
        left = report.stats().get("compilation.disk_evicted", 0)
        if left and 0 < self._handles.disk_bytes < bounds.most_disk_bytes:
            more = min(2 * self._handles.disk_bytes, bounds.most_disk_bytes)
            why = f"{left} entries left cache_dir for others"
            found.append(Recommendation(DISK, more, why, "miss_rate"))
        if patterns:
            report.log.info("misses differ in: %s", dict(patterns))
        return found

    def trigger_memory_optimization(self, told: Mapping[str, Any]) -> list[Recommendation]:
        """Let go of what is in memory, where it may; return what would keep it small."""
        if self.apply:
            gone = self._handles.trigger_cache_cleanup()
            report.log.warning(
                "memory grew by %d bytes: %d callables let go", told["grown_bytes"], gone
            )
        fewer = max(self.bounds.least_entries, self._handles.entries // 2)
        if not self._handles.entries or fewer >= self._handles.entries:
            return []
        why = f"memory grew by {told['grown_bytes']} bytes"
        return [Recommendation(ENTRIES, fewer, why, "memory_bytes")]

    def apply_automatic_optimizations(self, wanted: Sequence[Recommendation]) -> list[Decision]:
        """Do what is recommended and within bounds; return what was done."""
        if not self.apply:
            return []
        done = []
        for each in wanted:
            open_ = any(d.what == each.what and d.state == APPLIED for d in self.decisions)
            if open_ or not self._within(each):
                # Of one change at a time can be said what it did.
                continue
            before = self._change(each.what, each.value)
            if before is None or before == each.value:
                continue
            self._count += 1
            decision = Decision(
                self._count, each.what, before, each.value, each.why, each.figure, self._was(each)
            )
            report.count("compilation.optimized")
            report.log.warning(
                "%s: %r instead of %r, for %s", each.what, each.value, before, each.why
            )
            self.decisions.append(decision)
            done.append(decision)
        return done

    def undo(self, number: int) -> bool:
        """Take a decision back; ``False``: there is none of that number, or it is undone."""
        return self._take_back(number, UNDONE)

    def evaluate(self, sample: Sample) -> list[Decision]:
        """Judge what was decided by the figures since; return what was taken back."""
        figures = _figures(sample)
        back = []
        for at, each in enumerate(self.decisions):
            if each.state != APPLIED or each.figure not in figures:
                continue
            since = (*each.since, figures[each.figure])
            self.decisions[at] = replace(each, since=since)
            if len(since) < _JUDGED_AFTER:
                continue
            now = statistics.median(since)
            if each.was is not None and now > _WORSE * each.was:
                report.log.warning("%s made %s worse: taken back", each.what, each.figure)
                self._take_back(each.number, ROLLED_BACK)
                back.append(self.decisions[at])
            else:
                self.decisions[at] = replace(self.decisions[at], state=KEPT)
        for name, number in figures.items():
            self._figures.setdefault(name, deque(maxlen=_JUDGED_AFTER)).append(number)
        return back

    def _take_back(self, number: int, state: str) -> bool:
        for at, each in enumerate(self.decisions):
            if each.number == number and each.state in (APPLIED, KEPT):
                self._change(each.what, each.before)
                self.decisions[at] = replace(each, state=state)
                report.count(f"compilation.{state}")
                return True
        return False

    def _was(self, wanted: Recommendation) -> float | None:
        held = self._figures.get(wanted.figure)
        return statistics.median(held) if held else None

    def _within(self, wanted: Recommendation) -> bool:
        bounds, number = self.bounds, wanted.value
        if wanted.what == PARALLELISM:
            return 1 <= number <= bounds.most_parallel
        if wanted.what == ENTRIES:
            return bounds.least_entries <= number <= bounds.most_entries
        if wanted.what == DISK:
            return number <= bounds.most_disk_bytes
        return wanted.what == EVICTION or bounds.options

    def _change(self, what: str, number: Any) -> Any:
        handles = self._handles
        changes: dict[str, Callable[[Any], Any]] = {
            PARALLELISM: handles.adjust_compilation_parallelism,
            ENTRIES: lambda to: handles.adjust_cache_limits(entries=to)[0],
            DISK: lambda to: handles.adjust_cache_limits(disk_bytes=to)[1],
            EVICTION: handles.optimize_cache_eviction_policy,
            OPTIONS: handles.tune_inductor_config,
        }
        return changes[what](number)


def _figures(sample: Sample) -> dict[str, float]:
    """Return what a cycle says of each figure that is to be small."""
    found = {"memory_bytes": float(sample.memory_bytes)}
    if sample.compile_seconds:
        found["compile_seconds"] = statistics.median(sample.compile_seconds)
    if sample.lookups:
        found["miss_rate"] = sample.misses / sample.lookups
    return found


def _differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
