"""What this process used of the cluster, written to its program's list.

Invariant: written behind the caller's back, a while after something new was used and
once more at the end; a process that is killed before loses a faster start, no more.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from . import listed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# After the first use: whoever compiles one graph compiles more.
_FIRST_SECONDS = 3.0
_MOST_SECONDS = 300.0


class Remembered:
    """The keys that this process used."""

    def __init__(self, read: Callable[[], bytes | None], write: Callable[[bytes], object]) -> None:
        """``read`` and ``write`` the list; neither raises, both are called from a thread."""
        self._read = read
        self._write = write
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._used: dict[bytes, None] = {}
        self._changed = False
        self._before: dict[bytes, int] | None = None
        self._pause = _FIRST_SECONDS
        self._timer: threading.Timer | None = None

    def add(self, keys: Iterable[bytes]) -> None:
        """Remember ``keys``."""
        with self._lock:
            new = [key for key in keys if key not in self._used]
            room = listed.MOST_KEYS - len(self._used)
            self._used.update(dict.fromkeys(new[:room]))
            self._changed |= bool(new[:room])
            if self._changed and self._timer is None:
                self._timer = threading.Timer(self._pause, self._save)
                self._timer.daemon = True
                self._timer.start()
                self._pause = min(self._pause * 4, _MOST_SECONDS)

    def close(self, seconds: float) -> None:
        """Write what is not written yet; wait no longer than ``seconds`` for that."""
        with self._lock:
            timer, self._timer = self._timer, None
        if timer is None:
            return
        timer.cancel()
        writing = threading.Thread(target=self._save, name="kiln-remember", daemon=True)
        writing.start()
        writing.join(seconds)

    def _save(self) -> None:
        with self._writing:
            with self._lock:
                used, self._timer, self._changed = list(self._used), None, False
            if self._before is None:
                # Once: this run counts once, however often it writes.
                self._before = listed.read(self._read())
            after = listed.updated(self._before, used)
            if after != self._before:
                self._write(listed.write(after))
