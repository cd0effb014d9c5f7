"""Artifacts of one process's nodes: described, fetched, and verified.

Invariant: what is returned was checked, signature and bytes, and is of this tenant;
whatever else a node sends raises ``Refused``, and a node that stalls ``Unreachable``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from . import manifest, wire
from .errors import NotFound, Refused
from .manifest import Artifact

if TYPE_CHECKING:
    from collections.abc import Callable

    from .config import Settings
    from .connections import Connections
    from .endpoint import Endpoint
    from .manifest import Manifest

# Between two questions about a signer that nobody knows.
_LEARN_EVERY = 5.0


class Reading:
    """Reads through whatever connections the process has."""

    def __init__(self, settings: Settings, process: Callable[[], Connections]) -> None:
        """Connect to nothing."""
        self._settings = settings
        self._process = process

    def fetch_local(self, key: bytes) -> Artifact:
        """Fetch through the socket of this machine's node, which must be usable."""
        local = self._process().local
        assert local is not None
        signed, memory, tier = local.fetch(key, self._settings.namespace)
        return Artifact.verified(self._verified(signed, key), memory, tier)

    def look(self, endpoint: Endpoint, key: bytes, *, latest: bool = False) -> Manifest:
        """Return what the index holds; moves no bytes."""
        request = wire.LookupRequest(
            key=key, namespace=self._settings.namespace, linearizable=latest
        )
        response = endpoint.unary("Lookup", request, wire.LookupResponse)
        if not response.HasField("entry"):
            raise NotFound
        return self._verified(response.entry.manifest, key, endpoint)

    def fetch(self, endpoint: Endpoint, key: bytes) -> Artifact:
        """Fetch through gRPC."""
        request = wire.FetchRequest(key=key, namespace=self._settings.namespace)
        limit = endpoint.patience(manifest.MAX_PACK_BYTES)
        call = endpoint.stream("Fetch", request, wire.FetchChunk, limit)
        header: Any = None
        described: Manifest | None = None
        memory = bytearray()
        filled = 0
        with endpoint.reading(call, self._settings.answer) as watchdog:
            for chunk in call:
                if described is None:
                    header = chunk.header
                    described = self._verified(header.manifest, key, endpoint)
                    memory = bytearray(described.pack_size)
                    watchdog.feed(endpoint.patience(described.pack_size))
                    continue
                end = filled + len(chunk.data)
                if end > len(memory):
                    call.cancel()
                    raise Refused("more bytes came than the manifest has")
                memory[filled:end] = chunk.data
                filled = end
        if described is None or filled != len(memory):
            raise Refused("the stream ended early")
        tier = wire.TIERS.get(header.tier, "unspecified")
        return Artifact.verified(described, memoryview(memory), tier)

    def _verified(self, signed: Any, key: bytes, asked: Endpoint | None = None) -> Manifest:
        state = self._process()
        keys = state.trust.keys(signed.signer)
        try:
            read = manifest.verify(signed, keys, key)
        except Refused:
            # Of a node that joined, or changed its key, after this process asked. The socket
            # names no keys.
            endpoint = asked or next(state.usable(), None)
            if endpoint is None or time.monotonic() - state.learned_at <= _LEARN_EVERY:
                raise
            state.learned_at = time.monotonic()
            endpoint.learn()
            read = manifest.verify(signed, state.trust.keys(signed.signer), key)
        if read.namespace != self._settings.namespace:
            raise Refused(f"the artifact is of namespace {read.namespace!r}")
        return read
