"""The parts of the compilation module that need no torch."""

from __future__ import annotations

import builtins
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from cluster import eventually
from kiln_torch import compilation, packing, report
from kiln_torch.compilation import (
    CacheCorruptedError,
    CompilationConfig,
    CompilationCounter,
    CompilationError,
    IncompatibleConfigError,
    InductorNotAvailableError,
    PerformanceMonitor,
    get_compilation_metrics,
)
from kiln_torch.compilation.local_cache import LocalCache
from kiln_torch.compilation.memory import Cached, MemoryCache
from kiln_torch.compilation.signing import LocalKey, UnsafeKey
from kiln_torch.compilation.store import LocalStore
from kiln_torch.key import Component, key_of
from kiln_torch.manifest import Fingerprint, Target

if TYPE_CHECKING:
    from pathlib import Path

COMPONENTS = (Component.of("graph", form="test"),)
KEY = key_of(COMPONENTS)
NAME = f"{KEY.hex()}.kiln"


def packed(data: bytes = b"code" * 100) -> packing.Packed:
    return packing.pack(
        COMPONENTS,
        {"standalone.bin": data, "guards": b"x > 1"},
        fingerprint=Fingerprint.of("inductor", {"torch": "1"}),
        target=Target.any(),
        namespace="local",
        label="a test",
        seconds=1.5,
    )


def test_importing_the_module_does_not_import_torch() -> None:
    code = "import sys, kiln_torch.compilation as c; c.get_compilation_metrics(); "
    code += "raise SystemExit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CompilationError, "C001"),
        (CacheCorruptedError, "C002"),
        (IncompatibleConfigError, "C003"),
        (compilation.TimeoutError, "C004"),
        (InductorNotAvailableError, "C005"),
    ],
)
def test_errors_have_the_documents_codes_and_say_what_to_do(
    error: type[compilation.CompilationModuleError], code: str
) -> None:
    raised = error("what happened")
    assert raised.code == code
    assert str(raised).startswith(f"{code}: what happened (")
    assert raised.advice in str(raised)
    assert len(raised.advice) > 10


def test_a_timeout_is_pythons_and_no_compilation_error() -> None:
    assert issubclass(compilation.TimeoutError, builtins.TimeoutError)
    assert not issubclass(compilation.TimeoutError, CompilationError)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("backend", "gcc"),
        ("compilation_level", 3),
        ("parallel_compiles", 0),
        ("memory_cache_entries", True),
        ("compile_timeout", -1),
    ],
)
def test_a_configuration_that_means_nothing_is_refused(name: str, value: object) -> None:
    with pytest.raises(IncompatibleConfigError, match=name):
        CompilationConfig(**{name: value})  # pyrefly: ignore
    config = CompilationConfig()
    with pytest.raises(IncompatibleConfigError, match=name):
        setattr(config, name, value)
    # As the document's fallback changes it.
    config.use_inductor = False
    assert config.compiler == "eager"


def test_counters_count_here_and_in_the_process() -> None:
    process = CompilationCounter()
    one, other = CompilationCounter(process), CompilationCounter(process)
    assert one.cache_hit_rate == 0.0
    one.count("num_cache_hits")
    other.count("num_cache_misses", 3)
    assert (one.num_cache_hits, one.num_cache_misses) == (1, 0)
    assert (process.num_cache_hits, process.num_cache_misses) == (1, 3)
    assert (one.cache_hit_rate, process.cache_hit_rate) == (1.0, 0.25)
    with pytest.raises(AttributeError):
        one.count("num_typos")


def test_the_monitor_averages_what_it_was_told() -> None:
    process = PerformanceMonitor()
    monitor = PerformanceMonitor(process)
    assert (monitor.avg_compilation_time, monitor.avg_cache_load_time) == (0.0, 0.0)
    assert monitor.calculate_parallel_efficiency() == 0.0
    monitor.record_compilation_time(1.0)
    monitor.record_compilation_time(3.0)
    monitor.record_cache_load_time(0.5)
    monitor.record_memory_cache_hit()
    monitor.record_disk_cache_hit()
    monitor.record_cache_miss()
    assert (monitor.avg_compilation_time, monitor.total_compilation_time) == (2.0, 4.0)
    assert process.avg_cache_load_time == 0.5
    hits = monitor.memory_cache_hits, monitor.disk_cache_hits, monitor.cache_misses
    assert hits == (1, 1, 1)
    # Two workers for two seconds, three seconds of which they compiled.
    assert monitor.record_piecewise_compilation_complete((1.0, 2.0), 2.0, 2) == 0.75
    assert process.calculate_parallel_efficiency() == 0.75


def test_what_was_recorded_is_collected_once() -> None:
    process = PerformanceMonitor()
    monitor = PerformanceMonitor(process)
    assert monitor.calculate_cache_hit_rate() == 0.0
    assert monitor.analyze_compilation_trends() == {"median": 0, "newer_median": 0, "ratio": 1.0}
    for seconds in (1.0, 1.0, 1.0, 4.0, 4.0, 4.0):
        monitor.record_compilation_time(seconds)
    monitor.record_cache_load_time(0.5)
    monitor.record_memory_cache_hit()
    monitor.record_cache_miss({"graph": "a"})
    monitor.record_compilation_failure("timeout")
    monitor.record_compilation_success()
    monitor.record_fallback_execution("eager")
    told = monitor.collect_compilation_metrics()
    assert told.compile_seconds == (1.0, 1.0, 1.0, 4.0, 4.0, 4.0)
    assert (told.load_seconds, told.hits, told.misses) == ((0.5,), 1, 1)
    assert (told.succeeded, told.failed, told.fallbacks) == (1, {"timeout": 1}, {"eager": 1})
    assert (told.failures, monitor.missed()) == (1, [{"graph": "a"}])
    # Once; and the process's own are collected by themselves.
    again = monitor.collect_compilation_metrics()
    assert (again.compile_seconds, again.hits, again.failed) == ((), 0, {})
    assert process.collect_compilation_metrics().failed == {"timeout": 1}
    # Averages are of all that was ever recorded.
    assert monitor.calculate_avg_compilation_time() == 2.5
    assert monitor.calculate_cache_hit_rate() == 0.5
    assert monitor.analyze_compilation_trends()["newer_median"] == 4.0
    # Memory stays the same.
    for _ in range(10_000):
        monitor.record_compilation_time(1.0)
        monitor.record_cache_miss({"graph": "a"})
    assert len(monitor.collect_compilation_metrics().compile_seconds) == 4096
    assert len(monitor.missed()) == 64


def test_what_was_dear_to_compile_stays_in_memory() -> None:
    cache = MemoryCache(4)
    cache.policy = "cost"
    for at, seconds in enumerate((9.0, 1.0, 5.0, 2.0)):
        cache.store(str(at), Cached(str, seconds=seconds))
    cache.store("4", Cached(str, seconds=0.1))
    # Of the older half the cheapest: not what has just come.
    assert [str(at) in cache for at in range(5)] == [True, False, True, True, True]
    cache.resize(2)
    assert len(cache) == 2
    assert "0" in cache


def test_a_swept_folder_has_only_what_is_whole(tmp_path: Path) -> None:
    cache = LocalCache(tmp_path / "cache", LocalKey(tmp_path), 1 << 20)
    good = cache.write(NAME, packed())
    assert good is not None
    bad = cache.folder / f"{'ab' * 32}.kiln"
    bad.write_bytes(good.read_bytes())
    (cache.folder / "no-key.kiln").write_bytes(b"junk")
    left = cache.folder / f".{NAME}.0011223344556677"
    left.write_bytes(b"half")
    fresh = cache.folder / f".{NAME}.8899aabbccddeeff"
    fresh.write_bytes(b"half")
    os.utime(left, (1000, 1000))
    (cache.folder / "notes.txt").write_text("not ours")
    assert cache.sweep() == (5, 3)
    assert sorted(each.name for each in cache.folder.iterdir()) == sorted(
        [NAME, fresh.name, "notes.txt"]
    )


def test_an_entry_of_a_later_version_is_a_miss_and_stays(tmp_path: Path) -> None:
    cache = LocalCache(tmp_path / "cache", LocalKey(tmp_path), 1 << 20)
    later = cache.folder / NAME
    for data in (b"kiln-entry-2\nwhatever comes then", b"kiln-entry-10\n"):
        later.write_bytes(data)
        before = report.stats().get("compilation.later_format", 0)
        assert cache.read(NAME, KEY) is None
        assert cache.write(NAME, packed()) is None
        assert report.stats()["compilation.later_format"] == before + 2, "each has its reason"
        assert cache.sweep() == (1, 0)
        assert later.read_bytes() == data
    for damaged in (b"kiln-entry-0\n", b"kiln-entry-x\n", b"kiln-entry-2", b""):
        later.write_bytes(damaged)
        with pytest.raises(CacheCorruptedError):
            cache.read(NAME, KEY)
    assert cache.write(NAME, packed()) == later
    assert cache.read(NAME, KEY) is not None


def test_a_store_that_does_not_keep_what_it_is_given_fails_its_check(tmp_path: Path) -> None:
    cache = LocalCache(tmp_path / "cache", LocalKey(tmp_path), 1 << 20)
    assert LocalStore(cache).check()
    assert list(cache.folder.iterdir()) == []
    # Entries of another key are what a disk that rots is: not what was written.
    other = LocalCache(tmp_path / "cache", LocalKey(tmp_path / "other"), 1 << 20)
    other.write = cache.write  # pyrefly: ignore
    assert not LocalStore(other).check()
    cache.folder.rmdir()
    (tmp_path / "cache").write_text("no folder")
    assert not LocalStore(cache).check()


def test_metrics_have_the_documents_shape() -> None:
    told = get_compilation_metrics()
    assert {group: list(values) for group, values in told.items()} == {
        "compilation_stats": [
            "total_compilations",
            "inductor_compilations",
            "cache_hits",
            "cache_misses",
            "artifacts_saved",
            "artifacts_loaded",
        ],
        "performance": [
            "cache_hit_rate",
            "avg_compilation_time",
            "avg_cache_load_time",
            "total_compilation_time",
        ],
        "resources": ["cache_disk_usage", "memory_usage_mb", "active_compiler_processes"],
    }
    # This interpreter has some, and not all of the machine.
    assert 1.0 < told["resources"]["memory_usage_mb"] < 100_000


def test_a_running_compiler_is_seen() -> None:
    before = compilation.get_active_compiler_count()
    memory = compilation.get_compilation_memory_usage()
    # It reads its source from here, and waits.
    command = ["g++", "-x", "c++", "-fsyntax-only", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as compiler:
        eventually(
            "compiler", lambda: compilation.get_active_compiler_count() >= before + 2 or None
        )
        assert compilation.get_compilation_memory_usage() > memory
        compiler.communicate(b"int main() {}")
    assert compilation.get_active_compiler_count() == before


def test_the_least_recently_used_entry_leaves_memory() -> None:
    cache = MemoryCache(2)
    for name in ("a", "b"):
        cache.store(name, Cached(str))
    assert cache.lookup("a") is not None
    cache.store("c", Cached(str))
    assert ("a" in cache, "b" in cache, "c" in cache) == (True, False, True)
    assert (len(cache), cache.evictions) == (2, 1)


def test_an_entry_comes_back_as_it_was_written(tmp_path: Path) -> None:
    cache = LocalCache(tmp_path / "cache", LocalKey(tmp_path), 1 << 20)
    assert cache.read(NAME, KEY) is None
    path = cache.write(NAME, packed())
    assert path is not None
    assert [each.name for each in cache.folder.iterdir()] == [NAME]
    found = cache.read(NAME, KEY)
    assert found is not None
    assert {name: bytes(data) for name, data in found.files.items()} == {
        "guards": b"x > 1",
        "standalone.bin": b"code" * 100,
    }
    assert found.manifest.compile_seconds == 1.5
    assert cache.size() == path.stat().st_size


def test_no_byte_can_be_changed(tmp_path: Path) -> None:
    cache = LocalCache(tmp_path / "cache", LocalKey(tmp_path), 1 << 20)
    path = cache.write(NAME, packed(b"code"))
    assert path is not None
    whole = path.read_bytes()
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(CacheCorruptedError):
            cache.read(NAME, KEY)
    for broken in (b"", whole[:-1], whole + b"x", whole[:20]):
        path.write_bytes(broken)
        with pytest.raises(CacheCorruptedError):
            cache.read(NAME, KEY)
    path.write_bytes(whole)
    with pytest.raises(CacheCorruptedError, match="is for key"):
        cache.read(NAME, bytes(32))


def test_an_entry_of_another_key_file_is_not_trusted(tmp_path: Path) -> None:
    mine = LocalCache(tmp_path / "cache", LocalKey(tmp_path / "mine"), 1 << 20)
    theirs = LocalCache(tmp_path / "cache", LocalKey(tmp_path / "theirs"), 1 << 20)
    theirs.write(NAME, packed())
    with pytest.raises(CacheCorruptedError, match="signature"):
        mine.read(NAME, KEY)
    # Whoever starts later has the key that is there.
    assert LocalKey(tmp_path / "mine").public == LocalKey(tmp_path / "mine").public


def test_a_key_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    LocalKey(tmp_path)
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    with pytest.raises(UnsafeKey, match="chmod 600"):
        LocalKey(tmp_path)


def test_a_full_cache_drops_what_was_used_longest_ago(tmp_path: Path) -> None:
    key = LocalKey(tmp_path)
    cache = LocalCache(tmp_path / "cache", key, 1 << 30)
    sizes = []
    for name in ("a", "b", "c"):
        path = cache.write(f"{name}.kiln", packed())
        assert path is not None
        sizes.append(path.stat().st_size)
        os.utime(path, (1000 + len(sizes), 1000 + len(sizes)))
    os.utime(cache.folder / "a.kiln", (5000, 5000))
    small = LocalCache(tmp_path / "cache", key, 3 * sizes[0])
    small.write("d.kiln", packed())
    assert sorted(each.name for each in cache.folder.iterdir()) == ["a.kiln", "c.kiln", "d.kiln"]
