"""Processes that compile: started by the tests, and gone when those end."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from cluster import Node

HERE = Path(__file__).parent
# Bound, not expectation: the CPU's back end runs g++, on a loaded machine.
COMPILE = 300.0

# All processes of a test have the same flags: torch's keys depend on some.
_TORCH = {
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "TORCHINDUCTOR_VEC_ISA_OK": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}


def kiln(*nodes: Node | str, **more: str) -> dict[str, str]:
    """Return the environment of a process that uses kiln_torch through these nodes."""
    endpoints = ",".join(node if isinstance(node, str) else node.endpoint for node in nodes)
    return {"KILN_ENDPOINT": endpoints, "KILN_CONNECT_TIMEOUT": "10", **more}


def redis(address: str | None, timeout: float = 120, **more: str) -> dict[str, str]:
    """Return the environment of an unmodified PyTorch that uses a RESP port."""
    assert address is not None
    return {
        # As the README has it.
        "TORCHINDUCTOR_FX_GRAPH_REMOTE_CACHE": "1",
        "TORCHINDUCTOR_AUTOGRAD_REMOTE_CACHE": "1",
        "TORCHINDUCTOR_REDIS_URL": f"redis://{address}?socket_timeout={timeout}",
        # Not even loaded: this package is installed where the tests run.
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        **more,
    }


class Process:
    """One such process. Its lines are read as they come."""

    def __init__(self, script: str, folder: Path, environment: dict[str, str]) -> None:
        """Start ``script`` with its caches in ``folder``."""
        inherited = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("KILN_", "TORCH", "TRITON", "REDIS"))
        }
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder.with_suffix(".log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={
                **inherited,
                **_TORCH,
                "TORCHINDUCTOR_CACHE_DIR": str(folder),
                "TRITON_CACHE_DIR": str(folder / "triton"),
                **environment,
            },
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def until(self, word: str, within: float = COMPILE) -> str:
        """Return the rest of the next line that begins with ``word``."""
        while True:
            try:
                line = self._lines.get(timeout=within)
            except queue.Empty:
                raise AssertionError(f"no {word!r} within {within:.0f} s: {self.log()}") from None
            assert line is not None, f"ended without {word!r}: {self.log()}"
            if line.startswith(word):
                return line[len(word) :]

    def go(self) -> None:
        """Let it go on from where it waits."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def report(self, within: float = COMPILE) -> dict[str, Any]:
        """Return what it reports, and wait for its end."""
        read = json.loads(self.until("report ", within))
        assert self._process.wait(60) == 0, self.log()
        return read

    def log(self) -> str:
        """Return the end of what it wrote to stderr."""
        return Path(self._log.name).read_text()[-4000:]

    def kill(self) -> None:
        """End it at once. One that has ended already is fine."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._log.close()


class Processes:
    """Starts processes, and leaves none behind."""

    def __init__(self, folder: Path) -> None:
        """Keep their caches below ``folder``."""
        self._folder = folder
        self._made: list[Process] = []

    def start(
        self,
        environment: dict[str, str],
        script: str = "model.py",
        binaries: Path | None = None,
    ) -> Process:
        """Start one, with a fresh cache folder.

        With ``binaries``, that folder's compiled C++ is there already, and none of
        its cache entries: torch compiles everything, and g++ nothing.
        """
        folder = self._folder / f"process-{len(self._made)}"
        if binaries is not None:
            entries = shutil.ignore_patterns("fxgraph", "aotautograd")
            shutil.copytree(binaries, folder, ignore=entries)
        process = Process(script, folder, environment)
        self._made.append(process)
        return process

    def close(self) -> None:
        """End all that still run."""
        for process in self._made:
            process.kill()
