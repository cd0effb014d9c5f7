"""Publications behind the caller's back: a bounded queue, and a thread that empties it.

A compile goes on while what it made is described, hashed and sent. What does not
fit into the queue is dropped and counted, never published in the caller's time: a
full queue means that nodes are slower than compiles, and whoever compiles shall not
wait for them. The thread lives while there is work, and ends with the process.
Invariant: ``add`` blocks on nothing but the queue's own lock; a work is either
run or given up, once, and what gives it up releases its lease.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import report

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_BYTES = 512 << 20
MOST_WORKS = 1024


@dataclass(frozen=True)
class Work:
    """One publication."""

    key: bytes
    size: int
    # Neither raises.
    run: Callable[[], object]
    give_up: Callable[[], None]


class PublishQueue:
    """The publications of one process; used from any thread."""

    def __init__(self, most_bytes: int = MOST_BYTES, most_works: int = MOST_WORKS) -> None:
        """Start no thread yet."""
        self._most_bytes = most_bytes
        self._most_works = most_works
        self._changed = threading.Condition()
        self._works: deque[Work] = deque()
        # Queued or running.
        self._open: dict[bytes, int] = {}
        self._bytes = 0
        self._running = False
        self._closed = False

    def add(self, work: Work) -> bool:
        """Take ``work``, or give it up at once where there is no room."""
        with self._changed:
            room = self._bytes + work.size <= self._most_bytes
            taken = room and len(self._works) < self._most_works and not self._closed
            if taken:
                self._works.append(work)
                self._bytes += work.size
                self._open[work.key] = self._open.get(work.key, 0) + 1
                if not self._running:
                    taken = self._start()
        if not taken:
            self._give_up(work)
        return taken

    def wait_for(self, key: bytes, seconds: float) -> bool:
        """Wait until nothing under ``key`` is queued or running; whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: key not in self._open, seconds)

    def flush(self, seconds: float) -> bool:
        """Wait until all is done; whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._open, seconds)

    def close(self, seconds: float) -> None:
        """Let what is queued have this long; give up the rest, but for what runs."""
        end = time.monotonic() + seconds
        with self._changed:
            self._closed = True
        if not self.flush(max(end - time.monotonic(), 0.0)):
            report.count("publish_cut")
        with self._changed:
            left = list(self._works)
            self._works.clear()
            for work in left:
                self._done(work)
        for work in left:
            self._give_up(work)

    def _start(self) -> bool:
        """Start the thread; with the lock held, right after a work was queued."""
        try:
            threading.Thread(target=self._empty, name="kiln-publish", daemon=True).start()
        except RuntimeError:
            # No more threads, or the interpreter ends.
            self._done(self._works.pop())
            return False
        self._running = True
        return True

    def _empty(self) -> None:
        while True:
            with self._changed:
                if not self._works:
                    self._running = False
                    return
                work = self._works.popleft()
            try:
                work.run()
            finally:
                with self._changed:
                    self._done(work)

    def _done(self, work: Work) -> None:
        """Forget a work, with the lock held."""
        self._bytes -= work.size
        self._open[work.key] -= 1
        if not self._open[work.key]:
            del self._open[work.key]
        self._changed.notify_all()

    @staticmethod
    def _give_up(work: Work) -> None:
        report.count("publish_dropped")
        report.once("publish dropped", "more was compiled than could be published: see stats()")
        work.give_up()
