"""The process that compiles for another: jobs through one pipe, results through another.

Invariant: it ends with the process that asked for it, and takes what it started
along; what a compiler prints never mixes with a result.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import resource
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from ..adopt import ADOPT_PATH, adopted
from .classify import classify_error_type
from .errors import CompilationModuleError
from .messages import read, write
from .pool import Unfit

if TYPE_CHECKING:
    from collections.abc import Callable

# Seconds after which a process that nobody asks ends: it holds hundreds of megabytes.
_IDLE = 60.0
# A process that is no fork, with this one's import path.
_START = (
    ADOPT_PATH + "import json; from kiln_torch.compilation.worker import main; "
    "main(**json.loads(sys.argv[1]))"
)


def main(
    jobs: int,
    answers: int,
    device: str,
    threads: int,
    memory: int | None = None,
    *,
    fork: bool = True,
) -> None:
    """Serve until there are no more jobs to come, from descriptor ``jobs``."""
    if memory is not None:
        # Of data alone: a GPU's driver reserves more addresses than any machine has memory.
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    if device and fork and not _usable():
        for each in (jobs, answers):
            os.set_inheritable(each, True)
        told: dict[str, Any] = {
            "jobs": jobs,
            "answers": answers,
            "device": device,
            "threads": threads,
        }
        told["memory"] = memory
        words = adopted(), json.dumps({**told, "fork": False})
        os.execv(sys.executable, [sys.executable, "-c", _START, *words])  # noqa: S606
    out = os.fdopen(answers, "wb")
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    source = os.fdopen(jobs, "rb")
    threading.Thread(target=_receive, args=(source, waiting), daemon=True).start()
    steps = _make_ready(device, threads, (jobs, answers), lambda: not waiting.empty())
    write(out, pickle.dumps({"ready": time.monotonic(), "steps": steps}))
    while True:
        try:
            job = waiting.get(timeout=_IDLE)
        except queue.Empty:
            _end()
        # Until then another process may have it.
        write(out, pickle.dumps({"began": time.monotonic()}))
        write(out, pickle.dumps(_answer(job)))


def _usable() -> bool:
    """Whether a fork may use a GPU: not where the process that it is a copy of has."""
    import torch

    return not torch.cuda._is_in_bad_fork()


def _make_ready(
    device: str, threads: int, own: tuple[int, ...], busy: Callable[[], bool]
) -> dict[str, float]:
    """Import and set up what every compile needs, while there is no work yet."""
    try:
        from . import ready

        return ready.make_ready(device, threads, own, busy)
    except Exception as error:
        # The first job says what is wrong, to who can read it.
        return {f"{type(error).__name__}: {error}": 0.0}


def _answer(job: bytes) -> dict[str, object]:
    try:
        from .job import perform
        from .phases import torchs

        # Not the import of torch, which is no part of the compile.
        started, before = time.monotonic(), torchs()
        files = perform(job)
        seconds = time.monotonic() - started
        phases = {name: took - before.get(name, 0.0) for name, took in torchs().items()}
        return {"files": files, "seconds": seconds, "phases": phases}
    except Unfit as why:
        return {"files": None, "why": str(why)}
    except Exception as error:
        return {"error": _said(error), "kind": classify_error_type(error)}


def _said(error: Exception) -> str:
    if isinstance(error, CompilationModuleError):
        return error.message
    return f"{type(error).__name__}: {error}"


def _receive(source: BinaryIO, waiting: queue.SimpleQueue[bytes]) -> None:
    while (job := read(source)) is not None:
        waiting.put(job)
    # The other process is gone: so is the use of what is being compiled.
    _end()


def _end() -> NoReturn:
    os.killpg(os.getpgid(0), signal.SIGKILL)
    raise AssertionError("killed")
