"""One key for ranks that differ in their GPU's index alone, and none for others."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from fake_gpus import SIZE, on_gpus, scaled  # noqa: E402
from kiln_torch import asked, devices, merging, options, placing, report  # noqa: E402
from kiln_torch.graph import form  # noqa: E402
from kiln_torch.key import key_of  # noqa: E402
from kiln_torch.lease import Lease  # noqa: E402
from kiln_torch.manifest import Target  # noqa: E402

if TYPE_CHECKING:
    from cluster import Cluster
    from conftest import Clients

pytestmark = pytest.mark.torch

KWARGS = {"static_input_idxs": [], "is_backward": False, "is_inference": True, "cudagraphs": False}
Current = Callable[[int], None]


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> Current:
    """Say which GPU is current."""
    monkeypatch.setattr(options, "target_of", lambda *_: Target("FILES", 90))
    monkeypatch.setattr(asked, "target_of", lambda *_: Target("FILES", 90))

    def set_current(index: int) -> None:
        monkeypatch.setattr(torch.cuda, "current_device", lambda: index)

    set_current(0)
    return set_current


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return torch's caches, with ``merging`` in them until the test ends."""
    from torch._functorch._aot_autograd import aot_autograd_result, autograd_cache
    from torch._inductor import codecache

    # Before the test changes anything: it stays in torch for good.
    placing.install()
    standalone = importlib.import_module("torch._inductor.standalone_compile")
    monkeypatch.setattr(codecache.CacheBase, "get_system", staticmethod(dict))
    for owner, name in (
        (codecache, "compiled_fx_graph_hash"),
        (codecache.FxGraphCachePickler, "__init__"),
        (autograd_cache, "autograd_cache_key"),
        (aot_autograd_result.GenericAOTAutogradResult, "wrap_post_compile"),
        (standalone, "standalone_compile"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    for cache, names in (
        (codecache.FxGraphCache, ("load_with_key", "_save_graph")),
        (autograd_cache.AOTAutogradCache, ("_lookup", "save")),
    ):
        for name in names:
            monkeypatch.setattr(cache, name, cache.__dict__[name])
    monkeypatch.setattr(merging, "_merged", set())
    plain = codecache.compiled_fx_graph_hash
    for module in (codecache, autograd_cache, standalone):
        merging.plug(module)
    codecache.plain = plain
    yield codecache
    del codecache.plain


def key(gm: Any, inputs: Any, **settings: Any) -> bytes:
    of = asked.Asked(gm, inputs, "default", form="test", guarded=False, facts={}, **settings)
    return key_of(next(of.candidates()))


def components(gm: Any, inputs: Any, **settings: Any) -> dict[str, dict[str, str]]:
    of = asked.Asked(gm, inputs, "default", form="test", guarded=False, facts={}, **settings)
    told = next(of.candidates())
    return {each.name: {field.name: field.value for field in each.fields} for each in told}


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what only a driver knows be the same everywhere."""
    monkeypatch.setattr(asked, "versions", lambda _: [("torch", "x")])
    monkeypatch.setattr(asked, "options", lambda *_: b"{}")


def test_the_form_has_no_index() -> None:
    first = on_gpus(scaled, "cuda:0", "cuda:0")
    third = on_gpus(scaled, "cuda:3", "cuda:3")
    assert "index=3" in third[0].code
    assert form(first[0]) == form(third[0])


def test_the_form_tells_devices_apart() -> None:
    def on_first(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + torch.ones(SIZE, device=x.device) + y.to(x.device)

    def on_second(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + torch.ones(SIZE, device=y.device).to(x.device) + y.to(x.device)

    forms = [
        form(on_gpus(function, *where)[0])
        for function, where in (
            (on_first, ("cuda:0", "cuda:1")),
            (on_first, ("cuda:1", "cuda:1")),
            (on_first, ("cuda:0", "cpu")),
            (on_second, ("cuda:0", "cuda:1")),
        )
    ]
    assert len(set(forms)) == len(forms)


@pytest.mark.usefixtures("described")
def test_ranks_have_one_key_and_a_place_of_their_own(current: Current) -> None:
    keys, places = [], []
    for index in (0, 1, 3):
        current(index)
        gm, inputs = on_gpus(scaled, *[f"cuda:{index}"] * 2)
        keys.append(key(gm, inputs, merge=True))
        of = asked.Asked(gm, inputs, "default", form="test", guarded=False, facts={}, merge=True)
        places.append(of.index)
    assert len(set(keys)) == 1
    assert places == [0, 1, 3]


@pytest.mark.usefixtures("described")
def test_what_cannot_be_placed_has_a_key_of_its_own_to_go_on_with(
    current: Current, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys() -> list[bytes]:
        gm, inputs = on_gpus(scaled, "cuda:1", "cuda:1")
        of = asked.Asked(gm, inputs, "default", form="test", guarded=False, facts={})
        return [key_of(each) for each in of.candidates()]

    current(1)
    shared, own = keys()
    monkeypatch.setenv("KILN_RANKS", "keep")
    assert keys() == [own]
    monkeypatch.delenv("KILN_RANKS")
    # C++ around the kernels, and tensors within the code, are moved by nobody.
    for setting in ("cpp_wrapper", "freezing"):
        with torch._inductor.config.patch(setting, True):
            assert keys() == [own]
    current(0)
    assert keys() == [own]
    assert shared != own


@pytest.mark.usefixtures("described")
def test_the_setting_keeps_the_index_in_a_field_of_its_own(
    current: Current, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KILN_RANKS", "keep")
    told = []
    for index in (0, 1):
        current(index)
        told.append(components(*on_gpus(scaled, *[f"cuda:{index}"] * 2)))
    # `kiln why` names the field that differs: this one alone.
    assert [each["inputs"].pop("device") for each in told] == ["cuda:0", "cuda:1"]
    assert told[0] == told[1]
    monkeypatch.setenv("KILN_RANKS", "merge")
    assert components(*on_gpus(scaled, "cuda:1", "cuda:1"))["inputs"]["device"] == "current"


@pytest.mark.cluster
@pytest.mark.usefixtures("described")
def test_kiln_why_names_the_device_alone(
    kiln: Path, cluster: Cluster, clients: Clients, current: Current
) -> None:
    client = clients.of(cluster.nodes[0])
    keys = []
    for index in (0, 1):
        current(index)
        gm, inputs = on_gpus(scaled, *[f"cuda:{index}"] * 2)
        of = asked.Asked(gm, inputs, "default", form="test", guarded=False, facts={}, merge=False)
        told = next(of.candidates())
        keys.append(key_of(told).hex())
        lease = client.acquire(key_of(told), 10)
        assert isinstance(lease, Lease)
        done = client.publish(
            lease,
            told,
            {"f": b"x"},
            fingerprint=of.fingerprint,
            target=of.target,
            label=of.label,
            seconds=1.0,
        )
        assert done, report.stats()
    said = subprocess.run(
        [kiln, "why", keys[1], "--json", "--endpoint", cluster.nodes[0].endpoint],
        capture_output=True,
        check=True,
        timeout=60,
    )
    why = json.loads(said.stdout)
    assert why["nearest"] == keys[0], why
    (differs,) = why["differences"]
    assert (differs["component"], differs["field"]) == ("inputs", "device"), why
    assert {differs["ours"], differs["theirs"]} == {"cuda:0", "cuda:1"}, why


@pytest.mark.usefixtures("described")
def test_a_graph_on_the_cpu_has_no_device(current: Current) -> None:
    current(1)
    assert "device" not in components(*on_gpus(scaled, "cpu", "cpu"))["inputs"]


def communicates(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.ops._c10d_functional.all_reduce.default(x, "sum", "0") + y


REFUSED = {
    "two GPUs": (lambda x, y: x + y.to(x.device), ("cuda:1", "cuda:0")),
    "a named GPU": (lambda x, y: x + torch.ones(SIZE, device="cuda:0").to(x.device) + y, None),
    "collectives": (communicates, None),
    "no input on a GPU": (lambda x, y: x + y, ("cpu", "cpu")),
}


@pytest.mark.parametrize("of", REFUSED)
def test_no_index(of: str, current: Current, plugged: Any) -> None:
    current(1)
    function, where = REFUSED[of]
    gm, inputs = on_gpus(function, *(where or ("cuda:1", "cuda:1")))
    assert devices.only_index(gm, inputs) is None
    mine, _ = plugged.compiled_fx_graph_hash(gm, inputs, KWARGS, [])
    assert mine == plugged.plain(gm, inputs, KWARGS, [])[0]
    assert not merging._merged


def test_no_index_for_tensors_that_are_several(current: Current) -> None:
    """A distributed tensor communicates where the graph does not show it."""
    from torch.testing._internal.two_tensor import TwoTensor

    current(1)
    gm, inputs = on_gpus(scaled, "cuda:1", "cuda:1")
    assert devices.only_index(gm, inputs) == 1
    with inputs[0].fake_mode:
        both = TwoTensor(inputs[0], inputs[1])
    assert devices.only_index(gm, [both, inputs[1]]) is None
    last = list(gm.graph.nodes)[-2]
    last.meta["val"] = [both]
    assert devices.only_index(gm, inputs) is None


@pytest.mark.usefixtures("described")
def test_no_index_where_ranks_talk_while_they_compile(current: Current) -> None:
    current(1)
    gm, inputs = on_gpus(scaled, "cuda:1", "cuda:1")
    with torch._functorch.config.patch(_sync_decision_cross_ranks=True):
        of = asked.Asked(gm, inputs, "default", form="test", guarded=False, facts={})
    assert of.index is None


def test_no_index_where_another_gpu_is_current(current: Current) -> None:
    gm, inputs = on_gpus(scaled, "cuda:1", "cuda:1")
    assert devices.only_index(gm, inputs) is None
    current(1)
    assert devices.only_index(gm, inputs) == 1


def test_no_index_where_the_graph_is_told_a_number(current: Current) -> None:
    current(1)
    for method, arguments, named in (
        ("cuda", (1,), {}),
        ("to", (1,), {}),
        ("new_zeros", (SIZE,), {"device": 1}),
    ):
        gm, inputs = on_gpus(scaled, "cuda:1", "cuda:1")
        assert devices.only_index(gm, inputs) == 1
        first = next(iter(gm.graph.nodes))
        with gm.graph.inserting_after(first):
            gm.graph.call_method(method, (first, *arguments), named)
        assert devices.only_index(gm, inputs) is None, method


def test_no_index_where_the_graph_holds_a_tensor_of_the_gpu(current: Current) -> None:
    current(1)
    gm, inputs = on_gpus(scaled, "cuda:1", "cuda:1")
    gm.register_buffer("held", inputs[0])
    with gm.graph.inserting_before(next(iter(gm.graph.nodes))):
        gm.graph.get_attr("held")
    assert devices.only_index(gm, inputs) is None


def test_the_key_is_that_of_an_unmodified_process_on_the_first_gpu(
    current: Current, plugged: Any
) -> None:
    """So that both share entries; and the graph is afterwards as it was."""
    expected = plugged.plain(*on_gpus(scaled, "cuda:0", "cuda:0"), KWARGS, [])[0]
    for index in (0, 2):
        current(index)
        gm, inputs = on_gpus(scaled, *[f"cuda:{index}"] * 2)
        before = gm.code
        own = plugged.plain(gm, inputs, KWARGS, [])[0]
        assert (own == expected) is (index == 0)
        assert plugged.compiled_fx_graph_hash(gm, inputs, KWARGS, [])[0] == expected
        assert gm.code == before
    assert merging._merged == {expected}


def test_other_graphs_have_other_keys(current: Current, plugged: Any) -> None:
    current(2)
    graphs = [
        on_gpus(scaled, "cuda:2", "cuda:2"),
        on_gpus(lambda x, y: torch.relu(x @ y), "cuda:2", "cuda:2"),
        on_gpus(lambda x, y: scaled(x, y) + torch.ones(SIZE, device="cpu").sum(), *["cuda:2"] * 2),
    ]
    keys = {plugged.compiled_fx_graph_hash(*each, KWARGS, [])[0] for each in graphs}
    assert len(keys) == len(graphs)


@pytest.mark.usefixtures("plugged")
def test_autograd_has_one_key_as_well(current: Current) -> None:
    from torch._functorch._aot_autograd import autograd_cache
    from torch._functorch.aot_autograd import AOTConfig

    config = AOTConfig(
        fw_compiler=None,
        bw_compiler=None,
        inference_compiler=None,
        partition_fn=None,
        decompositions={},
        num_params_buffers=0,
        aot_id=0,
        keep_inference_input_mutations=False,
    )
    # Which torch 2.15 makes by itself.
    takes = inspect.signature(autograd_cache.autograd_cache_key).parameters
    more = [{}] if "fx_config" in takes else []

    def of(index: int, *, bundled: bool) -> str:
        current(index)
        gm, inputs = on_gpus(scaled, *[f"cuda:{index}"] * 2)
        with (
            torch._functorch.config.patch(bundled_autograd_cache=bundled),
            torch._guards.tracing(torch._guards.TracingContext(inputs[0].fake_mode)),
        ):
            return autograd_cache.autograd_cache_key(gm, inputs, config, *more)[0]

    assert of(0, bundled=False) == of(1, bundled=False)
    assert len(merging._merged) == 1
    # A bundle goes on to where nobody places it.
    assert of(0, bundled=True) != of(1, bundled=True)
    assert len(merging._merged) == 1


def test_a_standalone_artifact_keeps_its_key(current: Current, plugged: Any) -> None:
    """Whoever loads it later may not be able to place it."""
    current(1)
    gm, inputs = on_gpus(scaled, "cuda:1", "cuda:1")
    own = plugged.plain(gm, inputs, KWARGS, [])[0]
    merging._here.standalone = 1
    try:
        assert plugged.compiled_fx_graph_hash(gm, inputs, KWARGS, [])[0] == own
    finally:
        merging._here.standalone = 0
