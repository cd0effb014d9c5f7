#!/usr/bin/env python3
"""Programs that change their own state on this machine's GPU: by `kiln_torch.load`, call by
call and as a CUDA graph, and by `kiln exec --state`.

usage: PYTHONPATH=python:tests/gpu check_state.py KILN

KILN is the binary. Each archive of tests/fixtures/state that is taken is compiled by a one-node
`kiln dev`, called three times, and compared with what PyTorch computed in float64. One line for
each; exits 1 where something is wrong.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from bench_native import Node
from safetensors.torch import load_file, save_file

STATE = Path(__file__).resolve().parent.parent / "fixtures" / "state"
CALLS = 3


def close(what: str, ours: torch.Tensor, golden: torch.Tensor) -> None:
    torch.testing.assert_close(
        ours.cpu(), golden, rtol=1e-4, atol=1e-5, msg=lambda why: f"{what}: {why}"
    )


def run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-600:])


def loaded(out: Path, golden: dict[str, torch.Tensor]) -> None:
    """Three calls of the loaded program; again after a reset; and as a graph."""
    import kiln_torch

    program: Any = kiln_torch.load(out)
    names = [f"in{at}" for at in program.plan.given]
    fixed = [golden[name].cuda() for name in names if name in golden]
    block = program.bind(*fixed)
    calls = [
        {n: golden[f"call{at}.{n}"].cuda() for n in names[len(fixed) :]} for at in range(CALLS)
    ]

    def check(how: str, call: Any) -> None:
        for at, given in enumerate(calls):
            mine = {name: tensor.clone() for name, tensor in given.items()}
            close(f"{how}, call {at}", call(*mine.values()), golden[f"call{at}.out0"])
            for name, tensor in mine.items():
                left = golden.get(f"call{at}.left.{name}")
                if left is not None:
                    close(f"{how}, {name} after call {at}", tensor, left)
        for name, tensor in zip(names, fixed):
            close(f"{how}, {name}", tensor, golden.get(f"left.{name}", golden[name]))

    with torch.no_grad():
        check("called", block)
        block.reset()
        check("after a reset", block)
        block.reset()
        graphed = block.graphed(*calls[0].values())
        # Two runs before the first call were nobody's.
        for name, mine in zip(calls[0], graphed.inputs):
            close(f"graphed, its own {name}", mine, golden[f"call0.{name}"])
        check("graphed", graphed)


def executed(kiln: Path, out: Path, golden: dict[str, torch.Tensor], folder: Path) -> None:
    """Three runs that keep their state in a file."""
    files = [folder / f"{name}.safetensors" for name in ("in", "out", "state")]
    count = sum(1 for name in golden if name.startswith(("in", "call0.in")))
    for at in range(CALLS):
        own = [golden.get(f"call{at}.in{i}", golden.get(f"in{i}")) for i in range(count)]
        save_file({f"in{i}": each for i, each in enumerate(own)}, files[0])
        command = [kiln, "exec", out, "--inputs", files[0], "-o", files[1], "--state", files[2]]
        # Timed runs begin with what was given: a position that they count stays within.
        run(*command, "--repeat", 20)
        close(f"exec, call {at}", load_file(files[1])["out0"], golden[f"call{at}.out0"])


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    kiln, worst = Path(sys.argv[1]).resolve(), 0
    target = "sm_{}{}".format(*torch.cuda.get_device_capability())
    with tempfile.TemporaryDirectory() as text:
        node = Node(kiln, Path(text))
        try:
            for archive in sorted(STATE.glob("*.pt2")):
                if ".refused." in archive.name:
                    continue
                out = Path(text) / archive.stem
                golden = load_file(STATE / f"{archive.stem.removesuffix('_core')}.safetensors")
                command = [kiln, "compile", archive, "--backend", "native", "--target", target]
                try:
                    run(*command, "--endpoint", node.endpoint, "-o", out)
                    loaded(out, golden)
                    folder = Path(text) / f"{archive.stem}-exec"
                    folder.mkdir()
                    executed(kiln, out, golden, folder)
                    print(f"{archive.name}: ok", flush=True)
                except Exception as failure:  # One that is wrong must not hide the others.
                    print(f"{archive.name}: {failure}", flush=True)
                    worst = 1
        finally:
            node.stop()
    return worst


if __name__ == "__main__":
    sys.exit(main())
