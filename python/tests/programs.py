"""Runs the programs beside this file as processes with a cache folder of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# A bound, not an expectation: C++ compiles on a loaded machine.
ENOUGH = 900.0


@dataclass
class Program:
    """A process that prints one line of JSON at its end."""

    process: subprocess.Popen[str]

    def told(self) -> dict[str, Any]:
        """Wait for the end; the line."""
        try:
            out, error = self.process.communicate(timeout=ENOUGH)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, error = self.process.communicate()
            raise AssertionError(error[-4000:]) from None
        assert self.process.returncode == 0, error[-4000:]
        return json.loads(out.strip().splitlines()[-1])


def start(
    folder: Path,
    endpoint: str | None,
    *arguments: str,
    program: str = "backend_model.py",
    python: str = sys.executable,
    **environment: str,
) -> Program:
    """Start a program with empty cache folders below ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {name: value for name, value in os.environ.items() if not name.startswith("KILN_")}
    own["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), *filter(None, [own.get("PYTHONPATH")])])
    own.update(
        # All processes of a test have the same flags: torch's keys depend on some.
        TORCHINDUCTOR_COMPILE_THREADS="1",
        TORCHINDUCTOR_VEC_ISA_OK="1",
        OMP_NUM_THREADS="1",
        TORCHINDUCTOR_CACHE_DIR=str(folder / "inductor"),
        TRITON_CACHE_DIR=str(folder / "triton"),
        VLLM_CACHE_ROOT=str(folder / "vllm"),
        KILN_CONNECT_TIMEOUT="10",
    )
    if endpoint is not None:
        own["KILN_ENDPOINT"] = endpoint
    own.update(environment)
    process = subprocess.Popen(
        [python, str(HERE / program), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=own,
        cwd=folder,
    )
    return Program(process)


def run(folder: Path, endpoint: str | None, *arguments: str, **options: str) -> dict[str, Any]:
    """Run a program to its end."""
    return start(folder, endpoint, *arguments, **options).told()
