"""What is not as it was: the cycles of a monitor, judged by their own history.

Pure: it is given samples, recorded or live. History is a window of cycles (60: an hour
of a cycle a minute); what is judged is the last two cycles together, by medians and
deviations from them, and by how much it matters; what was judged wrong does not enter
the history that it is judged by, before it has been so for a whole window.
Invariant: a fresh start says nothing, and nothing that normal load does is an anomaly.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .windows import Window, deviation, spread

if TYPE_CHECKING:
    from collections.abc import Mapping

SLOW_COMPILATION = "slow_compilation"
SLOW_LOADS = "slow_cache_loads"
LOW_HIT_RATE = "low_cache_hit_rate"
MEMORY_GROWTH = "memory_growth"
CORRUPTION = "cache_corruption"
UNUSED_ENTRIES = "unused_entries"
FAILURES = "compilation_failures"
LOW_DISK = "low_disk_space"
COMPILER_DOWN = "compilation_system_failure"
CACHE_DOWN = "cache_system_failure"

# The worst first: an emergency is not also an optimisation.
CRITICAL = (COMPILER_DOWN, CACHE_DOWN)

# Deviations of its own history that are no chance, at a cycle a minute for weeks.
_DEVIATIONS = 8.0
# What is less than these is not worth a word, however unusual.
_SLOWER = 2.0
_LEAST_RATE_FALL = 0.25
_LEAST_RATE_RISE = 0.25
# That so many of a cycle's compiles fail by chance: less than once in years.
_CHANCE = 1e-7
_LEAST_GROWTH = 0.08
# Values by which a cycle is judged, and a history.
_FEW_TIMES = 4
_FEW_LOOKUPS = 20
_MANY = 10
_LEAST_HISTORY = 20
# Failures of the system, not of the graphs, and how many in a row are the system's end.
SYSTEM = ("crashed", "toolchain_missing", "busy", "out_of_memory", "timeout")
_DOWN = 3
_DISK_LEFT = 0.02
_MOST_EXACT = 200


@dataclass(frozen=True)
class Sample:
    """One cycle: what happened in it, and how things stand at its end."""

    # Seconds since the monitor's start.
    at: float
    compile_seconds: tuple[float, ...] = ()
    load_seconds: tuple[float, ...] = ()
    hits: int = 0
    misses: int = 0
    succeeded: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)
    # Entries that were not what was written, or of no use; errors of cache_dir's own.
    corrupted: int = 0
    unusable: int = 0
    store_errors: int = 0
    # Resident bytes of this process and of those that compile for it; entries in memory.
    memory_bytes: int = 0
    entries: int = 0
    disk_bytes: int = 0
    disk_free: int = 0
    disk_total: int = 0
    # Share of all cores, 0 to 1.
    cpu: float = 0.0

    @property
    def lookups(self) -> int:
        """All lookups."""
        return self.hits + self.misses

    @property
    def system_failures(self) -> int:
        """Failures that are not the graphs' own."""
        return sum(self.failed.get(kind, 0) for kind in SYSTEM)


@dataclass(frozen=True)
class Anomaly:
    """One thing that is not as it was, with the figures that say so."""

    kind: str
    message: str
    now: float
    usual: float

    @property
    def critical(self) -> bool:
        """Whether something does not work at all."""
        return self.kind in CRITICAL


class Detector:
    """Judges cycle after cycle."""

    def __init__(self, window: int = 60) -> None:
        """Know nothing; ``window``: cycles of history."""
        self._window = window
        # Logarithms: a compile that takes twice as long is as far from one that takes half.
        self._compiles = Window(20 * window, _LEAST_HISTORY)
        self._loads = Window(20 * window, _LEAST_HISTORY)
        self._rates = Window(window, _MANY)
        self._steps = Window(window, _MANY)
        self._failed = Window(20 * window, _MANY)
        self._succeeded = Window(20 * window, _MANY)
        self._memory: deque[int] = deque(maxlen=window)
        self._before: Sample | None = None
        self._hits = self._lookups = 0
        self._down = 0
        self._cycles = 0
        # For how many cycles in a row each kind was found.
        self._since: dict[str, int] = {}

    def detect(self, sample: Sample) -> list[Anomaly]:
        """Return what is wrong in this cycle and the one before; then it is history."""
        before = self._before
        last = [sample] if before is None else [before, sample]
        found = [
            *self._system(sample),
            *self._slow(SLOW_COMPILATION, "compiles", last, self._compiles),
            *self._slow(SLOW_LOADS, "loads from the cache", last, self._loads),
            *self._hit_rate(last),
            *self._growth(sample),
            *self._broken(last),
            *self._failing(last),
            *self._disk(sample),
        ]
        self._cycles += 1
        kinds = {each.kind for each in found}
        self._since = {kind: self._since.get(kind, 0) + 1 for kind in kinds}
        # What has been so for a whole window is how things are now.
        wrong = {kind for kind in kinds if self._since[kind] <= self._window}
        if before is not None:
            # The one that is judged once more is no history yet.
            self._learn(before, wrong)
        self._remember(sample, wrong)
        self._before = sample
        return found

    def _system(self, sample: Sample) -> list[Anomaly]:
        found = []
        if sample.succeeded or sample.compile_seconds:
            self._down = 0
        else:
            self._down += sample.system_failures
        if self._down >= _DOWN:
            kinds = ", ".join(sorted(kind for kind in sample.failed if kind in SYSTEM))
            message = f"{self._down} compiles failed and none ended well: {kinds}"
            found.append(Anomaly(COMPILER_DOWN, message, self._down, 0))
        if sample.store_errors >= _DOWN and not sample.hits:
            message = f"{sample.store_errors} errors of the cache and no hit"
            found.append(Anomaly(CACHE_DOWN, message, sample.store_errors, 0))
        return found

    def _slow(self, kind: str, what: str, last: list[Sample], history: Window) -> list[Anomaly]:
        compiles = kind == SLOW_COMPILATION
        each = [cycle.compile_seconds if compiles else cycle.load_seconds for cycle in last]
        if self._cycles < _MANY or not history.enough:
            # The first compiles of a process may take any time.
            return []
        usual = math.exp(history.median)
        # A cycle that has enough by itself, and both.
        for times in (each[-1], [seconds for cycle in each for seconds in cycle]):
            if len(times) < _FEW_TIMES:
                continue
            now = statistics.median(times)
            if now < _SLOWER * usual:
                continue
            if deviation([_log(seconds) for seconds in times], history) >= _DEVIATIONS:
                message = f"{what} take {now:.3g} s, not {usual:.3g} s"
                return [Anomaly(kind, message, now, usual)]
        return []

    def _hit_rate(self, last: list[Sample]) -> list[Anomaly]:
        lookups = sum(each.lookups for each in last)
        if lookups < _FEW_LOOKUPS or not self._rates.enough:
            return []
        usual, now = self._rates.median, sum(each.hits for each in last) / lookups
        if usual - now <= _LEAST_RATE_FALL:
            return []
        chance = (max(usual * (1 - usual), 0.05) / lookups) ** 0.5
        # What is judged is more than one value of the history, and varies less than they do.
        less = max(0.5, (_FEW_LOOKUPS / lookups) ** 0.5)
        allowed = max(_LEAST_RATE_FALL, 5 * chance, 5 * less * self._rates.spread)
        if usual - now <= allowed:
            return []
        message = f"{now:.0%} of {lookups} lookups hit, not {usual:.0%}"
        return [Anomaly(LOW_HIT_RATE, message, now, usual)]

    def _growth(self, sample: Sample) -> list[Anomaly]:
        """Two steps up that are no chance; or a whole window that only went up."""
        held = [*self._memory, sample.memory_bytes]
        if len(held) < 3 or not self._steps.enough:
            return []
        usual = statistics.median(self._memory)
        steps = [held[-1] - held[-2], held[-2] - held[-3]]
        allowed = max(_LEAST_GROWTH * usual, self._steps.median + _DEVIATIONS * self._steps.spread)
        if min(steps) > allowed:
            grown = sum(steps) / (1 << 20)
            message = f"{grown:.0f} MiB more in two cycles"
            return [Anomaly(MEMORY_GROWTH, message, held[-1], usual)]
        if len(self._memory) == self._window:
            parts = [statistics.median(held[at : at + 10]) for at in range(0, len(held) - 9, 10)]
            up = all(b > a for a, b in itertools.pairwise(parts))
            noise = spread(b - a for a, b in itertools.pairwise(held))
            if up and parts[-1] > 1.5 * parts[0] and parts[-1] - parts[0] > _DEVIATIONS * noise:
                message = f"{parts[-1] / parts[0]:.1f} times what it was a window ago"
                return [Anomaly(MEMORY_GROWTH, message, parts[-1], parts[0])]
        return []

    def _broken(self, last: list[Sample]) -> list[Anomaly]:
        found = []
        corrupted, unusable = (
            sum(each.corrupted for each in last),
            sum(each.unusable for each in last),
        )
        if corrupted >= 2:
            message = f"{corrupted} entries of the cache were corrupt"
            found.append(Anomaly(CORRUPTION, message, corrupted, 0))
        if unusable >= 2:
            message = f"{unusable} entries were found and are of no use: compiled again"
            found.append(Anomaly(UNUSED_ENTRIES, message, unusable, 0))
        return found

    def _failing(self, last: list[Sample]) -> list[Anomaly]:
        failed = sum(sum(each.failed.values()) for each in last)
        whole = failed + sum(each.succeeded for each in last)
        if failed < _DOWN or not self._failed.enough:
            return []
        # As if one more of two had failed: none so far does not mean never.
        before = sum(self._failed.values) + sum(self._succeeded.values)
        usual, now = (sum(self._failed.values) + 1) / (before + 2), failed / whole
        if now < usual + _LEAST_RATE_RISE or _at_least(failed, whole, usual) > _CHANCE:
            return []
        return [Anomaly(FAILURES, f"{failed} of {whole} compiles failed", now, usual)]

    def _disk(self, sample: Sample) -> list[Anomaly]:
        if not sample.disk_total or sample.disk_free >= _DISK_LEFT * sample.disk_total:
            return []
        left = sample.disk_free / (1 << 20)
        return [Anomaly(LOW_DISK, f"{left:.0f} MiB are free", sample.disk_free, sample.disk_total)]

    def _learn(self, sample: Sample, wrong: set[str]) -> None:
        if SLOW_COMPILATION not in wrong:
            self._compiles.add(map(_log, sample.compile_seconds))
        if SLOW_LOADS not in wrong:
            self._loads.add(map(_log, sample.load_seconds))
        if LOW_HIT_RATE not in wrong:
            # Of a few lookups alone a rate means nothing: as many as are judged.
            self._hits, self._lookups = self._hits + sample.hits, self._lookups + sample.lookups
            if self._lookups >= _FEW_LOOKUPS:
                self._rates.add([self._hits / self._lookups])
                self._hits = self._lookups = 0
        if FAILURES not in wrong and COMPILER_DOWN not in wrong:
            self._failed.add([sum(sample.failed.values())])
            self._succeeded.add([sample.succeeded])

    def _remember(self, sample: Sample, wrong: set[str]) -> None:
        if self._memory and MEMORY_GROWTH not in wrong:
            self._steps.add([sample.memory_bytes - self._memory[-1]])
        self._memory.append(sample.memory_bytes)


def _at_least(count: int, of: int, rate: float) -> float:
    """Return how likely it is that so many or more fail, where each does at ``rate``."""
    if of > _MOST_EXACT:
        # By a normal distribution: a sum of as many is one.
        off = (count - of * rate) / math.sqrt(of * rate * (1 - rate))
        return 0.5 * math.erfc(off / math.sqrt(2))
    terms = (math.comb(of, k) * rate**k * (1 - rate) ** (of - k) for k in range(count, of + 1))
    return sum(terms)


def _log(seconds: float) -> float:
    return math.log(max(seconds, 1e-6))
