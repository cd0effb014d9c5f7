#!/usr/bin/env python3
"""Runs compiled artifacts on this machine's GPU and judges them against PyTorch.

usage: check_block.py KILN DIR[=GOLDEN] ... [--eps 1e-6]

KILN is the binary, DIR what `kiln compile -o DIR` wrote. Without GOLDEN the
artifact must be the fixture block (RMSNorm and gated MLP): random inputs of the
plan's shapes go through `kiln exec DIR` and through PyTorch in float64. With
GOLDEN (a safetensors file with `in0`, ..., `out0`, ...) any artifact is judged.
Needs only torch. Exits 1 if an error is beyond its limit, 2 if a run failed.
"""

import argparse
import ctypes
import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

NAMES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "i64": "I64", "i32": "I32", "bool": "BOOL"}
TYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
}
LIMITS = {"F32": 1e-5, "F16": 2e-3, "BF16": 1e-2}


def save(path, tensors):
    header, data = {}, b""
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        size = tensor.numel() * tensor.element_size()
        kind = next(k for k, v in TYPES.items() if v == tensor.dtype)
        header[name] = {
            "dtype": kind,
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + size],
        }
        data += ctypes.string_at(tensor.data_ptr(), size)
    text = json.dumps(header).encode()
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)


def load(path):
    raw = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    tensors = {}
    for name, entry in json.loads(raw[8 : 8 + length]).items():
        if name != "__metadata__":
            start, end = (8 + length + at for at in entry["data_offsets"])
            kind = TYPES[entry["dtype"]]
            # torch takes no empty buffers.
            flat = torch.empty(0, dtype=kind)
            if end > start:
                flat = torch.frombuffer(bytearray(raw[start:end]), dtype=kind)
            tensors[name] = flat.reshape(entry["shape"])
    return tensors


def block(inputs, eps, dtype):
    """The fixture block as PyTorch runs it in `dtype`."""
    norm, gate, up, down, x = (t.to(dtype) for t in inputs)
    wide = x if dtype == torch.float64 else x.float()
    h = norm * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(dtype)
    linear = torch.nn.functional.linear
    return x + linear(torch.nn.functional.silu(linear(h, gate)) * linear(h, up), down)


def errors(ours, golden):
    """The largest difference over the largest magnitude, and the same of the norms."""
    ours, golden = ours.double().cpu(), golden.double().cpu()
    if not torch.isfinite(ours).all():
        return float("inf"), float("inf")
    worst = ((ours - golden).abs().max() / golden.abs().max()).item()
    return worst, ((ours - golden).norm() / golden.norm()).item()


def micros(function):
    if not torch.cuda.is_available():
        return None
    for _ in range(5):
        function()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(20):
        function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) * 1000 / 20


def check(kiln, folder, golden, eps, scratch):
    plan = json.loads((folder / "plan.json").read_text())
    given = [i for i in plan["inputs"] if i["kind"] != "constant"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if golden:
        known = load(golden)
        tensors = {i["name"]: known[i["name"]] for i in given}
        expected = {o["name"]: known[o["name"]] for o in plan["outputs"]}
    else:
        if len(given) != 5:
            print(f"{folder}: {len(given)} inputs: not the fixture block; give DIR=GOLDEN")
            return 2
        torch.manual_seed(3)
        tensors = {}
        for i in given:
            shape = i["shape"]
            scale = shape[-1] ** -0.5 if len(shape) == 2 else 1.0
            value = torch.randn(shape, dtype=torch.float64) * scale
            value = 1.0 + 0.2 * value if len(shape) == 1 else value
            kind = TYPES[NAMES[i["dtype"]]]
            tensors[i["name"]] = value.to(kind)
        inputs = [t.to(device) for t in tensors.values()]
        expected = {"out0": block(inputs, eps, torch.float64)}
    save(scratch / "in.safetensors", tensors)
    command = [kiln, "exec", folder, "--inputs", scratch / "in.safetensors"]
    command += ["-o", scratch / "out.safetensors"]
    run = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300)
    print(f"== {folder.name}: {plan['target']}, {len(plan['kernels'])} kernels")
    print((run.stdout + run.stderr).rstrip())
    if run.returncode != 0:
        print(f"kiln exec failed with {run.returncode}")
        return 2
    status = 0
    for output in plan["outputs"]:
        kind = NAMES[output["dtype"]]
        ours = load(scratch / "out.safetensors")[output["name"]]
        worst, norm = errors(ours, expected[output["name"]])
        verdict = "ok" if worst < LIMITS[kind] and norm < LIMITS[kind] else "TOO LARGE"
        status = status if verdict == "ok" else 1
        print(
            f"{output['name']} {kind} {output['shape']}: relative error {worst:.2e} (largest), "
            f"{norm:.2e} (norm), limit {LIMITS[kind]:.0e}: {verdict}"
        )
    if not golden:
        kind = TYPES[NAMES[plan["outputs"][0]["dtype"]]]
        with torch.no_grad():
            eager = lambda: block(inputs, eps, kind)
            worst, norm = errors(eager(), expected["out0"])
            took = micros(eager)
        shown = "" if took is None else f", {took:.1f} us a call"
        print(f"eager {kind}: relative error {worst:.2e} (largest), {norm:.2e} (norm){shown}")
    return status


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kiln")
    parser.add_argument("artifacts", nargs="+", metavar="DIR[=GOLDEN]")
    parser.add_argument("--eps", type=float, default=1e-6)
    args = parser.parse_args()
    worst = 0
    for artifact in args.artifacts:
        folder, _, golden = artifact.partition("=")
        with tempfile.TemporaryDirectory() as scratch:
            try:
                status = check(args.kiln, Path(folder), golden, args.eps, Path(scratch))
            except Exception as error:  # One broken artifact must not hide the others.
                print(f"{folder}: {type(error).__name__}: {error}")
                status = 2
        worst = max(worst, status)
    print("all within limits" if worst == 0 else "FAILED")
    sys.exit(worst)


if __name__ == "__main__":
    main()
