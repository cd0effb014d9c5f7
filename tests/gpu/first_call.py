#!/usr/bin/env python3
"""First-call seconds of a compiled model: cold, with a warm local cache, fed by Kiln.

usage: first_call.py KILN [--layers 16] [--tokens 256] [--only PHASE ...]

Starts a two-node `kiln dev` of the binary KILN and runs a Qwen3-shaped model
(random weights, bf16) under torch.compile in fresh processes, each phase with a
fresh cache folder and a namespace of its own. `fill` compiles through node 1,
`hit` starts from nothing at node 2, `pair` starts two processes from nothing at
once, one at each node. Prints one JSON line a process and a table. Exits 1 when
a process fed by Kiln ran Triton's assembler or gave other numbers.

On the GPU machine, with kiln_torch and redis importable.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FLAGS = ("FX_GRAPH", "AUTOGRAD")


def child(layers: int, tokens: int) -> None:
    """One fresh process: prints what its first call cost and what its caches did."""
    began = time.perf_counter()
    import torch
    from qwen3 import Model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    net = Model(layers).to(device=device, dtype=torch.bfloat16).eval()
    ids = torch.arange(tokens, device=device).reshape(1, tokens) % 32000
    with torch.no_grad():
        wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        wait()
        imported = time.perf_counter() - began
        compiled = torch.compile(net, backend=os.environ.get("FIRST_CALL_BACKEND", "inductor"))
        began = time.perf_counter()
        out = compiled(ids)
        wait()
        first = time.perf_counter() - began
        eager = net(ids)
        error = ((out.float() - eager.float()).norm() / eager.float().norm()).item()
    from torch._dynamo.utils import counters

    inductor, autograd = counters["inductor"], counters["aot_autograd"]
    stats = {}
    if os.environ.get("KILN_ENDPOINT"):
        import kiln_torch

        stats = kiln_torch.stats()
    digest = hashlib.sha256(out.float().cpu().numpy().tobytes()).hexdigest()[:16]
    print(
        json.dumps(
            {
                "first_call": round(first, 3),
                "import_and_build": round(imported, 3),
                "fxgraph_cache_hit": inductor["fxgraph_cache_hit"],
                "fxgraph_cache_miss": inductor["fxgraph_cache_miss"],
                "autograd_cache_hit": autograd["autograd_cache_hit"],
                "autograd_cache_miss": autograd["autograd_cache_miss"],
                "error": error,
                "output": digest,
                "kiln": dict(stats),
            }
        ),
        flush=True,
    )


class Bench:
    """The cluster, the scratch folder, and what the processes printed."""

    def __init__(self, kiln: Path, folder: Path, args: argparse.Namespace) -> None:
        self.kiln, self.folder, self.args = kiln, folder, args
        self.rows: list[tuple[str, dict]] = []
        self.failed = False
        self.log = folder / "ptxas.log"
        self.assembler = self.count_assembler()
        self.dev = subprocess.Popen(
            [kiln, "dev", "--nodes", "2", "--dir", folder / "dev"],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.nodes = json.loads(self.dev.stdout.readline())["nodes"]

    def count_assembler(self) -> str | None:
        """An assembler for Triton that writes down each time it runs."""
        try:
            import triton
        except ImportError:
            return None
        real = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
        wrapper = self.folder / "ptxas"
        wrapper.write_text(
            "#!/bin/sh\n"
            f'case "$1" in --version) ;; *) echo x >> {self.log} ;; esac\n'
            f'exec {real} "$@"\n'
        )
        wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
        return str(wrapper)

    def environment(self, cache: Path, door: str, node: int, namespace: str) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("KILN_", "TORCHINDUCTOR_"))}
        env |= {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TRITON_CACHE_DIR": str(cache / "triton")}
        if self.assembler:
            env["TRITON_PTXAS_PATH"] = self.assembler
        at = self.nodes[node]
        if door == "resp":
            env |= {f"TORCHINDUCTOR_{flag}_REMOTE_CACHE": "1" for flag in FLAGS}
            url = f"redis://{namespace}:x@{at['resp']}/0?socket_timeout=120"
            env["TORCHINDUCTOR_REDIS_URL"] = url
        elif door in ("kiln_torch", "backend", "run"):
            env["KILN_ENDPOINT"] = f"http://{at['grpc']}"
            env["KILN_SOCKET"] = at["socket"]
            env["KILN_NAMESPACE"] = namespace
            if door == "backend":
                env["FIRST_CALL_BACKEND"] = "kiln"
        return env

    def start(
        self, name: str, door: str, node: int, namespace: str, cache: Path, wipe: bool = True
    ):
        if wipe and cache.exists():
            shutil.rmtree(cache)
        cache.mkdir(parents=True, exist_ok=True)
        env = self.environment(cache, door, node, namespace)
        command = [sys.executable, __file__, "child", str(self.args.layers), str(self.args.tokens)]
        if door == "run":
            del env["KILN_ENDPOINT"]
            run = [str(self.kiln), "run", "--endpoint", f"http://{self.nodes[node]['grpc']}"]
            run += ["--namespace", namespace, "--profile", "inductor", "--"]
            command = run + command
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        return name, cache, process, time.perf_counter()

    def end(self, started, fed: bool, assembled: int | None = None) -> dict:
        name, cache, process, began = started
        text, _ = process.communicate(timeout=200)
        took = time.perf_counter() - began
        lines = [line for line in text.splitlines() if line.startswith("{")]
        if process.returncode or not lines:
            self.failed = True
            print(json.dumps({"phase": name, "exit": process.returncode}), flush=True)
            return {}
        row = json.loads(lines[-1])
        files = [p for p in cache.rglob("*") if p.is_file()]
        row |= {
            "process": round(took, 3),
            "files": len(files),
            "bytes": sum(p.stat().st_size for p in files),
            "assembled": assembled,
        }
        if fed and assembled:
            self.failed = True
        self.rows.append((name, row))
        print(json.dumps({"phase": name} | row), flush=True)
        return row

    def assembled(self) -> int:
        runs = len(self.log.read_text()) // 2 if self.log.exists() else 0
        self.log.unlink(missing_ok=True)
        return runs

    def one(self, name, door, node, namespace, cache, *, fed=False, wipe=True) -> dict:
        started = self.start(name, door, node, namespace, cache, wipe)
        started[2].wait()
        return self.end(started, fed, self.assembled())

    def pair(self, name, door, namespace) -> None:
        caches = [self.folder / f"{name}-{n}" for n in (0, 1)]
        started = [self.start(f"{name} {n}", door, n, namespace, caches[n]) for n in (0, 1)]
        for each in started:
            each[2].wait()
        both = self.assembled()
        for each in started:
            self.end(each, fed=False, assembled=both)

    def run(self) -> None:
        only = self.args.only
        wanted = lambda phase: not only or phase in only
        local = self.folder / "local"
        if wanted("local"):
            self.one("cold", "none", 0, "", local)
            self.one("warm local folder", "none", 0, "", local, wipe=False)
            self.one("warm local folder, again", "none", 0, "", local, wipe=False)
        for door in ("resp", "kiln_torch", "backend"):
            if wanted(door):
                cache = self.folder / door
                self.one(f"{door}: fill", door, 0, f"{door}-1", cache)
                self.one(f"{door}: hit", door, 1, f"{door}-1", cache, fed=True)
                self.one(f"{door}: hit, again", door, 1, f"{door}-1", cache, fed=True)
                self.pair(f"{door}: pair", door, f"{door}-2")
        if wanted("run"):
            cache = self.folder / "run"
            self.one("kiln run: fill", "run", 0, "run-1", cache)
            self.one("kiln run: restored", "run", 1, "run-1", cache, fed=True)
        self.entries()

    def entries(self) -> None:
        for node in self.nodes:
            endpoint = f"http://{node['grpc']}"
            status = subprocess.run(
                [self.kiln, "status", "--json", "--endpoint", endpoint],
                capture_output=True,
                text=True,
                check=False,
            )
            counters = json.loads(status.stdout).get("counters") if status.stdout else None
            print(json.dumps({"node": node["id"], "counters": counters}), flush=True)
        listing = subprocess.run(
            [self.kiln, "ls", "--json", "--endpoint", f"http://{self.nodes[0]['grpc']}"],
            capture_output=True,
            text=True,
            check=False,
        )
        print(listing.stdout, flush=True)

    def stop(self) -> None:
        self.dev.send_signal(signal.SIGINT)
        self.dev.wait(timeout=60)

    def table(self) -> None:
        outputs = {row["output"] for _, row in self.rows}
        print(
            f"\n{'phase':28} {'first call':>10} {'process':>8} {'fx hit/miss':>12} "
            f"{'aot hit/miss':>12} {'ptxas':>6} {'error':>9}"
        )
        for name, row in self.rows:
            fx = f"{row['fxgraph_cache_hit']}/{row['fxgraph_cache_miss']}"
            aot = f"{row['autograd_cache_hit']}/{row['autograd_cache_miss']}"
            print(
                f"{name:28} {row['first_call']:9.2f}s {row['process']:7.2f}s {fx:>12} {aot:>12} "
                f"{row['assembled']!s:>6} {row['error']:9.2e}"
            )
        print(f"{len(outputs)} different outputs")


def main() -> int:
    if len(sys.argv) > 1 and sys.argv[1] == "child":
        child(int(sys.argv[2]), int(sys.argv[3]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kiln", type=Path)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument(
        "--only", nargs="*", choices=["local", "resp", "kiln_torch", "backend", "run"]
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args.kiln.resolve(), Path(folder), args)
        try:
            bench.run()
        finally:
            bench.stop()
        bench.table()
        return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
