"""A program as Inductor gets it: a graph whose parameters and constants are inputs.

Invariant: no weight is read; ``torch.export.load``, which would unpickle what the
archive says is pickled, is not used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .archive import moved, open_archive, read_constants
from .refused import INCOMPATIBLE, INVALID_INPUT, UNSUPPORTED_OP, Refused, brief


@dataclass
class Program:
    """A graph whose parameters, buffers and constants are inputs."""

    module: Any
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    fakes: list[Any]
    constants: dict[str, Any]


def read_program(archive: bytes, device: str) -> Program:
    """Reads the graph."""
    from torch._export.serde import schema, serialize
    from torch.fx.experimental.symbolic_shapes import ValueRanges
    from torch.utils._sympy.numbers import int_oo

    opened, prefix, model = open_archive(archive)
    tree = json.loads(opened.read(f"{prefix}models/{model}.json"))
    if tree.get("schema_version", {}).get("major") != schema.SCHEMA_VERSION[0]:
        raise Refused(INCOMPATIBLE, f"export schema {tree.get('schema_version')}: not this torch's")
    tree = moved(tree, device)
    tree["guards_code"] = []
    known = {f.name for f in schema.ExportedProgram.__dataclass_fields__.values()}
    text = json.dumps({name: value for name, value in tree.items() if name in known})
    parsed = serialize._bytes_to_dataclass(schema.ExportedProgram, text.encode())
    limit = serialize._int_to_sympy_int
    ranges = {
        name: ValueRanges(limit(r.min_val, -int_oo), limit(r.max_val, int_oo))
        for name, r in parsed.range_constraints.items()
    }
    constants = read_constants(opened, prefix, model, device)
    try:
        read = serialize.GraphModuleDeserializer().deserialize(
            parsed.graph_module, {}, dict(constants), None, ranges
        )
    except Refused:
        raise
    except Exception as e:
        raise Refused(UNSUPPORTED_OP, f"torch here cannot read this program: {brief(e)}") from e
    module = read.graph_module
    holders = [node for node in module.graph.nodes if node.op == "placeholder"]
    for node in module.graph.nodes:
        # Where standalone_compile of torch 2.11 looks for the shapes' environment.
        if "val" in node.meta:
            node.meta.setdefault("example_value", node.meta["val"])

    def kind(spec: Any) -> str:
        return spec.kind.name.lower()

    inputs = [
        {"name": node.name, "kind": kind(spec), "target": spec.target}
        for node, spec in zip(holders, read.signature.input_specs, strict=True)
    ]
    outputs = [
        {"name": getattr(spec.arg, "name", None), "kind": kind(spec), "target": spec.target}
        for spec in read.signature.output_specs
    ]
    fakes = [node.meta.get("val") for node in holders]
    for wanted, fake in zip(inputs, fakes):
        describe(wanted, fake)
    forget_expressions(fakes)
    used = {i["target"] for i in inputs if i["kind"] == "constant_tensor"}
    missing = sorted(used - constants.keys())
    if missing:
        raise Refused(INVALID_INPUT, f"the data of constants {missing} is not in the archive")
    constants = {name: constants[name] for name in sorted(used)}
    return Program(module, inputs, outputs, fakes, constants)


def forget_expressions(fakes: Sequence[Any]) -> None:
    """Drop sample values of sizes like ``24*s27``.

    torch 2.11 reads them back, and its Inductor then stumbles over a symbol that is none.
    """
    import sympy
    import torch

    dims = [d for fake in fakes if isinstance(fake, torch.Tensor) for d in fake.shape]
    for dim in dims:
        if isinstance(dim, torch.SymInt):
            samples = getattr(dim.node.shape_env, "backed_var_to_val", {})
            for name in [name for name in samples if not isinstance(name, sympy.Symbol)]:
                del samples[name]


def describe(wanted: dict[str, Any], fake: Any) -> None:
    """Add what an input looks like to its description."""
    import torch

    if isinstance(fake, torch.Tensor):
        wanted["dtype"] = str(fake.dtype).removeprefix("torch.")
        wanted["shape"] = [s if isinstance(s, int) else str(s) for s in fake.shape]
        wanted["strides"] = [s if isinstance(s, int) else str(s) for s in fake.stride()]
    elif isinstance(fake, (int, torch.SymInt)) and not isinstance(fake, bool):
        wanted["dtype"] = "int"
    else:
        what = (
            f"input {wanted['name']!r} is a {type(fake).__name__}: only tensors and whole numbers"
        )
        raise Refused(UNSUPPORTED_OP, f"{what} are handled")
