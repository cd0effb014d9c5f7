"""Processes that compile, so that a compile can be ended and several can run at once.

Invariant: never more processes than the bound; one that is slow, crashes or is
ended takes its whole process group with it, and none outlives this process.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .classify import of_kind
from .errors import OutOfMemoryError, TimeoutError  # noqa: A004 - the module's own
from .fork_server import Gone
from .process import NotBegun, Process
from .ranks import ranks_here

if TYPE_CHECKING:
    from collections.abc import Iterator

# Inductor's setting: how many processes it compiles kernels with.
_THREADS = "TORCHINDUCTOR_COMPILE_THREADS"
# Processes that may end before they begin one job: what ends them all ends the next as well.
_TRIES = 3
# By how many may run at once, and the bytes that each may have: managers of one process
# share them.
_shared: dict[tuple[int, int | None, bool], Pool] = {}
_shared_lock = threading.Lock()


def shared(most: int, memory: int | None = None, *, behind: bool = False) -> Pool:
    """Return the process's pool of ``most`` processes, each with ``memory`` bytes of data.

    ``behind``: for what nobody waits for, so that it takes no place of what somebody does.
    """
    with _shared_lock:
        which = most, memory, behind
        if which not in _shared:
            _shared[which] = Pool(most, memory)
        return _shared[which]


def _after_fork() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()
    # The processes are the parent's.
    _shared.clear()


os.register_at_fork(after_in_child=_after_fork)


class Unfit(Exception):
    """No other process can do it: compile here."""


class Pool:
    """At most so many compiles at once, each in a process that is kept for the next."""

    def __init__(self, most: int, memory: int | None = None) -> None:
        """Start nothing yet."""
        self._most = most
        self._memory = memory
        self._free = threading.Semaphore(most)
        # One at a time waits until nothing else runs.
        self._alone = threading.Lock()
        self._lock = threading.Lock()
        self._idle: list[Process] = []
        self._running: set[Process] = set()
        # Those that are being started for a compile.
        self._starting = 0
        atexit.register(_close, weakref.ref(self))

    @property
    def active(self) -> int:
        """How many compile now."""
        with self._lock:
            return len(self._running)

    def pids(self) -> list[int]:
        """Return the processes, busy and idle; waits for those that are being started."""
        with self._lock:
            processes = [*self._idle, *self._running]
        return [pid for each in processes if (pid := each.pid) is not None]

    def warm(self, count: int) -> None:
        """Start processes before there is work: until it comes they import what it needs."""
        with self._lock:
            self._prune()
            have = len(self._idle) + len(self._running) + self._starting
            # What cannot be started is said by the compile that needs it.
            with contextlib.suppress(Gone):
                for _ in range(min(count, self._most) - have):
                    self._idle.append(Process(self.threads, self._memory))

    def behind(self) -> Pool:
        """Return the one process for compiles that nobody waits for, under the same bounds."""
        return shared(1, self._memory, behind=True)

    @property
    def most(self) -> int:
        """How many may compile at once."""
        return self._most

    def compile(
        self,
        job: bytes,
        timeout: float | None,
        *,
        deadline: float | None = None,
        alone: bool = False,
    ) -> Compiled:
        """Return what was compiled; ``alone``: with no other beside it.

        ``deadline``: on the monotonic clock; it ends then whenever it began.
        ``Unfit``: no process can, compile here.
        ``CompilationError``: the compiler's; ``TimeoutError``: longer than ``timeout``.
        """
        with self._places(alone=alone):
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError("no time was left to begin it")
                timeout = left if timeout is None else min(left, timeout)
            answer = self._asked(job, timeout)
        if "error" in answer:
            raise of_kind(answer["kind"], answer["error"])
        if answer["files"] is None:
            raise Unfit(answer["why"])
        return Compiled(answer["files"], answer["seconds"], answer["waited"], answer["phases"])

    @contextlib.contextmanager
    def _places(self, *, alone: bool) -> Iterator[None]:
        """Have one place, or all of them."""
        if not alone or self._most == 1:
            with self._free:
                yield
            return
        taken = 0
        with self._alone:
            try:
                while taken < self._most:
                    self._free.acquire()
                    taken += 1
                yield
            finally:
                for _ in range(taken):
                    self._free.release()

    @property
    def threads(self) -> int:
        """How many kernels one process compiles at once: all together use each core once."""
        cores = len(os.sched_getaffinity(0))
        share = max(1, cores // (self._most * ranks_here()))
        return min(share, _asked_threads() or share)

    def _asked(self, job: bytes, timeout: float | None) -> dict[str, Any]:
        tries = 0
        while True:
            try:
                process, used = self._taken()
            except Gone as why:
                raise Unfit(f"no process can be started: {why}") from why
            kept = False
            try:
                answer = process.ask(job, timeout)
                # torch remembers in a process what failed in it.
                kept = "error" not in answer
                return answer
            except NotBegun as why:
                # One that was idle ended itself just then, for nobody had asked it.
                tries += not used
                if tries == _TRIES and self._memory is not None:
                    # Here it would have all of the machine's.
                    why_not = f"no process can begin with {self._memory} bytes: {why}"
                    raise OutOfMemoryError(why_not) from why
                if tries == _TRIES:
                    raise Unfit(f"no process begins: {why}") from why
            finally:
                with self._lock:
                    self._running.discard(process)
                    if kept:
                        self._idle.append(process)
                if not kept:
                    process.end()

    def _taken(self) -> tuple[Process, bool]:
        """Return a process, running from now on, and whether it was idle."""
        with self._lock:
            self._prune()
            if self._idle:
                # One that is ready, if any is.
                process = min(self._idle, key=lambda each: each.ready is None)
                self._idle.remove(process)
                self._running.add(process)
                return process, True
            self._starting += 1
        process = None
        try:
            process = Process(self.threads, self._memory)
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


@dataclass(frozen=True)
class Compiled:
    """What a process made of a job."""

    files: dict[str, bytes]
    # Seconds of the compile itself, and until the process began it.
    seconds: float
    waited: float
    # Where torch says that the time went.
    phases: dict[str, float]


def _asked_threads() -> int:
    value = os.environ.get(_THREADS, "")
    return int(value) if value.isdecimal() else 0


def _close(reference: weakref.ref[Pool]) -> None:
    pool = reference()
    if pool is not None:
        pool.close()
