"""The fourth scenario on a real manager: what a cycle sees, does, takes back and says."""

from __future__ import annotations

import gc
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from cluster import eventually  # noqa: E402
from compilation_graphs import block, close, rows  # noqa: E402
from kiln_torch import report, stats  # noqa: E402
from kiln_torch.compilation import (  # noqa: E402
    CompilationConfig,
    CompilerManager,
    anomalies,
    robust_compile,
    watch,
)
from kiln_torch.compilation.alerts import AlertSystem  # noqa: E402
from kiln_torch.compilation.anomalies import Sample  # noqa: E402
from kiln_torch.compilation.fallback import fallback_of  # noqa: E402
from kiln_torch.compilation.memory import Cached  # noqa: E402
from kiln_torch.compilation.optimization import (  # noqa: E402
    APPLIED,
    ENTRIES,
    EVICTION,
    KEPT,
    OPTIONS,
    PARALLELISM,
    ROLLED_BACK,
    UNDONE,
    Bounds,
    Recommendation,
)
from kiln_torch.compilation.watch import CompilationMonitor  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.torch

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with torch.no_grad():
        yield


def manager(tmp_path: Path, **settings: Any) -> CompilerManager:
    chosen: dict[str, Any] = {"compile_timeout": None, **settings}
    config = CompilationConfig(**chosen)
    return CompilerManager(config, str(tmp_path / "cache"))


def monitor(of: CompilerManager, **settings: Any) -> CompilationMonitor:
    return CompilationMonitor(of, alert_system=AlertSystem(), **settings)


def quiet(at: int = 0) -> Sample:
    """Return a cycle of normal load."""
    return Sample(
        at=60.0 * at,
        compile_seconds=(1.0, 1.1, 0.9, 1.05, 0.95),
        load_seconds=(0.01,) * 20,
        hits=20,
        misses=5,
        succeeded=5,
        memory_bytes=1000 * MIB + (at % 3) * MIB,
        entries=50,
        disk_free=50 << 30,
        disk_total=100 << 30,
    )


def settled(of: CompilationMonitor, cycles: int = 40) -> None:
    for at in range(cycles):
        made = of.cycle(quiet(at))
        assert made.anomalies == ()
    assert of.alerts.open == ()


def test_a_cycle_sees_what_happened(tmp_path: Path) -> None:
    # Of another manager of this process, which counts for nothing here.
    other = manager(tmp_path / "other")
    robust_compile(block(), [rows(2)], other.compilation_config, other)
    of = manager(tmp_path)
    watched = monitor(of)
    graph, x = block(), rows(4)
    for _ in range(3):
        robust_compile(graph, [x], of.compilation_config, of)
    made = watched.cycle()
    sample = made.sample
    assert (len(sample.compile_seconds), sample.hits, sample.misses) == (1, 2, 1)
    assert (sample.succeeded, sample.failed, sample.entries) == (3, {}, 1)
    assert sample.memory_bytes > 50 * MIB
    assert sample.disk_bytes == sum(p.stat().st_size for p in (tmp_path / "cache").iterdir())
    assert 0 < sample.disk_free < sample.disk_total
    assert (made.anomalies, made.eager, made.cache_off) == ((), "", "")
    assert made.trends["median"] == sample.compile_seconds[0]
    assert made.told()["sample"]["hits"] == 2
    # Once.
    assert watched.cycle().sample.hits == 0


def test_the_processor_is_seen_at_work(tmp_path: Path) -> None:
    tracker = monitor(manager(tmp_path)).resources
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            torch.randn(400, 400) @ torch.randn(400, 400)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        eventually("work", lambda: tracker.get_cpu_utilization() > 0.2 or None)
    finally:
        stop.set()
        thread.join()
    assert 0 <= tracker.get_cpu_utilization() <= 1


def test_slow_compiles_are_answered_by_their_bottleneck(tmp_path: Path) -> None:
    watched = monitor(manager(tmp_path, parallel_compiles=4, compile_timeout=60.0))
    settled(watched)
    slow = replace(quiet(40), compile_seconds=(9.0, 9.5, 10.0, 8.5), cpu=0.97)
    made = watched.cycle(slow)
    assert [each.kind for each in made.anomalies] == [anomalies.SLOW_COMPILATION]
    (wanted,) = made.recommendations
    assert (wanted.what, wanted.value) == (PARALLELISM, 2)
    # Only said: it was not asked to do anything.
    assert made.decisions == ()
    assert [each.name for each in made.alerts] == [anomalies.SLOW_COMPILATION]
    engine = watched.optimization
    assert engine.analyze_compilation_bottlenecks(replace(slow, cpu=0.3)) == "compiler"
    (wanted,) = engine.suggest_optimization_strategies("compiler")
    assert wanted.what == OPTIONS
    # It ends when it is over, once.
    for at in range(41, 45):
        made = watched.cycle(quiet(at))
    assert made.alerts == ()


def test_a_decision_that_makes_things_worse_is_rolled_back(tmp_path: Path) -> None:
    of = manager(tmp_path, parallel_compiles=4, compile_timeout=60.0)
    watched = monitor(of, optimize=True, bounds=Bounds(most_parallel=8))
    settled(watched)
    slow = replace(quiet(40), compile_seconds=(9.0, 9.5, 10.0, 8.5), cpu=0.97)
    (decision,) = watched.cycle(slow).decisions
    assert (decision.what, decision.before, decision.after) == (PARALLELISM, 4, 2)
    assert decision.state == APPLIED
    assert of.tiers.pool is not None
    assert of.tiers.pool.most == 2
    # Compiles take even longer: back to what it was.
    slower = replace(slow, compile_seconds=(30.0, 31.0, 29.0, 30.5))
    decided = [each for _ in range(3) for each in watched.cycle(slower).decisions]
    assert decided[0].state == ROLLED_BACK
    assert decided[0].since == (30.25, 30.25, 30.25)
    assert watched.optimization.decisions[0].state == ROLLED_BACK
    assert stats()["compilation.rolled_back"] == 1


def test_a_decision_that_helps_is_kept_and_can_be_undone(tmp_path: Path) -> None:
    of = manager(tmp_path, parallel_compiles=4, compile_timeout=60.0)
    engine = monitor(of, optimize=True, bounds=Bounds(most_parallel=8)).optimization
    engine.evaluate(quiet())
    wanted = [Recommendation(PARALLELISM, 2, "a test", "compile_seconds")]
    (decision,) = engine.apply_automatic_optimizations(wanted)
    # One change of a kind at a time, and none out of bounds.
    assert engine.apply_automatic_optimizations(wanted) == []
    far = [Recommendation(PARALLELISM, 99, "a test", "compile_seconds")]
    for at in range(3):
        engine.evaluate(quiet(at))
    assert engine.decisions[0].state == KEPT
    assert engine.apply_automatic_optimizations(far) == []
    assert engine.undo(decision.number)
    assert engine.decisions[0].state == UNDONE
    assert not engine.undo(decision.number)
    assert of.tiers.pool is not None
    assert of.tiers.pool.most == 4


def test_changes_are_made_and_undone(tmp_path: Path) -> None:
    of = manager(tmp_path)
    assert of.cache is not None
    free = Bounds(options=True)
    engine = monitor(of, optimize=True, bounds=free).optimization
    wanted = [
        Recommendation(EVICTION, "cost", "a test", "miss_rate"),
        Recommendation(OPTIONS, {"max_autotune": False}, "a test", "compile_seconds"),
    ]
    before = of._generate_cache_key(block(), [rows(4)], None)
    eviction, options = engine.apply_automatic_optimizations(wanted)
    assert of.cache.policy == "cost"
    assert of.tuned == {"max_autotune": False}
    engine.undo(eviction.number)
    engine.undo(options.number)
    assert (of.cache.policy, of.tuned) == ("lru", {})
    assert of._generate_cache_key(block(), [rows(4)], None) == before
    # Options change keys: not without leave.
    careful = monitor(of, optimize=True).optimization
    assert careful.apply_automatic_optimizations(wanted[1:]) == []


def test_misses_are_told_apart_by_the_part_that_differs(tmp_path: Path) -> None:
    of = manager(tmp_path, memory_cache_entries=2)
    graph, x = block(), rows(4)
    for options in ({}, {"epilogue_fusion": False}, {"pattern_matcher": False}):
        of.compile(graph, [x], options)
    watched = monitor(of)
    patterns = watched.optimization.identify_cache_miss_patterns()
    assert patterns == {"options": 2}
    wanted = {each.what: each.value for each in watched.optimization.analyze_cache_efficiency()}
    assert wanted == {ENTRIES: 4, EVICTION: "cost"}
    settled(watched)
    made = watched.cycle(replace(quiet(40), hits=2, misses=38))
    assert [each.kind for each in made.anomalies] == [anomalies.LOW_HIT_RATE]
    assert {each.what for each in made.recommendations} == {ENTRIES, EVICTION}


def test_memory_that_grows_is_made_less(tmp_path: Path) -> None:
    of = manager(tmp_path, memory_cache_entries=64)
    assert of.cache is not None
    for at in range(64):
        of.cache.store(str(at), Cached(str))
    watched = monitor(of, optimize=True)
    settled(watched)
    watched.cycle(replace(quiet(40), memory_bytes=1400 * MIB))
    made = watched.cycle(replace(quiet(41), memory_bytes=1900 * MIB))
    assert [each.kind for each in made.anomalies] == [anomalies.MEMORY_GROWTH]
    # As many callables as before: they are not what grew.
    told = watched.resources.investigate_memory_usage([each.sample for each in watched.reports])
    assert told["unexplained_bytes"] == told["grown_bytes"] == 900 * MIB
    assert len(of.cache) == 32
    (decision,) = made.decisions
    assert (decision.what, decision.before, decision.after) == (ENTRIES, 64, 32)


def test_a_compiler_that_is_down_is_left_alone_until_it_works(tmp_path: Path) -> None:
    of = manager(tmp_path, fallback_seconds=3600.0)
    watched = monitor(of)
    graph, x = block(), rows(4)
    missing = {"cpp.cxx": (str(tmp_path / "no-such-g++"), None)}
    broken = replace(of.compilation_config, inductor_config=missing)
    for size in (2, 3, 4):
        robust_compile(graph, [rows(size)], broken, of, runtime_shape=size)
    made = watched.cycle()
    assert [each.kind for each in made.anomalies] == [anomalies.COMPILER_DOWN]
    assert [each.severity for each in made.alerts] == ["critical"]
    assert of.emergency.eager
    # At once, and it says why.
    before = of.performance_monitor.total_compilation_time
    run = robust_compile(graph, [x], of.compilation_config, of)
    close(run(x), graph(x))
    mark = fallback_of(run)
    assert mark is not None
    assert [each.kind for each in mark.tried] == ["emergency"]
    close(of.compile(graph, [x])(x), graph(x))
    assert of.performance_monitor.total_compilation_time == before
    # After a while it is tried, and works.
    for _ in range(5):
        assert of.emergency.eager
        watched.cycle()
    assert not of.emergency.eager
    of.verdicts.forget(mark.wanted)
    assert fallback_of(robust_compile(graph, [x], of.compilation_config, of)) is None
    for _ in range(3):
        made = watched.cycle()
    assert made.alerts == ()


def test_a_cache_that_is_down_is_off_until_it_keeps_what_it_is_given(tmp_path: Path) -> None:
    of = manager(tmp_path)
    watched = monitor(of)
    graph, x = block(), rows(4)
    of.compile(graph, [x])
    folder = tmp_path / "cache"
    (entry,) = folder.iterdir()
    entry.write_bytes(entry.read_bytes()[:-1])
    # In its place is a file: nothing can be written.
    folder.rename(tmp_path / "aside")
    folder.write_text("no folder")
    for size in (2, 3, 4):
        close(of.compile(graph, [rows(size)], runtime_shape=size)(rows(size)), graph(rows(size)))
    made = watched.cycle()
    assert anomalies.CACHE_DOWN in [each.kind for each in made.anomalies]
    assert of.tiers.store is None
    assert made.cache_off
    close(of.compile(graph, [rows(5)], runtime_shape=5)(rows(5)), graph(rows(5)))
    assert watched.cycle().cache_off
    # It is back: swept, opened again, checked.
    folder.unlink()
    (tmp_path / "aside").rename(folder)
    assert watched.cycle().cache_off == ""
    assert list(folder.iterdir()) == []
    assert of.tiers.store is not None
    of.compile(graph, [rows(6)], runtime_shape=6)
    assert len(list(folder.iterdir())) == 1
    assert stats()["compilation.cache_restored"] == 1


def test_a_monitor_runs_by_itself_and_ends_with_its_manager(tmp_path: Path) -> None:
    assert manager(tmp_path).watch is None
    thread = watched_by_itself(tmp_path)

    def ended() -> bool | None:
        gc.collect()
        return None if thread.is_alive() else True

    eventually("end", ended)
    assert watch.monitoring_reports() == []
    assert "compilation.monitor_failed" not in report.stats()


def watched_by_itself(tmp_path: Path) -> threading.Thread:
    """Let a monitor run twice, and its manager go; return its thread."""
    of = manager(tmp_path, monitor_seconds=0.05)
    watched = of.watch
    assert watched is not None
    eventually("two cycles", lambda: len(watched.reports) > 1 or None)
    (told,) = watch.monitoring_reports()
    assert told["anomalies"] == ()
    assert watched._thread is not None
    assert watched._thread.daemon
    return watched._thread
