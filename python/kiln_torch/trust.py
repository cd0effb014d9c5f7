"""Whose signatures count.

Invariant: with pinned keys nothing that a node says adds one; without, a signer
is trusted under the keys that the node that is asked names for it: more than one where
its key was changed. Where a root
says who signs, only what it certified is learned: then a pinned key counts that
is that signer's certified one.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Trust:
    """Public keys, pinned or learned."""

    def __init__(self, pinned: tuple[bytes, ...] = (), *, rooted: bool = False) -> None:
        """Trust ``pinned`` alone, unless it is empty; of it, if ``rooted``, what is learned."""
        self._pinned = pinned
        self._rooted = rooted
        self._lock = threading.Lock()
        self._learned: dict[int, tuple[bytes, ...]] = {}

    def learn(self, keys: Iterable[tuple[int, bytes]]) -> None:
        """Take over the signers' keys that a node names. Those that were learned stay."""
        with self._lock:
            for signer, key in keys:
                known = self._learned.get(signer, ())
                if key not in known:
                    self._learned[signer] = (*known, key)

    def keys(self, signer: int) -> tuple[bytes, ...]:
        """Return the keys under which ``signer`` may have signed."""
        if self._pinned and not self._rooted:
            return self._pinned
        with self._lock:
            learned = self._learned.get(signer, ())
        return tuple(key for key in learned if not self._pinned or key in self._pinned)

    def copy(self) -> Trust:
        """Return the same trust under a lock of its own: for a forked child."""
        copy = Trust(self._pinned, rooted=self._rooted)
        copy._learned = dict(self._learned)
        return copy
