#!/usr/bin/env python3
"""transformers' models through `kiln exec` and `kiln_torch.load` on this machine's GPU.

usage: PYTHONPATH=python:tests/gpu check_models.py KILN [ARCHIVE ...]

KILN is the binary; ARCHIVE one of tests/fixtures/models/*.pt2 (default: of each
model one in each element type). Each is compiled by a one-node `kiln dev`, run on
the calls in its golden file both ways, and judged by its relative error to float64
(norm of the difference over the norm). One line of JSON each; exits 1 if one is
beyond its limit, 2 if one failed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from bench_native import Node, plans_of
from check_block import NAMES, TYPES, load, save

MODELS = Path(__file__).resolve().parent.parent / "fixtures" / "models"
DTYPES = ("f32", "bf16", "f16")


def golden_of(archive: Path) -> Path:
    fits = [g for g in MODELS.glob("*.safetensors") if archive.name.startswith(f"{g.stem}_")]
    return max(fits, key=lambda path: len(path.stem))


def chosen() -> list[Path]:
    """Of each model and element type one archive, where sizes vary if there is one."""
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(MODELS.glob("*.new.pt2")):
        dtype = next(d for d in DTYPES if f"_{d}_" in path.name)
        if "_grad" in path.name:
            continue
        key = (golden_of(path).stem, dtype)
        if key not in found or ("_dynamic" in path.name and "_dynamic" not in found[key].name):
            found[key] = path
    return list(found.values())


def limit(name: str) -> float:
    if "_f32_" in name:
        return 1e-5
    # Sixteen layers of rounded residuals: PyTorch's own error is 1.3e-2.
    return 2e-2 if name.startswith("qwen3_lm_bf16") else 1e-2


def error(ours: torch.Tensor, golden: torch.Tensor) -> float:
    ours, golden = ours.double().cpu(), golden.double()
    if ours.shape != golden.shape or not torch.equal(ours.isnan(), golden.isnan()):
        return float("inf")
    if golden.isnan().all():
        return 0.0
    return ((ours - golden).norm() / golden.norm()).item()


def calls(known: dict, dynamic: bool) -> list[str]:
    names = {name.rpartition(".")[0] for name in known}
    return sorted(names) if dynamic else [""]


def check(kiln: Path, endpoint: str, archive: Path, scratch: Path) -> int:
    import kiln_torch

    out = scratch / archive.stem
    target = "sm_{}{}".format(*torch.cuda.get_device_capability())
    command = [kiln, "compile", archive, "--backend", "native", "--target", target]
    command += ["--endpoint", endpoint, "-o", out]
    subprocess.run([str(c) for c in command], check=True, capture_output=True, timeout=120)
    known = load(golden_of(archive))
    native = kiln_torch.load(out)
    plan = native.plan
    kernels = sum(len(each["kernels"]) for each in plans_of(out))
    told = {"archive": archive.name, "kernels": kernels, "limit": limit(archive.name)}
    worst = 0.0
    for call in calls(known, bool(plan.symbols)):
        prefix = f"{call}." if call else ""
        given = {}
        for at, wanted in enumerate(plan.inputs):
            if wanted.kind != "constant":
                value = known.get(f"{prefix}in{at}", known[f"in{at}"])
                given[f"in{at}"] = value.to(TYPES[NAMES[wanted.dtype]])
        # Positions are counted among the inputs that are given.
        save(scratch / "in.safetensors", {f"in{i}": v for i, v in enumerate(given.values())})
        command = [kiln, "exec", out, "--inputs", scratch / "in.safetensors"]
        command += ["-o", scratch / "out.safetensors"]
        subprocess.run([str(c) for c in command], check=True, capture_output=True, timeout=120)
        written = load(scratch / "out.safetensors")
        with torch.no_grad():
            loaded = native(*[value.cuda() for value in given.values()])
        loaded = loaded if isinstance(loaded, tuple) else (loaded,)
        for at, mine in enumerate(loaded):
            golden = known[f"{prefix}out{at}"]
            both = [error(written[f"out{at}"], golden), error(mine, golden)]
            told[f"{call or 'first'}.out{at}"] = [f"{each:.1e}" for each in both]
            worst = max(worst, *both)
    told["ok"] = worst <= limit(archive.name)
    print(json.dumps(told), flush=True)
    return 0 if told["ok"] else 1


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    os.environ.pop("KILN_ENDPOINT", None)
    kiln = Path(sys.argv[1]).resolve()
    archives = [Path(path) for path in sys.argv[2:]] or chosen()
    worst, count = 0, 0
    with tempfile.TemporaryDirectory() as text:
        node = Node(kiln, Path(text))
        try:
            for archive in archives:
                count += 1
                try:
                    status = check(kiln, node.endpoint, archive, Path(text))
                except Exception as failure:  # One broken model must not hide the others.
                    why = repr(failure)
                    if isinstance(failure, subprocess.CalledProcessError):
                        why = failure.stderr.decode(errors="replace").strip()[-600:]
                    print(json.dumps({"archive": archive.name, "failed": why}), flush=True)
                    status = 2
                worst = max(worst, status)
        finally:
            node.stop()
    print(f"{count} archives: {'all within limits' if worst == 0 else 'FAILED'}")
    return worst


if __name__ == "__main__":
    sys.exit(main())
