"""What fell back, compiled again in the background.

One thread, which uses no torch: the compile runs in a process of its own, and the
caller's thread loads what it gave (``fallback.py``).
Invariant: one at a time, after a pause that grows and differs from process to
process, and not for ever; nothing here keeps this process from ending.
"""

from __future__ import annotations

import heapq
import os
import random
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import report

if TYPE_CHECKING:
    from collections.abc import Callable

# Each time a compile failed again the pause is as long again, up to the longest.
TRIES = 4
_LONGEST = 3600.0
# Of the pause, at random: processes that failed together do not come back together.
_JITTER = 0.25
# More than these would hold more graphs than they are worth.
_MOST = 256


@dataclass(order=True)
class Due:
    """One compile to be tried again."""

    at: float
    order: int
    key: str = field(compare=False)
    pause: float = field(compare=False)
    # Look and compile, without torch: whether there is something to load.
    compile: Callable[[], bool] = field(compare=False)
    # Told when it is next due; ``None``: never again.
    told: Callable[[float | None], None] = field(compare=False)
    tries: int = field(default=0, compare=False)


class Again:
    """All of a process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, seed: Any = None) -> None:
        """Start no thread yet."""
        self._clock = clock
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._lock = threading.Condition()
        self._due: list[Due] = []
        self._keys: set[str] = set()
        self._count = 0
        self._thread: threading.Thread | None = None

    def add(
        self,
        key: str,
        pause: float,
        compile: Callable[[], bool],  # noqa: A002 - what it does
        told: Callable[[float | None], None],
    ) -> bool:
        """Compile ``key`` again after ``pause`` seconds; ``False``: it is to be already."""
        with self._lock:
            if key in self._keys or len(self._keys) >= _MOST:
                return False
            self._keys.add(key)
            self._count += 1
            due = Due(0.0, self._count, key, pause, compile, told)
            self._push(due)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="kiln-again", daemon=True)
                self._thread.start()
            self._lock.notify()
        return True

    def __len__(self) -> int:
        """How many wait."""
        with self._lock:
            return len(self._keys)

    def _push(self, due: Due) -> None:
        pause = min(due.pause * 2**due.tries, _LONGEST)
        due.at = self._clock() + pause * (1 + self._random.uniform(-_JITTER, _JITTER))
        heapq.heappush(self._due, due)
        due.told(due.at)

    def _serve(self) -> None:
        while True:
            with self._lock:
                while not self._due or self._due[0].at > self._clock():
                    self._lock.wait(self._due[0].at - self._clock() if self._due else None)
                due = heapq.heappop(self._due)
            self.try_again(due)

    def try_again(self, due: Due) -> None:
        """Try one; put it back where it failed again."""
        report.count("compilation.compiled_again")
        try:
            done = due.compile()
        except Exception as error:
            done = False
            report.log.info("failed again, try %d of %d: %s", due.tries + 1, TRIES, error)
        due.tries += 1
        with self._lock:
            if not done and due.tries < TRIES:
                self._push(due)
                return
            self._keys.discard(due.key)
        due.told(None)


again = Again()


def _after_fork() -> None:
    # Its thread, and what it is to compile, are the parent's.
    again.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_after_fork)
