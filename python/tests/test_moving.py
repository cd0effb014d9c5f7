"""What was compiled for one GPU, moved to another: saved, loaded, refused.

The graphs are torch's own objects around code that names a GPU, and that loads on
a machine without one; `tests/gpu/ranks.py` runs real ones on two.
"""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fake_gpus import on_gpus, scaled  # noqa: E402
from kiln_torch import merging, moving, placing, report  # noqa: E402
from kiln_torch.moving import Refused  # noqa: E402
from torch._functorch._aot_autograd import aot_autograd_result  # noqa: E402
from torch._inductor import codecache, output_code  # noqa: E402
from torch._inductor.cudagraph_utils import BoxedDeviceIndex  # noqa: E402
from torch._inductor.metrics import CachedMetricsDeltas  # noqa: E402
from torch.utils._ordered_set import OrderedSet  # noqa: E402

pytestmark = pytest.mark.torch

CODE = """
import torch
from torch import device
def call(args):
    with torch.cuda._DeviceGuard({index}):
        torch.cuda.set_device({index})
        return device(type='cuda', index={index})
"""
KEY = "f" + "a" * 51


def compiled(index: int, **more: Any) -> Any:
    """Return a compiled graph for a GPU, as far as one without a GPU can be made."""
    graph = object.__new__(output_code.CompiledFxGraph)
    for name in output_code.CompiledFxGraph.__dataclass_fields__:
        setattr(graph, name, None)
    code = CODE.format(index=index)
    told: dict[str, Any] = {
        "source_code": code,
        "cache_key": codecache.get_hash(code.strip()),
        "runnable_graph_str": f"device='cuda:{index}'",
        "inductor_post_grad_graph_str": f"device(type='cuda', index={index})",
        "device_types": OrderedSet(["cuda"]),
        "device_idxs": OrderedSet([index]),
        "constants": {},
        "frozen_param_names": {},
        "torchbind_constants": {},
        "opaque_value_type_classes": {},
        "metrics_deltas": CachedMetricsDeltas(*[0] * len(fields(CachedMetricsDeltas))),
        "counter_deltas": Counter(),
        "fx_kwargs": {"boxed_forward_device_index": BoxedDeviceIndex(index), "is_backward": False},
        "_time_taken_ns": 1,
    }
    for name, value in (told | more).items():
        setattr(graph, name, value)
    return graph


def test_all_of_it_moves_and_the_original_stays() -> None:
    graph = compiled(2)
    before = pickle.dumps(graph)
    moved = moving.graph(graph, 0)
    assert moved.source_code == CODE.format(index=0)
    assert list(moved.device_idxs) == [0]
    assert moved.fx_kwargs["boxed_forward_device_index"].value == 0
    assert "2" not in moved.runnable_graph_str + moved.inductor_post_grad_graph_str
    # Its file is another one: ranks share a folder.
    assert moved.cache_key != graph.cache_key
    assert moved.cache_key == compiled(0).cache_key
    assert pickle.dumps(graph) == before
    assert moving.graph(graph, 2) is graph


def test_a_graph_on_the_cpu_stays() -> None:
    graph = compiled(0, device_types=OrderedSet(["cpu"]), device_idxs=OrderedSet())
    assert moving.graph(graph, 3) is graph


@pytest.mark.parametrize(
    "more",
    [
        {"device_idxs": OrderedSet([1, 2])},
        {"source_code": CODE.format(index=1) + "torch.cuda.Stream(1)"},
        {"partition_maps": [torch.device("cuda", 1)]},
        {"output_strides": [lambda: None]},
        {"torchbind_constants": {"a": object()}},
        {"_triton_bundle": object()},
        {"constants": "gpu"},
    ],
    ids=["two GPUs", "code", "a field", "opaque", "objects", "bundle", "constants"],
)
def test_refused(more: dict[str, Any]) -> None:
    if more.get("constants") == "gpu":
        more = {"constants": {"a": on_gpus(scaled, "cuda:1", "cuda:1")[1][0]}}
    with pytest.raises(Refused):
        moving.graph(compiled(1, **more), 0)


def test_kernels_that_are_ready_to_run_move_with_their_keys() -> None:
    pytest.importorskip("triton")
    from torch._inductor.async_compile import CompiledTritonKernels
    from torch._inductor.runtime.hints import DeviceProperties
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner
    from torch._inductor.triton_bundler import (
        StaticallyLaunchedAutotuner,
        TritonBundle,
        TritonKernelArtifacts,
    )

    source = "device = DeviceProperties(type='cuda', index=1, cc=90)"
    kernel = object.__new__(CachingAutotuner)
    properties = DeviceProperties(type="cuda", index=1, multi_processor_count=132, cc=90)
    kernel.__dict__.update(
        device_props=properties,
        triton_meta={"device": 1, "signature": {}},
        inductor_meta={},
        launchers=[],
        compile_results=[],
        lock=None,
    )
    bundle = TritonBundle(
        [TritonKernelArtifacts("hash", 1, [])],
        [StaticallyLaunchedAutotuner(CompiledTritonKernels.key(source), "k", kernel)],
    )
    code = f"{CODE.format(index=1)}\nasync_compile.triton('k', {source!r}, device_str='cuda')\n"
    moved = moving.graph(compiled(1, source_code=code, _triton_bundle=bundle), 4)._triton_bundle
    (files,), (ready,) = moved.kernel_artifacts, moved.static_autotuners
    assert files.device == 4
    assert ready.cache_key == CompiledTritonKernels.key(source.replace("index=1", "index=4"))
    assert ready.kernel.device_props == properties._replace(index=4)
    assert ready.kernel.triton_meta["device"] == 4
    assert kernel.device_props.index == 1
    # A kernel for any GPU stays one: torch 2.15's `compile_on_one_rank`.
    kernel.__dict__.update(
        device_props=properties._replace(index=None), triton_meta={"device": None}
    )
    source = source.replace("index=1", "index=None")
    bundle.static_autotuners[0] = StaticallyLaunchedAutotuner(
        CompiledTritonKernels.key(source), "k", kernel
    )
    code = f"async_compile.triton('k', {source!r}, device_str='cuda')\n"
    moved = moving.graph(compiled(1, source_code=code, _triton_bundle=bundle), 4)._triton_bundle
    assert moved.static_autotuners[0].kernel.triton_meta["device"] is None
    assert moved.static_autotuners[0].kernel.device_props.index is None
    # One that the code does not have would run as it is.
    with pytest.raises(Refused):
        moving.graph(compiled(1, _triton_bundle=bundle), 4)


def cached(index: int, **more: Any) -> Any:
    """Return an entry of AOTAutograd's cache, as far as moving it is concerned."""
    gm, _ = on_gpus(scaled, *[f"cuda:{index}"] * 2)
    told: dict[str, Any] = {
        "compiled_fw": None,
        "compiled_bw": None,
        "aot_joint_graph_str": f"cuda:{index}",
        "runtime_metadata": Meta(index),
        "serialized_bw_module": aot_autograd_result.serialize_graph_module(gm),
        "dispatch_wrappers": [],
    }
    return SimpleNamespace(**(told | more))


@dataclass
class Meta:
    """What torch knows of a graph at run time: whose random numbers it draws, and more."""

    graphsafe_rng_state_index: int | None = None
    more: Any = None


def test_an_entry_moves_with_its_backward_graph() -> None:
    entry = cached(3)
    moved = moving.entry(entry, 0)
    assert moved.runtime_metadata.graphsafe_rng_state_index == 0
    code = moved.serialized_bw_module.args[0]["_code"]
    assert "index=0" in code
    assert "index=3" not in code
    assert moved.aot_joint_graph_str == "cuda:0"
    assert "index=3" in entry.serialized_bw_module.args[0]["_code"]
    assert entry.runtime_metadata.graphsafe_rng_state_index == 3
    assert moving.entry(cached(3, serialized_bw_module=None), 3).serialized_bw_module is None


def test_an_entry_that_names_another_gpu_is_refused() -> None:
    with pytest.raises(Refused):
        moving.entry(cached(3, runtime_metadata=Meta(3, torch.device("cuda", 3))), 0)
    with pytest.raises(Refused):
        moving.entry(cached(3, serialized_bw_module=SimpleNamespace(args=(1, 2))), 0)


def test_placing_is_for_what_is_loaded_within(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    constants = output_code.CompiledFxGraphConstants()
    finish = codecache.FxGraphCache.cache_hit_post_compile
    with placing.on(1):
        finish = codecache.FxGraphCache.cache_hit_post_compile
        graph, _ = finish(compiled(3), {}, constants)
        assert list(graph.device_idxs) == [1]
        with placing.on(None):
            assert placing.current() == 1
        # A miss: torch compiles then.
        assert finish(compiled(3, device_idxs=OrderedSet([1, 3])), {}, constants)[0] is None
    assert report.stats() == {"ranks.refused": 1}
    graph, _ = finish(compiled(3), {}, constants)
    assert list(graph.device_idxs) == [3]
    names = sorted(path.read_text() for path in tmp_path.rglob("*.py"))
    assert names == [CODE.format(index=1), CODE.format(index=3)]


class Folder:
    """One local cache folder, and the ranks that use it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self, index: int) -> Any:
        """Ask as a rank on a GPU does."""
        gm, inputs = on_gpus(scaled, *[f"cuda:{index}"] * 2)
        del gm
        with torch._guards.tracing(torch._guards.TracingContext(inputs[0].fake_mode)):
            constants = output_code.CompiledFxGraphConstants()
            load = codecache.FxGraphCache.load_with_key
            found, _ = load(KEY, [], inputs, True, None, is_backward=False, constants=constants)
        return found

    def save(self, index: int, graph: Any) -> None:
        """Store what a rank compiled."""
        _, inputs = on_gpus(scaled, *[f"cuda:{index}"] * 2)
        with torch._guards.tracing(torch._guards.TracingContext(inputs[0].fake_mode)):
            codecache.FxGraphCache._save_graph(KEY, graph, inputs, True, None)

    def entries(self) -> list[Any]:
        """Read what lies there, as a process without Kiln does."""
        files = [path for path in (self.path / "fxgraph").rglob("*") if path.is_file()]
        return [pickle.loads(path.read_bytes()) for path in files]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Folder:
    """Return a folder under a key that ranks share."""
    cache = codecache.FxGraphCache
    for name in ("load_with_key", "_save_graph"):
        monkeypatch.setattr(cache, name, cache.__dict__[name])
    for owner, name in (
        (codecache, "compiled_fx_graph_hash"),
        (codecache.FxGraphCachePickler, "__init__"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(merging, "_merged", {KEY})
    merging.plug(codecache)
    return Folder(tmp_path)


def test_the_folder_has_it_for_the_first_gpu(folder: Folder) -> None:
    graph = compiled(2)
    folder.save(2, graph)
    (entry,) = folder.entries()
    assert list(entry.device_idxs) == [0]
    assert entry.source_code == CODE.format(index=0)
    # And what was compiled runs on where it was compiled.
    assert list(graph.device_idxs) == [2]
    assert graph.guards_expr == entry.guards_expr
    for index in (0, 1, 2):
        loaded = folder.load(index)
        assert list(loaded.device_idxs) == [index]
        assert loaded.current_callable.__module__.endswith(loaded.cache_key)


def test_what_cannot_be_moved_is_not_stored(folder: Folder) -> None:
    folder.save(2, compiled(2, source_code=CODE.format(index=2) + "torch.cuda.Stream(2)"))
    assert folder.entries() == []
    assert report.stats() == {"ranks.unstored": 1}
    # Nor is what refers to it, from now on.
    assert KEY not in merging._merged


def test_an_entry_that_cannot_be_placed_is_a_miss(folder: Folder) -> None:
    folder.save(0, compiled(0, source_code=CODE.format(index=0) + "x = torch.cuda.Stream"))
    assert folder.load(1) is None
    assert report.stats() == {"ranks.refused": 1}


def test_other_keys_are_left_alone(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "_merged", set())
    folder.save(2, compiled(2))
    assert [list(each.device_idxs) for each in folder.entries()] == [[2]]
    assert list(folder.load(1).device_idxs) == [2]


def test_an_artifact_that_cannot_be_placed_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler's answer is then that it is not for this process, not that it is broken."""
    from kiln_torch.compilation.inductor import InductorAdaptor

    def refuse(graph: Any, index: int) -> Any:
        raise Refused(f"{graph} on {index}")

    class Tiny(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x) + 1

    torch._dynamo.reset()
    inputs = [torch.randn(3)]
    graph = torch.fx.symbolic_trace(Tiny())
    adaptor = InductorAdaptor()
    _, files = adaptor.compile(graph, inputs, {"triton.cudagraphs": False}, 3)
    assert files is not None
    monkeypatch.setattr(placing, "index_of", lambda *_: 1)
    loaded = adaptor.load(files, graph, inputs, 0, 3)
    assert loaded is not None
    assert torch.equal(loaded(*inputs), graph(*inputs))
    monkeypatch.setattr(moving, "graph", refuse)
    assert adaptor.load(files, graph, inputs, 0, 3) is None
    # A broken one is still an error.
    with pytest.raises(Exception, match=r".+"):
        adaptor.load({"standalone.bin": b"broken"}, graph, inputs, 0, 3)


def test_memory_gives_no_callable_of_another_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One process with a model on each of two GPUs: one key, two callables."""
    from kiln_torch.compilation import CompilationConfig, CompilerManager

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    graph = torch.fx.symbolic_trace(torch.nn.ReLU())
    config = CompilationConfig(compile_timeout=None)
    manager = CompilerManager(config, str(tmp_path / "cache"))
    callables = []
    with torch.no_grad():
        for index in (0, 1, 1, 0):
            monkeypatch.setattr(placing, "index_of", lambda *_, index=index: index)
            callables.append(manager.compile(graph, [torch.randn(3)], runtime_shape=3))
    counter = manager.compilation_counter
    assert counter.num_inductor_compiles == 1
    # The second and the fourth came from the folder, the third from memory.
    assert counter.num_compiled_artifacts_loaded == 2
    assert counter.num_cache_hits == 3


class Part:
    """What an entry knows of one of its graphs."""

    def __init__(self, key: str) -> None:
        """Name the graph by its key."""
        self.fx_graph_cache_info = (key, [])

    def pre_save(self) -> None:
        """Be ready."""


class Entry(aot_autograd_result.GenericAOTAutogradResult):
    """Torch's entry, without what only a real compile has."""

    def __init__(self, index: int, graph: str) -> None:
        """For a GPU, with one graph."""
        self.__dict__.update(vars(cached(index, serialized_bw_module=None)))
        self.compiled_fw = Part(graph)
        self.compiled_bw = None
        self.guards_expr = None
        self.forward_time_taken_ns = self.backward_time_taken_ns = 0
        self.sanitized_aot_config = SimpleNamespace(precompile_backend_id=None)


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch, folder: Folder) -> list[Any]:
    """Return what is loaded: each entry's GPU, and the one that its graphs are placed on."""
    from torch._functorch._aot_autograd import autograd_cache

    loaded: list[Any] = []

    def wrap_post_compile(self: Any, *args: Any) -> None:
        del args
        loaded.append((self.runtime_metadata.graphsafe_rng_state_index, placing.current()))

    # Before the test changes anything: it stays in torch for good.
    placing.install()
    cache, result = autograd_cache.AOTAutogradCache, aot_autograd_result.GenericAOTAutogradResult
    monkeypatch.setattr(result, "wrap_post_compile", placing._entries(wrap_post_compile))
    for name in ("_lookup", "save"):
        monkeypatch.setattr(cache, name, cache.__dict__[name])
    monkeypatch.setattr(autograd_cache, "autograd_cache_key", autograd_cache.autograd_cache_key)
    merging.plug(autograd_cache)
    merging._merged.add("aKEY")
    assert folder.entries() == []
    return loaded


def test_an_entry_is_stored_for_the_first_gpu_and_placed_where_it_is_asked_for(
    entries: list[Any],
) -> None:
    from torch._functorch._aot_autograd.autograd_cache import AOTAutogradCache

    AOTAutogradCache.save("aKEY", Entry(2, KEY), remote=False)
    for index in (0, 1, 2):
        _, inputs = on_gpus(scaled, *[f"cuda:{index}"] * 2)
        entry, content = AOTAutogradCache._lookup("aKEY", True, False, inputs, {}, None)
        assert pickle.loads(content).runtime_metadata.graphsafe_rng_state_index == 0
        entry.wrap_post_compile(inputs, None, {})
    assert entries == [(0, 0), (1, 1), (2, 2)]
    assert placing.current() is None


@pytest.mark.usefixtures("entries")
def test_an_entry_whose_graph_is_not_shared_is_not_stored() -> None:
    from torch._functorch._aot_autograd.autograd_cache import AOTAutogradCache

    AOTAutogradCache.save("aKEY", Entry(2, "f" + "b" * 51), remote=False)
    assert AOTAutogradCache._lookup("aKEY", True, False, [], {}, None) is None
    assert report.stats() == {"ranks.unstored": 1}
