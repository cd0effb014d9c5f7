"""Tells when a call of another library has ended, however it ended.

A call that raises tells nobody: its frame and what that holds live on in the
traceback, which a caller may keep, and which Python's garbage collector may find
late or never. So a thread looks at which calls still run, for as long as one is
watched, and starts no earlier.
Invariant: ``ended`` runs once for each watched call that is over and was not
forgotten, soon after it is over; never while the call runs in a thread.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

from . import report

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

# Seconds between two looks: a waiter elsewhere notices no more than that.
_EVERY = 0.02


class Calls:
    """The watched calls of one process."""

    def __init__(self) -> None:
        """Watch none."""
        self._begin()
        # A thread of the parent watches nothing here, and may hold the lock.
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._watched: dict[int, tuple[FrameType, Callable[[], None]]] = {}
        self._next = 0
        self._thread: threading.Thread | None = None

    def watch(self, call: FrameType, ended: Callable[[], None]) -> int:
        """Have ``ended`` run when ``call`` is over; return what ``forget`` takes."""
        self._look()
        with self._changed:
            self._next += 1
            self._watched[self._next] = (call, ended)
            if self._thread is None:
                name = "kiln-calls"
                self._thread = threading.Thread(target=self._watch, name=name, daemon=True)
                self._thread.start()
            self._changed.notify()
            return self._next

    def forget(self, number: int) -> None:
        """Watch this one no more. Nothing happens where it is over already."""
        # Without the lock: a finalizer calls this wherever one happens to run.
        self._watched.pop(number, None)

    def _watch(self) -> None:
        while True:
            with self._changed:
                self._changed.wait(_EVERY if self._watched else None)
            self._look()

    def _look(self) -> None:
        if not self._watched:
            return
        with self._changed:
            # After the lock: a call that is watched by now was running before this.
            watched, running = self._watched.copy(), _running()
            over = [number for number, (call, _) in watched.items() if id(call) not in running]
            ends = [self._watched.pop(number, None) for number in over]
        for _, ended in filter(None, ends):
            _run(ended)


def _run(ended: Callable[[], None]) -> None:
    try:
        ended()
    except Exception as error:
        report.count("bugs")
        report.once(f"ended {type(error).__name__}", "a call ended: %r", error)


def _running() -> set[int]:
    """Every call that runs in a thread of this process."""
    running = set()
    for top in sys._current_frames().values():
        frame: FrameType | None = top
        while frame is not None:
            running.add(id(frame))
            frame = frame.f_back
    return running
