"""A breaker: what failed costs nothing until it works again.

Invariant: only the first use of an endpoint waits for it in the caller's time;
whether it is back is found out by a thread of its own, with growing pauses.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 60.0


class Breaker:
    """Closed while the endpoint works; open from its first failure on."""

    def __init__(
        self, probe: Callable[[], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Take ``probe``: whether the endpoint works now. It may block; it may not raise."""
        self._probe = probe
        self._clock = clock
        self._lock = threading.Lock()
        self._open = False
        self._probing = False
        self._pause = _FIRST_PAUSE
        self._retry_at = 0.0

    @property
    def closed(self) -> bool:
        """Whether the endpoint may be used; asks in the background when it is time to."""
        with self._lock:
            if not self._open:
                return True
            if self._probing or self._clock() < self._retry_at:
                return False
            self._probing = True
        threading.Thread(target=self._ask, name="kiln-probe", daemon=True).start()
        return False

    def trip(self) -> None:
        """Record a failure."""
        with self._lock:
            self._open = True
            self._retry_at = self._clock() + self._pause

    def _ask(self) -> None:
        works = self._probe()
        with self._lock:
            self._probing = False
            self._open = not works
            self._pause = _FIRST_PAUSE if works else min(self._pause * 2, _LONGEST_PAUSE)
            self._retry_at = self._clock() + self._pause
