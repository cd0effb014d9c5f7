"""The process that compiles for another: jobs on its input, results through a pipe.

Invariant: it ends with the process that started it, and takes what it started
along; what a compiler prints never mixes with a result.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
import time

from .pool import Unfit, read, write

# Seconds after which a process that nobody asks ends: it holds hundreds of megabytes.
_IDLE = 60.0


def main() -> None:
    """Serve until the input ends."""
    answers = os.fdopen(int(os.environ.pop("KILN_COMPILATION_ANSWERS")), "wb")
    device = os.environ.pop("KILN_COMPILATION_DEVICE", "")
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(jobs,), daemon=True).start()
    _make_ready(device)
    while True:
        try:
            job = jobs.get(timeout=_IDLE)
        except queue.Empty:
            os._exit(0)
        write(answers, pickle.dumps(_answer(job)))


def _make_ready(device: str) -> None:
    """Import and set up what every compile needs, while there is no work yet."""
    try:
        from . import ready

        ready.make_ready(device)
    except Exception:
        # The first job says what is wrong, to who can read it.
        return


def _answer(job: bytes) -> dict[str, object]:
    try:
        from .job import perform

        # Not the import of torch, which is no part of the compile.
        started = time.monotonic()
        return {"files": perform(job), "seconds": time.monotonic() - started}
    except Unfit as why:
        return {"files": None, "why": str(why)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _receive(jobs: queue.SimpleQueue[bytes]) -> None:
    while (job := read(sys.stdin.buffer)) is not None:
        jobs.put(job)
    # The other process is gone: so is the use of what is being compiled.
    os.killpg(os.getpgid(0), signal.SIGKILL)
