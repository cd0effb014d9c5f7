"""Stitched wholes: what is refused before anything runs, and what a call launches.

Runs are in tests/gpu/check_stitched.py.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

import kiln_torch  # noqa: E402
from blake3 import blake3  # noqa: E402
from kiln_torch import copying, loading, plan, stitching  # noqa: E402
from kiln_torch.manifest import (  # noqa: E402
    Artifact,
    FileEntry,
    Fingerprint,
    Manifest,
    PieceRef,
)
from kiln_torch.native import Native  # noqa: E402
from kiln_torch.plan import Layout, Pointer  # noqa: E402
from kiln_torch.program import Stitched  # noqa: E402
from kiln_torch.sizes import BrokenArtifact  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.torch

ELF = b"\x7fELF"
ROWS = {"symbol": 0}
KEYS = [{"key": "aa" * 32, "pack": "bb" * 32}, {"key": "cc" * 32, "pack": "dd" * 32}]


def tensor(name: str, kind: str, shape: list[Any]) -> dict[str, Any]:
    strides = [1] if len(shape) == 1 else [shape[1], 1]
    return {"name": name, "kind": kind, "dtype": "f32", "shape": shape, "strides": strides}


def symbol(at: int) -> dict[str, Any]:
    return {"min": 1, "max": 64, "input": at, "dim": 0, "scale": 1, "offset": 0}


def piece(inputs: list[dict[str, Any]], at: int, workspace: int) -> dict[str, Any]:
    """Return a plan of two kernels that has its symbol from input ``at``."""
    reads = [{"memory": {"input": i}} for i, e in enumerate(inputs) if e["kind"] != "constant"]
    memory = {"memory": {"workspace": 0}}
    kernels = [[*reads, memory], [memory, {"memory": {"output": 0}}, {"size": ROWS}]]
    return {
        "version": 2,
        "target": "sm_90",
        "symbols": [symbol(at)],
        "inputs": inputs,
        "outputs": [tensor("out0", "output", [ROWS, 4])],
        "workspace_bytes": workspace,
        "buffers": [],
        "kernels": [
            {
                "name": f"k{number}",
                "kind": "map",
                "grid": [ROWS, 1, 1],
                "block": [32, 1, 1],
                "shared_bytes": 0,
                "overlaps": True,
                "args": args,
                "computes": [],
            }
            for number, args in enumerate(kernels)
        ],
    }


def plans() -> list[dict[str, Any]]:
    """Return two pieces: of a weight, a constant and rows; of rows alone."""
    first = [
        tensor("in0", "parameter", [4, 4]),
        tensor("in1", "constant", [4]),
        tensor("in2", "user", [ROWS, 4]),
    ]
    return [piece(first, 2, 512), piece([tensor("in0", "user", [ROWS, 4])], 0, 1024)]


def spec(shape: list[int | None], **more: Any) -> dict[str, Any]:
    return {"dtype": "f32", "shape": shape, **more}


def told() -> dict[str, Any]:
    """Return: the second piece twice after the first, in place; the input again as an output."""
    digest = "00" * 32
    rows, size = spec([None, 4]), {"mul": [16, ROWS]}
    end = {"mul": [256, {"div": [{"add": [size, 255]}, 256]}]}

    def left(made: int, read: int, memory: dict[str, Any]) -> dict[str, Any]:
        shape = [ROWS, 4]
        return {"dtype": "f32", "shape": shape, "memory": memory, "from": made, "to": read}

    def call(of: int, args: list[Any], result: int, **more: Any) -> dict[str, Any]:
        return {"piece": of, "args": args, "results": [result], **more}

    takes = [spec([4, 4]), spec([4], constant=True), rows]
    return {
        "version": 1,
        "symbols": [symbol(1)],
        "inputs": [tensor("in0", "parameter", [4, 4]), tensor("in1", "user", [ROWS, 4])],
        "outputs": [tensor(f"out{at}", "output", [ROWS, 4]) for at in range(3)],
        "workspace_bytes": end,
        "pieces": [
            {"graph": digest, "inputs": digest, "takes": takes, "gives": [rows]},
            {"graph": digest, "inputs": digest, "takes": [rows], "gives": [rows]},
        ],
        "values": [
            left(0, 1, {"workspace": 0}),
            left(1, 2, {"workspace": 0}),
            left(2, 2, {"output": 0}),
        ],
        "calls": [
            call(0, [{"input": 0}, "constant", {"input": 1}], 0),
            call(1, [{"value": 0}], 1, in_place=0),
            call(1, [{"value": 1}], 2),
        ],
        "copies": [
            {"output": 1, "from": {"value": 2}},
            {"output": 2, "from": {"input": 1}},
        ],
    }


def written(folder: Path, whole: dict[str, Any], pieces: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    for at, each in enumerate(pieces):
        own = folder / "pieces" / str(at)
        own.mkdir(exist_ok=True, parents=True)
        own.joinpath("plan.json").write_text(json.dumps(each))
        own.joinpath("module.cubin").write_bytes(ELF + bytes([at]))
    folder.joinpath("pieces.json").write_text(json.dumps(KEYS))
    folder.joinpath("stitching.json").write_text(json.dumps(whole))
    return folder


def read(whole: dict[str, Any], pieces: list[dict[str, Any]]) -> Stitched:
    modules = [(ELF, plan.read(json.dumps(each).encode())) for each in pieces]
    names = [f"piece {at}" for at in range(len(modules))]
    return Stitched(stitching.read(json.dumps(whole).encode()), modules, names)


def test_a_stitched_folder_is_one_graph(tmp_path: Path) -> None:
    native = kiln_torch.load(written(tmp_path, told(), plans()))
    assert isinstance(native, Native)
    assert native.plan.target == "sm_90"
    assert [each.kind for each in native.given] == ["parameter", "user"]
    with pytest.raises(TypeError, match="1 inputs, not 2"):
        native(torch.zeros(4, 4))


def test_a_call_launches_all_pieces_on_one_memory() -> None:
    program = read(told(), plans())
    call = program.call(program.plan, [(4, 4), (17, 4)])
    # What pieces leave each other takes 17 rows of 16 bytes; behind it is what the
    # largest of them needs for itself.
    assert call.workspace_bytes == 512 + 1024
    assert [launch.kernel for launch in call.launches] == [0, 1, 2, 3, 2, 3]
    assert [launch.begins for launch in call.launches] == [True, False] * 3
    # Kernels that wait for what other pieces leave them begin before these have ended.
    pieces = plans()
    for kernel in pieces[1]["kernels"]:
        kernel["follows"] = True
    later = read(told(), pieces).call(program.plan, [(4, 4), (17, 4)])
    assert [launch.begins for launch in later.launches] == [True] + [False] * 5
    pieces[1]["inputs"][0]["kind"] = "buffer"
    later = read(told(), pieces).call(program.plan, [(4, 4), (17, 4)])
    assert [launch.begins for launch in later.launches] == [True, False] * 3
    scratch = Pointer("workspace", 0, 512)
    value = Pointer("workspace", 0, 0)
    assert call.launches[0].values == (Pointer("input", 0, 0), Pointer("input", 1, 0), scratch)
    assert call.launches[1].values == (scratch, value, 17)
    assert call.launches[2].values == (value, scratch)
    assert call.launches[3].values == (scratch, value, 17)
    assert call.launches[5].values == (scratch, Pointer("output", 0, 0), 17)
    rows = Layout((17, 4), (4, 1))
    copies = [(each.output, each.source, each.layout, each.width) for each in call.copies]
    assert copies == [
        (1, Pointer("output", 0, 0), rows, 4),
        (2, Pointer("input", 1, 0), rows, 4),
    ]


def test_inputs_that_the_whole_does_not_admit_are_named() -> None:
    program = read(told(), plans())
    with pytest.raises(ValueError, match=r"in1 \(user\) has shape \[65, 4\].*s0 65"):
        program.call(program.plan, [(4, 4), (65, 4)])


BREAKS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "version": (lambda w: w.update(version=2), "version 2"),
    "a field less": (lambda w: w.pop("values"), "cannot be read"),
    "another piece": (lambda w: w["calls"][0].update(piece=9), "piece 9, which is not there"),
    "an argument less": (lambda w: w["calls"][1].update(args=[]), "call 1 has not"),
    "no such input": (lambda w: w["calls"][1].update(args=[{"input": 7}]), "call 1: argument 0"),
    "no such value": (lambda w: w["calls"][1].update(args=[{"value": 99}]), "call 1: argument 0"),
    "a negative one": (lambda w: w["calls"][1].update(args=[{"value": -1}]), "no position"),
    "a constant": (lambda w: w["calls"][1].update(args=["constant"]), "call 1: argument 0"),
    "too early": (lambda w: w["calls"][1].update(args=[{"value": 2}]), "before it is made"),
    "twice": (lambda w: w["calls"][1].update(results=[0]), "value 0 is made twice"),
    "of another call": (lambda w: w["values"][1].update({"from": 0}), "not made where it says"),
    "too short a life": (lambda w: w["values"][0].update(to=0), "value 0|in place"),
    "another type": (lambda w: w["values"][0].update(dtype="f16"), "call 0: result 0"),
    "another width": (lambda w: w["values"][0].update(shape=[ROWS, 5]), "call 0: result 0"),
    "in an input": (lambda w: w["values"][2].update(memory={"input": 0}), "outside of the memory"),
    "in no output": (lambda w: w["values"][2].update(memory={"output": 9}), "outside of the"),
    "an output more": (lambda w: w["outputs"].append(w["outputs"][0]), "output 3 is not made"),
    "an output twice": (lambda w: w["copies"][0].update(output=0), "output 0 is not made once"),
    "a copy of what is gone": (
        lambda w: w["copies"][0].update({"from": {"value": 0}}),
        "output 1 is not made once",
    ),
    "too many": (lambda w: w.update(copies=[{}] * 70_000), "more than 65536"),
    "no symbol": (lambda w: w["symbols"][0].update(dim=4), "no dimension"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_broken_stitchings_are_refused(what: str, tmp_path: Path) -> None:
    break_it, why = BREAKS[what]
    whole = copy.deepcopy(told())
    break_it(whole)
    with pytest.raises(BrokenArtifact, match=why):
        kiln_torch.load(written(tmp_path, whole, plans()))


def test_values_that_share_memory_or_lie_outside_are_refused_at_the_call() -> None:
    whole = told()
    whole["calls"][1].pop("in_place")
    with pytest.raises(BrokenArtifact, match="values 0 and 1 share memory"):
        read(whole, plans()).call(read(whole, plans()).plan, [(4, 4), (17, 4)])
    whole = {**told(), "workspace_bytes": 256}
    program = read(whole, plans())
    assert program.call(program.plan, [(4, 4), (16, 4)]).workspace_bytes == 256 + 1024
    with pytest.raises(BrokenArtifact, match="outside of the memory"):
        program.call(program.plan, [(4, 4), (17, 4)])


def test_pieces_that_do_not_fit_are_named_with_their_keys(tmp_path: Path) -> None:
    def refused(break_it: Callable[[dict[str, Any]], Any]) -> str:
        pieces = plans()
        break_it(pieces[1])
        with pytest.raises(BrokenArtifact) as caught:
            kiln_torch.load(written(tmp_path, told(), pieces))
        assert f"piece 1 (key {'cc' * 32})" in str(caught.value)
        return str(caught.value)

    assert "it is for sm_80, piece 0 for sm_90" in refused(lambda p: p.update(target="sm_80"))
    assert "its input 0" in refused(lambda p: p["inputs"][0].update(dtype="f16"))
    assert "its output 0" in refused(lambda p: p["outputs"][0].update(shape=[ROWS, 5]))
    more = plans()[0]["inputs"][0]
    assert "2 inputs, not 1" in refused(lambda p: p["inputs"].append(more))
    assert "version 9" in refused(lambda p: p.update(version=9))
    folder = written(tmp_path, told(), plans())
    folder.joinpath("pieces/1/module.cubin").write_bytes(b"text")
    with pytest.raises(BrokenArtifact, match=r"piece 1 \(key cc.*no machine code"):
        kiln_torch.load(folder)
    folder.joinpath("pieces/1/module.cubin").unlink()
    with pytest.raises(BrokenArtifact, match=r"piece 1 \(key cc.*no module\.cubin"):
        kiln_torch.load(folder)
    written(tmp_path, told(), plans()).joinpath("plan.json").write_text("{}")
    with pytest.raises(BrokenArtifact, match=r"plan\.json is beside stitching\.json"):
        kiln_torch.load(folder)


def test_a_piece_that_lays_its_tensors_out_otherwise_is_refused_at_the_call() -> None:
    def called(break_it: Callable[[dict[str, Any]], Any]) -> None:
        pieces = plans()
        break_it(pieces[1])
        program = read(told(), pieces)
        program.call(program.plan, [(4, 4), (17, 4)])

    with pytest.raises(BrokenArtifact, match="piece 1, call 1: its input 0 has strides"):
        called(lambda p: p["inputs"][0].update(strides=[1, 17]))
    with pytest.raises(BrokenArtifact, match="piece 1, call 1: its output 0 is"):
        called(lambda p: p["outputs"][0].update(strides=[1, 17]))
    with pytest.raises(ValueError, match=r"piece 1, call 1: .*compiled for 1 to 8"):
        called(lambda p: p["symbols"][0].update(max=8))


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((), ()),
        ((5,), (1,)),
        ((4, 6), (6, 1)),
        ((4, 6), (8, 1)),
        ((4, 6), (1, 4)),
        ((3, 1, 5), (10, 77, 2)),
        ((2, 3, 4), (4, 0, 1)),
        ((2, 3, 4, 2), (48, 2, 6, 1)),
        ((3, 0), (1, 1)),
    ],
)
def test_strips_make_any_layout_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    source = torch.arange(200, dtype=torch.int16)
    wanted = source.as_strided(shape, strides).contiguous()
    data = source.numpy().tobytes()
    found = bytearray(b"\xa5" * wanted.numel() * 2)
    for strip in copying.strips(Layout(shape, strides), 2):
        for row in range(strip.rows):
            at, to = strip.source + row * strip.pitch, strip.target + row * strip.width
            found[to : to + strip.width] = data[at : at + strip.width]
    assert bytes(found) == wanted.numpy().tobytes()
    with pytest.raises(ValueError, match="too many strips"):
        copying.strips(Layout((1 << 20, 2, 2), (4, 1, 2)), 4)


def signed(key: bytes, files: dict[str, bytes], pieces: tuple[PieceRef, ...] = ()) -> Artifact:
    """Return an artifact as it is once its manifest was verified."""
    entries, pack = [], b""
    for path, data in sorted(files.items()):
        entries.append(FileEntry(path, len(pack), len(data), blake3(data).digest()))
        pack += data
    digest = blake3(pack).digest()
    told = Manifest(
        *(key, "default", (), Fingerprint("native"), "sm_90", tuple(entries)),
        *(digest, len(pack), 1, 0.5, "m", pieces),
    )
    return Artifact.verified(told, memoryview(pack), "memory")


def test_an_artifact_brings_its_pieces_by_key_and_digest() -> None:
    parts = []
    for at, each in enumerate(plans()):
        files = {"module.cubin": ELF, "plan.json": json.dumps(each).encode()}
        parts.append(signed(bytes([at]) * 32, files))
    refs = tuple(PieceRef(p.key, p.manifest.pack_digest, p.manifest.pack_size) for p in parts)
    own = {"stitching.json": json.dumps(told()).encode(), "pieces/0/plan.json": b"{}"}
    whole = signed(b"w" * 32, own, refs)
    known = {part.key: part for part in parts}
    files = loading.whole_files(whole, known.get)
    assert bytes(files["pieces/0/plan.json"]) == json.dumps(plans()[0]).encode()
    assert loading.native_of(files).plan.target == "sm_90"
    with pytest.raises(KeyError, match=rf"piece 1 .key {'01' * 32}"):
        loading.whole_files(whole, {b"\0" * 32: parts[0]}.get)
    known[b"\1" * 32] = signed(b"\1" * 32, {"module.cubin": ELF, "plan.json": b"{}"})
    with pytest.raises(BrokenArtifact, match=r"piece 1 .* another than was stitched"):
        loading.whole_files(whole, known.get)


def inductors(folder: Path) -> list[bytes]:
    """Return both pieces as Inductor compiles them for this CPU: ``x @ w + 1`` and ``2 * x``."""
    from torch._inductor import standalone_compile
    from torch.fx.experimental.proxy_tensor import make_fx

    # Annotated, they would bring names that Inductor's keys cannot have.
    rows = torch.zeros(17, 4)
    cases: list[tuple[Any, list[torch.Tensor]]] = [
        (lambda w, x: (x @ w + 1,), [torch.zeros(4, 4), rows]),
        (lambda x: (x * 2,), [rows]),
    ]
    found = []
    for at, (function, inputs) in enumerate(cases):
        traced = make_fx(function, tracing_mode="fake")(*inputs)
        compiled = standalone_compile(traced, inputs, dynamic_shapes="from_example_inputs")
        path = folder / str(at)
        compiled.save(path=str(path), format="binary")
        found.append(path.read_bytes())
    return found


def test_pieces_of_inductor_run_by_themselves_on_torchs_tensors(tmp_path: Path) -> None:
    binaries = inductors(tmp_path)
    folder = written(tmp_path / "whole", told(), [])
    for at, binary in enumerate(binaries):
        own = folder / "pieces" / str(at)
        own.mkdir(parents=True)
        own.joinpath("standalone.bin").write_bytes(binary)
    whole = kiln_torch.load(folder)
    weight, rows = torch.rand(4, 4), torch.rand(17, 4)
    first, second, third = whole(weight, rows)
    torch.testing.assert_close(first, (rows @ weight + 1) * 4)
    assert torch.equal(first, second)
    assert torch.equal(third, rows)
    assert third.data_ptr() != rows.data_ptr()
    with pytest.raises(ValueError, match=r"in1 \(user\) is torch.float64"):
        whole(weight, rows.double())
    with pytest.raises(ValueError, match=r"in0 .parameter. has strides"):
        whole(weight.t(), rows)
    with pytest.raises(TypeError, match="1 inputs, not 2"):
        whole(weight)
    with pytest.raises(TypeError, match="at each call"):
        kiln_torch.load(folder, params={})
    # A piece that leaves something else than was stitched.
    whole = json.loads(json.dumps(told()))
    whole["values"][0]["dtype"] = whole["pieces"][0]["gives"][0]["dtype"] = "f16"
    whole["pieces"][1]["takes"][0]["dtype"] = "f16"
    whole["values"][1].update(dtype="f32", memory={"workspace": 0})
    whole["calls"][1].pop("in_place")
    whole["calls"][2]["args"] = [{"value": 0}]
    whole["values"][0]["to"], whole["values"][1]["to"] = 2, 1
    written(folder, whole, [])
    with pytest.raises(BrokenArtifact, match=r"piece 0 .*call 0: it gives torch.float32"):
        kiln_torch.load(folder)(weight, rows)
