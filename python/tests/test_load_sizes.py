"""Folders with artifacts for static sizes: what is refused, and which one a call launches.

They are written by ``kiln compile --compile-sizes``; runs on a GPU go by the same calls.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from kiln_torch import loading  # noqa: E402
from kiln_torch.by_size import BySize  # noqa: E402
from kiln_torch.native import Native  # noqa: E402
from kiln_torch.sizes import BrokenArtifact  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.torch

ROWS = {"symbol": 0}


def plan(rows: Any, kernels: int, target: str = "sm_90", dtype: str = "f32") -> dict[str, Any]:
    """Return a plan for so many rows, with so many kernels."""

    def tensor(name: str, kind: str) -> dict[str, Any]:
        return {"name": name, "kind": kind, "dtype": dtype, "shape": [rows, 4], "strides": [4, 1]}

    symbols = [{"min": 1, "max": 64, "input": 0, "dim": 0, "scale": 1, "offset": 0}]
    args = [{"memory": {"input": 0}}, {"memory": {"output": 0}}]
    kernel = {"kind": "map", "grid": [1, 1, 1], "block": [32, 1, 1], "shared_bytes": 0}
    return {
        "version": 2,
        "target": target,
        "symbols": symbols if rows == ROWS else [],
        "inputs": [tensor("in0", "user")],
        "outputs": [tensor("out0", "output")],
        "workspace_bytes": 0 if rows == ROWS else 64 * rows,
        "buffers": [],
        "kernels": [
            {"name": f"k{at}", "args": args, "computes": [], **kernel} for at in range(kernels)
        ],
    }


def changing(told: dict[str, Any]) -> dict[str, Any]:
    """Return a plan of the same types that writes to its input."""
    (given,) = told["inputs"]
    return {**told, "version": 3, "inputs": [{**given, "updated": True}]}


def write(folder: Path, told: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(told))
    (folder / "module.cubin").write_bytes(b"\x7fELF")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an artifact for all sizes, with two for one each."""
    write(tmp_path, plan(ROWS, 2))
    for size, kernels in ((2, 1), (8, 3)):
        write(tmp_path / "sizes" / str(size), plan(size, kernels))
    sizes = [{"size": size, "key": "aa" * 32} for size in (2, 8)]
    (tmp_path / "sizes.json").write_text(json.dumps(sizes))
    return tmp_path


def loaded(folder: Path) -> Native:
    native = loading.load(folder)
    assert isinstance(native, Native)
    return native


def test_the_shapes_choose(folder: Path) -> None:
    native = loaded(folder)
    program = native.program
    assert isinstance(program, BySize)
    assert [len(code.kernels) for code in program.codes] == [2, 1, 3]
    assert len(native.plan.kernels) == 6
    for rows, size, kernels in ((2, 2, [2]), (8, 8, [3, 4, 5]), (3, None, [0, 1])):
        assert program.size_for([(rows, 4)]) == size
        call = program.call(native.named, [(rows, 4)])
        assert [launch.kernel for launch in call.launches] == kernels
        assert call.workspace_bytes == 64 * (size or 0)
        assert call.outputs[0].shape == (rows, 4)
    with pytest.raises(ValueError, match="65"):
        program.call(native.named, [(65, 4)])
    with pytest.raises(ValueError, match="in0"):
        program.call(native.named, [(2, 5)])


def test_without_a_list_there_is_the_dynamic_one_alone(folder: Path) -> None:
    (folder / "sizes.json").unlink()
    native = loaded(folder)
    assert not isinstance(native.program, BySize)
    assert len(native.plan.kernels) == 2


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (plan(8, 3, target="sm_80"), "sm_80"),
        (plan(8, 3, dtype="f16"), "another program"),
        (changing(plan(8, 3)), "another program"),
    ],
)
def test_another_program_is_refused(folder: Path, told: dict[str, Any], why: str) -> None:
    write(folder / "sizes" / "8", told)
    with pytest.raises(BrokenArtifact, match=f"size 8: .*{why}"):
        loading.load(folder)


def test_what_is_missing_or_broken_is_named(folder: Path) -> None:
    (folder / "sizes" / "8" / "module.cubin").unlink()
    with pytest.raises(BrokenArtifact, match=r"size 8: it has no module\.cubin"):
        loading.load(folder)
    for told in ('[{"size": "../x"}]', '[{"size": -1}]', '[{"size": true}]', "{", '[{"sizes": 2}]'):
        (folder / "sizes.json").write_text(told)
        with pytest.raises(BrokenArtifact, match=r"sizes\.json"):
            loading.load(folder)
    (folder / "sizes.json").write_text('[{"size": 5}]')
    with pytest.raises(BrokenArtifact, match="is missing"):
        loading.load(folder)


def test_a_size_that_is_another_is_not_chosen(folder: Path) -> None:
    write(folder / "sizes" / "8", plan(9, 3))
    native = loaded(folder)
    assert isinstance(native.program, BySize)
    assert native.program.size_for([(8, 4)]) is None
