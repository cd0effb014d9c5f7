"""Processes that compile, so that a compile can be ended and several can run at once.

Invariant: never more processes than the bound; one that is slow, crashes or is
ended takes its whole process group with it, and none outlives this process.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from typing import Any, BinaryIO

from .errors import CompilationError, TimeoutError  # noqa: A004 - the module's own

_LENGTH = 8
# Inductor's setting: how many processes it compiles kernels with.
_THREADS = "TORCHINDUCTOR_COMPILE_THREADS"
# By how many may run at once: managers of one process share them.
_shared: dict[int, Pool] = {}
_shared_lock = threading.Lock()


def shared(most: int) -> Pool:
    """Return the process's pool of ``most`` processes."""
    with _shared_lock:
        if most not in _shared:
            _shared[most] = Pool(most)
        return _shared[most]


def _after_fork() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()
    # The processes are the parent's.
    _shared.clear()


os.register_at_fork(after_in_child=_after_fork)
# What starts one: with this process's import path, whatever started this process.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from kiln_torch.compilation.worker import main; main()"
)


class Unfit(Exception):
    """The other process is not like this one."""


class Pool:
    """At most so many compiles at once, each in a process that is kept for the next."""

    def __init__(self, most: int) -> None:
        """Start nothing yet."""
        self._most = most
        self._free = threading.Semaphore(most)
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._running: set[_Process] = set()
        # Those that are being started for a compile.
        self._starting = 0
        atexit.register(_close, weakref.ref(self))

    @property
    def active(self) -> int:
        """How many compile now."""
        with self._lock:
            return len(self._running)

    def pids(self) -> list[int]:
        """Return the processes, busy and idle."""
        with self._lock:
            return [each.pid for each in (*self._idle, *self._running)]

    def warm(self, count: int) -> None:
        """Start processes before there is work: until it comes they import what it needs."""
        with self._lock:
            self._prune()
            have = len(self._idle) + len(self._running) + self._starting
            for _ in range(min(count, self._most) - have):
                self._idle.append(_Process(self._threads))

    def compile(self, job: bytes, timeout: float | None) -> tuple[dict[str, bytes], float]:
        """Return the files and the seconds that they took.

        ``Unfit``: the process is not like this one, compile here.
        ``CompilationError``: the compiler's; ``TimeoutError``: longer than ``timeout``.
        """
        with self._free:
            while True:
                process, used = self._taken()
                kept = False
                try:
                    answer = process.ask(job, timeout)
                    kept = True
                    break
                except _Idle:
                    # It ended itself just then, for nobody had asked it.
                    if not used:
                        raise CompilationError("the compiling process did not start") from None
                finally:
                    with self._lock:
                        self._running.discard(process)
                        if kept:
                            self._idle.append(process)
                    if not kept:
                        process.end()
        if "error" in answer:
            raise CompilationError(answer["error"])
        if answer["files"] is None:
            raise Unfit(answer["why"])
        return answer["files"], answer["seconds"]

    @property
    def _threads(self) -> int:
        """How many kernels one process compiles at once: all together use each core once."""
        return max(1, len(os.sched_getaffinity(0)) // self._most)

    def _taken(self) -> tuple[_Process, bool]:
        """Return a process, running from now on, and whether it was idle."""
        with self._lock:
            self._prune()
            if self._idle:
                process = self._idle.pop(0)
                self._running.add(process)
                return process, True
            self._starting += 1
        process = None
        try:
            process = _Process(self._threads)
        finally:
            with self._lock:
                self._starting -= 1
                if process is not None:
                    self._running.add(process)
        return process, False

    def _prune(self) -> None:
        """Let go of those that ended: after a while without work they do."""
        for process in [each for each in self._idle if not each.alive]:
            self._idle.remove(process)
            process.end()

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            processes = [*self._idle, *self._running]
            self._idle.clear()
        for process in processes:
            process.end()


class _Idle(Exception):
    """The process had ended by itself before it was asked."""


class _Process:
    """One process; its standard output is for the compilers' own words."""

    def __init__(self, threads: int) -> None:
        told, self._answers_to = os.pipe()
        environment = {
            **os.environ,
            "KILN_COMPILATION_ANSWERS": str(self._answers_to),
            "KILN_COMPILATION_DEVICE": _device(),
            _THREADS: str(min(threads, _asked_threads() or threads)),
        }
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=(self._answers_to,),
                env=environment,
                start_new_session=True,
            )
        finally:
            os.close(self._answers_to)
        self._answers = os.fdopen(told, "rb")
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="kiln-compile", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, job: bytes, timeout: float | None) -> dict[str, Any]:
        started = time.monotonic()
        assert self._process.stdin is not None
        try:
            write(self._process.stdin, job)
            answer = self._queue.get(timeout=timeout)
        except queue.Empty:
            took = time.monotonic() - started
            raise TimeoutError(f"no result after {took:.1f} s") from None
        except OSError:
            answer = None
        if answer is None:
            status = self._process.wait()
            if status == 0:
                raise _Idle
            raise CompilationError(f"the compiling process ended with status {status}")
        return answer

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def _read(self) -> None:
        with self._answers:
            while (data := read(self._answers)) is not None:
                # From our own child.
                self._queue.put(pickle.loads(data))  # noqa: S301
        self._queue.put(None)


def write(file: BinaryIO | Any, data: bytes) -> None:
    """Send one message."""
    file.write(len(data).to_bytes(_LENGTH, "big"))
    file.write(data)
    file.flush()


def read(file: BinaryIO | Any) -> bytes | None:
    """Return the next message; ``None`` at the end."""
    head = file.read(_LENGTH)
    if len(head) < _LENGTH:
        return None
    size = int.from_bytes(head, "big")
    data = file.read(size)
    return data if len(data) == size else None


def _device() -> str:
    """Return the device that this process uses already: what to make ready for."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return ""
    return f"cuda:{torch.cuda.current_device()}"


def _asked_threads() -> int:
    value = os.environ.get(_THREADS, "")
    return int(value) if value.isdecimal() else 0


def _close(reference: weakref.ref[Pool]) -> None:
    pool = reference()
    if pool is not None:
        pool.close()
