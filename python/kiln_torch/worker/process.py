"""The worker's process: one conversation with the node, one job, and the end.

Invariant: stdin and stdout are the node's alone, every job is answered, the
process group ends with the node, and no job is read before the process is confined.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

from .compiling import compile_program
from .confining import confine
from .messages import Job, encode, read_frame, write_frame
from .refused import TOOLCHAIN_MISSING, Refused, as_refused
from .toolchain import compilers, compute_capability, versions


def ready() -> bytes:
    """kiln.v1.WorkerReady."""
    pairs = sorted(versions().items())
    tools = [(2, encode((1, name), (2, value))) for name, value in pairs]
    known = [(1, encode((1, name), *tools)) for name in compilers()]
    return encode(*known, (2, compute_capability()))


def _failed(refused: Refused) -> bytes:
    return encode((3, encode((1, refused.kind), (2, str(refused)))))


def _end_with_the_node(requests: BinaryIO, group: int) -> None:
    """Ends this process group when the node is gone; until then compiles go on."""
    while requests.read(1 << 16):
        pass
    if os.getpgrp() == group:
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def serve(requests: BinaryIO, answers: BinaryIO, folder: Path, group: int) -> None:
    """One process: torch is loaded, one job is done. ``group`` is the job's own."""
    try:
        hello = encode((1, ready()))
    except ImportError as e:
        hello = _failed(Refused(TOOLCHAIN_MISSING, f"{sys.executable} has no working torch: {e}"))
    confine()
    write_frame(answers, hello)
    message = read_frame(requests)
    if message is None:
        return
    threading.Thread(target=_end_with_the_node, args=(requests, group), daemon=True).start()
    began = time.monotonic()
    try:
        job = Job.parse(message)
        del message
        limit(job)
        files = compile_program(job, folder)
    except BaseException as e:  # whatever it is, the node is told
        write_frame(answers, _failed(as_refused(e)))
        return
    seconds = time.monotonic() - began
    listed = [(1, encode((1, name), (2, data))) for name, data in sorted(files.items())]
    write_frame(answers, encode((2, encode(*listed, (2, seconds)))))


def limit(job: Job) -> None:
    """Set the job's bounds on this process and on what it starts."""
    import resource

    import torch._inductor.config

    for name, most in [("DATA", job.memory_bytes), ("CPU", job.cpu_seconds)]:
        if most:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if job.device == "cpu":
        # Each g++ has the memory limit of its own: one at a time.
        torch._inductor.config.compile_threads = 1


def keep_to(folder: Path) -> None:
    """Have torch keep its files below `folder`. Before it is imported."""
    os.environ |= {
        "HOME": str(folder),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        # Packages that are installed beside torch have no say in what is compiled.
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
    }


def main(group: int | None = None) -> None:
    """Takes stdin and stdout for the node alone: what a library prints goes to stderr.

    ``group``: the process group that is this job's, unless it is this process's own.
    """
    folder = Path.cwd()
    keep_to(folder)
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    serve(requests, answers, folder, os.getpid() if group is None else group)
    answers.flush()
    # Threads of torch must not hold up the end.
    os._exit(0)
