"""The pages' own examples: their `sh` blocks run, and their printed output appears.

    python3 tests/page_commands.py --kiln target/debug/kiln [--torch PYTHON] [PAGE ...]

A block with the comment `<!-- run -->` before it is run by bash, in one folder a page,
which has this checkout's `tests`, `deploy` and `python`, beside three nodes of `kiln dev`;
variables that it exports last for the page. A block in `text` right behind it is what it
prints: each of its lines has to appear in the output, in this order. Figures, sizes,
times and digests may differ, and which tier an artifact is from; `...` stands for anything.

`<!-- run: torch -->` needs PyTorch and is left out, by name, where --torch names none.
`<!-- run: nodes -->` is the command of the nodes themselves, which goes on while the page
is read. On a page `http://127.0.0.1:P` is the gRPC port of a node and `redis://127.0.0.1:P`
its Redis port: the first P that the page writes is node 1's, the next one node 2's.

Invariant: a marked block is run or named as left out, and no process, file or port is left.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from demo_cluster import ClaimFailed
from page_blocks import Block, blocks_of, missing_line, with_addresses
from page_nodes import Nodes

ROOT = Path(__file__).resolve().parent.parent
# A bound, not an expectation: a block that takes longer hangs.
BLOCK_SECONDS = 300.0
NODES_COMMAND = "kiln dev --nodes 3"


class Page:
    """One page's blocks, in its folder, beside its nodes."""

    def __init__(self, name: str, kiln: Path, torch: Path | None) -> None:
        """Reads the page."""
        self.name, self.kiln, self.torch = name, kiln, torch
        self.blocks = blocks_of((ROOT / name).read_text())
        self.failed: list[str] = []
        self.run_count = 0
        self.left_out: list[Block] = []

    def check(self) -> None:
        """Runs the page's blocks; what does not hold is in `failed`."""
        start = next((b for b in self.blocks if b.kind == "nodes"), None)
        command = start.text if start else NODES_COMMAND
        with folder() as at, contextlib.ExitStack() as stack:
            bin_folder = at / ".bin"
            bin_folder.mkdir()
            (bin_folder / "kiln").symlink_to(self.kiln)
            work = at / "work"
            work.mkdir()
            for part in ("tests", "deploy", "python"):
                (work / part).symlink_to(ROOT / part)
            environment = clean_environment(bin_folder, at)
            if self.torch:
                environment |= torch_environment(self.torch, at)
            nodes = stack.enter_context(Nodes(command, work, environment))
            environment["KILN_ENDPOINT"] = nodes.grpc[0]
            if start and (absent := missing_line(start.output, nodes.line)) is not None:
                self.fail(start, f"did not print: {absent}", nodes.line)
            for block in self.blocks:
                if block.kind == "torch" and not self.torch:
                    self.left_out.append(block)
                elif block.kind != "nodes":
                    environment = self.run(block, nodes, work, environment)

    def run(self, block: Block, nodes: Nodes, work: Path, env: dict[str, str]) -> dict[str, str]:
        """Runs one block and returns the environment behind it."""
        text = with_addresses(self.blocks, block.text, nodes.grpc, nodes.resp)
        if block.kind == "torch" and self.torch:
            env = {**env, "PATH": f"{self.torch.parent}:{env['PATH']}"}
        behind = work.parent / "environment"
        behind.unlink(missing_ok=True)
        script = f"set -euo pipefail\n{text}\nenv -0 > {behind}\n"
        print(f"  {self.name}:{block.line}", flush=True)
        began = time.monotonic()
        try:
            done = subprocess.run(
                ["bash", "-c", script],  # noqa: S607
                cwd=work,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=BLOCK_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            self.fail(block, f"did not end within {BLOCK_SECONDS:.0f} s", "")
            return env
        self.run_count += 1
        if done.returncode:
            self.fail(block, f"ended with {done.returncode}", done.stdout)
            return env
        if not behind.exists():
            self.fail(block, "left its shell before its end", done.stdout)
            return env
        absent = missing_line(block.output, done.stdout)
        if absent is not None:
            self.fail(block, f"did not print: {absent}", done.stdout)
        print(f"    ok, {time.monotonic() - began:.1f} s", flush=True)
        pairs = (pair.partition("=") for pair in behind.read_text().split("\0") if pair)
        return {key: value for key, _, value in pairs}

    def fail(self, block: Block, why: str, output: str) -> None:
        """Takes down a failure with what the block was and printed."""
        told = "".join(f"    | {line}\n" for line in (block.text + "\n" + output).splitlines())
        self.failed.append(f"{self.name}:{block.line} {why}\n{told}")


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A fresh folder, and nothing of it afterwards."""
    made = Path(tempfile.mkdtemp(prefix="kiln-page-")).resolve()
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def clean_environment(bin_folder: Path, at: Path) -> dict[str, str]:
    """The caller's, without another cluster's settings, and with caches of this page alone."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("KILN_")}
    kept["PATH"] = f"{bin_folder}:{kept['PATH']}"
    if library := os.environ.get("KILN_NVRTC_DIR"):
        kept["KILN_COMPILE_NVRTC"] = library
    kept["TORCHINDUCTOR_CACHE_DIR"] = str(at / "inductor")
    kept["TRITON_CACHE_DIR"] = str(at / "triton")
    return kept


def torch_environment(python: Path, at: Path) -> dict[str, str]:
    """kiln_torch of this checkout, installed where this page's processes alone find it."""
    source, target = at / ".source", at / ".packages"
    shutil.copytree(ROOT / "python", source)
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-build-isolation", "--target", str(target), str(source)]
    subprocess.run(command, check=True, timeout=BLOCK_SECONDS)
    return {"PYTHONPATH": str(target)}


def pages() -> list[str]:
    """Every page of the checkout with a block to run, README first."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = sorted(set(listed.split()), key=lambda name: (name != "README.md", name))
    return [name for name in names if blocks_of((ROOT / name).read_text())]


def main() -> int:
    """Checks the pages that are named, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kiln", type=Path, required=True, help="the kiln binary")
    parser.add_argument("--torch", type=Path, help="a Python that has PyTorch")
    parser.add_argument("pages", nargs="*", help="relative to the checkout; default: all")
    args = parser.parse_args()
    if not args.kiln.is_file():
        parser.error(f"{args.kiln} is not there: make build")
    failed: list[str] = []
    for name in args.pages or pages():
        try:
            # Not resolved: a virtual environment's Python is a link.
            page = Page(name, args.kiln.resolve(), args.torch and args.torch.absolute())
        except ValueError as e:
            failed.append(f"{name}: {e}\n")
            continue
        try:
            page.check()
        except (ClaimFailed, OSError, ValueError, subprocess.SubprocessError) as e:
            page.failed.append(f"{name}: {e}\n")
        for block in page.left_out:
            print(f"  {name}:{block.line} left out: it needs PyTorch (--torch)")
        if not page.run_count + len(page.left_out):
            page.failed.append(f"{name}: no block was run\n")
        failed += page.failed
    print("\n" + "\n".join(failed) if failed else "\nevery block holds")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
