"""What other tools store under names of their own: get with single flight, and put.

The same keys as a RESP client's GET and SET of the same name, so that both share
entries. Invariant: a lease that ``get`` took is published under by the next
``put`` of that name, or released by ``abandon``; it never outlives the process.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from . import report
from .key import VALUE, key_of, value_components
from .lease import Lease
from .manifest import Artifact, Fingerprint, Target

if TYPE_CHECKING:
    from .client import Client

FILE = "value"


class Values:
    """The values of one process. Share one between threads."""

    def __init__(self, client: Client) -> None:
        """Store through ``client``."""
        self._client = client
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._held: dict[str, Lease] = {}

    def get(self, name: str, *, wait: float | None = None, cascade: bool = False) -> bytes | None:
        """Return the value of ``name``, verified, or ``None``: make it, then ``put`` it.

        With ``wait``, only one process of the cluster makes it, and others wait
        that long for it. With ``cascade`` they all go on once that one gives up:
        for what may never be put.
        """
        key = key_of(value_components(self._client.namespace, name))
        if wait is None:
            return _bytes(self._client.fetch(key))
        found = self._client.acquire(key, wait)
        if not isinstance(found, Lease):
            return _bytes(found)
        if cascade and found.waited:
            found.release()
            return None
        with self._mine() as held:
            before = held.pop(name, None)
            held[name] = found
        if before is not None:
            before.release()
        return None

    def put(self, name: str, data: bytes, *, later: bool = False) -> bool:
        """Store ``data``: under the lease that ``get`` of ``name`` took, or over what is there.

        ``later``: behind the caller's back; then the answer is whether it was queued.
        """
        with self._mine() as held:
            lease = held.pop(name, None)
        publish = self._client.publish_later if later else self._client.publish
        return publish(
            lease,
            value_components(self._client.namespace, name),
            {FILE: data},
            fingerprint=Fingerprint(VALUE),
            target=Target.any(),
            label=name,
            seconds=0.0 if lease is None else lease.age,
            replace=True,
        )

    def used(self, name: str) -> None:
        """Say that the engine loaded the value of ``name``."""
        self._client.loaded([key_of(value_components(self._client.namespace, name))])

    def abandon(self) -> None:
        """Release every lease that nothing was put under: others shall not wait for it."""
        with self._mine() as held:
            leases = list(held.values())
            held.clear()
        for lease in leases:
            report.count("abandoned")
            lease.release()

    def _mine(self) -> _Held:
        if self._pid != os.getpid():
            # Forked: the leases are the parent's, and so may be the lock.
            self._pid, self._lock, self._held = os.getpid(), threading.Lock(), {}
        return _Held(self._lock, self._held)


class _Held:
    """The leases, while the lock is held."""

    def __init__(self, lock: threading.Lock, held: dict[str, Lease]) -> None:
        self._lock = lock
        self._held = held

    def __enter__(self) -> dict[str, Lease]:
        self._lock.acquire()
        return self._held

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _bytes(found: Artifact | None) -> bytes | None:
    if found is None:
        return None
    try:
        return bytes(found.file(FILE))
    except KeyError:
        report.count("refused")
        return None
