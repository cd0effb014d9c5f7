"""Artifacts of the node's eager compiler, run by PyTorch and compared with the golden data.

``kiln compile --backend eager`` of a real node wrote them.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

import kiln_torch  # noqa: E402
from check_rebuilt import LIMITS, error, kind_of, read_golden  # noqa: E402
from cluster import ROOT, Cluster  # noqa: E402
from kiln_torch.launching import DTYPES  # noqa: E402
from kiln_torch.sizes import BrokenArtifact  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.torch, pytest.mark.cluster]

FIXTURES = ROOT / "tests" / "fixtures"


def compiled(kiln: Path, cluster: Cluster, archive: str, out: Path, *more: str) -> Path:
    """Have a node write ``archive`` down."""
    command = [kiln, "compile", FIXTURES / archive, "--backend", "eager", "-o", out]
    command += ["--endpoint", cluster.nodes[0].endpoint, *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def archives() -> list[str]:
    names = [*FIXTURES.glob("*.new.pt2"), *FIXTURES.glob("models/*.new.pt2")]
    return sorted(str(path.relative_to(FIXTURES)) for path in names)


def golden_of(archive: str) -> Path | None:
    """Return the golden file of an archive: the longest name that its own begins with."""
    place = (FIXTURES / archive).parent
    fits = [
        path
        for path in place.glob("*.safetensors")
        if (FIXTURES / archive).name.startswith(path.stem)
    ]
    return max(fits, key=lambda path: len(path.stem), default=None)


def laid(tensor: torch.Tensor, told: Any) -> torch.Tensor:
    return tensor.to(DTYPES[told.dtype])


@pytest.mark.parametrize("archive", archives())
def test_what_a_node_wrote_down_gives_pytorchs_numbers(
    kiln: Path, cluster: Cluster, tmp_path: Path, archive: str
) -> None:
    path = golden_of(archive)
    if path is None or "_1k" in archive or "_batch" in archive:
        pytest.skip("no golden data of its sizes")
    out = tmp_path / "out"
    command = [kiln, "compile", FIXTURES / archive, "--backend", "eager", "-o", out]
    command += ["--endpoint", cluster.nodes[0].endpoint]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unsupported_op" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    loaded: Any = kiln_torch.load(out)
    golden = read_golden(path)
    names = [f"in{at}" for at in loaded.plan.given]
    inputs = [laid(golden[name], loaded.plan.inputs[int(name[2:])]) for name in names]
    with torch.no_grad():
        outputs = loaded(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    for at, output in enumerate(outputs):
        assert output.is_contiguous()
        limit = LIMITS[kind_of(archive)] if output.is_floating_point() else 0.0
        off = error(output, golden[f"out{at}"])
        assert off <= limit, f"output {at}: {off:.1e} over {limit}"


class Model(torch.nn.Module):
    """Two layers, a constant and a softmax."""

    def __init__(self) -> None:
        """Make random weights."""
        super().__init__()
        self.inner = torch.nn.Linear(6, 8)
        self.outer = torch.nn.Linear(8, 5)
        self.register_buffer("scale", torch.rand(8))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute."""
        hidden = torch.relu(self.inner(x)) * self.scale + torch.arange(8)
        return torch.softmax(self.outer(hidden), -1), x


def test_parameters_are_bound_and_sizes_may_be_symbols(
    kiln: Path, cluster: Cluster, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, x = Model().eval(), torch.randn(4, 6)
    sizes = {"x": {0: torch.export.Dim("rows", min=2, max=64)}}
    program = torch.export.export(model, (x,), dynamic_shapes=sizes)
    archive = tmp_path / "model.pt2"
    torch.export.save(program, archive)
    folder = compiled(kiln, cluster, str(archive), tmp_path / "out")
    for source in (program, model, dict(model.state_dict())):
        bound: Any = kiln_torch.load(folder, source)
        with torch.no_grad():
            for rows in (4, 9):
                given = torch.randn(rows, 6)
                for ours, theirs in zip(bound(given), model(given)):
                    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    # An output that is an input is another tensor.
    assert bound(x)[1].data_ptr() != x.data_ptr()
    with pytest.raises(TypeError, match=r"0 inputs, not 1: x \(user\)"):
        bound()
    with pytest.raises(ValueError, match=r"x \(user\) has elements of torch\.float64"):
        bound(x.double())
    with pytest.raises(ValueError, match=r"compiled for 2 to 64"):
        bound(torch.randn(65, 6))
    with pytest.raises(KeyError, match="no tensor for"):
        kiln_torch.load(folder, {"inner.weight": model.inner.weight})


def test_a_whole_in_eager_pieces_is_run_as_well(
    kiln: Path, cluster: Cluster, tmp_path: Path
) -> None:
    archive = "block_f32.new.pt2"
    folder = compiled(kiln, cluster, archive, tmp_path / "out", "--piecewise", "always")
    assert (folder / "stitching.json").is_file()
    loaded: Any = kiln_torch.load(folder)
    golden = read_golden(FIXTURES / "block_f32.safetensors")
    inputs = [
        golden[f"in{at}"].to(DTYPES[loaded.plan.inputs[at].dtype]) for at in loaded.plan.given
    ]
    with torch.no_grad():
        output = loaded(*inputs)
    assert error(output, golden["out0"]) <= LIMITS["f32"]


def test_what_a_node_wrote_down_is_found_by_its_key(
    kiln: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [kiln, "compile", FIXTURES / "block_f32.new.pt2", "--backend", "eager", "--json"]
    command += ["--endpoint", cluster.nodes[1].endpoint]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    key = json.loads(done.stdout.strip().splitlines()[-1])["key"]
    monkeypatch.setenv("KILN_ENDPOINT", cluster.nodes[2].endpoint)
    loaded: Any = kiln_torch.load(key)
    golden = read_golden(FIXTURES / "block_f32.safetensors")
    inputs = [golden[f"in{at}"] for at in loaded.plan.given]
    with torch.no_grad():
        assert error(loaded(*inputs), golden["out0"]) <= LIMITS["f32"]


def test_outputs_are_nobody_elses_memory(tmp_path: Path) -> None:
    folder = written(tmp_path, outputs=[0, 2, 2])
    loaded: Any = kiln_torch.load(folder)
    x, y = torch.ones(2, 3), torch.ones(2, 3)
    first, second, third = loaded(x, y)
    for each in (first, second, third):
        each.zero_()
    assert x.sum() == 6
    assert torch.equal(loaded(x, y)[1], torch.full((2, 3), 2.0))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": 3}, "version 3"),
        ({"version": 2, "updates": [0]}, "changes other inputs than plan.json says"),
        ({"op": "Typo"}, "no operation Typo"),
        ({"op": {"Map": {"fun": "Typo", "domain": "Float", "args": []}}}, "no operation Map"),
        ({"reads": [0, 7]}, "reads what is not there"),
        ({"writes": 0}, "not defined once"),
        ({"outputs": [1, 2, 3]}, "outputs, not those of plan.json"),
        ({"dtype": "i32"}, "is not that of plan.json"),
    ],
)
def test_what_does_not_hang_together_is_refused(
    tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    with pytest.raises(BrokenArtifact, match=why):
        kiln_torch.load(written(tmp_path, **change))


def written(
    folder: Path,
    *,
    version: int = 1,
    op: Any = None,
    reads: Any = (0, 1),
    writes: int = 2,
    outputs: Any = (2,),
    dtype: str = "f32",
    updates: Any = (),
) -> Path:
    """Write a program that adds two tensors, or what a test makes of it."""
    add = {"Map": {"fun": "Add", "domain": "Float", "args": [{"Read": 0}, {"Read": 1}]}}
    value = {"dtype": dtype, "shape": [2, 3]}
    tensor = {"dtype": "f32", "shape": [2, 3], "strides": [3, 1]}
    program = {
        "symbols": [],
        "values": [value] * 3,
        "inputs": [{"value": at, "position": at, "strides": [3, 1]} for at in range(2)],
        "nodes": [{"op": op or add, "reads": list(reads), "writes": writes, "origin": 0}],
        "outputs": list(outputs),
        "updates": list(updates),
    }
    plan = {
        "version": 2,
        "target": "any",
        "symbols": [],
        "inputs": [{"name": f"in{at}", "kind": "user", **tensor} for at in range(2)],
        "outputs": [
            {"name": f"out{at}", "kind": "output", **tensor}
            for at in range(len(outputs) if len(outputs) != 3 or outputs[0] == 0 else 1)
        ],
        "workspace_bytes": 0,
        "buffers": [],
        "kernels": [],
    }
    folder.joinpath("graph.json").write_text(json.dumps({"version": version, "program": program}))
    folder.joinpath("plan.json").write_text(json.dumps(plan))
    return folder


def test_what_only_pytorch_knows_is_run_by_it(kiln: Path, cluster: Cluster, tmp_path: Path) -> None:
    out = compiled(kiln, cluster, "unknown.new.pt2", tmp_path / "out")
    loaded: Any = kiln_torch.load(out)
    x = torch.linspace(-2, 2, 32).reshape(4, 8)
    wanted = torch.tanh(x).cumsum(-1) + torch.special.bessel_j0(x)
    # As it may lie in memory.
    for given in (x, x.t().contiguous().t()):
        assert error(loaded(given), wanted) <= 1e-6
    with pytest.raises(ValueError, match="elements of"):
        loaded(x.double())
    with pytest.raises(ValueError, match="x"):
        loaded(x[:, :7])
    # Nothing that changes its inputs is called, nor what is not there.
    written = out / "portable.json"
    told = written.read_text()
    for other in ("aten.add_.Tensor", "aten.no_such.default", "os.system.default"):
        written.write_text(told.replace("aten.special_bessel_j0.default", other))
        with pytest.raises(BrokenArtifact, match="portable"):
            kiln_torch.load(out)


@pytest.mark.parametrize("form", ["", "_core"])
@pytest.mark.parametrize("program", ["counting", "decoding"])
def test_buffers_keep_what_calls_leave_in_them_until_they_are_reset(
    kiln: Path, cluster: Cluster, tmp_path: Path, program: str, form: str
) -> None:
    out = compiled(kiln, cluster, f"state/{program}{form}.pt2", tmp_path / "out")
    golden = read_golden(FIXTURES / "state" / f"{program}.safetensors")
    loaded: Any = kiln_torch.load(out)
    names = [f"in{at}" for at in loaded.plan.given]
    calls = [
        [golden[f"call{call}.{name}"].clone() for name in names if f"call0.{name}" in golden]
        for call in range(3)
    ]
    fixed = [golden[name].clone() for name in names if name in golden]
    block = loaded.bind(*fixed)
    with torch.no_grad():
        first = block(*[each.clone() for each in calls[0]])
        block.reset()
        for call, given in enumerate(calls):
            found = block(*given)
            torch.testing.assert_close(found, golden[f"call{call}.out0"], rtol=1e-5, atol=1e-5)
            # What a call gives is nobody else's: what is left later does not change it.
            assert call or torch.equal(found, first)
            # An argument that the program writes to is the caller's, and is written to.
            for name, tensor in zip(names[len(fixed) :], given):
                left = golden.get(f"call{call}.left.{name}")
                if left is not None:
                    torch.testing.assert_close(tensor, left, rtol=1e-5, atol=1e-5)
        # Memory that is written to is no other input: which of both it would be is open.
        copies = [each.clone() for each in fixed]
        changing = next(at for at, each in enumerate(loaded.given) if each.updated)
        twice = next(
            at
            for at, each in enumerate(copies)
            if at != changing and each.nbytes <= copies[changing].nbytes
        )
        raw = copies[changing].view(-1).view(torch.uint8)[: copies[twice].nbytes]
        copies[twice] = raw.view(copies[twice].dtype).view(copies[twice].shape)
        before = copies[changing].clone()
        with pytest.raises(ValueError, match="is written to, and input"):
            loaded.bind(*copies)(*calls[0])
        assert torch.equal(copies[changing], before)
    for name, tensor in zip(names, fixed):
        left = golden.get(f"left.{name}", golden[name])
        torch.testing.assert_close(tensor, left, rtol=1e-5, atol=1e-5)
