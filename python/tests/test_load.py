"""``kiln_torch.load``: what is refused before anything runs.

Runs are in tests/gpu/check_load.py.
"""

from __future__ import annotations

import ctypes
import json
import random
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


def test_shared_bytes_are_found_where_one_of_both_is_written_to() -> None:
    rng = random.Random(7)  # noqa: S311
    found = [0, 0]
    for _ in range(5000):
        count = rng.randrange(6)
        starts = [rng.randrange(40) for _ in range(count)]
        lengths = [rng.randrange(9) for _ in range(count)]
        written = [rng.randrange(4) == 0 for _ in range(count)]

        def meet(a: int, b: int) -> bool:
            ends = [starts[at] + lengths[at] for at in (a, b)]  # noqa: B023
            overlap = max(starts[a], starts[b]) < min(ends)  # noqa: B023
            return overlap and (written[a] or written[b])  # noqa: B023

        fixed = {at: starts[at] for at in range(count) if rng.randrange(2)}
        given = [(at, starts[at]) for at in range(count) if at not in fixed]
        places = apart.Apart(written, lengths, fixed)
        pair = places.shared(given)
        expected = any(meet(a, b) for a in range(count) for b in range(a))
        assert (pair is not None) == expected, (starts, lengths, written)
        # Asked again, it says the same.
        assert (places.shared(given) is not None) == expected
        if pair is not None:
            assert written[pair[0]]
            assert meet(*pair)
        found[expected] += 1
    assert min(found) > 500, found


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
