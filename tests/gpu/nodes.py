"""Nodes of a `kiln dev`, and what a measured process is given to ask them.

Invariant: a process sees no setting of Kiln or of Inductor but those given here, and
a door through the package is refused where the package is not installed with its entry
points: such a process would compile alone and be taken for a slow hit.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
from pathlib import Path

FLAGS = ("FX_GRAPH", "AUTOGRAD")
# Doors that are PyTorch's own, and those through the package.
REDIS = ("resp", "virtual")
PACKAGE = ("kiln_torch", "prefetch", "backend", "folder", "run")


class Nodes:
    """The running nodes, in ``folder``, and an assembler that counts its runs."""

    def __init__(self, kiln: Path, folder: Path, count: int) -> None:
        self.log = folder / "ptxas.log"
        self.assembler = self._counted_assembler(folder)
        self._dev = subprocess.Popen(
            [kiln, "dev", "--nodes", str(count), "--dir", folder / "dev"],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.nodes = json.loads(self._dev.stdout.readline())["nodes"]

    def _counted_assembler(self, folder: Path) -> str | None:
        if not (found := importlib.util.find_spec("triton")):
            return None
        real = Path(found.origin).parent / "backends/nvidia/bin/ptxas"
        wrapper = folder / "ptxas"
        wrapper.write_text(
            "#!/bin/sh\n"
            f'case "$1" in --version) ;; *) echo x >> {self.log} ;; esac\n'
            f'exec {real} "$@"\n'
        )
        wrapper.chmod(0o755)
        return str(wrapper)

    def assembled(self) -> int:
        """Runs of Triton's assembler since this was last asked."""
        runs = len(self.log.read_text()) // 2 if self.log.exists() else 0
        self.log.unlink(missing_ok=True)
        return runs

    def environment(self, door: str, node: int, namespace: str, cache: Path) -> dict[str, str]:
        """Of a process with Inductor's folder ``cache`` that asks ``node`` through ``door``;
        ``none`` asks nobody."""
        mine = ("KILN_", "TORCHINDUCTOR_", "TORCH_CACHING_PRECOMPILE", "TRITON_CACHE_DIR")
        env = {k: v for k, v in os.environ.items() if not k.startswith(mine)}
        env["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
        if self.assembler:
            env["TRITON_PTXAS_PATH"] = self.assembler
        at = self.nodes[node]
        if door in REDIS:
            env |= {f"TORCHINDUCTOR_{flag}_REMOTE_CACHE": "1" for flag in FLAGS}
            url = f"redis://{namespace}:x@{at['resp']}/0?socket_timeout=120"
            env["TORCHINDUCTOR_REDIS_URL"] = url
            env["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
        elif door in PACKAGE:
            need_entry_points()
            env["KILN_ENDPOINT"] = f"http://{at['grpc']}"
            env["KILN_SOCKET"] = at["socket"]
            env["KILN_NAMESPACE"] = namespace
        return env

    def stop(self) -> None:
        self._dev.send_signal(signal.SIGINT)
        self._dev.wait(timeout=60)


def need_entry_points() -> None:
    """Raise where torch would not load kiln_torch by itself."""
    for group in ("torch.backends", "torch_dynamo_backends"):
        if not any(e.name == "kiln" for e in importlib.metadata.entry_points(group=group)):
            raise SystemExit(
                f"kiln_torch's entry point in {group!r} is missing: install the package "
                "(pip install --no-deps python/), or put its .dist-info on PYTHONPATH"
            )
