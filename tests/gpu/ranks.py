#!/usr/bin/env python3
"""First-call seconds of N ranks that start at once, and what the job compiled.

usage: ranks.py KILN [--ranks 2] [--layers 4] [--tokens 256] [--repeat 1] [--only DOOR ...]
                     [--train] [--mode MODE] [--no-alone]

Each rank is a fresh process with its model on a GPU of its own, all at one node of a
`kiln dev` of the binary KILN. `virtual` is unmodified PyTorch over RESP whose ranks
see their GPU alone, as 0, as under `torchrun --virtual-local-rank`; in the other
doors rank R calls `torch.cuda.set_device(R)`. In `folder` the ranks share the local
folder too, as ranks of one user do. `--train` has a backward pass as well, whose
gradients are compared; `--mode` is torch.compile's; `--no-alone` leaves out the single
process, cold and with a warm folder. Prints a JSON line for each rank, and a table.
Exits 1 where a rank's result is on another GPU than its own or is not that of eager,
or where a job that should compile once ran Triton's assembler more often than a
single process does.

On a machine with N GPUs, with kiln_torch and redis importable.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from bench import Bench, measured

DOORS = ("virtual", "kiln_torch", "folder", "backend", "resp")
# Of a process that waits for another's compile, on a busy machine.
LONGEST = 150.0
# Between bf16 kernels that add in other orders.
CLOSE = 0.02


def child(rank: int, layers: int, tokens: int) -> None:
    """One rank: says that it is ready, waits for a line, and prints what it did."""
    began = time.perf_counter()
    import torch
    from qwen3 import Model

    train, mode = os.environ.get("RANKS_TRAIN") == "1", os.environ.get("RANKS_MODE") or None
    torch.cuda.set_device(rank)
    device = torch.device("cuda", rank)
    torch.manual_seed(0)
    net = Model(layers).to(device=device, dtype=torch.bfloat16).train(train)
    ids = torch.arange(tokens, device=device).reshape(1, tokens) % 32000
    torch.cuda.synchronize()
    built = time.perf_counter() - began
    print("ready", flush=True)
    sys.stdin.readline()

    def results(run) -> list[torch.Tensor]:
        """The output, and with a backward pass a gradient that all layers have a part in."""
        out = run(ids)
        if not train:
            return [out.clone()]
        net.zero_grad()
        out.float().pow(2).mean().backward()
        return [out.detach(), net.embed.weight.grad.clone()]

    with torch.set_grad_enabled(train):
        backend = os.environ.get("RANKS_BACKEND", "inductor")
        compiled = torch.compile(net, backend=backend, mode=mode)
        began = time.perf_counter()
        made = results(compiled)
        torch.cuda.synchronize()
        first = time.perf_counter() - began
        for _ in range(2 if mode else 0):
            # CUDA graphs are recorded at the second call, and replayed from the third.
            made = results(compiled)
        # Another GPU that was written to is not this process's.
        others = [n for n in range(torch.cuda.device_count()) if n != rank]
        elsewhere = sum(torch.cuda.memory_allocated(n) for n in others)
        pairs = [(a.float(), b.float()) for a, b in zip(made, results(net))]
        error = max(((a - b).norm() / b.norm()).item() for a, b in pairs)
    from torch._dynamo.utils import counters

    stats = {}
    if os.environ.get("KILN_ENDPOINT"):
        import kiln_torch

        stats = kiln_torch.stats()
    inductor, autograd = counters["inductor"], counters["aot_autograd"]
    told = {
        "rank": rank,
        "first_call": round(first, 3),
        "import_and_build": round(built, 3),
        "fx": [inductor["fxgraph_cache_hit"], inductor["fxgraph_cache_miss"]],
        "aot": [autograd["autograd_cache_hit"], autograd["autograd_cache_miss"]],
        "error": error,
        "right": all(a.device == device for a in made) and not elsewhere and error < CLOSE,
        "device": str(made[0].device),
        "kiln": dict(stats),
    }
    print("told " + json.dumps(told), flush=True)


class Rank:
    """A process, and the lines that it prints."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def until(self, word: str) -> str:
        end = time.monotonic() + LONGEST
        while line := self.lines.get(timeout=max(0.1, end - time.monotonic())):
            if line.startswith(word):
                return line.removeprefix(word)
        raise RuntimeError(f"a rank ended without {word!r}")

    def go(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


class Ranks(Bench):
    """Rows are the name of a job, what its ranks printed, and runs of the assembler."""

    nodes = 1

    def environment(self, door: str, rank: int, space: str, cache: Path) -> dict[str, str]:
        env = self.dev.environment(door, 0, space, cache)
        env |= {"RANKS_TRAIN": str(int(self.args.train)), "RANKS_MODE": self.args.mode}
        if door == "virtual":
            # Of those that this process sees.
            seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            env["CUDA_VISIBLE_DEVICES"] = seen[rank] if seen[0] else str(rank)
        if door == "backend":
            env["RANKS_BACKEND"] = "kiln"
        return env

    def job(self, name: str, door: str, ranks: list[int], *, wipe: bool = True) -> None:
        """Run ranks at once; with ``wipe`` from nothing."""
        space = f"{name}-{len(self.rows)}".replace(" ", "-").replace(",", "")
        running: list[Rank] = []
        try:
            for rank in ranks:
                shared = door in ("none", "folder")
                cache = self.folder / (door if shared else f"{door}-{rank}")
                if wipe and (rank == ranks[0] or not shared):
                    shutil.rmtree(cache, ignore_errors=True)
                cache.mkdir(exist_ok=True)
                seen = 0 if door == "virtual" else rank
                command = [sys.executable, __file__, "child", str(seen)]
                command += [str(self.args.layers), str(self.args.tokens)]
                running.append(Rank(command, self.environment(door, rank, space, cache)))
            for each in running:
                each.until("ready")
            for each in running:
                each.go()
            told = [json.loads(each.until("told ")) for each in running]
            for each in running:
                each.process.wait(60)
        finally:
            for each in running:
                each.end()
        runs = self.dev.assembled()
        self.rows.append((name, told, runs))
        for row in told:
            print(json.dumps({"job": name, "assembled": runs} | row), flush=True)

    def run(self) -> None:
        doors = self.args.only or DOORS[:-1]
        ranks = list(range(self.args.ranks))
        for _ in range(self.args.repeat):
            if not self.args.no_alone:
                self.job("one process, cold", "none", [0])
                self.job("one process, warm folder", "none", [0], wipe=False)
            for door in doors:
                self.job(f"ranks, {door}", door, ranks)

    def table(self) -> None:
        alone = [runs for name, _, runs in self.rows if name == "one process, cold"]
        print(f"\n{'job':26} {'first calls, s':32} {'compiled':>8} {'ptxas':>6}  right")
        for name in dict.fromkeys(name for name, _, _ in self.rows):
            mine = [(told, runs) for each, told, runs in self.rows if each == name]
            by_rank = zip(*(told for told, _ in mine), strict=True)
            firsts = [[row["first_call"] for row in told] for told in by_rank]
            text = ", ".join(
                f"{statistics.median(each):.2f} ({min(each):.2f}-{max(each):.2f})"
                for each in firsts
            )
            compiled = max(sum(row["fx"][1] > 0 for row in told) for told, _ in mine)
            assembled = max(runs for _, runs in mine)
            right = all(row["right"] for told, _ in mine for row in told)
            once = name == "ranks, resp" or (
                compiled <= 1 and (not alone or assembled <= max(alone))
            )
            self.failed |= not (right and once)
            print(f"{name:26} {text:32} {compiled:8} {assembled:6}  {right}")


def main() -> int:
    if len(sys.argv) > 1 and sys.argv[1] == "child":
        child(*map(int, sys.argv[2:]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kiln", type=Path)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=DOORS)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--mode", default="")
    parser.add_argument("--no-alone", action="store_true")
    args = parser.parse_args()
    return measured(Ranks, args)


if __name__ == "__main__":
    sys.exit(main())
