"""A client that asks without pause, beside everything that is done to the cluster.

    python3 asker.py --kiln PROGRAM --endpoint URL,... --sources DIR

Asks for the stored keys in turn and prints one JSON line for each ask: when it
began, what it took, and how it ended. Each ask is a process and a connection of
its own, as those of a job that starts. Between two, `--new` compiles something
that nobody has: that needs a leader. Ends with its standard input.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

KERNEL = 'extern "C" __global__ void {name}(float *x) {{ x[threadIdx.x] *= {factor}.0f; }}\n'
# Longer than any wait of the program itself.
BOUND = 60


def ask(program: str, endpoint: str, source: Path, target: str) -> dict[str, object]:
    """One process, one answer."""
    began = time.time()
    command = [program, "compile", str(source), "--target", target, "--json"]
    try:
        done = subprocess.run(
            [*command, "--endpoint", endpoint], capture_output=True, timeout=BOUND
        )
        answer = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        done, answer = None, {"error": repr(error)}
    ok = done is not None and done.returncode == 0
    line: dict[str, object] = {"began": began, "took": time.time() - began, "ok": ok}
    if ok:
        line.update({name: answer.get(name) for name in ("key", "outcome", "tier", "node")})
    else:
        line["error"] = answer
    return line


def write_kernel(folder: Path, name: str, factor: int) -> Path:
    """A kernel that no other name has."""
    path = folder / f"{name}.cu"
    path.write_text(KERNEL.format(name=name, factor=factor))
    return path


def main() -> None:
    """Asks until the standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--kiln", "--endpoint"):
        parser.add_argument(name, required=True)
    parser.add_argument("--sources", required=True, type=Path)
    parser.add_argument("--target", default="sm_90")
    parser.add_argument("--new", action="store_true", help="compile new kernels instead")
    options = parser.parse_args()
    told_to_end = threading.Event()

    def end_with_input() -> None:
        sys.stdin.read()
        told_to_end.set()

    threading.Thread(target=end_with_input, daemon=True).start()
    stored = sorted(options.sources.glob("stored*.cu"))
    for turn in itertools.count():
        if told_to_end.is_set():
            return
        source = stored[turn % len(stored)]
        if options.new:
            stamp = time.time_ns()
            source = write_kernel(options.sources, f"new_{stamp}", turn + 2)
        print(json.dumps(ask(options.kiln, options.endpoint, source, options.target)), flush=True)
        if options.new:
            source.unlink()


if __name__ == "__main__":
    main()
