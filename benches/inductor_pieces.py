#!/usr/bin/env python3
"""Wall time of one compile against pieces, by Inductor, on clusters of 1, 2 and 3 nodes.

    benches/inductor_pieces.py --kiln target/release/kiln --python TORCH/bin/python
    benches/inductor_pieces.py ... --model MODEL.pt2 --target sm_90    # on a machine with a GPU

Each run has a namespace of its own, so nothing is ever a hit; runs of one compile and of
pieces alternate. Wall time is that of `kiln compile`. One compiler a node: what a node
more is worth, where there are cores for it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "tests/fixtures/models/qwen3_lm_f32_static.new.pt2"
# For nodes to look at torch, on a loaded machine.
LOOK = 300.0


class Cluster:
    """`kiln dev`, every node with torch."""

    def __init__(self, kiln: str, python: str, nodes: int, folder: Path) -> None:
        command = [kiln, "dev", "--nodes", str(nodes), "--dir", str(folder)]
        settings = [f"compile.python={python}", "compile.python_workers=1"]
        for setting in settings:
            command += ["--set", setting]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.nodes = json.loads(self.process.stdout.readline())["nodes"]
        self.kiln = kiln
        end = time.monotonic() + LOOK
        while not self.ready():
            if time.monotonic() > end:
                sys.exit("a node has no Inductor: see its log")
            time.sleep(0.5)

    def run(self, *given: str) -> Any:
        """Runs `kiln` against the first node; its JSON."""
        endpoint = self.nodes[0]["grpc"]
        if not endpoint.startswith("http"):
            endpoint = f"http://{endpoint}"
        command = [self.kiln, *given, "--endpoint", endpoint, "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: {done.stdout} {done.stderr}")
        return json.loads(done.stdout)

    def ready(self) -> bool:
        """Whether the first node knows that all have Inductor."""
        status = self.run("status")
        told = json.dumps(status)
        return told.count('"inductor-standalone') >= len(self.nodes)

    def stop(self) -> None:
        """Ends all nodes."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)


def measure(
    cluster: Cluster, given: argparse.Namespace, piecewise: str, run: str
) -> dict[str, Any]:
    began = time.monotonic()
    view = cluster.run(
        "compile", str(given.model), "--target", given.target, "--backend", given.backend,
        "--piecewise", piecewise, "--namespace", run, "--progress", "none",
    )  # fmt: skip
    seconds = time.monotonic() - began
    pieces = view.get("pieces") or []
    by_node: dict[int, int] = {}
    for piece in pieces:
        by_node[piece["node"]] = by_node.get(piece["node"], 0) + 1
    compiles = [round(piece["compile_seconds"], 1) for piece in pieces]
    return {"seconds": seconds, "by_node": sorted(by_node.values()), "compiles": compiles}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--kiln", required=True)
    asked.add_argument("--python", required=True)
    asked.add_argument("--backend", default="inductor-standalone")
    asked.add_argument("--model", type=Path, default=MODEL)
    asked.add_argument("--target", default="cpu")
    asked.add_argument("--runs", type=int, default=3)
    asked.add_argument("--nodes", default="1,2,3")
    given = asked.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"{given.model.name} for {given.target}, {given.backend}, {cores} cores, load {os.getloadavg()[0]:.1f}")
    for nodes in map(int, given.nodes.split(",")):
        with tempfile.TemporaryDirectory(prefix="kiln-bench-") as folder:
            cluster = Cluster(given.kiln, given.python, nodes, Path(folder))
            try:
                found: dict[str, list[float]] = {"never": [], "always": []}
                for run in range(given.runs):
                    for piecewise, all_seconds in found.items():
                        name = f"{piecewise}-{nodes}-{run}"
                        told = measure(cluster, given, piecewise, name)
                        all_seconds.append(told.pop("seconds"))
                        print(f"  {name}: {all_seconds[-1]:.1f} s {told}", flush=True)
            finally:
                cluster.stop()
            full, pieces = (statistics.median(each) for each in found.values())
            print(f"{nodes} nodes: full {full:.1f} s, pieces {pieces:.1f} s: {pieces / full:.2f}")


if __name__ == "__main__":
    main()
