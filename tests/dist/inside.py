"""Runs in the bare root, with its Python alone: two nodes of the installed kiln, and a hit.

Invariant: it ends with an error where a step is not right; the nodes end before it does.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Bounds, not expectations.
READY_SECONDS = 120
COMMAND_SECONDS = 120
VALUE = b"a value of a build"


def require(holds: object, what: str) -> None:
    """Ends this where `holds` is not true."""
    if not holds:
        sys.exit(f"not so: {what}")


def kiln(*words: str) -> str:
    """What the installed program prints."""
    done = subprocess.run(
        ["kiln", *words], capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
    )
    require(done.returncode == 0, f"kiln {' '.join(words)} ends well: {done.stdout}{done.stderr}")
    return done.stdout


class Nodes:
    """`kiln dev` of two nodes."""

    def __init__(self, folder: Path) -> None:
        """Keeps where; `with` starts them."""
        self._folder = folder

    def __enter__(self) -> list[dict[str, str]]:
        """The nodes, once all are ready."""
        command = ["kiln", "dev", "--nodes", "2", "--dir", str(self._folder)]
        command += ["--ready-timeout", f"{READY_SECONDS}s"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        require(line, "kiln dev says that its nodes are ready")
        return json.loads(line)["nodes"]

    def __exit__(self, *_: object) -> None:
        """Ends them."""
        self._process.send_signal(signal.SIGINT)
        code = self._process.wait(COMMAND_SECONDS)
        require(code == 0, f"kiln dev ends well after ctrl-C, not with {code}")


def redis(address: str, *words: bytes) -> bytes:
    """The answer to one command of a Redis client."""
    host, port = address.rsplit(":", 1)
    text = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
    with socket.create_connection((host, int(port)), COMMAND_SECONDS) as connection:
        connection.sendall(b"*%d\r\n%s" % (len(words), text))
        with connection.makefile("rb") as answer:
            first = answer.readline()
            if not first.startswith(b"$") or first == b"$-1\r\n":
                return first
            return answer.read(int(first[1:]))


def main() -> None:
    """Goes through all of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pages", type=Path, help="where the manual is")
    parser.add_argument("--compiles", action="store_true", help="NVRTC is to be found")
    parser.add_argument("--torch", help="the Python that has kiln_torch")
    given = parser.parse_args()
    start = time.monotonic()
    version = kiln("--version").split()[1]
    require("complete" in kiln("completions", "bash"), "there are completions")
    if given.pages:
        pages = [page.name for page in (given.pages / "man1").glob("kiln*.1*")]
        require(len(pages) > 20, f"every command has its page: {pages}")
    with tempfile.TemporaryDirectory() as folder, Nodes(Path(folder, "dev")) as nodes:
        ready = time.monotonic() - start
        first, second = nodes
        stored = redis(first["resp"], b"SET", b"key", VALUE)
        require(stored == b"+OK\r\n", f"the first node stores: {stored!r}")
        require(redis(second["resp"], b"GET", b"key") == VALUE, "the second node has it")
        if given.compiles:
            compile_on(first, second)
        else:
            told = subprocess.run(
                ["kiln", "compile", "/examples/saxpy.cu", "--target", "sm_90", "--json"],
                capture_output=True,
                text=True,
                timeout=COMMAND_SECONDS,
                check=False,
                env={**os.environ, "KILN_ENDPOINT": f"http://{first['grpc']}"},
            )
            error = json.loads(told.stdout)["error"]
            require(error["kind"] == "toolchain_missing", f"what is missing is said: {told.stdout}")
            require("nvidia-cuda-nvrtc" in error["message"], f"and how to get it: {told.stdout}")
        hit = time.monotonic() - start
        if given.torch:
            environment = {**os.environ, "KILN_ENDPOINT": f"http://{second['grpc']}"}
            told = subprocess.run(
                [given.torch, "-m", "kiln_torch", "--json"],
                env=environment,
                capture_output=True,
                text=True,
                timeout=COMMAND_SECONDS,
                check=False,
            )
            require(
                version in told.stdout, f"kiln_torch {version} runs: {told.stdout}{told.stderr}"
            )
            require(second["grpc"] in told.stdout, f"and reaches the node: {told.stdout}")
    print(f"kiln {version}: nodes ready after {ready:.1f} s, a hit on the second after {hit:.1f} s")


def compile_on(first: dict[str, str], second: dict[str, str]) -> None:
    """The first node compiles; the second answers from that."""
    outcomes = []
    for node in (first, second):
        words = ("--target", "sm_90", "--json", "--endpoint", f"http://{node['grpc']}")
        outcomes.append(json.loads(kiln("compile", "/examples/saxpy.cu", *words))["outcome"])
    require(outcomes == ["compiled", "hit"], f"one compile, then a hit: {outcomes}")


if __name__ == "__main__":
    main()
