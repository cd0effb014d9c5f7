"""Emergencies of a manager: no compiler, or no cache, until it is told otherwise.

Invariant: what runs in an emergency is the graph itself, and a cache that failed is
used again only after an entry was written to it, read back and found to be the same.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from .. import report

if TYPE_CHECKING:
    from collections.abc import Callable

    from .store import Store
    from .tiers import Tiers


class Emergency:
    """Whether a manager compiles, and whether it has a cache."""

    def __init__(self, tiers: Tiers, open_store: Callable[[], Store | None] | None) -> None:
        """Have none; ``open_store``: opens the cache again, ``None``: there is to be none."""
        self._tiers = tiers
        self._open = open_store
        self._lock = threading.Lock()
        # Nothing is compiled, and why.
        self.eager = False
        self.why = ""
        # The store is not used, and why; "": it is.
        self.cache_off = ""
        # That store, until another one is opened.
        self.set_aside: Store | None = None

    def initiate_emergency_fallback(self, why: str) -> bool:
        """Compile nothing from now on; ``False``: that was so before."""
        activated = self.switch_to_eager_mode(why)
        if activated:
            report.count("compilation.emergency")
            report.log.error("emergency: graphs run uncompiled from now on: %s", why)
        return activated

    def switch_to_eager_mode(self, why: str) -> bool:
        """Have graphs run as they are."""
        with self._lock:
            if self.eager:
                return False
            self.eager, self.why = True, why
            return True

    def leave_eager_mode(self) -> bool:
        """Compile again; ``False``: there was no emergency."""
        with self._lock:
            was, self.eager, self.why = self.eager, False, ""
        if was:
            report.log.warning("emergency over: graphs are compiled again")
        return was

    def disable_compilation_cache(self, why: str) -> None:
        """Use the store no more: what is not in memory is compiled."""
        with self._lock:
            self.cache_off = why or "by hand"
            self.set_aside, self._tiers.store = self._tiers.store or self.set_aside, None
        report.count("compilation.cache_disabled")
        report.log.error("the cache is not used from now on: %s", why)

    def reinitialize_cache_system(self) -> bool:
        """Open the store again and check it; ``False``: it is of no use, and stays off."""
        if self._open is None:
            return False
        store = None
        with contextlib.suppress(OSError):
            store = self._open()
        if store is None or not store.check():
            report.log.error("the cache does not keep what it is given: it stays off")
            return False
        with self._lock:
            self._tiers.store, self.set_aside, self.cache_off = store, None, ""
        report.count("compilation.cache_restored")
        report.log.warning("the cache is used again")
        return True
