"""``kiln_torch.load``: what is refused before anything runs.

Runs are in tests/gpu/check_load.py.
"""

from __future__ import annotations

import ctypes
import json
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

import kiln_torch  # noqa: E402
from kiln_torch import cuda_driver, plan  # noqa: E402
from kiln_torch.sizes import BrokenArtifact  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.torch

ELF = b"\x7fELF and no more"


def tensor(name: str, kind: str, shape: list[int], strides: list[int]) -> dict[str, Any]:
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
    with pytest.raises(TypeError, match=r"1 inputs, not 2: in0 \(parameter f32 \[2, 4\]\), in2"):
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
