"""Artifacts of one process, committed: now or behind the caller's back.

Invariant: a lease that is given ends here, whatever happens; nothing raises for what
the network or a node does; what was published is not taken from what was fetched
ahead, and is among what this program used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import report, wire
from .key import VALUE, key_of, value_components
from .manifest import Fingerprint, Target
from .packing import pack, publication
from .publishing import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .connections import Connections
    from .endpoint import Endpoint
    from .key import Component
    from .lease import Lease
    from .packing import Packed
    from .prefetch.received import Received

# The file in a program's list of what it used.
LIST = "value"


class Committing:
    """Publishes through whatever connections the process has."""

    def __init__(
        self,
        namespace: str,
        process: Callable[[], Connections],
        first: Callable[[str, Callable[[Endpoint], bool]], object],
        at: Callable[[Endpoint, str, Callable[[Endpoint], bool]], object],
        prefetched: Received | None,
    ) -> None:
        """Connect to nothing. ``first`` asks nodes in order, ``at`` a certain one."""
        self._namespace = namespace
        self._process = process
        self._first = first
        self._at = at
        self._prefetched = prefetched

    def publish(
        self,
        lease: Lease | None,
        components: Sequence[Component],
        files: Mapping[str, bytes],
        *,
        replace: bool = False,
        **named: Any,
    ) -> bool:
        """Commit under ``lease``, or over what is there with ``replace``; whether it is done."""
        state = self._process()
        try:
            packed = self._packed(components, files, **named)
        except ValueError as error:
            report.count("errors")
            report.once("publish", "not published: %s", error)
            if lease is not None:
                lease.release()
            return False
        done: object = None
        if lease is not None:
            done = self._under(lease, packed) if lease.alive else None
            lease.release()
        if done is None and replace and not state.closed:
            done = self._over(packed)
        report.count("published" if done is True else "unpublished")
        if self._prefetched is not None:
            self._prefetched.drop(packed.manifest.key)
        if done is True and state.remembered is not None:
            state.remembered.add([packed.manifest.key])
        return done is True

    def later(
        self,
        lease: Lease | None,
        components: Sequence[Component],
        files: Mapping[str, bytes],
        **named: Any,
    ) -> bool:
        """Queue it for ``publish``; whether there was room."""

        def give_up() -> None:
            report.count("unpublished")
            if lease is not None:
                lease.release()

        def run() -> None:
            try:
                self.publish(lease, components, files, **named)
            except Exception as error:
                report.count("bugs")
                report.once(f"publish {type(error).__name__}", "publish: %r", error)
                give_up()

        size = sum(len(data) for data in files.values())
        return self._process().publications.add(Work(key_of(components), size, run, give_up))

    def write_list(self, name: str, data: bytes) -> None:
        """Commit the list of what a program used; it is not counted as published."""
        packed = self._packed(
            value_components(self._namespace, name),
            {LIST: data},
            fingerprint=Fingerprint(VALUE),
            target=Target.any(),
            label=name,
            seconds=0.0,
        )
        self._over(packed)

    def _packed(
        self,
        components: Sequence[Component],
        files: Mapping[str, bytes],
        *,
        target: Target | str,
        **named: Any,
    ) -> Packed:
        where = Target.parse(target) if isinstance(target, str) else target
        return pack(components, files, target=where, namespace=self._namespace, **named)

    def _under(self, lease: Lease, packed: Packed) -> object:
        """Commit at the node that granted ``lease``."""

        def commit(endpoint: Endpoint) -> bool:
            chunks = publication(packed, token=lease.token, grant=lease.grant)
            endpoint.upload("Publish", chunks, packed.size, wire.PublishResponse)
            # An artifact that was there already is as good: it is the key's.
            return True

        return self._at(lease.endpoint, "publish", commit)

    def _over(self, packed: Packed) -> object:
        """Commit over what is there, through the first node that does."""

        def commit(endpoint: Endpoint) -> bool:
            chunks = publication(packed, replace=True)
            endpoint.upload("Publish", chunks, packed.size, wire.PublishResponse)
            return True

        return self._first("publish", commit)
