"""Packages sent to the cluster: in the background, and in a bounded time at exit.

Invariant: a compile waits for nothing here. One thread sends what has not changed
for a moment; it ends with the process, which waits ``_AT_EXIT`` seconds for it.
"""

from __future__ import annotations

import atexit
import dataclasses
import os
import pickle
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from .. import report

if TYPE_CHECKING:
    from .package import Snapshot
    from .store import Package, Store

# Seconds without a new frame after which the warm-up counts as over.
_QUIET = 1.0
_AT_EXIT = 10.0
# Between two looks for a graph that is not there yet: a backward pass.
_LONGEST_PAUSE = 60.0


_all: weakref.WeakSet[Publisher] = weakref.WeakSet()


def busy() -> bool:
    """Whether this process has packages that are not in the cluster yet."""
    return any(each.busy for each in _all)


class Publisher:
    """Sends packages."""

    def __init__(self, store: Store) -> None:
        """Send through ``store``."""
        self._store = store
        self._reset()
        _all.add(self)
        os.register_at_fork(after_in_child=self._reset)
        atexit.register(self.close)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[str, Snapshot] = {}
        self._due = 0.0
        self._pause = _QUIET
        self._ending = False
        self._sending = False
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether something waits, or is being sent."""
        with self._changed:
            return bool(self._waiting) or self._sending

    def send(self, snapshot: Snapshot) -> None:
        """Send a package once it does not change any more."""
        with self._changed:
            self._waiting[snapshot.asked.name] = snapshot
            self._pause = _QUIET
            self._due = time.monotonic() + _QUIET
            if self._thread is None and not self._ending:
                self._thread = threading.Thread(
                    target=self._run, name="kiln-precompile", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def close(self) -> None:
        """Send what waits, in a bounded time."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(_AT_EXIT)
            if thread.is_alive():
                report.count("precompile.unpublished")

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._ending:
                    left = self._due - time.monotonic() if self._waiting else None
                    if left is not None and left <= 0:
                        break
                    self._changed.wait(left)
                ending, waiting = self._ending, self._waiting
                self._waiting, self._sending = {}, True
            unfinished = {n: s for n, s in waiting.items() if not self._sent(s, last=ending)}
            with self._changed:
                self._sending = False
                if ending:
                    return
                # What came meanwhile is newer.
                self._waiting = {**unfinished, **self._waiting}
                if unfinished and self._due <= time.monotonic():
                    self._pause = min(2 * self._pause, _LONGEST_PAUSE)
                    self._due = time.monotonic() + self._pause

    def _sent(self, snapshot: Snapshot, *, last: bool) -> bool:
        try:
            package = _packed(snapshot, last=last)
            if package is None:
                return last
            from .. import cpu

            name, label = snapshot.asked.name, snapshot.asked.label
            architecture = cpu.instruction_sets() if snapshot.cpu else ""
            became = self._store.publish(
                name,
                label,
                package,
                snapshot.facts,
                architecture,
                snapshot.seconds,
                snapshot.unusable,
            )
            report.count(f"precompile.{became}")
        except Exception as error:
            report.count("precompile.unpublished")
            report.once("precompile publish", "precompile: not published: %r", error)
        return True


def _packed(snapshot: Snapshot, *, last: bool) -> Package | None:
    """Put a package together; ``None`` where a graph's code is not there, or not yet."""
    from torch._dynamo.package import PrecompileCacheEntry

    before: dict[Any, Any] = {}
    if snapshot.loaded is not None:
        # Verified when it was loaded.
        before = pickle.loads(snapshot.loaded).backends  # noqa: S301
    backends: dict[Any, Any] = {}
    codes = []
    for entry in snapshot.dynamo.codes:
        found = {each: _backend(each) or before.get(each) for each in entry.backend_ids}
        if None in found.values():
            if not last:
                return None
            report.count("precompile.no_backend")
            entry = dataclasses.replace(entry, guarded_codes=[], backend_ids=[], bypassed=True)
            found = {}
        codes.append(entry)
        backends.update(found)
    if all(entry.bypassed for entry in codes):
        return None
    dynamo = dataclasses.replace(snapshot.dynamo, codes=codes)
    whole = PrecompileCacheEntry(dynamo=dynamo, backends=backends)
    from .noted import state_digest
    from .store import Package

    states = {state_digest(each.guards_state) for code in codes for each in code.guarded_codes}
    checks = {state: rows for state, rows in snapshot.checks.items() if state in states}
    return Package(pickle.dumps(whole), checks)


def _backend(name: Any) -> Any:
    """Return the code of one graph, complete in itself."""
    from torch._dynamo.precompile_context import PrecompileContext
    from torch._functorch._aot_autograd.aot_autograd_result import BundledAOTAutogradResult

    found = PrecompileContext.serialize_artifact_by_key(name)
    # An entry that another process stored without packages names a file that is not here.
    if found is None or not isinstance(found.content, BundledAOTAutogradResult):
        return None
    return found
