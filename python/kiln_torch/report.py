"""Counters, and log lines that come once.

Invariant: every trouble that is not raised is counted here, and each kind of it
is logged the first time only: a compile asks thousands of times.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter

log = logging.getLogger("kiln_torch")

_lock = threading.Lock()
_counts: Counter[str] = Counter()
_said: set[str] = set()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def count(name: str, by: int = 1) -> None:
    """Add to the counter ``name``."""
    with _lock:
        _counts[name] += by


def once(kind: str, message: str, *args: object) -> None:
    """Log a warning, the first time that this ``kind`` of it comes up."""
    with _lock:
        if kind in _said:
            return
        _said.add(kind)
    log.warning(message, *args)


def stats() -> dict[str, int]:
    """All counters of this process: what was hit, waited for, refused, failed."""
    with _lock:
        return dict(_counts)


def reset() -> None:
    """Forget all counters and what was logged: for tests and forked children."""
    with _lock:
        _counts.clear()
        _said.clear()
