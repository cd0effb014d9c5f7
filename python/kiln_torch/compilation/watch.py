"""``CompilationMonitor``: looks at a manager every so often, says what it sees, helps.

Off by default. One daemon thread, which holds no manager that nobody else holds.
Invariant: a cycle changes nothing but by ``optimize`` and in an emergency, both of
which are in its report; what fails within a cycle is logged and ends no process.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .. import report
from . import anomalies
from .alerts import alerts
from .anomalies import Anomaly, Detector, Sample
from .optimization import Bounds, OptimizationEngine
from .resources import ResourceTracker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .alerts import Alert, AlertSystem
    from .manager import CompilerManager
    from .optimization import Decision, Recommendation

EVERY = 60.0
# Cycles that a report's history and the detector's have.
WINDOW = 60
# Cycles without an anomaly after which it is over, and in eager mode before another try.
_CLEAR = 2
_HOLD = 5

_running: weakref.WeakSet[CompilationMonitor] = weakref.WeakSet()


@dataclass(frozen=True)
class Report:
    """What one cycle saw and did."""

    sample: Sample
    trends: dict[str, float]
    anomalies: tuple[Anomaly, ...]
    recommendations: tuple[Recommendation, ...]
    decisions: tuple[Decision, ...]
    alerts: tuple[Alert, ...]
    # Why nothing is compiled, and why the cache is not used; "": it is.
    eager: str
    cache_off: str

    def told(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


class CompilationMonitor:
    """The monitor of one manager."""

    def __init__(
        self,
        manager: CompilerManager,
        every: float = EVERY,
        *,
        optimize: bool = False,
        bounds: Bounds | None = None,
        window: int = WINDOW,
        alert_system: AlertSystem | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look at ``manager`` every so many seconds, once it is started."""
        self._manager = manager
        self._every = every
        self._clock = clock
        self._started = clock()
        self.alerts = alert_system or alerts
        self.detector = Detector(window)
        self.resources = ResourceTracker(manager)
        self.optimization = OptimizationEngine(manager, apply=optimize, bounds=bounds)
        self.reports: deque[Report] = deque(maxlen=window)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._counted = self._counters()
        self._wrong: dict[str, int] = {}
        self._held = 0
        manager.performance_monitor.collect_compilation_metrics()

    def start(self) -> None:
        """Look from now on, in a thread that ends with the process."""
        if self._thread is None or not self._thread.is_alive():
            self._stop.clear()
            self._thread = threading.Thread(
                target=_serve,
                args=(weakref.ref(self), self._stop, self._every),
                name="kiln-monitor",
                daemon=True,
            )
            self._thread.start()
            _running.add(self)

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        _running.discard(self)

    def cycle(self, sample: Sample | None = None) -> Report:
        """Look once; ``sample``: at a recorded one."""
        sample = sample or self.sample()
        found = self.detect_performance_anomalies(sample)
        wanted: list[Recommendation] = []
        for each in found:
            wanted += self._answer(each, sample)
        self._resolve({each.kind for each in found})
        taken_back = self.optimization.evaluate(sample)
        done = self.optimization.apply_automatic_optimizations(wanted)
        self._recover()
        made = self.generate_monitoring_report(sample, found, wanted, [*taken_back, *done])
        self.update_performance_dashboard(made)
        return made

    def sample(self) -> Sample:
        """Take down what happened since the last time."""
        told = self._manager.performance_monitor.collect_compilation_metrics()
        usage = self.resources.collect_resource_usage()
        now = self._counters()
        corrupted, unusable, errors = (a - b for a, b in zip(now, self._counted))
        self._counted = now
        return Sample(
            at=self._clock() - self._started,
            compile_seconds=told.compile_seconds,
            load_seconds=told.load_seconds,
            hits=told.hits,
            misses=told.misses,
            succeeded=told.succeeded,
            failed=told.failed,
            corrupted=corrupted,
            unusable=unusable,
            store_errors=errors,
            **asdict(usage),
        )

    def detect_performance_anomalies(self, sample: Sample) -> list[Anomaly]:
        """Return what is not as it was."""
        return self.detector.detect(sample)

    def generate_monitoring_report(
        self,
        sample: Sample,
        found: Sequence[Anomaly],
        wanted: Sequence[Recommendation],
        decisions: Sequence[Decision],
    ) -> Report:
        """Put together what a cycle saw and did."""
        emergency = self._manager.emergency
        return Report(
            sample,
            self._manager.performance_monitor.analyze_compilation_trends(),
            tuple(found),
            tuple(wanted),
            tuple(decisions),
            self.alerts.open,
            emergency.why if emergency.eager else "",
            emergency.cache_off,
        )

    def update_performance_dashboard(self, made: Report) -> None:
        """Add a report to those that ``monitoring_reports`` shows."""
        self.reports.append(made)

    def _answer(self, each: Anomaly, sample: Sample) -> list[Recommendation]:
        self._wrong[each.kind] = 0
        if each.kind == anomalies.COMPILER_DOWN:
            self.alerts.send_critical_alert(each.kind, each.message)
            if self._manager.emergency.initiate_emergency_fallback(each.message):
                self._held = 0
            return []
        if each.kind == anomalies.CACHE_DOWN:
            self.alerts.send_critical_alert(each.kind, each.message)
            self._manager.emergency.disable_compilation_cache(each.message)
            return []
        self.alerts.send_performance_alert(each.kind, each.message)
        if each.kind == anomalies.SLOW_COMPILATION:
            return self.optimization.investigate_slow_compilation(sample)
        if each.kind == anomalies.LOW_HIT_RATE:
            return self.optimization.analyze_cache_efficiency()
        if each.kind == anomalies.MEMORY_GROWTH:
            samples = [*(made.sample for made in self.reports), sample]
            told = self.resources.investigate_memory_usage(samples)
            return self.optimization.trigger_memory_optimization(told)
        if each.kind == anomalies.CORRUPTION:
            checked, removed = self.resources.cleanup_corrupted_cache()
            report.log.warning("%d of %d entries were removed", removed, checked)
        return []

    def _resolve(self, now: set[str]) -> None:
        for kind in [each for each in self._wrong if each not in now]:
            self._wrong[kind] += 1
            emergency = self._manager.emergency
            on = (kind == anomalies.COMPILER_DOWN and emergency.eager) or (
                kind == anomalies.CACHE_DOWN and emergency.cache_off
            )
            if self._wrong[kind] >= _CLEAR and not on:
                del self._wrong[kind]
                self.alerts.resolve(kind)
        self.alerts.expire()

    def _recover(self) -> None:
        """Try what is off: the cache in each cycle, the compiler after some."""
        emergency = self._manager.emergency
        if emergency.cache_off:
            self.resources.cleanup_corrupted_cache()
            emergency.reinitialize_cache_system()
        if emergency.eager:
            self._held += 1
            if self._held > _HOLD:
                # What fails again is found again.
                emergency.leave_eager_mode()

    def _counters(self) -> tuple[int, int, int]:
        stats = report.stats()
        return (
            self._manager.compilation_counter.num_cache_corrupted,
            stats.get("compilation.load_failed", 0),
            stats.get("compilation.unsaved", 0),
        )


def watching(manager: CompilerManager) -> CompilationMonitor | None:
    """Start the monitor that the manager's configuration asks for, if it does."""
    config = manager.compilation_config
    if config.monitor_seconds is None:
        return None
    made = CompilationMonitor(manager, config.monitor_seconds, optimize=config.optimize)
    made.start()
    return made


def monitoring_reports() -> list[dict[str, Any]]:
    """Return the last report of each monitor that runs in this process, as plain data."""
    return [monitor.reports[-1].told() for monitor in list(_running) if monitor.reports]


def _serve(reference: weakref.ref[CompilationMonitor], stop: threading.Event, every: float) -> None:
    while not stop.wait(every):
        monitor = reference()
        if monitor is None:
            return
        try:
            monitor.cycle()
        except Exception as error:
            report.count("compilation.monitor_failed")
            report.once("monitor", "a cycle of the monitor failed: %r", error)
        # Not held while it waits.
        del monitor
