"""What is known to fail, so that it is not found out again at every compile.

Invariant: a verdict is taken for granted for as long as its fallback is valid, and
never more than so many are held.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .errors import CompilationModuleError
    from .fallback import Tried

_MOST_VERDICTS = 256


@dataclass(frozen=True)
class Verdict:
    """How a key failed, what ran instead, and until when that is taken for granted."""

    tried: tuple[Tried, ...]
    rung: str
    error: CompilationModuleError
    until: float


class Verdicts:
    """What is known to fail, by key."""

    def __init__(self) -> None:
        """Know nothing."""
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Verdict] = OrderedDict()

    def __len__(self) -> int:
        """How many there are, old ones among them."""
        with self._lock:
            return len(self._known)

    def of(self, key: str) -> Verdict | None:
        """Return what is still taken for granted."""
        with self._lock:
            found = self._known.get(key)
            if found is None or found.until > time.monotonic():
                return found
            del self._known[key]
            return None

    def remember(self, key: str, verdict: Verdict) -> None:
        """Take it for granted for a while."""
        with self._lock:
            self._known[key] = verdict
            self._known.move_to_end(key)
            while len(self._known) > _MOST_VERDICTS:
                self._known.popitem(last=False)

    def forget(self, key: str) -> None:
        """Let it be tried again."""
        with self._lock:
            self._known.pop(key, None)
