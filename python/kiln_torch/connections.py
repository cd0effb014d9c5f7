"""One process's connections, leases and queues.

Invariant: nothing here survives a fork, because threads do not: a child makes its
own (see ``pid``). ``close`` ends within the settings' bound, whatever the nodes do.
"""

from __future__ import annotations

import os
import time
import weakref
from typing import TYPE_CHECKING

from . import report, wire
from .endpoint import Endpoint
from .errors import KilnError, Unreachable
from .loaded import LoadedQueue
from .local import LocalNode
from .publishing import PublishQueue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .config import Settings
    from .lease import Lease
    from .prefetch.remembered import Remembered
    from .trust import Trust


class Connections:
    """What belongs to one process."""

    def __init__(
        self, settings: Settings, trust: Trust, remembered: Remembered | None = None
    ) -> None:
        """Connect to nothing yet."""
        self.pid = os.getpid()
        self.trust = trust
        self.endpoints = tuple(Endpoint(a, settings, self.trust) for a in settings.endpoints)
        self.local = None
        if settings.socket:
            self.local = LocalNode(
                settings.socket, settings.connect, settings.answer, settings.current_token
            )
        # Whether the socket's node had an artifact of this tenant, or did not see one that
        # there is: its "not found" counts in the first case, and it is left out in the second.
        self.local_serves = False
        self.local_blind = False
        self.leases: weakref.WeakSet[Lease] = weakref.WeakSet()
        self.loaded = LoadedQueue(self._send_loaded)
        self.publications = PublishQueue()
        self.remembered = remembered
        self.exit = settings.exit
        # What still runs behind the caller's back then begins nothing new.
        self.closed = False
        self.learned_at = float("-inf")

    def usable(self) -> Iterator[Endpoint]:
        """Return the nodes that work, in order; one that was never tried is tried now."""
        return (endpoint for endpoint in self.endpoints if endpoint.usable)

    def _send_loaded(self, keys: list[bytes]) -> None:
        for endpoint in self.usable():
            try:
                endpoint.unary("Loaded", wire.LoadedRequest(keys=keys), wire.LoadedResponse)
            except Unreachable:
                continue
            except KilnError as error:
                report.count("errors")
                report.log.debug("loaded: %s", error)
            return

    def close(self) -> None:
        """Publish and send what is queued, within KILN_EXIT_SECONDS, and hold nothing more."""
        end = time.monotonic() + self.exit
        self.publications.close(self.exit)
        self.closed = True
        # Under one bound with it: a node that is paused delays no exit twice.
        if self.remembered is not None:
            self.remembered.close(max(end - time.monotonic(), 0.0))
        self.loaded.close(max(end - time.monotonic(), 0.0))
        for lease in list(self.leases):
            lease.release()
        for endpoint in self.endpoints:
            endpoint.close()
        if self.local is not None:
            self.local.close()
