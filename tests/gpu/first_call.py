#!/usr/bin/env python3
"""First-call seconds of a compiled model: cold, with a warm local cache, fed by Kiln.

usage: first_call.py KILN [--layers 16] [--tokens 256] [--only PHASE ...]
                     [--repeats 2] [--fills 1] [--no-pairs] [--phases] [--profile FOLDER]

Starts a two-node `kiln dev` of the binary KILN and runs a Qwen3-shaped model
(random weights, bf16) under torch.compile in fresh processes, each phase with a
fresh cache folder and a namespace of its own. `fill` compiles through node 1,
`hit` starts from nothing at node 2, `pair` starts two processes from nothing at
once, one at each node, `prefetch` is a hit whose entries were fetched ahead; `dead`
compiles with an endpoint whose port is closed, and with one that never answers. With
--repeats the hits and the warm folder take turns that often, with --fills so do the
cold starts and the fills, each time under new names. --phases and --profile run one
more process each for where the time goes, which no other table counts. Prints one
JSON line a process and tables: of all processes, then medians with their spread and
their ratio to the warm folder's. Exits 1 when a process fed by Kiln ran Triton's
assembler or gave other numbers.

On the GPU machine, with kiln_torch and redis importable.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench import Bench, measured

CHILD = Path(__file__).resolve().with_name("first_child.py")
WARM = "warm local folder"


class FirstCall(Bench):
    """Rows are the phase of a process, and what it printed."""

    def __init__(self, kiln: Path, folder: Path, args: argparse.Namespace) -> None:
        super().__init__(kiln, folder, args)
        # Bound and not listening: refused. Listening and never read: silent.
        self.dead = {"closed": socket.socket(), "silent": socket.socket()}
        for each in self.dead.values():
            each.bind(("127.0.0.1", 0))
        self.dead["silent"].listen()

    def environment(self, cache: Path, door: str, node: int, namespace: str) -> dict[str, str]:
        dead = self.dead.get(door)
        env = self.dev.environment("kiln_torch" if dead else door, node, namespace, cache)
        env["TRITON_CACHE_DIR"] = str(cache / "triton")
        if dead:
            env["KILN_ENDPOINT"] = "http://{}:{}".format(*dead.getsockname())
            del env["KILN_SOCKET"]
        if door in ("kiln_torch", "backend", "run"):
            env["KILN_PREFETCH_BYTES"] = "0"
        if door == "backend":
            env["FIRST_CALL_BACKEND"] = "kiln"
        return env

    def start(
        self, name: str, door: str, node: int, namespace: str, cache: Path, wipe=True, more=()
    ):
        if wipe and cache.exists():
            shutil.rmtree(cache)
        cache.mkdir(parents=True, exist_ok=True)
        env = self.environment(cache, door, node, namespace) | dict(more)
        command = [sys.executable, str(CHILD), str(self.args.layers), str(self.args.tokens)]
        if door == "run":
            del env["KILN_ENDPOINT"]
            run = [str(self.kiln), "run", "--endpoint", f"http://{self.dev.nodes[node]['grpc']}"]
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

    def one(self, name, door, node, namespace, cache, *, fed=False, wipe=True, more=()) -> dict:
        started = self.start(name, door, node, namespace, cache, wipe, more)
        started[2].wait()
        return self.end(started, fed, self.dev.assembled())

    def pair(self, name, door, namespace) -> None:
        caches = [self.folder / f"{name}-{n}" for n in (0, 1)]
        started = [self.start(f"{name} {n}", door, n, namespace, caches[n]) for n in (0, 1)]
        for each in started:
            each[2].wait()
        both = self.dev.assembled()
        for each in started:
            self.end(each, fed=False, assembled=both)

    def run(self) -> None:
        for turn in range(max(self.args.fills, self.args.repeats)):
            self.turn(turn)
        for door in ("resp", "kiln_torch", "backend"):
            if self.wanted(door) and self.args.pairs:
                self.pair(f"{door}: pair", door, f"{door}-pair")
        if self.wanted("run"):
            cache = self.folder / "run"
            self.one("kiln run: fill", "run", 0, "run-1", cache)
            self.one("kiln run: restored", "run", 1, "run-1", cache, fed=True)
        self.where_time_goes()
        self.entries()

    def wanted(self, phase: str) -> bool:
        return not self.args.only or phase in self.args.only

    def turn(self, turn: int) -> None:
        fills, hits = turn < self.args.fills, turn < self.args.repeats
        if self.wanted("local"):
            if fills:
                self.one("cold", "none", 0, "", self.folder / "local")
            if turn == 0:
                # It compiled under other flags than it will be asked for: once in vain.
                self.one("first with that folder", *self.local(), wipe=False)
            if hits:
                self.one(WARM, *self.local(), wipe=False)
        for door in self.dead if fills and self.wanted("dead") else ():
            self.one(f"endpoint {door}", door, 0, "dead", self.folder / "dead")
        for door in ("resp", "kiln_torch", "backend"):
            if not self.wanted(door):
                continue
            namespace = f"{door}-{min(turn, self.args.fills - 1)}"
            cache = self.folder / door
            if fills:
                self.one(f"{door}: fill", door, 0, namespace, cache)
            if hits:
                self.one(f"{door}: hit", door, 1, namespace, cache, fed=True)
            if door == "kiln_torch" and self.wanted("prefetch"):
                if fills:
                    # Says what it used: the next one has it before it asks.
                    self.one("kiln_torch: hit, listing", "prefetch", 1, namespace, cache, fed=True)
                if hits:
                    self.one("kiln_torch: prefetched", "prefetch", 1, namespace, cache, fed=True)

    def local(self) -> tuple:
        return "none", 0, "", self.folder / "local"

    def where_time_goes(self) -> None:
        """One process each, with timers in it or under the profiler: not for comparison."""
        wanted = [("phases", {"FIRST_CALL_PHASES": "1"})] if self.args.phases else []
        if self.args.profile:
            self.args.profile.mkdir(parents=True, exist_ok=True)
            wanted.append(("profile", {}))
        last = self.args.fills - 1
        doors = {"local": self.local(), "kiln_torch": None, "prefetch": None, "backend": None}
        for kind, more in wanted:
            for door, given in doors.items():
                if not self.wanted(door):
                    continue
                namespace = f"{'kiln_torch' if door == 'prefetch' else door}-{last}"
                where = given or (door, 1, namespace, self.folder / door)
                if kind == "profile":
                    more = {"FIRST_CALL_PROFILE": str(self.args.profile / f"{door}.txt")}
                # A local folder is used as it is.
                self.one(f"{kind} of {door}", *where, wipe=door != "local", more=more)

    def entries(self) -> None:
        for node in self.dev.nodes:
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
            [self.kiln, "ls", "--json", "--endpoint", f"http://{self.dev.nodes[0]['grpc']}"],
            capture_output=True,
            text=True,
            check=False,
        )
        print(listing.stdout, flush=True)

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
        self.medians()

    def medians(self) -> None:
        by_name: dict[str, list[float]] = {}
        whole: dict[str, list[float]] = {}
        for name, row in self.rows:
            if " of " not in name:
                by_name.setdefault(name, []).append(row["first_call"])
                whole.setdefault(name, []).append(row["process"])
        warm = statistics.median(by_name[WARM]) if WARM in by_name else None
        print(
            f"\n{'first call':28} {'n':>3} {'median':>9} {'least':>8} {'most':>8} {'process':>9} "
            f"{'to warm':>8}"
        )
        for name, seconds in by_name.items():
            middle = statistics.median(seconds)
            ratio = f"{middle / warm:8.2f}" if warm else ""
            print(
                f"{name:28} {len(seconds):3} {middle:8.2f}s {min(seconds):7.2f}s "
                f"{max(seconds):7.2f}s {statistics.median(whole[name]):8.2f}s {ratio}"
            )
        for name, row in self.rows:
            if row.get("phases"):
                print(f"\n{name}: {row['first_call']:.2f} s, of which, one within another:")
                for phase, (seconds, calls) in row["phases"].items():
                    print(f"  {phase:28} {seconds:8.3f} s {calls:6}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kiln", type=Path)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--fills", type=int, default=1)
    parser.add_argument("--pairs", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--phases", action="store_true")
    parser.add_argument("--profile", type=Path)
    choices = ["local", "dead", "resp", "kiln_torch", "prefetch", "backend", "run"]
    parser.add_argument("--only", nargs="*", choices=choices)
    args = parser.parse_args()
    if args.fills < 1:
        parser.error("--fills: at least 1")
    return measured(FirstCall, args)


if __name__ == "__main__":
    sys.exit(main())
