#!/usr/bin/env python3
"""Kiln's native compiler and one mode of torch.compile by turns, in one process, on one GPU.

usage: bench_turns.py --kiln KILN [--target sm_90a] [--rounds 5] CASE:MODE ...

A GPU's clock follows its temperature and its power: what is measured minutes apart differs by
more than what is to be seen. So each case is compiled by both, and each round times one after the
other; printed are the medians, and the median, least and greatest of the rounds' ratios. Cases are
those of `bench_cases.py` and `serving_cases.py` (decode-BATCHxCACHE, moe-ROWS, int4-ROWS,
fp8-ROWS), modes those of torch.compile, of several, joined by `+`, the fastest of each round; Kiln
is replayed as a CUDA graph. A case that fails is told, and the others go on.

On the GPU machine, with PYTHONPATH=python:tests/gpu and what kiln_torch needs.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_cases import case
from bench_native import TORCH_MODES, Node, micros, strip


def compiled(kiln: Path, endpoint: str, target: str, program, folder: Path) -> Path:
    """The artifact's folder."""
    import torch

    archive, out = folder / "program.pt2", folder / "artifact"
    torch.export.save(program, archive)
    strip(archive)
    command = [kiln, "compile", archive, "--backend", "native", "--target", target]
    subprocess.run([*command, "--endpoint", endpoint, "-o", out], check=True, capture_output=True)
    return out


def turns(name: str, mode: str, settings: argparse.Namespace, endpoint: str, folder: Path) -> str:
    import kiln_torch
    import torch

    torch._dynamo.reset()
    module, arguments, moved = case(name, "cuda", False)
    with torch.no_grad():
        program = torch.export.export(module, arguments)
        out = compiled(settings.kiln, endpoint, settings.target, program, folder)
        native = kiln_torch.load(out, params=program)
        ours = native(*arguments).double()
        graph = native.graphed(*arguments)
        rivals = [torch.compile(module, **TORCH_MODES[each]) for each in mode.split("+")]
        for theirs in rivals:
            for _ in range(3):
                theirs(*arguments)
        right = rivals[0](*arguments).double()
        differ = ((ours - right).norm() / right.norm()).item()
        rounds = []
        for _ in range(settings.rounds):
            each = [micros(lambda f=f: f(*arguments), "cuda", 0.5)["us"] for f in rivals]
            torch_us = min(each)
            kiln_us = micros(lambda: graph(*graph.inputs), "cuda", 0.5)["us"]
            rounds.append((torch_us, kiln_us, kiln_us / torch_us))
    torch_us, kiln_us, ratio = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratios = [ratio for *_, ratio in rounds]
    line = (
        f"{name} {mode}: torch {torch_us:.1f} us, Kiln {kiln_us:.1f} us, "
        f"{ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f}), differ by {differ:.1e}"
    )
    return line + (f", {moved / kiln_us / 1e3:.0f} GB/s" if moved else "")


def told(error: Exception) -> str:
    """With what the program said, where it was one."""
    said = getattr(error, "stderr", None) or b""
    return f"{type(error).__name__}: {error} {said.decode(errors='replace')}"[:2000]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kiln", type=Path, required=True)
    parser.add_argument("--target", default="sm_90a")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("cases", nargs="+", metavar="CASE:MODE")
    settings = parser.parse_args()
    modes = [mode for mode in TORCH_MODES if mode != "eager"]
    wanted = [given.partition(":")[::2] for given in settings.cases]
    for name, mode in wanted:
        if not set(mode.split("+")) <= set(modes):
            sys.exit(f"{name}:{mode}: a mode is one of {', '.join(modes)}")
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        node = Node(settings.kiln, Path(folder))
        try:
            for index, (name, mode) in enumerate(wanted):
                own = Path(folder) / str(index)
                own.mkdir()
                try:
                    print(turns(name, mode, settings, node.endpoint, own), flush=True)
                except Exception as error:
                    failed.append(name)
                    print(f"{name} {mode}: failed: {told(error)}", flush=True)
                shutil.rmtree(own)
        finally:
            node.stop()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
