"""One key's way through the store and the processes that compile. It uses no torch.

Many look at once: wait for the store, for other processes of the fleet, and for
compiles in processes of their own.
Invariant: a permit is published under or released before anything else is waited
for, so that two processes never wait for each other; each lookup counts one hit
or one miss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import report
from ..key import key_of
from ..manifest import Artifact
from .errors import CompilationModuleError
from .flights import flights
from .pool import Unfit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..asked import Asked
    from ..key import Component
    from .flights import Flight
    from .store import Permit
    from .tiers import Tiers


class Lookup:
    """What is known of a graph's keys, beside the graph."""

    def __init__(
        self,
        tiers: Tiers,
        *,
        stored: bool,
        timeout: float | None = None,
        deadline: float | None = None,
        alone: bool = False,
    ) -> None:
        """``stored``: whether the store keeps what the compiler gives."""
        self._tiers = tiers
        self._stored = stored
        self._timeout = timeout
        self._deadline = deadline
        self._alone = alone
        self._behind = False
        self.asked: Asked | None = None
        # The key for all sizes, then the one for those of this process; which of them.
        self.candidates: list[tuple[bytes, tuple[Component, ...]]] = []
        self._at = 0
        # The compile as another process takes it.
        self.job: bytes | None = None
        # What the store has, what was made of it meanwhile, or why not.
        self.artifact: Artifact | None = None
        self.made: Mapping[str, bytes] | None = None
        self.failure: Exception | None = None
        # Another thread of this process made it.
        self.follows = False
        # The other process cannot: look again before it is compiled here.
        self.postponed = False
        self._own_permit: Permit | None = None
        self._flight: Flight | None = None
        # Whether no cache had it.
        self.missed = False
        # Seconds that its compile took, here or in another process; 0 for a hit.
        self.seconds = 0.0
        # Seconds until that process began it, and where torch says that the others went.
        self.waited = 0.0
        self.phases: Mapping[str, float] = {}

    @property
    def key(self) -> bytes | None:
        """The key that is looked for now; ``None``: there is none."""
        return self.candidates[self._at][0] if self.candidates else None

    def next(self) -> bool:
        """Go on to the next key; ``False``: this was the last."""
        if self._at + 1 >= len(self.candidates):
            return False
        self.end()
        self._at += 1
        return True

    def look(self) -> None:
        """Ask the store, and compile in another process where it has nothing.

        One thread of this process does so for a key; others wait for what it finds.
        """
        self.end()
        self.postponed = False
        key = self.key
        if key is not None and self._tiers.memory is not None:
            self._flight, first = flights.join(self._place, key)
            if not first:
                self._follow(self._flight)
                return
        try:
            self._look()
        finally:
            if self._flight is not None:
                permit, self._own_permit = self._own_permit, None
                self._flight.looked(
                    self.artifact, permit, self.made, self.failure, unfit=self.postponed
                )

    def look_again(self) -> bool:
        """Look after a failure; whether there is something to load now.

        Nobody waits for it, and nobody takes its failure for an answer: it is no flight,
        and has a process of its own.
        """
        self.artifact = self.made = self.failure = None
        self._behind = True
        try:
            self._look()
        finally:
            self.end()
        if self.failure is not None:
            raise self.failure
        return self.artifact is not None or self.made is not None

    def fetch(self) -> Artifact | None:
        """Return what the store has, and wait for nobody."""
        store = self._tiers.store
        if store is None or self.key is None:
            return None
        return self._tiers.checked(self.key, store.fetch, self.asked)

    def discard(self, artifact: Artifact) -> None:
        """Remove an entry that is of no use, and ask for the right to make another."""
        self._tiers.counter.count("num_cache_corrupted")
        self.artifact = None
        store = self._tiers.store
        if self._tiers.discard(artifact.key) and store is not None:
            self._answered(self._tiers.checked(artifact.key, store.acquire, self.asked))

    def made_meanwhile(self) -> Mapping[str, bytes] | None:
        """Return what another thread compiled; it is no miss."""
        if self.made is None and self._flight is not None and self._flight.made is not None:
            self.made, self.follows = self._flight.made, True
        return self.made if self.follows else None

    def compiled(self, files: Mapping[str, bytes]) -> None:
        """Publish what was compiled here, for the other threads as well."""
        if self._flight is not None:
            self._flight.made = files
        self._publish(files)

    def save(self, files: Mapping[str, bytes], seconds: float) -> bool:
        """Store files under the first key, unless it is there already."""
        store = self._tiers.store
        if store is None or self.key is None:
            return False
        self._answered(self._tiers.checked(self.key, store.acquire, self.asked))
        self.seconds = seconds
        return self._publish(files)

    def end(self) -> None:
        """Give up the permit, if there is one still, and let the key go."""
        permit = self._permit()
        if permit is not None:
            permit.release()
        flight, self._flight = self._flight, None
        if flight is not None and self.key is not None:
            flights.end(self._place, self.key, flight)

    def count_hit(self) -> None:
        """Count a hit in memory, unless it was a miss before."""
        if not self.missed:
            self._tiers.counter.count("num_cache_hits")
            self._tiers.monitor.record_memory_cache_hit()

    def count_miss(self) -> None:
        """Count a miss, once. With the cache switched off nothing was looked up."""
        if not self.missed and self._tiers.memory is not None:
            self._tiers.counter.count("num_cache_misses")
            self._tiers.monitor.record_cache_miss(self._parts())
        self.missed = True

    def _parts(self) -> dict[str, str]:
        """Return the digests of the key's parts, by name."""
        if not self.candidates:
            return {}
        return {each.name: key_of((each,)).hex() for each in self.candidates[self._at][1]}

    @property
    def _place(self) -> str:
        store = self._tiers.store
        return "" if store is None else store.place

    def _look(self) -> None:
        self.artifact = None
        store = self._tiers.store
        try:
            if store is not None and self.key is not None and self._stored:
                self._answered(self._tiers.checked(self.key, store.acquire, self.asked))
            if self.artifact is None:
                self._compile_elsewhere()
        except Exception as error:
            # The caller's thread raises it.
            self.failure = error

    def _answered(self, answer: Artifact | Permit | None) -> None:
        if isinstance(answer, Artifact):
            self.artifact = answer
        else:
            self._own_permit = answer

    def _follow(self, flight: Flight) -> None:
        flight.wait()
        self.artifact, self.failure = flight.artifact, flight.failure
        self.made, self.follows = flight.made, flight.made is not None
        if flight.unfit:
            self.job, self.postponed = None, True

    def _compile_elsewhere(self) -> None:
        pool = self._tiers.pool
        if pool is None or self.job is None:
            return
        try:
            pool = pool.behind() if self._behind else pool
            compiled = pool.compile(
                self.job, self._timeout, deadline=self._deadline, alone=self._alone
            )
        except CompilationModuleError:
            self.count_miss()
            raise
        except Unfit as why:
            # Until it is compiled here others may: a permit is never held by who
            # waits for something else.
            permit, self._own_permit = self._own_permit, None
            if permit is not None:
                permit.release()
            self.job, self.postponed = None, True
            said_here(why)
            return
        self.count_miss()
        files = self.made = compiled.files
        self.seconds, self.waited, self.phases = compiled.seconds, compiled.waited, compiled.phases
        self._tiers.counter.count("num_inductor_compiles")
        self._tiers.monitor.record_compilation_time(self.seconds)
        self._publish(files)

    def _publish(self, files: Mapping[str, bytes]) -> bool:
        permit = self._permit()
        if permit is None or self.asked is None:
            return False
        try:
            components = self.candidates[self._at][1]
            done = permit.publish(components, files, self.asked, self.seconds)
        finally:
            permit.release()
        if done:
            self._tiers.counter.count("num_compiled_artifacts_saved")
        return done

    def _permit(self) -> Permit | None:
        """Take the permit, which is one's own or that of all that ask for the key."""
        permit, self._own_permit = self._own_permit, None
        if permit is None and self._flight is not None:
            permit = self._flight.take()
        return permit


def said_here(why: Exception) -> None:
    """Say that a compile was for another process, and is done in this one."""
    report.count("compilation.here")
    report.once(f"here {type(why).__name__}", "compiled in this process, one by one: %r", why)
    report.log.info("compiled in this process: %r", why)
