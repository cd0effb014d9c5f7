"""``kiln_torch.load``: what is refused before anything runs.

Runs are in tests/gpu/check_load.py.
"""

from __future__ import annotations

import ctypes
import json
import random
import warnings
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

import kiln_torch  # noqa: E402
from kiln_torch import apart, cuda_driver, plan, sizes  # noqa: E402
from kiln_torch.sizes import BrokenArtifact  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.torch

ELF = b"\x7fELF and no more"


def tensor(name: str, kind: str, shape: list[Any], strides: list[int]) -> dict[str, Any]:
    return {"name": name, "kind": kind, "dtype": "f32", "shape": shape, "strides": strides}


def told(**changes: Any) -> dict[str, Any]:
    """Return a plan as the native compiler writes it."""
    kernel = {
        "name": "k0",
        "grid": [1, 1, 1],
        "block": [32, 1, 1],
        "shared_bytes": 0,
        "kind": "map",
        "args": [
            {"memory": {"input": 0}},
            {"memory": {"input": 2}},
            {"memory": {"workspace": 0}},
            {"memory": {"output": 0}},
            {"size": 8},
        ],
        "computes": [],
    }
    whole = {
        "version": 2,
        "target": "sm_90",
        "symbols": [],
        "inputs": [
            tensor("in0", "parameter", [2, 4], [4, 1]),
            tensor("in1", "constant", [4], [1]),
            tensor("in2", "user", [1, 4], [4, 1]),
        ],
        "outputs": [tensor("out0", "output", [2, 4], [4, 1])],
        "workspace_bytes": 256,
        "buffers": [],
        "kernels": [kernel],
    }
    return {**whole, **changes}


def artifact(folder: Path, cubin: bytes = ELF, **changes: Any) -> Path:
    folder.joinpath("plan.json").write_text(json.dumps(told(**changes)))
    folder.joinpath("module.cubin").write_bytes(cubin)
    return folder


def test_broken_artifacts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BrokenArtifact, match=r"no module\.cubin"):
        kiln_torch.load(tmp_path)
    with pytest.raises(BrokenArtifact, match="no machine code"):
        kiln_torch.load(artifact(tmp_path, b"text"))
    with pytest.raises(BrokenArtifact, match="version 9"):
        kiln_torch.load(artifact(tmp_path, version=9))
    with pytest.raises(BrokenArtifact, match="cannot be read"):
        kiln_torch.load(artifact(tmp_path, inputs=[{}]))
    (kernel,) = told()["kernels"]
    for memory in ({"input": 1}, {"input": 3}, {"output": 1}, {"workspace": 257}, {"x": 0}):
        args = [{"memory": memory}]
        with pytest.raises(BrokenArtifact, match="kernel k0"):
            kiln_torch.load(artifact(tmp_path, kernels=[{**kernel, "args": args}]))
    with pytest.raises(BrokenArtifact, match="element types"):
        kiln_torch.load(artifact(tmp_path, outputs=[{**told()["outputs"][0], "dtype": "f3"}]))


def test_wrong_inputs_are_named_before_anything_is_launched(tmp_path: Path) -> None:
    native = kiln_torch.load(artifact(tmp_path))
    weight, x = torch.zeros(2, 4), torch.zeros(1, 4)
    with pytest.raises(TypeError, match=r"1 inputs, not 2: in0 \(parameter\) f32 \[2, 4\], in2"):
        native(weight)
    with pytest.raises(ValueError, match=r"in0 \(parameter\) has elements of torch.float64"):
        native(weight.double(), x)
    with pytest.raises(ValueError, match=r"shape \[4, 2\], not \[2, 4\]"):
        native(weight.t(), x)
    with pytest.raises(ValueError, match=r"strides \[1, 2\], not \[4, 1\]"):
        native(torch.zeros(4, 2).t(), x)
    with pytest.raises(ValueError, match="on cpu, not on a GPU"):
        native.bind(weight)(x)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="no tensor but a list"):
        native([], x)


def test_memory_that_is_written_to_is_no_other_input(tmp_path: Path) -> None:
    weight, buffer, x = told()["inputs"][0], *([tensor("in1", "buffer", [2, 4], [4, 1])] * 2)
    inputs = [weight, {**buffer, "updated": True}, {**x, "name": "in2", "kind": "user"}]
    (kernel,) = told()["kernels"]
    args = [{"memory": {"input": at}} for at in range(3)]
    kernels = [{**kernel, "args": args}]
    native: Any = kiln_torch.load(artifact(tmp_path, version=3, inputs=inputs, kernels=kernels))
    memory = torch.zeros(6, 4)
    own, other = torch.zeros(2, 4), torch.zeros(2, 4)
    for weight, buffer, x, said in (
        (own, memory[:2], memory[1:3], r"in1 \(buffer\) is written to, and input in2 \(user\)"),
        (memory[1:3], memory[:2], own, r"in1 \(buffer\) is written to, and input in0 \(param"),
        # Neither what is read twice nor what lies beside it is refused.
        (memory[2:4], memory[:2], memory[2:4], "on cpu, not on a GPU"),
        (own, other, memory[:2], "on cpu, not on a GPU"),
    ):
        for call in (lambda: native(weight, buffer, x), lambda: native.bind(weight, buffer)(x)):  # noqa: B023
            with pytest.raises(ValueError, match=said):
                call()
    # What a recorded run asks of what it is given, of which it copies to its own.
    bound = native.bind(own, memory[:2])
    bound.refuse_shared([memory[2:4]])
    with pytest.raises(ValueError, match=r"in1 \(buffer\) is written to, and input in2 \(user\)"):
        bound.refuse_shared([memory[1:3]])
    with pytest.raises(ValueError, match=r"in1 \(buffer\) is written to, and input in0 \(param"):
        native.bind(own).refuse_shared([own, other])


def bytes_of(tensor: torch.Tensor) -> set[int]:
    """Return the addresses of all of a tensor's bytes, one by one."""
    size = tensor.element_size()
    starts = {tensor.data_ptr()} if tensor.numel() else set()
    for count, stride in zip(tensor.shape, tensor.stride()):
        starts = {start + i * stride * size for start in starts for i in range(count)}
    return {start + i for start in starts for i in range(size)}


def test_shared_bytes_are_found_where_one_of_both_is_written_to() -> None:
    rng = random.Random(7)  # noqa: S311
    memory = torch.zeros(200, dtype=torch.int16)
    found = [0, 0]
    for _ in range(5000):
        views = []
        for _ in range(rng.randrange(6)):
            shape = [rng.choice((0, 1, 2, 2, 3, 4, 5)) for _ in range(rng.randrange(4))]
            strides = [rng.choice((0, 1, 2, 3, 4, 6, 8, 12)) for _ in shape]
            views.append(memory.as_strided(shape, strides, rng.randrange(48)))
        written = [rng.randrange(4) == 0 for _ in views]
        own = [bytes_of(each) for each in views]

        def meet(a: int, b: int) -> bool:
            return (written[a] or written[b]) and not own[a].isdisjoint(own[b])  # noqa: B023

        fixed = {at: each for at, each in enumerate(views) if rng.randrange(2)}
        places = apart.Apart(written, fixed)
        given = [(at, apart.place(each)) for at, each in enumerate(views) if at not in fixed]
        pair = places.shared(given)
        expected = any(meet(a, b) for a in range(len(views)) for b in range(a))
        told = [(each.shape, each.stride(), each.storage_offset()) for each in views]
        assert (pair is not None) == expected, (told, written)
        assert (apart.among(views, written) is not None) == expected, (told, written)
        if pair is not None:
            assert pair.known
            assert written[pair.written]
            assert meet(pair.written, pair.other)
        found[expected] += 1
    assert min(found) > 500, found


def test_views_that_lie_between_each_other_are_no_shared_memory() -> None:
    """Halves of a cache of keys and values, columns of a matrix, and what overlaps these."""
    both = torch.zeros(3, 2, 4, 100, 64, dtype=torch.float16)
    matrix = torch.zeros(1000, 96)
    every = torch.zeros(4, 24, 2, 8, 16)
    layers = [every[:, layer, half] for layer in range(24) for half in range(2)]
    for views in (
        [both[:, 0], both[:, 1]],
        [both[:, 1, :2], both[:, 0], both[:, 1, 2:]],
        [matrix[:, :48], matrix[:, 48:]],
        [matrix[:, 32:64], matrix[::2, :32], matrix[1::2, :32], matrix[:, 64:]],
        [matrix[:, 0::2], matrix[:, 1::2]],
        [matrix.t()[:48], matrix[:, 48:]],
        layers,
    ):
        assert apart.among(views, [True] * len(views)) is None
    for views in (
        [both[:, 0], both[:, :1]],
        [both[:, 0], both[1:2]],
        [both[:, 0, 3], both[2:, 0, 3:, 99, 63:]],
        [matrix[:, :49], matrix[:, 48:]],
        [matrix[:, 0::2], matrix[:, 1::3]],
        [matrix.t()[:49], matrix[:, 48:]],
        [*layers, every[3, 23, 1, 7, 15:]],
    ):
        pair = apart.among(views, [True] + [False] * (len(views) - 1))
        last = apart.among(views, [False] * (len(views) - 1) + [True])
        assert last is not None
        assert last.written == len(views) - 1
        assert last.known
        if len(views) == 2:
            assert pair == (0, 1, True)


def test_what_takes_too_long_to_tell_is_refused_and_says_so() -> None:
    # Sums of many coprime distances: to find the one that is missing is a search.
    room = torch.zeros(1, dtype=torch.uint8).expand(1 << 20)
    primes = [(9973, 9), (9967, 9), (9949, 9), (9941, 9), (9931, 9), (9929, 9)]

    def view(start: int, steps: list[tuple[int, int]]) -> Any:
        form = apart.Form(1, tuple(sorted(steps, reverse=True)), 1 + sum(s * n for s, n in steps))
        return apart.Place(room.device, start, form)

    places = [(0, view(1 << 20, primes)), (1, view((1 << 20) + 250_001, primes))]
    pair = apart.Apart([True, False], {}).shared(places)
    assert pair is not None
    assert "takes too long to tell" in str(apart.refusal(pair, "a", "b")) or pair.known


def test_tensors_without_an_address_are_told_by_their_storage() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    def checked(device: str) -> None:
        whole, other = torch.zeros(4, 8, device=device), torch.zeros(4, 8, device=device)
        assert apart.among([whole, other], [True, True]) is None
        assert apart.among([whole[:2], whole[2:]], [True, True]) is None
        assert apart.among([whole[:, :4], whole[:, 4:]], [True, True]) is None
        assert apart.among([other, whole[:3], whole[2:]], [False, True, False]) == (1, 2, True)

    checked("meta")
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for device in ("cpu", "cuda"):
            checked(device)
    dense = torch.eye(4)
    odd = [dense.to_sparse(), dense.to_sparse_csr()]
    assert apart.among([*odd, dense], [True] * 3) is None
    assert apart.among([*odd, dense, dense], [False, False, True, False]) == (2, 3, True)


def symbolic() -> dict[str, Any]:
    """Return a plan with one symbol: ``in0`` is ``[2*s0 + 1, 4]``, ``in1`` is ``[s0]``."""
    s0 = {"symbol": 0}
    kernel = {
        "name": "k0",
        "kind": "map",
        "grid": [{"div": [s0, 2]}, 1, 1],
        "block": [32, 1, 1],
        "shared_bytes": 0,
        "args": [
            {"memory": {"input": 1}},
            {"size": {"max": [s0, 2]}},
            {"memory": {"workspace": {"mul": [256, s0]}}},
            {
                "map": {
                    "memory": {"output": 0},
                    "offset": 8,
                    "dtype": "bf16",
                    "sizes": [64, s0],
                    "strides": [64],
                    "tile": [64, 8],
                    "swizzle": 128,
                }
            },
        ],
        "computes": [],
    }
    grown = {"add": [{"mul": [2, s0]}, 1]}
    return told(
        symbols=[{"min": 1, "max": 8, "input": 0, "dim": 0, "scale": 2, "offset": 1}],
        inputs=[
            tensor("in0", "user", [grown, 4], [4, 1]),
            tensor("in1", "user", [s0], [1]),
        ],
        outputs=[tensor("out0", "output", [s0, 4], [4, 1])],
        workspace_bytes={"mul": [512, s0]},
        kernels=[kernel],
    )


def read(whole: dict[str, Any]) -> plan.Plan:
    return plan.read(json.dumps(whole).encode())


def test_a_call_has_the_sizes_of_its_inputs() -> None:
    call = plan.call(read(symbolic()), [(11, 4), (5,)])
    assert call.workspace_bytes == 5 * 512
    assert [each.shape for each in call.outputs] == [(5, 4)]
    (launch,) = call.launches
    assert launch.grid == (2, 1, 1)
    pointer, size, scratch, tile = launch.values
    assert pointer == plan.Pointer("input", 1, 0)
    assert size == 5
    assert scratch == plan.Pointer("workspace", 0, 5 * 256)
    assert tile == plan.Tile(plan.Pointer("output", 0, 16), "bf16", (64, 5), (128,), (64, 8), 128)
    assert plan.call(read(symbolic()), [(3, 4), (1,)]).launches == (), "no blocks, no launch"


def test_launches_overlap_only_where_the_plan_says_so() -> None:
    (kernel,) = told()["kernels"]
    kernels = [{**kernel, "overlaps": overlaps} for overlaps in (True, False)] + [kernel]
    read = plan.read(json.dumps(told(kernels=kernels)).encode())
    assert [each.overlaps for each in read.kernels] == [True, False, False]
    # As the driver lays it out: the number is where the union begins.
    assert ctypes.sizeof(cuda_driver.LaunchAttribute) == 72
    assert cuda_driver.LaunchAttribute.number.offset == 8
    assert bytes(cuda_driver.OVERLAP)[:12] == bytes([6, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0])


def test_shapes_that_the_plan_does_not_admit_are_named() -> None:
    def refused(*shapes: tuple[int, ...]) -> str:
        with pytest.raises(ValueError, match="in") as raised:
            plan.call(read(symbolic()), shapes)
        return str(raised.value)

    assert "dimension 0 is 2*s0 + 1 for no whole s0" in refused((10, 4), (5,))
    assert "makes s0 9: compiled for 1 to 8" in refused((19, 4), (9,))
    assert "makes s0 0" in refused((1, 4), (0,))
    assert "in0 (user) has shape [11], not [2*s0 + 1, 4]" in refused((11,), (5,))
    assert "in0 (user) has shape [11, 3], not [11, 4]" in refused((11, 3), (5,))
    disagree = refused((11, 4), (6,))
    assert "in1 (user) has shape [6], not [5]: s0 is 5 by dimension 0 of in0" in disagree


def test_sizes_round_down_and_broken_ones_are_refused() -> None:
    for a in range(-7, 8):
        for b in (-3, -1, 1, 2, 3):
            assert sizes.value(sizes.read({"div": [a, b]}), ()) == a // b
            assert sizes.value(sizes.read({"mod": [a, b]}), ()) == a % b
    shown = sizes.read({"mul": [{"add": [{"symbol": 0}, 1]}, {"min": [{"symbol": 1}, 4]}]})
    assert sizes.shown(shown) == "(s0 + 1)*min(s1, 4)"
    assert sizes.value(shown, (2, 9)) == 12
    for broken in (True, 1.5, "3", {}, {"add": []}, {"div": [1]}, {"pow": [2, 2]}, {"symbol": -1}):
        with pytest.raises(BrokenArtifact):
            sizes.read(broken)
    for impossible in ({"div": [1, 0]}, {"symbol": 1}):
        with pytest.raises(BrokenArtifact):
            sizes.value(sizes.read(impossible), (1,))


def test_inputs_are_bound_by_the_programs_names(tmp_path: Path) -> None:
    def name(name: str, kind: str, target: str | None = None) -> dict[str, Any]:
        return {"name": name, "kind": kind, "target": target}

    inputs = [name("p_w", "parameter", "fc.w"), name("c", "constant", "one"), name("x", "user")]
    signature = {"version": 1, "inputs": inputs, "outputs": ["add"]}
    folder = artifact(tmp_path)
    weight, x = torch.zeros(2, 4), torch.zeros(1, 4)
    plain = kiln_torch.load(folder)
    with pytest.raises(KeyError, match=r"signature\.json"):
        plain.bind({"fc.w": weight})  # type: ignore[attr-defined]
    # Of a version to come: its names may mean anything.
    folder.joinpath("signature.json").write_text(json.dumps({**signature, "version": 2}))
    with pytest.raises(BrokenArtifact, match=r"signature\.json: version 2, not 1"):
        kiln_torch.load(folder)
    folder.joinpath("signature.json").write_text(json.dumps(signature))
    for state in ({"fc.w": weight}, {"p_w": weight, "other": x}):
        with pytest.raises(ValueError, match=r"p_w .parameter. is on cpu, not on a GPU"):
            kiln_torch.load(folder, params=state)(x)
    with pytest.raises(TypeError, match=r"0 inputs, not 1: x \(user\) f32 \[1, 4\]"):
        kiln_torch.load(folder, params={"fc.w": weight})()
    with pytest.raises(KeyError, match=r"no tensor for fc\.w"):
        kiln_torch.load(folder, params={"w": weight})
    with pytest.raises(TypeError, match="not int"):
        kiln_torch.load(folder, params=3)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Module()
            self.fc.w = torch.nn.Parameter(weight)

    with pytest.raises(ValueError, match=r"p_w .parameter. is on cpu, not on a GPU"):
        kiln_torch.load(folder, params=Model())(x)
    folder.joinpath("signature.json").write_text("{}")
    with pytest.raises(BrokenArtifact, match=r"signature\.json"):
        kiln_torch.load(folder)


def test_machine_code_runs_on_its_architecture() -> None:
    assert plan.runs_on("sm_90", (9, 0))
    assert plan.runs_on("sm_80", (8, 6))
    assert not plan.runs_on("sm_89", (8, 6))
    assert not plan.runs_on("sm_80", (9, 0))
    assert plan.runs_on("sm_90a", (9, 0))
    assert not plan.runs_on("sm_100a", (10, 3))
    with pytest.raises(BrokenArtifact):
        plan.runs_on("compute_90", (9, 0))


def test_a_key_needs_a_cluster(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="KILN_ENDPOINT"):
        kiln_torch.load("ab" * 32)
    with pytest.raises(ValueError, match="neither a folder nor a key"):
        kiln_torch.load(tmp_path / "nowhere")


def test_a_machine_without_a_driver_says_so() -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with pytest.raises(cuda_driver.CudaError, match="no CUDA driver"):
            cuda_driver.Module(ELF)
    else:
        pytest.skip("this machine has a driver: tests/gpu/check_load.py")
