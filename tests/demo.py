"""Kiln's main claims, shown on three real nodes with real CUDA compiles.

    python3 tests/demo.py --kiln target/debug/kiln

Starts `kiln dev` with a local-folder object tier, prints one line for each claim
as it is checked, and exits with 1 where a claim does not hold. NVRTC is taken
from KILN_NVRTC_DIR. Nothing is left behind: `make demo` runs this.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, TypeVar

from demo_cluster import (
    NODES,
    ClaimFailed,
    Cluster,
    answer_of,
    require,
    wait_for_step,
)

T = TypeVar("T")

AT_ONCE = 60
# Kernels that keep NVRTC busy for some seconds, so that a leader can die meanwhile.
SLOW_KERNELS = 10


def people_bytes(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def people_seconds(seconds: float) -> str:
    """Seconds as people read them."""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


class Table:
    """One line for each fact, printed as it becomes known."""

    def __init__(self) -> None:
        """Finds out whether colours are wanted."""
        self.failed = 0
        self.colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def paint(self, text: str, code: int) -> str:
        """Colours `text` on a terminal."""
        return f"\033[{code}m{text}\033[0m" if self.colour else text

    def heading(self) -> None:
        """Names the columns."""
        print(f"    {'claim':<46} {'time':>9}  {'bytes':>9}  seen")
        print(f"    {'-' * 46} {'-' * 9}  {'-' * 9}  {'-' * 30}", flush=True)

    def row(self, holds: bool, claim: str, seconds: float, size: str, seen: str) -> None:
        """One fact."""
        mark = self.paint("✓", 32) if holds else self.paint("✗", 31)
        print(f"  {mark} {claim:<46} {people_seconds(seconds):>9}  {size:>9}  {seen}", flush=True)
        self.failed += not holds

    @contextlib.contextmanager
    def claim(self, text: str) -> Iterator[list[str]]:
        """Checks one claim; the block appends what was seen to the list."""
        seen: list[str] = []
        start = time.monotonic()
        try:
            yield seen
        except (ClaimFailed, subprocess.TimeoutExpired, OSError) as e:
            self.row(False, text, time.monotonic() - start, "", str(e))
            raise
        self.row(True, text, time.monotonic() - start, "", ", ".join(seen))


def kernel(name: str) -> str:
    """A small CUDA source that nobody compiled yet."""
    return f"""extern "C" __global__ void {name}(int n, float a, const float* x, float* y) {{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}}
"""


def slow_kernels(count: int) -> str:
    """A CUDA source that takes NVRTC seconds."""
    return "".join(
        f"""extern "C" __global__ void slow_{k}(float* x) {{
    float a = x[threadIdx.x];
    #pragma unroll
    for (int i = 0; i < 400; i++) a = a * x[i] + __sinf(a + {k}.0f * i);
    x[threadIdx.x] = a;
}}
"""
        for k in range(count)
    )


def show_answer(table: Table, claim: str, answer: dict[str, Any], wall: float) -> None:
    """A row for one answer of a compile."""
    tier = f" from {answer['tier']}" if answer["tier"] else ""
    seen = f"{answer['outcome']}{tier}; compile took {people_seconds(answer['compile_seconds'])}"
    table.row(True, claim, wall, people_bytes(answer["bytes"]), seen)


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """The answer and what it took, the command's own start included."""
    start = time.monotonic()
    answer = call()
    return answer, time.monotonic() - start


def compiled_once(cluster: Cluster, table: Table, block: Path) -> dict[str, Any]:
    """The exported block: compiled on node 1, hits on 2 and 3."""
    first, wall = timed(lambda: cluster.compile(cluster.nodes[0], block))
    require(first["outcome"] == "compiled", f"node 1 says {first['outcome']}, not compiled")
    show_answer(table, f"{block.name} on node 1: compiled", first, wall)
    for node in cluster.nodes[1:]:
        again, wall = timed(lambda node=node: cluster.compile(node, block))
        require(again["outcome"] == "hit", f"node {node.number} says {again['outcome']}, not hit")
        require(again["key"] == first["key"], f"node {node.number} has another key")
        require(again["artifact"] == first["artifact"], f"node {node.number} has other bytes")
        show_answer(table, f"the same on node {node.number}: a hit", again, wall)
    runs = cluster.compiler_runs()
    require(runs == 1, f"{runs} compiles ran")
    return first


def many_at_once(cluster: Cluster, folder: Path, seen: list[str]) -> None:
    """60 requests for one new key make one compile."""
    file = folder / "crowd.cu"
    file.write_text(kernel("crowd") + slow_kernels(4))
    before = cluster.compiler_runs()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = [cluster.nodes[i % NODES] for i in range(AT_ONCE)]
        answers = list(pool.map(lambda node: cluster.compile(node, file), asked))
    outcomes = [answer["outcome"] for answer in answers]
    runs = cluster.compiler_runs() - before
    counts = {name: outcomes.count(name) for name in ("compiled", "coalesced", "hit")}
    require(runs == 1 and counts["compiled"] == 1, f"{runs} compiles ran: {counts}")
    require(len({a["artifact"] for a in answers}) == 1, "the answers' bytes differ")
    seen.append(f"1 compiled, {counts['coalesced']} coalesced, {counts['hit']} hit")


def leader_killed(cluster: Cluster, folder: Path, seen: list[str]) -> None:
    """The leader dies while it compiles; the waiters get the artifact."""
    file = folder / "slow.cu"
    file.write_text(slow_kernels(SLOW_KERNELS))
    leader = cluster.leader(cluster.nodes)
    others = [node for node in cluster.nodes if node is not leader]
    before = cluster.compiler_runs(others)
    holder = cluster.compiling(leader, file)
    waiters: list[subprocess.Popen[str]] = []
    try:
        wait_for_step(holder, "compiling")
        waiters.extend(cluster.compiling(node, file) for node in others)
        for waiter in waiters:
            wait_for_step(waiter, "waiting")
        leader.signal(signal.SIGKILL)
        killed = time.monotonic()
        leader.wait_ended()
        answers = [answer_of(waiter) for waiter in waiters]
        took = time.monotonic() - killed
    finally:
        for process in [holder, *waiters]:
            process.kill()
            process.communicate()
    require(len({a["artifact"] for a in answers}) == 1, "the waiters' bytes differ")
    runs = cluster.compiler_runs(others) - before
    require(runs == 1, f"{runs} compiles ran on the survivors")
    seen.append(f"node {leader.number} killed; {len(answers)} waiters served after {took:.1f} s")
    cluster.restart(leader)
    cluster.whole()


def disk_wiped(cluster: Cluster, block: Path, first: dict[str, Any], seen: list[str]) -> None:
    """Node 1 loses its disk: it comes back as a new node and refetches."""
    node, others = cluster.nodes[0], cluster.nodes[1:]
    old = node.id
    node.signal(signal.SIGKILL)
    node.wait_ended()
    shutil.rmtree(node.data)
    peers = ",".join(other.transfer for other in others)
    cluster.restart(node, "--set", "start.expect=1", "--set", "start.peers=", "--join", peers)
    require(node.id != old, f"node 1 came back empty as node {old}: ids are never reused")
    answer = cluster.compile(node, block)
    require(answer["outcome"] == "hit", f"the answer is {answer['outcome']}, not a hit")
    require(answer["artifact"] == first["artifact"], "the bytes differ")
    runs = cluster.compiler_runs([node])
    require(runs == 0, f"{runs} compiles ran on node 1")
    cluster.whole()
    seen.append(f"hit from {answer['tier']}; node {old} replaced by node {node.id}")


def byte_flipped(cluster: Cluster, folder: Path, first: dict[str, Any], seen: list[str]) -> None:
    """One bad byte on node 2's disk is found, refetched and counted."""
    node = cluster.nodes[1]
    node.signal(signal.SIGTERM)
    node.wait_ended()
    digest = first["artifact"]
    packs = [p for p in node.data.rglob(digest[2:]) if p.parent.name == digest[:2]]
    require(len(packs) == 1, f"node 2 has {len(packs)} files of the artifact")
    with packs[0].open("r+b") as pack:
        middle = first["bytes"] // 2
        pack.seek(middle)
        byte = pack.read(1)[0]
        pack.seek(middle)
        pack.write(bytes([byte ^ 1]))
    cluster.restart(node)
    cluster.whole()
    (fetched,) = cluster.run(node, "get", first["key"], "-o", str(folder / "healed"))
    require(fetched["artifact"] == first["artifact"], "other bytes were served")
    corrupt = node.counter("kiln_tier_corrupt_total")
    require(corrupt == 1, f"kiln_tier_corrupt_total is {corrupt}, not 1")
    require(cluster.compiler_runs([node]) == 0, "node 2 compiled")
    seen.append(f"kiln_tier_corrupt_total 1, served from {fetched['tier']}")


def all_restarted(cluster: Cluster, block: Path, seen: list[str]) -> None:
    """All nodes stop and start; every key is there, on every node."""
    keys = {entry["key"] for entry in cluster.run(cluster.nodes[0], "ls")}
    require(len(keys) >= 3, f"only {len(keys)} keys before the stop")
    cluster.stop()
    cluster.start()
    cluster.whole()
    for node in cluster.nodes:
        found = {entry["key"] for entry in cluster.run(node, "ls")}
        require(found == keys, f"node {node.number} has {len(found)} of {len(keys)} keys")
        answer = cluster.compile(node, block)
        require(answer["outcome"] == "hit", f"node {node.number} says {answer['outcome']}")
    require(cluster.compiler_runs() == 0, "something was compiled again")
    seen.append(f"{len(keys)} keys on {NODES} nodes, 0 compiles")


def demonstrate(cluster: Cluster, table: Table, block: Path) -> None:
    """All claims in order; the first that fails ends it."""
    folder = cluster.folder
    with table.claim(f"{NODES} nodes are one cluster") as seen:
        cluster.start()
        cluster.whole()
        seen.append("ids " + ", ".join(str(node.id) for node in cluster.nodes))
    with table.claim("compiled once, served everywhere") as seen:
        first = compiled_once(cluster, table, block)
        seen.append("1 compile for 3 nodes, the same bytes")
    with table.claim(f"{AT_ONCE} requests at once make one compile") as seen:
        many_at_once(cluster, folder, seen)
    with table.claim("leader killed while it compiles") as seen:
        leader_killed(cluster, folder, seen)
    with table.claim("node 1's disk wiped: refetched") as seen:
        disk_wiped(cluster, block, first, seen)
    with table.claim("a flipped byte on node 2's disk is found") as seen:
        byte_flipped(cluster, folder, first, seen)
    with table.claim("all nodes stopped and started") as seen:
        all_restarted(cluster, block, seen)


def arguments() -> argparse.Namespace:
    """The command line."""
    block = Path(__file__).resolve().parent / "fixtures" / "block_bf16.211.pt2"
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kiln", type=Path, required=True, help="the kiln binary")
    parser.add_argument("--block", type=Path, default=block, help="a .pt2")
    parser.add_argument("--keep", action="store_true", help="leave the nodes' folder behind")
    found = parser.parse_args()
    if not found.kiln.is_file():
        parser.error(f"{found.kiln} is not there: cargo build")
    if not found.block.is_file():
        parser.error(f"{found.block} is not there: name an exported block with --block")
    found.kiln = found.kiln.resolve()
    return found


def main() -> int:
    """Runs the demonstration and cleans up."""
    args = arguments()
    # Another cluster's settings must not leak into this one.
    for name in [name for name in os.environ if name.startswith("KILN_")]:
        if name != "KILN_NVRTC_DIR":
            del os.environ[name]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    table = Table()
    folder = Path(tempfile.mkdtemp(prefix="kiln-demo-")).resolve()
    cluster = Cluster(kiln=args.kiln, folder=folder)
    table.heading()
    start = time.monotonic()
    try:
        demonstrate(cluster, table, args.block)
    except (ClaimFailed, subprocess.TimeoutExpired, OSError):
        print(cluster.tails(), file=sys.stderr)
    except KeyboardInterrupt:
        table.row(False, "interrupted", time.monotonic() - start, "", "")
    finally:
        cluster.stop()
        if args.keep:
            print(f"left behind: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    took = people_seconds(time.monotonic() - start)
    print(f"\n{'all claims hold' if not table.failed else 'a claim does not hold'} ({took})")
    return 1 if table.failed else 0


if __name__ == "__main__":
    sys.exit(main())
