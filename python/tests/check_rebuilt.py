"""Rebuilds graphs from what a node writes of pieces, and compares with golden data.

``check_rebuilt.py WRITTEN FIXTURES``: a folder for each archive with ``graph.json`` and
``constants.bin``, and the golden files beside the archives. Each graph runs in torch as
it was rebuilt, by nothing but its operations.
"""

import importlib
import importlib.util
import json
import sys
from pathlib import Path

import torch

# Isolated mode leaves this folder out.
sys.path.insert(0, str(Path(__file__).resolve().parent))
read_golden = importlib.import_module("golden").read_golden

PACKAGE = Path(__file__).resolve().parent.parent / "kiln_torch" / "worker"
spec = importlib.util.spec_from_file_location("kiln_worker", PACKAGE / "__init__.py")
assert spec is not None
assert spec.loader is not None
sys.modules["kiln_worker"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["kiln_worker"])
rebuilt = importlib.import_module("kiln_worker.rebuilt")

# Of the norm, for a model of many operations in that type.
LIMITS = {"f32": 1e-4, "f16": 1e-2, "bf16": 6e-2, "": 1e-4}


def laid(tensor: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Lay a tensor out as the graph's input is."""
    tensor = tensor.to(fake.dtype)
    if any(isinstance(step, torch.SymInt) for step in fake.stride()):
        return tensor.contiguous()
    made = torch.empty_strided(tensor.shape, fake.stride(), dtype=fake.dtype)
    return made.copy_(tensor)


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return how far a tensor is off, as a part of its norm."""
    if found.shape != wanted.shape:
        return float("inf")
    found, wanted = found.double(), wanted.double()
    same = (found == wanted) | (found.isnan() & wanted.isnan())
    off = torch.where(same, 0.0, found - wanted)
    return float(off.norm() / wanted[wanted.isfinite()].norm().clamp_min(1e-30))


def kind_of(archive: str) -> str:
    """Return the type in which a model of that name computes, empty where it has no name."""
    return next((kind for kind in ("bf16", "f16", "f32") if f"_{kind}" in archive), "")


def check(folder: Path, golden: dict[str, torch.Tensor]) -> tuple[int, float]:
    """Return how many calls were compared, and how far the worst was off."""
    graph = json.loads((folder / "graph.json").read_text())
    program = rebuilt.rebuild(
        (folder / "graph.json").read_bytes(), (folder / "constants.bin").read_bytes(), "cpu"
    )
    calls = {""} | ({name.rpartition(".")[0] for name in golden} if graph["symbols"] else set())
    worst = 0.0
    for call in sorted(calls):
        inputs = []
        for at, (told, fake) in enumerate(zip(program.inputs, program.fakes)):
            if told["target"] in program.constants:
                inputs.append(program.constants[told["target"]])
                continue
            name = f"{call}.in{at}" if f"{call}.in{at}" in golden else f"in{at}"
            inputs.append(laid(golden[name], fake))
        with torch.no_grad():
            outputs = program.module(*inputs)
        for at, (told, output) in enumerate(zip(graph["outputs"], outputs, strict=True)):
            assert output.is_contiguous() or told["shape"] != list(output.shape), at
            wanted = golden[f"{call}.out{at}" if call else f"out{at}"]
            limit = LIMITS[kind_of(folder.name)] if output.is_floating_point() else 0.0
            off = error(output, wanted)
            assert off <= limit, f"{folder.name} {call!r} output {at}: {off:.1e} over {limit}"
            worst = max(worst, off)
    return len(calls), worst


def main() -> None:
    """Check all; the first that is wrong raises."""
    written, fixtures = Path(sys.argv[1]), Path(sys.argv[2])
    stems = sorted((path.stem for path in fixtures.glob("*.safetensors")), key=len)
    graphs = calls = 0
    worst: dict[str, float] = {}
    for folder in sorted(written.iterdir()):
        fits = [stem for stem in stems if folder.name.startswith(stem)]
        try:
            count, off = check(folder, read_golden(fixtures / f"{fits[-1]}.safetensors"))
        except Exception as error:
            raise AssertionError(f"{folder.name} is not what it was") from error
        graphs, calls = graphs + 1, calls + count
        kind = kind_of(folder.name) or "all"
        worst[kind] = max(worst.get(kind, 0.0), off)
    shown = ", ".join(f"{kind} {off:.1e}" for kind, off in worst.items())
    print(f"{calls} calls of {graphs} graphs; worst relative error: {shown}")


if __name__ == "__main__":
    main()
