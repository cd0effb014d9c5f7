"""Keys on their way in this process: who asks for one that is, takes what comes of it.

The first to ask looks in the store, and has another process compile; what that
gives is everybody's. What is compiled in this process is compiled by whoever has
torch's lock first, with the permit that the first one got.
Invariant: nobody waits here for a thread that may wait for torch's lock, which
the one that waits may hold.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..manifest import Artifact
    from .store import Permit


class Flight:
    """One key of one store, looked for and perhaps compiled."""

    def __init__(self) -> None:
        """Start; nothing is known yet."""
        self._looked = threading.Event()
        self._lock = threading.Lock()
        self._permit: Permit | None = None
        # What the store had, what was compiled, and what failed, if anything.
        self.artifact: Artifact | None = None
        self.made: Mapping[str, bytes] | None = None
        self.failure: Exception | None = None
        # Whether another process was to compile it, and cannot.
        self.unfit = False

    def looked(
        self,
        artifact: Artifact | None,
        permit: Permit | None,
        made: Mapping[str, bytes] | None,
        failure: Exception | None,
        *,
        unfit: bool = False,
    ) -> None:
        """Say what the first one found; those that wait go on."""
        self.artifact, self.made, self.failure = artifact, made, failure
        self.unfit = unfit
        with self._lock:
            self._permit = permit
        self._looked.set()

    def wait(self) -> None:
        """Wait until the first one has looked: for the store, or for another process."""
        self._looked.wait()

    def take(self) -> Permit | None:
        """Take the permit: one alone gets it."""
        with self._lock:
            permit, self._permit = self._permit, None
        return permit


class Flights:
    """All of this process."""

    def __init__(self) -> None:
        """Have none."""
        self._lock = threading.Lock()
        self._flights: dict[Any, Flight] = {}

    def join(self, place: str, key: bytes) -> tuple[Flight, bool]:
        """Return the key's flight, and whether it has just begun: then look."""
        with self._lock:
            flight = self._flights.get((place, key))
            if flight is not None:
                return flight, False
            flight = self._flights[place, key] = Flight()
            return flight, True

    def end(self, place: str, key: bytes, flight: Flight) -> None:
        """Let a key go: memory or the store has it now, or nobody has."""
        with self._lock:
            if self._flights.get((place, key)) is flight:
                del self._flights[place, key]


flights = Flights()


def _after_fork() -> None:
    # What the parent's threads were about to find, nobody here will tell.
    flights.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_after_fork)
