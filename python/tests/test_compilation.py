"""The documents' scenarios 1 and 3 on real torch: what is compiled, found, deleted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from compilation_graphs import block, close, rows  # noqa: E402
from kiln_torch import compilation, report  # noqa: E402
from kiln_torch.compilation import (  # noqa: E402
    CompilationConfig,
    CompilationError,
    CompilerManager,
    EagerAdaptor,
    Fallback,
    IncompatibleConfigError,
    InductorAdaptor,
    InductorNotAvailableError,
    InductorStandaloneAdaptor,
    make_compiler,
    robust_compile,
)
from kiln_torch.compilation.local_cache import LocalCache  # noqa: E402
from kiln_torch.compilation.signing import LocalKey  # noqa: E402
from kiln_torch.manifest import Fingerprint, Target  # noqa: E402
from kiln_torch.packing import pack  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.torch

# In this process: most tests are not about those that compile for it.
HERE: dict[str, Any] = {"compile_timeout": None}
FIRST = {
    "num_backend_compilations": 1,
    "num_inductor_compiles": 1,
    "num_cache_misses": 1,
    "num_compiled_artifacts_saved": 1,
}


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A key and Inductor's folder of its own, and no gradients."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with torch.no_grad():
        yield


def manager(tmp_path: Path, **settings: Any) -> CompilerManager:
    return CompilerManager(CompilationConfig(**{**HERE, **settings}), str(tmp_path / "cache"))


def counted(of: CompilerManager) -> dict[str, int]:
    return {name: n for name, n in of.compilation_counter.snapshot().items() if n}


def entry(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "cache").iterdir()
    return path


def test_scenario_1_the_first_compile(tmp_path: Path) -> None:
    """A miss, a compile, an entry; with the process that the time limit needs."""
    graph, x = block(), rows(4)
    first = manager(tmp_path, compile_timeout=600.0)
    before = compilation.compilation_counter.snapshot()
    compiled = first.compile(graph, [x], {}, first.compilation_config)
    close(compiled(x), graph(x))
    # Without a runtime shape it is for all sizes.
    close(compiled(rows(7)), graph(rows(7)))
    assert "compilation.other_inputs" not in report.stats()
    assert counted(first) == FIRST
    assert first.performance_monitor.cache_misses == 1
    assert first.performance_monitor.total_compilation_time > 0
    key, filename = first._compute_hash_keys(graph, [x], 0)
    assert entry(tmp_path).name == filename == f"{key}.kiln"
    assert len(bytes.fromhex(key)) == 32
    after = compilation.compilation_counter.snapshot()
    assert {name: after[name] - before[name] for name in FIRST} == FIRST
    told = compilation.get_compilation_metrics()
    assert told["resources"]["cache_disk_usage"] >= entry(tmp_path).stat().st_size
    assert told["compilation_stats"]["artifacts_saved"] == after["num_compiled_artifacts_saved"]


def test_scenario_3_memory_then_disk_then_corrupt(tmp_path: Path) -> None:
    graph, x = block(), rows(4)
    first = manager(tmp_path)
    first.compile(graph, [x], {}, first.compilation_config)
    # Memory.
    again = first.compile(graph, [x], {}, first.compilation_config)
    close(again(x), graph(x))
    assert counted(first) == {**FIRST, "num_backend_compilations": 2, "num_cache_hits": 1}
    assert first.performance_monitor.memory_cache_hits == 1
    assert first.compilation_counter.cache_hit_rate == 0.5
    # Disk, which fills memory.
    second = manager(tmp_path)
    for hits in (1, 2):
        close(second.compile(graph, [x])(x), graph(x))
        assert counted(second) == {
            "num_backend_compilations": hits,
            "num_cache_hits": hits,
            "num_compiled_artifacts_loaded": 1,
        }
    monitor = second.performance_monitor
    assert (monitor.memory_cache_hits, monitor.disk_cache_hits, monitor.cache_misses) == (1, 1, 0)
    assert monitor.avg_cache_load_time > 0
    # Corrupt: deleted, and compiled again.
    path = entry(tmp_path)
    broken = bytearray(path.read_bytes())
    broken[-1] ^= 1
    path.write_bytes(broken)
    third = manager(tmp_path)
    close(third.compile(graph, [x])(x), graph(x))
    assert counted(third) == {**FIRST, "num_cache_corrupted": 1}
    assert path.read_bytes() != bytes(broken)
    # And what was written then is good.
    fourth = manager(tmp_path)
    fourth.compile(graph, [x])
    assert fourth.compilation_counter.num_cache_hits == 1


def test_an_entry_of_another_torch_is_deleted_and_compiled_again(tmp_path: Path) -> None:
    graph, x = block(), rows(4)
    first = manager(tmp_path)
    first.compile(graph, [x])
    path = entry(tmp_path)
    key = bytes.fromhex(path.stem)
    cache = LocalCache(tmp_path / "cache", LocalKey(), 1 << 30)
    found = cache.read(path.name, key)
    assert found is not None
    # Signed by this user, under the right key, and made by another version.
    old = pack(
        found.manifest.components,
        {name: bytes(data) for name, data in found.files.items()},
        fingerprint=Fingerprint.of("inductor-standalone", {"torch": "1.0"}),
        target=Target.any(),
        namespace="local",
        label="old",
        seconds=1.0,
    )
    cache.write(path.name, old)
    second = manager(tmp_path)
    close(second.compile(graph, [x])(x), graph(x))
    assert counted(second) == {**FIRST, "num_cache_corrupted": 1}


def test_load_and_save_are_compile_in_parts(tmp_path: Path) -> None:
    graph, x = block(), rows(4)
    alone = manager(tmp_path)
    assert alone.load(graph, [x], 0) is None
    assert counted(alone) == {"num_cache_misses": 1}
    compiled, handle = InductorAdaptor().compile(graph, [x], {})
    assert compiled is not None
    alone.save(handle, graph, [x], 0, None, compiled)
    other = manager(tmp_path)
    loaded = other.load(graph, [x], 5)
    assert loaded is not None
    close(loaded(rows(9)), graph(rows(9)))
    assert counted(other) == {"num_cache_hits": 1, "num_compiled_artifacts_loaded": 1}
    # The document's load does not look at the options: this one does.
    options = {"epilogue_fusion": False}
    assert other.load(graph, [x], 0, additional_inductor_config=options) is None
    assert other.load(graph, [x], 0, 4) is None


def test_without_a_cache_nothing_is_looked_up_or_kept(tmp_path: Path) -> None:
    graph, x = block(), rows(4)
    config = CompilationConfig(**HERE)
    without = CompilerManager(config, str(tmp_path / "cache"), disable_cache=True)
    for _ in range(2):
        close(without.compile(graph, [x], {}, config)(x), graph(x))
    assert counted(without) == {"num_backend_compilations": 2, "num_inductor_compiles": 2}
    assert without.load(graph, [x], 0) is None
    assert not (tmp_path / "cache").exists()


def test_vllms_switch_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_DISABLE_COMPILE_CACHE", "1")
    assert manager(tmp_path).disable_cache
    adaptor = InductorStandaloneAdaptor(cache_dir=tmp_path / "cache")
    assert adaptor.compile(block(), [rows(4)], {}, key="block1")[1] is None
    assert not list((tmp_path / "cache").iterdir())


def test_a_runtime_shape_fixes_the_sizes(tmp_path: Path) -> None:
    graph, x = block(), rows(4)
    fixed = manager(tmp_path)
    compiled = fixed.compile(graph, [x], runtime_shape=4)
    close(compiled(x), graph(x))
    assert "compilation.other_inputs" not in report.stats()
    # For other sizes the code would be wrong: the graph itself runs.
    close(compiled(rows(5)), graph(rows(5)))
    assert report.stats()["compilation.other_inputs"] == 1
    keys = {fixed._compute_hash_keys(graph, [x], 0, shape)[0] for shape in (None, 4)}
    assert len(keys) == 2


def test_the_key_is_the_graph_its_options_and_not_its_place(tmp_path: Path) -> None:
    graph, x = block(), rows(4)
    asked = manager(tmp_path)
    key = asked._compute_hash_keys(graph, [x], 0)
    assert asked._compute_hash_keys(graph, [x], 3) == key
    assert asked._generate_cache_key(graph, [x], None) == key[0]
    assert asked._compute_hash_keys(block(), [rows(9)], 0) == key
    asked.facts["passes"] = "one"
    assert asked._compute_hash_keys(graph, [x], 0) != key
    other = manager(tmp_path, inductor_config={"epilogue_fusion": False})
    assert other._compute_hash_keys(graph, [x], 0) != key


def test_inductors_options_are_merged_as_the_document_has_them() -> None:
    adaptor = InductorAdaptor()
    merged = adaptor._merge_inductor_config({"debug": True, "memory-planning": False}, None)
    assert merged == {
        "triton.unique_kernel_names": True,
        "triton.cudagraphs": True,
        "coordinate_descent_tuning": True,
        "memory_planning": False,
        "inplace_buffers": True,
        "debug": True,
        "verbose_progress": False,
    }
    assert "max_autotune" not in adaptor._merge_inductor_config({}, 1024)
    large = adaptor._merge_inductor_config({}, 1025)
    assert (large["max_autotune"], large["epilogue_fusion"]) == (True, True)
    with pytest.raises(IncompatibleConfigError, match="no option typo"):
        adaptor._merge_inductor_config({"typo": 1}, None)


def test_the_hash_has_all_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    adaptor = InductorAdaptor()
    found = adaptor.compute_hash(None)
    assert found == InductorAdaptor().compute_hash(None)
    assert len(found) == 64
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert adaptor.compute_hash(None) != found
    monkeypatch.undo()
    with torch._inductor.config.patch(epilogue_fusion=False):
        assert adaptor.compute_hash(None) != found


def test_standalone_artifacts_are_kept_unpacked_and_checked(tmp_path: Path) -> None:
    graph, x = block(), rows(4)
    adaptor = InductorStandaloneAdaptor(cache_dir=tmp_path / "cache")
    compiled, handle = adaptor.compile(graph, [x], {}, key="block1")
    assert compiled is not None
    assert handle is not None
    close(compiled(x), graph(x))
    key, path = handle
    assert (key, path) == ("block1", str(tmp_path / "cache" / "block1.kiln"))
    other = InductorStandaloneAdaptor(cache_dir=tmp_path / "cache")
    loaded = other.load(handle, graph, [x], 0)
    assert loaded is not None
    close(loaded(rows(6)), graph(rows(6)))
    # A handle from elsewhere names nothing, and deletes nothing.
    victim = tmp_path / "victim.kiln"
    victim.write_text("mine")
    assert other.load(("block1", str(victim)), graph, [x], 0) is None
    assert victim.read_text() == "mine"
    assert other.load(("block2", str(tmp_path / "cache" / "block2.kiln")), graph, [x], 0) is None
    entry(tmp_path).write_bytes(b"junk")
    assert other.load(handle, graph, [x], 0) is None
    assert not list((tmp_path / "cache").iterdir())
    # Under a manager it keeps nothing itself: a handle is the files.
    _, files = InductorStandaloneAdaptor().compile(graph, [x], {})
    assert files is not None
    assert "meta.json" in files


def test_a_standalone_artifact_of_another_torch_is_refused() -> None:
    graph, x = block(), rows(4)
    adaptor = InductorStandaloneAdaptor()
    _, files = adaptor.compile(graph, [x], {})
    assert files is not None
    meta = json.loads(files["meta.json"])
    files["meta.json"] = json.dumps({**meta, "torch": "1.0"}).encode()
    with pytest.raises(IncompatibleConfigError, match=r"made by torch 1\.0"):
        adaptor.load(files, graph, [x], 0)


def test_the_compiler_is_the_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, wanted in (
        ("inductor", InductorAdaptor),
        ("inductor-standalone", InductorStandaloneAdaptor),
        ("eager", EagerAdaptor),
    ):
        assert type(make_compiler(CompilationConfig(backend=name))) is wanted
    assert type(make_compiler(CompilationConfig(use_inductor=False))) is EagerAdaptor
    monkeypatch.delattr(torch._inductor, "standalone_compile")
    with pytest.raises(InductorNotAvailableError, match="C005"):
        make_compiler(CompilationConfig())


def test_eager_gives_the_graph_back(tmp_path: Path) -> None:
    graph, x = block(), rows(4)
    eager = manager(tmp_path, backend="eager")
    assert torch.equal(eager.compile(graph, [x])(x), graph(x))
    assert counted(eager) == {"num_backend_compilations": 1}


def test_a_graph_that_needs_gradients_runs_with_them(tmp_path: Path) -> None:
    graph, x = block(), rows(4)
    compiled = manager(tmp_path).compile(graph, [x])
    with torch.enable_grad():
        compiled(x).sum().backward()
    assert all(each.grad is not None for each in graph.parameters())


def test_a_compile_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    graph, x = block(), rows(4)
    # Less than starting a process takes.
    slow = manager(tmp_path, compile_timeout=0.01)
    with pytest.raises(compilation.TimeoutError, match="C004"):
        slow.compile(graph, [x])
    assert slow.tiers.pool is not None
    assert (slow.tiers.pool.active, slow.tiers.pool.pids()) == (0, [])
    assert counted(slow) == {"num_backend_compilations": 1, "num_cache_misses": 1}


def test_what_a_compiler_raises_is_c001(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no such kernel")

    monkeypatch.setattr(torch._inductor, "standalone_compile", fail)
    graph, x = block(), rows(4)
    failing = manager(tmp_path)
    with pytest.raises(CompilationError, match=r"C001.*ValueError: no such kernel"):
        failing.compile(graph, [x])
    # Robust: eager, and the configuration stays.
    config = CompilationConfig(**HERE)
    run = robust_compile(graph, [x], config, failing)
    assert torch.equal(run(x), graph(x))
    assert config.use_inductor


def test_robust_compile_tries_pieces_after_a_timeout(tmp_path: Path) -> None:
    graph, x = block(), rows(4)
    slow = manager(tmp_path, compile_timeout=0.01)
    run = robust_compile(graph, [x], slow.compilation_config, slow)
    close(run(x), graph(x))
    assert report.stats()["compilation.fell_back"] == 1
    assert isinstance(run, Fallback)
    assert (run.rung, run.tried[0].kind) == ("pieces", "timeout")


@pytest.mark.parametrize("wrong", ["graph", "index", "shape"])
def test_arguments_that_mean_nothing_are_refused(tmp_path: Path, wrong: str) -> None:
    asked = manager(tmp_path)
    with pytest.raises(IncompatibleConfigError):
        asked.compile(
            None if wrong == "graph" else block(),
            [rows(4)],
            graph_index=2 if wrong == "index" else 0,
            num_graphs=2,
            runtime_shape=0 if wrong == "shape" else None,
        )
    with pytest.raises(IncompatibleConfigError):
        CompilerManager({})  # pyrefly: ignore
