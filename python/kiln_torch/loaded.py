"""What the engine loaded, told to the node in batches.

Invariant: ``add`` never blocks and never fails; what is queued when the process
ends is sent then, in a bounded time, and a process that is killed loses a
statistic, nothing else.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_EVERY = 1.0
_MOST = 4096


class LoadedQueue:
    """Keys to be reported."""

    def __init__(self, send: Callable[[list[bytes]], None]) -> None:
        """Report through ``send``, which does not raise."""
        self._send = send
        self._lock = threading.Lock()
        self._keys: list[bytes] = []
        self._timer: threading.Timer | None = None

    def add(self, keys: Sequence[bytes]) -> None:
        """Queue ``keys``."""
        with self._lock:
            self._keys.extend(keys[: _MOST - len(self._keys)])
            if self._timer is None and self._keys:
                self._timer = threading.Timer(_EVERY, self._flush)
                self._timer.daemon = True
                self._timer.start()

    def close(self, seconds: float) -> None:
        """Send what is queued, now; wait no longer than ``seconds`` for that."""
        with self._lock:
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            # A thread, because a node may take connections and answer nothing.
            sending = threading.Thread(target=self._flush, name="kiln-loaded", daemon=True)
            sending.start()
            sending.join(seconds)

    def _flush(self) -> None:
        with self._lock:
            keys, self._keys, self._timer = self._keys, [], None
        if keys:
            self._send(keys)
