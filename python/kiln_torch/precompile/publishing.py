"""Packages sent to the cluster: in the background, and in a bounded time at exit.

Invariant: a compile waits for nothing here. One thread sends what has not changed
for a moment; it ends with the process, which waits ``_AT_EXIT`` seconds for it.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Protocol

from .. import cpu, report

if TYPE_CHECKING:
    from .facts import Facts
    from .key import Asked
    from .store import Package, Store


class Compiled(Protocol):
    """Something that was compiled, as it was at one moment."""

    asked: Asked
    facts: Facts
    # Whether it has kernels for the CPU.
    cpu: bool
    # What tracing and compiling took.
    seconds: float
    # Packages of the list that could not be used.
    unusable: frozenset[str]

    def packed(self, *, last: bool) -> Package | None:
        """Return its bytes; ``None``: not yet, or, the ``last`` time, never."""
        ...


# Seconds without a new frame after which the warm-up counts as over.
_QUIET = 1.0
_AT_EXIT = 10.0
# Between two looks for a graph that is not there yet: a backward pass.
_LONGEST_PAUSE = 60.0


_all: weakref.WeakSet[Publisher] = weakref.WeakSet()


def busy() -> bool:
    """Whether this process has packages that are not in the cluster yet."""
    return any(each.busy for each in _all)


class Publisher:
    """Sends packages."""

    def __init__(self, store: Store) -> None:
        """Send through ``store``."""
        self._store = store
        self._reset()
        _all.add(self)
        os.register_at_fork(after_in_child=self._reset)
        atexit.register(self.close)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[str, Compiled] = {}
        self._due = 0.0
        self._pause = _QUIET
        self._ending = False
        self._sending = False
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether something waits, or is being sent."""
        with self._changed:
            return bool(self._waiting) or self._sending

    def send(self, snapshot: Compiled) -> None:
        """Send a package once it does not change any more."""
        with self._changed:
            self._waiting[snapshot.asked.name] = snapshot
            self._pause = _QUIET
            self._due = time.monotonic() + _QUIET
            if self._thread is None and not self._ending:
                self._thread = threading.Thread(
                    target=self._run, name="kiln-precompile", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def close(self) -> None:
        """Send what waits, in a bounded time."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(_AT_EXIT)
            if thread.is_alive():
                report.count("precompile.unpublished")

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._ending:
                    left = self._due - time.monotonic() if self._waiting else None
                    if left is not None and left <= 0:
                        break
                    self._changed.wait(left)
                ending, waiting = self._ending, self._waiting
                self._waiting, self._sending = {}, True
            unfinished = {n: s for n, s in waiting.items() if not self._sent(s, last=ending)}
            with self._changed:
                self._sending = False
                if ending:
                    return
                # What came meanwhile is newer.
                self._waiting = {**unfinished, **self._waiting}
                if unfinished and self._due <= time.monotonic():
                    self._pause = min(2 * self._pause, _LONGEST_PAUSE)
                    self._due = time.monotonic() + self._pause

    def _sent(self, snapshot: Compiled, *, last: bool) -> bool:
        try:
            package = snapshot.packed(last=last)
            if package is None:
                return last
            architecture = cpu.instruction_sets() if snapshot.cpu else ""
            became = self._store.publish(
                snapshot.asked.name,
                snapshot.asked.label,
                package,
                snapshot.facts,
                architecture,
                snapshot.seconds,
                snapshot.unusable,
            )
            report.count(f"precompile.{became}")
        except Exception as error:
            report.count("precompile.unpublished")
            report.once("precompile publish", "precompile: not published: %r", error)
        return True
