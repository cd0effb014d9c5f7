#!/usr/bin/env python3
"""Kiln's native compiler beside PyTorch, on one GPU: run time, bytes, compile time, error.

usage: bench_native.py run PART ... --kiln KILN -o ROWS.jsonl [--modes MODE ...] [--target sm_90]
       bench_native.py table ROWS.jsonl ...
       bench_native.py parts

`run` measures each case of the parts in each mode, every mode in a process of its
own and with nothing in any cache, and appends one line of JSON for each; `table`
prints what was measured as Markdown. The processes are forked from one that has
imported torch and done no more: what follows the import is cold. KILN is the
binary: a one-node `kiln dev` compiles what torch.export wrote, and `kiln_torch.load`
runs it. Errors are relative to the same module and inputs in float64: norm of the
difference over the norm.

On the GPU machine, with PYTHONPATH=python:tests/gpu and what kiln_torch needs.
`--device cpu --small` runs everything but Kiln's kernels anywhere, to try the script.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from pathlib import Path
from typing import Any

from bench_cases import COLUMNS, ROWS, case

# What a process may take, export and compile included.
LONGEST = 400
TORCH_MODES = {
    "eager": None,
    "default": {},
    "reduce-overhead": {"mode": "reduce-overhead"},
    "max-autotune": {"mode": "max-autotune"},
    # Without CUDA graphs, which would copy the large inputs at each call.
    "autotune": {"mode": "max-autotune-no-cudagraphs"},
}
# As it is by itself; compiled as one piece; with symbolic sizes.
KILN_MODES = ["kiln", "kiln-whole", "kiln-dynamic"]
OPS = ["eager", "default", "autotune", "kiln"]
BLOCK = ["eager", "default", "reduce-overhead", "kiln"]
# A process of `max-autotune` may take minutes.
MEMORY = ["rmsnorm", "softmax", "layernorm", "swiglu"]
BLOCKS = ["block-1x1", "block-1x256"]
LARGE = ["large-1x1", "large-64x1", "large-1x2048", "large-8x1024"]
MODELS = ["model-1x1", "model-1x256", "model-8x512"]
PARTS = {
    "memory": (MEMORY, OPS),
    "compute": (["matmul", "sdpa"], OPS),
    "block": (BLOCKS, BLOCK),
    "large": (LARGE, BLOCK),
    "block-autotune": (BLOCKS, ["max-autotune"]),
    "model-1": (["model-1x1"], BLOCK),
    "model-256": (["model-1x256"], BLOCK),
    "model-4096": (["model-8x512"], BLOCK),
    "model-autotune-256": (["model-1x256"], ["max-autotune"]),
    "model-autotune-1": (["model-1x1"], ["max-autotune"]),
    "model-autotune-4096": (["model-8x512"], ["max-autotune"]),
    "dynamic": (MODELS, ["kiln-dynamic"]),
    "kiln": ([*MEMORY, "matmul", "sdpa", *BLOCKS, *MODELS], ["kiln"]),
}


PROCESSES = multiprocessing.get_context("forkserver")


def wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def micros(call, device: str, budget: float = 1.0) -> dict:
    """Median and quartiles of single calls between events, in microseconds."""
    import torch

    for _ in range(3):
        call()
    wait(device)
    began = time.perf_counter()
    call()
    wait(device)
    one = max(time.perf_counter() - began, 1e-6)
    count = max(15, min(300, int(budget / one)))
    if device != "cuda":
        times = []
        for _ in range(5):
            began = time.perf_counter()
            call()
            times.append((time.perf_counter() - began) * 1e6)
    else:
        for _ in range(min(count, 20)):
            call()
        events = [[torch.cuda.Event(enable_timing=True) for _ in "ab"] for _ in range(count)]
        for start, end in events:
            start.record()
            call()
            end.record()
        wait(device)
        times = [start.elapsed_time(end) * 1e3 for start, end in events]
    quarters = statistics.quantiles(times, n=4)
    return {"us": statistics.median(times), "us_low": quarters[0], "us_high": quarters[2]}


def copy_rate(device: str, small: bool) -> float:
    """What a copy of as many bytes moves in a second, reads and writes, in GB."""
    import torch

    count = (ROWS * COLUMNS) if not small else 1 << 16
    source = torch.empty(count, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    took = micros(lambda: target.copy_(source), device)
    return 2 * count * 2 / took["us"] / 1e3


def reference(module, arguments):
    """Outputs in float64; the module stays as it is."""
    import copy

    import torch

    wide = copy.deepcopy(module).double()
    given = tuple(a.double() if a.is_floating_point() else a for a in arguments)
    with torch.no_grad():
        return wide(*given)


def error(ours, golden) -> float:
    import torch

    if not torch.isfinite(ours).all():
        return float("inf")
    return ((ours.double() - golden).norm() / golden.norm()).item()


def torch_child(name: str, mode: str, device: str, small: bool) -> dict:
    import torch

    module, arguments, moved = case(name, device, small)
    row: dict = {"moved": moved}
    with torch.no_grad():
        call = lambda: module(*arguments)
        settings = TORCH_MODES[mode]
        if settings is not None:
            call()
            wait(device)
            began = time.perf_counter()
            compiled = torch.compile(module, **settings)
            ours = compiled(*arguments)
            wait(device)
            row["compile_s"] = time.perf_counter() - began
            call = lambda: compiled(*arguments)
            folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
            files = [p for p in folder.rglob("*") if p.is_file()]
            row["artifact_bytes"] = sum(p.stat().st_size for p in files)
        row |= micros(call, device)
        ours = call().clone()
        if moved:
            row["copy_gbs"] = copy_rate(device, small)
        row["error"] = error(ours, reference(module, arguments))
    return row


def strip(path: Path) -> int:
    """Empties an archive's weights: what is compiled does not depend on them."""
    with zipfile.ZipFile(path) as archive:
        kept = {}
        for entry in archive.infolist():
            inner = entry.filename.split("/", 1)[1]
            if inner.startswith("data/sample_inputs/"):
                continue
            empty = inner.startswith("data/weights/") and not inner.endswith(".json")
            kept[entry.filename] = b"" if empty else archive.read(entry)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in kept.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return path.stat().st_size


def kiln_child(name: str, device: str, small: bool, dynamic: bool, settings: dict) -> dict:
    import torch

    module, arguments, moved = case(name, device, small)
    row: dict = {"moved": moved}
    folder = Path(settings["folder"])
    archive, out = folder / f"{name}.pt2", folder / f"{name}.out"
    shapes = None
    if dynamic:
        batch = torch.export.Dim("batch", min=1, max=64)
        tokens = torch.export.Dim("tokens", min=1, max=4096)
        shapes = ({0: batch, 1: tokens},)
        # A size of one would be taken for a constant.
        example = (torch.zeros(2, 16, dtype=torch.int64, device=device),)
    with torch.no_grad():
        module(*arguments)
        wait(device)
        began = time.perf_counter()
        program = torch.export.export(
            module, example if dynamic else arguments, dynamic_shapes=shapes
        )
        row["export_s"] = time.perf_counter() - began
        began = time.perf_counter()
        torch.export.save(program, archive)
        row["archive_bytes"] = strip(archive)
        row["save_s"] = time.perf_counter() - began
    command = [settings["kiln"], "compile", str(archive), "--backend", "native", "--json"]
    command += ["--target", settings["target"], "--endpoint", settings["endpoint"]]
    command += ["--piecewise", "never"] if settings["mode"] == "kiln-whole" else []
    for again, extra in enumerate([["-o", str(out)], ["--no-cache"]]):
        began = time.perf_counter()
        done = subprocess.run(
            command + extra, capture_output=True, text=True, check=False, timeout=LONGEST
        )
        took = time.perf_counter() - began
        if done.returncode:
            why = (done.stderr or done.stdout).strip()[-600:]
            return row | {"failed": f"kiln compile: {why}"}
        view = json.loads(done.stdout.splitlines()[-1])
        if again:
            row |= {"again_s": took}
            continue
        sizes = {file["path"]: file["bytes"] for file in view["files"]}
        row |= {"compile_s": took, "outcome": view["outcome"], "nvrtc_s": view["compile_seconds"]}
        row |= {"artifact_bytes": sum(sizes.values()), "cubin_bytes": sizes.get("module.cubin")}
    plans = plans_of(out)
    row["kernels"] = sum(len(plan["kernels"]) for plan in plans)
    row["functions"] = sum(len({kernel["name"] for kernel in plan["kernels"]}) for plan in plans)
    if device != "cuda":
        return row
    import kiln_torch

    with torch.no_grad():
        began = time.perf_counter()
        native = kiln_torch.load(out, params=program)
        ours = native(*arguments)
        wait(device)
        row["load_s"] = time.perf_counter() - began
        ours = ours.clone()
        row |= micros(lambda: native(*arguments), device)
        graph = native.graphed(*arguments)
        replayed = graph(*graph.inputs).clone()
        row |= {f"graph_{k}": v for k, v in micros(lambda: graph(*graph.inputs), device).items()}
        row["graph_equal"] = bool(torch.equal(ours, replayed))
        if moved:
            row["copy_gbs"] = copy_rate(device, small)
        row["error"] = error(ours, reference(module, arguments))
    return row


def child(settings: dict, env: dict[str, str], answer) -> None:
    # With the processes that compile for it, it can be ended as one.
    os.setsid()
    for told in [name for name in os.environ if name.startswith(("KILN_", "TORCHINDUCTOR_"))]:
        del os.environ[told]
    os.environ |= env
    name, mode = settings["case"], settings["mode"]
    common = (name, settings["device"], settings["small"])
    import torch

    row = {"torch": torch.__version__}
    try:
        if settings["device"] == "cuda":
            row["device"] = torch.cuda.get_device_name()
        if mode.startswith("kiln"):
            row |= kiln_child(*common, mode == "kiln-dynamic", settings)
        else:
            row |= torch_child(name, mode, *common[1:])
    except Exception:
        row = {"failed": traceback.format_exc()[-1500:]}
    answer.send(row)


def plans_of(out: Path) -> list[dict[str, Any]]:
    """Of an artifact in a folder: one, or one of each piece."""
    plans = [json.loads(file.read_text()) for file in sorted(out.rglob("plan.json"))]
    if not plans:
        raise RuntimeError(f"{out} has no plan.json")
    return plans


class Node:
    """A `kiln dev` of one node."""

    def __init__(self, kiln: Path, folder: Path) -> None:
        command = [kiln, "dev", "--nodes", "1", "--dir", folder / "dev"]
        env = os.environ | {"CUDA_CACHE_DISABLE": "1"}
        self.log = (folder / "dev.log").open("w")
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.log, text=True, env=env
        )
        assert self.process.stdout is not None
        self.endpoint = f"http://{json.loads(self.process.stdout.readline())['nodes'][0]['grpc']}"

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()


def measure(settings: dict, folder: Path) -> dict:
    """One fresh process without any cache."""
    what = {"case": settings["case"], "mode": settings["mode"]}
    cache = folder / "cache" / "-".join(what.values())
    cache.mkdir(parents=True)
    env = {
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "CUDA_CACHE_DISABLE": "1",
    }
    answer, theirs = PROCESSES.Pipe(duplex=False)
    began = time.perf_counter()
    process = PROCESSES.Process(target=child, args=(settings, env, theirs))
    process.start()
    theirs.close()
    try:
        row = answer.recv() if answer.poll(LONGEST) else {"failed": f"over {LONGEST} s"}
    except EOFError:
        row = {"failed": "the process ended without an answer"}
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return what | row | {"process_s": time.perf_counter() - began}


def run(args: argparse.Namespace) -> int:
    failed = False
    PROCESSES.set_forkserver_preload(["torch"])
    with tempfile.TemporaryDirectory(dir=args.scratch) as text:
        folder, node = Path(text), None
        try:
            for part in args.parts:
                cases, modes = PARTS[part]
                for name in cases:
                    for mode in modes:
                        if args.modes and mode not in args.modes:
                            continue
                        if mode.startswith("kiln") and node is None:
                            node = Node(args.kiln.resolve(), folder)
                        settings = {
                            "case": name,
                            "mode": mode,
                            "device": args.device,
                            "small": args.small,
                            "target": args.target,
                            "kiln": str(args.kiln and args.kiln.resolve()),
                            "endpoint": node.endpoint if node else "",
                            "folder": str(folder),
                        }
                        row = measure(settings, folder)
                        failed = failed or "failed" in row
                        line = json.dumps(row)
                        print(line, flush=True)
                        with args.output.open("a") as rows:
                            rows.write(line + "\n")
        finally:
            if node is not None:
                node.stop()
    return int(failed)


def best(rows: dict, modes, key: str = "us") -> float | None:
    found = [rows[mode][key] for mode in modes if key in rows.get(mode, {})]
    return min(found, default=None)


def shown(number, form: str) -> str:
    return "" if number is None else format(number, form)


def table(paths: list[Path]) -> None:
    rows: dict[str, dict[str, dict]] = {}
    for path in paths:
        for line in path.read_text().splitlines():
            if line.startswith("{"):
                row = json.loads(line)
                # A later run of the same replaces an earlier one.
                rows.setdefault(row["case"], {})[row["mode"]] = row
    devices = {r["device"] for by in rows.values() for r in by.values() if "device" in r}
    copies = [r["copy_gbs"] for by in rows.values() for r in by.values() if "copy_gbs" in r]
    if copies:
        print(f"{', '.join(sorted(devices))}; copy {statistics.median(copies):.0f} GB/s (median)\n")
    head = ["case", "mode", "us", "graph us", "GB/s", "of copy", "of best torch", "error"]
    head += ["cold compile s", "artifact"]
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for name, by in rows.items():
        reached = best(by, TORCH_MODES)
        for mode, row in by.items():
            if "failed" in row:
                why = row["failed"].strip().splitlines()[-1][:120]
                print(f"| {name} | {mode} | {why} |" + " |" * (len(head) - 3))
                continue
            us = row.get("us")
            fastest = min(filter(None, [us, row.get("graph_us")]), default=None)
            rate = row["moved"] / fastest / 1e3 if row.get("moved") and fastest else None
            cells = [
                name,
                mode,
                shown(us, ".1f"),
                shown(row.get("graph_us"), ".1f"),
                shown(rate, ".0f"),
                shown(rate and rate / row["copy_gbs"], ".1%"),
                shown(fastest and reached and fastest / reached, ".2f"),
                shown(row.get("error"), ".1e"),
                shown(row.get("compile_s"), ".2f"),
                shown(row.get("artifact_bytes"), ","),
            ]
            print("| " + " | ".join(cells) + " |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measured = commands.add_parser("run")
    measured.add_argument("parts", nargs="+", choices=PARTS)
    measured.add_argument("--kiln", type=Path)
    measured.add_argument("-o", "--output", type=Path, required=True)
    measured.add_argument("--modes", nargs="+", choices=[*TORCH_MODES, *KILN_MODES])
    measured.add_argument("--target", default="sm_90")
    measured.add_argument("--device", default="cuda")
    measured.add_argument("--small", action="store_true", help="sizes for a try without a GPU")
    measured.add_argument("--scratch", help="folder for archives and caches")
    merged = commands.add_parser("table")
    merged.add_argument("rows", nargs="+", type=Path)
    commands.add_parser("parts")
    args = parser.parse_args()
    if args.command == "parts":
        for part, (cases, modes) in PARTS.items():
            print(f"{part}: {' '.join(cases)} in {' '.join(modes)}")
    elif args.command == "table":
        table(args.rows)
    else:
        return run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
