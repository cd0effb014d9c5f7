"""One process that compiles for this one: it is asked, it answers, or it is ended.

Invariant: whoever asks gets an answer or an error, whatever becomes of the process;
a job that it had not begun is told apart from one that it died of.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import sys
import threading
import time
from concurrent.futures import TimeoutError as NotYet
from typing import Any

from .errors import CrashedError, TimeoutError  # noqa: A004 - the module's own
from .fork_server import Gone, fork_server
from .messages import read, write

# Seconds for the kernel to say how a process ended.
_TO_END = 5.0


class NotBegun(Exception):
    """The process is gone, and had not begun the job: another may do it."""


class Process:
    """One process; its standard output is for nobody."""

    def __init__(self, threads: int, memory: int | None = None) -> None:
        """Have it forked, to compile ``threads`` kernels at once. ``Gone``: it cannot be.

        ``memory``: bytes of data that it, and each program that it starts, may have.
        """
        self._server = fork_server()
        jobs, ours = os.pipe()
        told, answers = os.pipe()
        self._jobs, self._answers = os.fdopen(ours, "wb"), os.fdopen(told, "rb")
        try:
            self._number, self._pid = self._server.fork(
                jobs, answers, device=_device(), threads=threads, memory=memory
            )
        except BaseException:
            self._jobs.close()
            self._answers.close()
            raise
        finally:
            os.close(jobs)
            os.close(answers)
        self.threads = threads
        # When it was ready, on the clock that processes share; ``None``: not yet.
        self.ready: float | None = None
        # What it did until then, and the seconds of each step.
        self.steps: dict[str, float] = {}
        self._ended = threading.Event()
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="kiln-compile", daemon=True).start()

    @property
    def pid(self) -> int | None:
        """Its id; waits for the fork. ``None``: there was none."""
        try:
            return self._pid.result()
        except Gone:
            return None

    @property
    def alive(self) -> bool:
        """Whether it may answer."""
        return not self._ended.is_set()

    def ask(self, job: bytes, timeout: float | None) -> dict[str, Any]:
        """Return the answer to ``job``."""
        started = time.monotonic()

        def left() -> float | None:
            return None if timeout is None else max(0.0, started + timeout - time.monotonic())

        began = False
        try:
            # A pipe holds less than a job: it is written to who reads.
            self._pid.result(left())
            write(self._jobs, job)
            while (answer := self._queue.get(timeout=left())) is not None:
                if "began" not in answer:
                    return {**answer, "waited": began - started}
                began = answer["began"]
        except (queue.Empty, NotYet):
            took = time.monotonic() - started
            raise TimeoutError(f"no result after {took:.1f} s") from None
        except (OSError, ValueError, Gone) as error:
            # It closed its end, or was never there.
            raise NotBegun(str(error)) from error
        if not began:
            raise NotBegun("it ended before it began")
        raise CrashedError(f"the compiling process ended with status {self._status()}")

    def end(self) -> None:
        """Kill it, with all that it started; do not wait for that."""
        with contextlib.suppress(Gone):
            self._server.end(self._number)
        self._close()

    def _status(self) -> Any:
        try:
            return self._server.end(self._number).result(_TO_END)
        except (Gone, NotYet):
            return "unknown"

    def _close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._jobs.close()

    def _read(self) -> None:
        with self._answers:
            while (data := read(self._answers)) is not None:
                # From our own child.
                answer = pickle.loads(data)  # noqa: S301
                if "ready" in answer:
                    self.ready, self.steps = answer["ready"], answer["steps"]
                else:
                    self._queue.put(answer)
        self._ended.set()
        self._queue.put(None)


def _device() -> str:
    """Return the device that this process uses already: what to make ready for."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return ""
    return f"cuda:{torch.cuda.current_device()}"
