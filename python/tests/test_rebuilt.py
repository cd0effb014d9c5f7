"""Pieces rebuilt from a node's description: what comes out, and what is refused."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

PACKAGE = Path(__file__).resolve().parent.parent / "kiln_torch" / "worker"
# By its files, as a node sends them: the package around it need not be installed.
if "kiln_worker" not in sys.modules:
    spec = importlib.util.spec_from_file_location("kiln_worker", PACKAGE / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["kiln_worker"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["kiln_worker"])
compiling, formula, messages, rebuilt, refused, artifact = (
    importlib.import_module(f"kiln_worker.{name}")
    for name in ["compiling", "formula", "messages", "rebuilt", "refused", "artifact"]
)

pytestmark = pytest.mark.torch


def user(shape: list[Any], strides: list[Any], dtype: str = "f32") -> dict[str, Any]:
    return {"kind": "user", "dtype": dtype, "shape": shape, "strides": strides}


def node(op: str, outputs: int = 1, **args: Any) -> dict[str, Any]:
    return {"op": op, "args": [[name, given] for name, given in args.items()], "outputs": outputs}


def graph(
    inputs: list[dict[str, Any]],
    nodes: list[dict[str, Any]],
    outputs: list[dict[str, Any]],
    symbols: list[dict[str, Any]] | None = None,
) -> bytes:
    told = {"format": 1, "symbols": symbols or [], "inputs": inputs}
    return json.dumps({**told, "nodes": nodes, "outputs": outputs}).encode()


def output(value: int, shape: list[Any], dtype: str = "f32") -> dict[str, Any]:
    return {"value": value, "dtype": dtype, "shape": shape}


def small(**change: Any) -> bytes:
    """Return a graph of one operation, changed."""
    one = {**node("aten.add.Tensor", self={"tensor": 0}, other={"tensor": 0}), **change}
    return graph([user([2, 3], [3, 1])], [one], [output(1, [2, 3])])


def test_arguments_of_all_kinds_mean_what_they_say() -> None:
    nodes = [
        node("aten.transpose.int", self={"tensor": 0}, dim0={"int": 0}, dim1={"int": 1}),
        node("aten.split.Tensor", 2, self={"tensor": 1}, split_size={"int": 2}),
        node("aten.cat.default", tensors={"tensors": [3, 2]}, dim={"int": -2}),
        node("aten.div.Tensor_mode", self={"tensor": 4}, other={"tensor": 0},
             rounding_mode={"string": "floor"}),
        node("aten.full.default", size={"ints": [4, 1]}, fill_value={"float": "-inf"},
             dtype={"dtype": "f32"}, device="device", pin_memory={"bool": False},
             layout={"layout": 7}),
        node("aten.maximum.default", self={"tensor": 5}, other={"tensor": 6}),
        node("aten.clone.default", self={"tensor": 7}, memory_format={"layout": 1}),
        node("aten.sum.dim_IntList", self={"tensor": 8}, dim="none", dtype={"dtype": "f64"}),
    ]  # fmt: skip
    told = graph(
        [user([4, 4], [4, 1])], nodes, [output(8, [4, 4]), output(1, [4, 4]), output(9, [], "f64")]
    )
    program = rebuilt.rebuild(told, b"", "cpu")
    x = torch.randn(4, 4)
    wanted = torch.cat([x.t()[2:], x.t()[:2]]).div(x, rounding_mode="floor")
    found, turned, total = program.module(x)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(total, wanted.double().sum())
    # What others read is dense, whatever view it was.
    assert turned.is_contiguous()
    torch.testing.assert_close(turned, x.t())


def test_sizes_follow_the_inputs_and_constants_are_baked() -> None:
    data = torch.arange(3, dtype=torch.float32)
    constant = {"kind": "constant", "dtype": "f32", "shape": [3], "strides": [1], "bytes": 12}
    inputs = [constant, user(["2*s0 + 1", 3], [3, 1])]
    nodes = [
        node("aten.view.default", self={"tensor": 1}, size={"ints": ["3*(2*s0 + 1)"]}),
        node("aten.arange.default", end={"int": "Max(s0, 2)"}, dtype={"dtype": "f32"}),
        node("aten.sum.default", self={"tensor": 3}),
        node("aten.mul.Tensor", self={"tensor": 1}, other={"tensor": 0}),
        node("aten.add.Tensor", self={"tensor": 5}, other={"tensor": 4}),
    ]
    outputs = [output(6, ["2*s0 + 1", 3]), output(2, ["6*s0 + 3"])]
    told = graph(inputs, nodes, outputs, [{"name": "s0", "min": 1, "max": 100}])
    program = rebuilt.rebuild(told, data.numpy().tobytes(), "cpu")
    assert [each["name"] for each in program.inputs] == ["in0", "in1"]
    for half in (1, 3, 20):
        x = torch.randn(2 * half + 1, 3)
        found, flat = program.module(program.constants["constant0"], x)
        torch.testing.assert_close(found, x * data + torch.arange(max(half, 2)).float().sum())
        torch.testing.assert_close(flat, x.reshape(-1))


def test_a_symbol_is_not_taken_for_a_size_that_it_happens_to_equal() -> None:
    nodes = [
        node("aten.add.Tensor", self={"tensor": 0}, other={"tensor": 1}),
        node("aten.sum.dim_IntList", self={"tensor": 3}, dim={"ints": [1]}),
        node("aten.expand.default", self={"tensor": 4}, size={"ints": ["s0"]}),
    ]
    for most in (64, 97, 5000):
        inputs = [user(["s0", 64], [64, 1]), user(["s0", 1], [1, 1]), user([97, 63], [63, 1])]
        symbols = [{"name": "s0", "min": 1, "max": most}]
        program = rebuilt.rebuild(graph(inputs, nodes, [output(5, ["s0"])], symbols), b"", "cpu")
        assert isinstance(program.fakes[0].shape[0], torch.SymInt), most
        for rows in (1, 3, 64):
            x, y = torch.randn(rows, 64), torch.randn(rows, 1)
            (found,) = program.module(x, y, torch.empty(97, 63))
            torch.testing.assert_close(found, (x + y).sum(1))


@pytest.mark.parametrize("compiler", artifact.MODULES)
def test_a_piece_is_compiled_and_loaded(compiler: str, tmp_path: Path) -> None:
    nodes = [
        node("aten.linear.default", input={"tensor": 2}, weight={"tensor": 0}),
        node("aten.add.Tensor", self={"tensor": 3}, other={"tensor": 1}),
        node("aten.transpose.int", self={"tensor": 4}, dim0={"int": 0}, dim1={"int": 1}),
    ]
    weight = {**user([8, 4], [4, 1]), "kind": "parameter"}
    constant = {"kind": "constant", "dtype": "f32", "shape": [8], "strides": [1], "bytes": 32}
    told = graph(
        [weight, constant, user(["s0", 4], [4, 1])],
        nodes,
        [output(5, [8, "s0"])],
        [{"name": "s0", "min": 2, "max": 64}],
    )
    bias = torch.randn(8)
    job = messages.Job(compiler=compiler, graph=told, constants=bias.numpy().tobytes())
    parsed = messages.Job.parse(
        messages.encode((1, compiler), (5, "cpu"), (9, told), (10, job.constants))
    )
    assert (parsed.graph, parsed.constants) == (told, job.constants)
    made = tmp_path / "made"
    made.mkdir()
    for name, data in compiling.compile_program(parsed, tmp_path).items():
        (made / name).write_bytes(data)
    loaded = artifact.load_artifact(made)
    w = torch.randn(8, 4)
    for rows in (2, 7):
        x = torch.randn(rows, 4)
        (found,) = loaded(w, x)
        assert found.is_contiguous()
        torch.testing.assert_close(found, (x @ w.t() + bias).t(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("told", "kind", "said"),
    [
        (b"{", "INVALID_INPUT", "hang together"),
        (b"[]", "INVALID_INPUT", "hang together"),
        (json.dumps({"format": 2}).encode(), "INCOMPATIBLE", "format 2"),
        (small(op="aten.no_such_thing.default"), "UNSUPPORTED_OP", "no_such_thing"),
        (small(op="os.system.default"), "UNSUPPORTED_OP", "os.system"),
        (small(op="aten.add.__class__"), "UNSUPPORTED_OP", "__class__"),
        (small(op="aten.add_.Tensor"), "UNSUPPORTED_OP", "changes its inputs"),
        (small(op="aten.mm.default"), "UNSUPPORTED_OP", "other"),
        (small(args=[["self", {"tensor": 0}]]), "UNSUPPORTED_OP", "missing value"),
        (small(args=[["self", {"tensor": 9}], ["other", {"tensor": 0}]]), "INVALID_INPUT", "hang"),
        (small(args=[["self", {"tensor": 0}], ["other", {"code": "1"}]]), "INVALID_INPUT", "code"),
        (small(outputs=2), "INVALID_INPUT", "one tensor"),
        (
            graph([user([2, 3], [3, 1])],
                  [node("aten.matmul.default", self={"tensor": 0}, other={"tensor": 0})],
                  [output(1, [2, 3])]),
            "UNSUPPORTED_OP", "torch here refuses",
        ),
        (
            graph([user([2], [1])], [node("aten.neg.default", self={"tensor": 0})],
                  [output(1, [3])]),
            "UNSUPPORTED_OP", "output 0",
        ),
        (
            graph([user(["s0"], [1])], [], [], [{"name": "__import__('os')"}]),
            "INVALID_INPUT", "symbol",
        ),
    ],
)  # fmt: skip
def test_what_does_not_hang_together_is_refused(told: bytes, kind: str, said: str) -> None:
    with pytest.raises(refused.Refused) as found:
        rebuilt.rebuild(told, b"", "cpu")
    assert found.value.kind == getattr(refused, kind), found.value
    assert said in str(found.value)


@pytest.mark.parametrize(
    "text",
    ["", "s1", "s0.real", "s0(1)", "__import__('os')", "[s0]", "9**9**9", "s0**99", "1.5", "True",
     "Max()", "FloorDiv(s0)", "FloorDiv(*s0)", "s0 if s0 else 1", "s0 + " * 2000 + "1", "(" * 300],
)  # fmt: skip
def test_a_size_is_arithmetic_and_nothing_else(text: str) -> None:
    with pytest.raises(refused.Refused, match="is no size"):
        formula.read(text, {"s0": 3}, lambda function, *args: function(*args))


def test_sizes_are_computed() -> None:
    def value(text: str) -> int:
        return formula.read(text, {"s0": 7, "s1": 2}, lambda function, *args: function(*args))

    texts = ["s0", "2*s0 + 1", "(-1)*(s0 + 3)", "FloorDiv(s0 + 1, 3)", "CeilDiv(s0, s1)",
             "s0**2", "Max(1, s0*s1, 3)", "Min(s0, s1)", "Mod(s0, s1)", "-s0"]  # fmt: skip
    assert [value(text) for text in texts] == [7, 15, -10, 2, 4, 49, 14, 2, 1, -7]
