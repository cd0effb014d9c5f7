"""The client: look up, fetch, lease, publish, and say what was loaded.

Invariant: nothing here raises for what the network or a node does: the answer
is then that of a miss, counted in ``stats()`` and logged once. No byte is handed
out that was not checked against a manifest whose signer is trusted.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from . import config, manifest, report, wire
from .endpoint import Endpoint
from .errors import KilnError, NotFound, Refused, Stale, Unreachable
from .lease import Lease
from .loaded import LoadedQueue
from .local import LocalNode
from .manifest import Artifact, Fingerprint, Manifest, Target
from .packing import pack, publication
from .trust import Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from .config import Settings
    from .key import Component

_T = TypeVar("_T")
# Between two questions about a signer that nobody knows.
_LEARN_EVERY = 5.0


# The lease stream's word for an artifact that is there.
_READY = "ready"


class _Nothing(Enum):
    """Why there is no answer."""

    # There is none: a node said so.
    NOT_FOUND = 0
    # Nobody could say, or what was said was refused.
    TROUBLE = 1


class _Process:
    """What belongs to one process: connections do not survive a fork."""

    def __init__(self, settings: Settings, trust: Trust) -> None:
        self.pid = os.getpid()
        self.trust = trust
        self.endpoints = tuple(Endpoint(a, settings, self.trust) for a in settings.endpoints)
        self.local = None
        if settings.socket:
            self.local = LocalNode(settings.socket, settings.connect, settings.answer)
        self.leases: weakref.WeakSet[Lease] = weakref.WeakSet()
        self.loaded = LoadedQueue(self._send_loaded)
        self.learned_at = float("-inf")

    def usable(self) -> Iterator[Endpoint]:
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
        self.loaded.close()
        for lease in list(self.leases):
            lease.release()
        for endpoint in self.endpoints:
            endpoint.close()
        if self.local is not None:
            self.local.close()


class Client:
    """A process's way to its cluster. Share one between threads."""

    def __init__(self, settings: Settings) -> None:
        """Connect to nothing yet."""
        self.settings = settings
        self._lock = threading.Lock()
        self._state: _Process | None = None
        self._trust = Trust(settings.signers)
        # A lock that another thread holds during a fork stays locked in the child.
        os.register_at_fork(after_in_child=_Unlock(self))
        atexit.register(_close, weakref.ref(self))

    @classmethod
    def from_env(cls) -> Client | None:
        """Return this process's client; ``None`` without KILN_ENDPOINT or with KILN_DISABLE=1."""
        return _shared(config.from_env())

    @property
    def namespace(self) -> str:
        """The tenant."""
        return self.settings.namespace

    def lookup(self, key: bytes) -> Manifest | None:
        """Return the manifest that the index holds for ``key``, verified; moves no bytes."""
        found = self._first("lookup", lambda endpoint: self._look(endpoint, key))
        return None if isinstance(found, _Nothing) else found

    def fetch(self, key: bytes) -> Artifact | None:
        """Return the artifact of ``key``, verified; ``None`` for a miss of any kind."""
        found = self._find(key)
        return None if isinstance(found, _Nothing) else found

    def acquire(self, key: bytes, wait: float) -> Artifact | Lease | None:
        """Return the artifact, or the right to make it, or ``None``: make it without.

        While another process of the cluster makes it, waits up to ``wait`` seconds.
        """
        found = self._find(key)
        if isinstance(found, Artifact):
            return found
        if found is _Nothing.TROUBLE:
            # No answer, or a bad one: a lease would be no better.
            return None
        end = time.monotonic() + wait
        granted = self._first("lease", lambda endpoint: self._lease(endpoint, key, end))
        if isinstance(granted, Lease):
            return granted
        if granted is not _READY:
            return None
        # Somebody published meanwhile.
        report.count("coalesced")
        found = self._find(key)
        if found is _Nothing.NOT_FOUND:
            # The leader said so, and the replica of the node that is asked is behind.
            self._first("lookup", lambda endpoint: self._look(endpoint, key, latest=True))
            found = self._find(key)
        return None if isinstance(found, _Nothing) else found

    def publish(
        self,
        lease: Lease | None,
        components: Sequence[Component],
        files: Mapping[str, bytes],
        *,
        fingerprint: Fingerprint,
        target: Target | str,
        label: str,
        seconds: float,
        replace: bool = False,
    ) -> bool:
        """Commit an artifact under ``lease``, or over what is there with ``replace``.

        Ends the lease. Only keys that other tools own can be replaced.
        """
        try:
            packed = pack(
                components,
                files,
                fingerprint=fingerprint,
                target=Target.parse(target) if isinstance(target, str) else target,
                namespace=self.namespace,
                label=label,
                seconds=seconds,
            )
        except ValueError as error:
            report.count("errors")
            report.once("publish", "not published: %s", error)
            if lease is not None:
                lease.release()
            return False
        done: object = None
        if lease is not None:
            token, grant = lease.token, lease.grant

            def under(endpoint: Endpoint) -> bool:
                chunks = publication(packed, token=token, grant=grant)
                return _committed(endpoint, chunks, packed.size)

            done = self._at(lease.endpoint, "publish", under) if lease.alive else None
            lease.release()
        if done is None and replace:

            def over(endpoint: Endpoint) -> bool:
                return _committed(endpoint, publication(packed, replace=True), packed.size)

            done = self._first("publish", over)
        report.count("published" if done is True else "unpublished")
        return done is True

    def compile_program(
        self, archive: bytes, *, backend: str, target: str, name: str = "graph"
    ) -> Artifact | str:
        """Have a node compile an exported program; the artifact, or why there is none."""
        wanted = Target.parse(target)
        request = wire.CompileRequest(backend=backend, namespace=self.namespace)
        request.program.name, request.program.archive = name, archive
        request.targets.add(
            kind=wire.KINDS[wanted.kind],
            compute=wanted.compute,
            arch_specific=wanted.arch_specific,
        )
        said: list[str] = []

        def ask(endpoint: Endpoint) -> bytes:
            try:
                return self._compile(endpoint, request)
            except KilnError as error:
                said.append(str(error))
                raise

        key = self._first("compile", ask)
        if isinstance(key, _Nothing):
            return said[-1] if said else "no node can be reached"
        return self.fetch(key) or "the artifact cannot be fetched"

    def metrics(self, *, cluster: bool = False) -> Any:
        """Return the metrics of the first node that answers, or of all: a ``MetricsResponse``.

        Unlike what a compile asks for, this raises: ``Unreachable`` where no node answers.
        """
        request = wire.MetricsRequest(cluster=cluster)
        said: list[str] = []

        def ask(endpoint: Endpoint) -> Any:
            try:
                return endpoint.unary("Metrics", request, wire.MetricsResponse)
            except KilnError as error:
                said.append(str(error))
                raise

        answer = self._first("metrics", ask)
        if isinstance(answer, _Nothing):
            raise Unreachable(said[-1] if said else "no endpoint can be used")
        return answer

    def loaded(self, keys: Sequence[bytes]) -> None:
        """Say that the engine loaded these artifacts: later, and never in the caller's time."""
        report.count("loaded", len(keys))
        self._process().loaded.add(keys)

    def close(self) -> None:
        """Send what is queued, release all leases and close all connections."""
        with self._lock:
            state, self._state = self._state, None
        if state is not None and state.pid == os.getpid():
            state.close()

    def _process(self) -> _Process:
        with self._lock:
            if self._state is None or self._state.pid != os.getpid():
                self._state = _Process(self.settings, self._trust)
            return self._state

    def _find(self, key: bytes) -> Artifact | _Nothing:
        found = self._fetch_local(key) or self._first("fetch", lambda e: self._fetch(e, key))
        if isinstance(found, _Nothing):
            report.count("misses")
        else:
            report.count("hits")
            report.count("bytes_fetched", found.manifest.pack_size)
        return found

    def _first(self, doing: str, ask: Callable[[Endpoint], _T]) -> _T | _Nothing:
        """Ask the nodes in order until one answers."""
        tried = False
        for endpoint in self._process().usable():
            tried = True
            try:
                return ask(endpoint)
            except Unreachable as error:
                _trouble(doing, error)
            except NotFound:
                return _Nothing.NOT_FOUND
            except KilnError as error:
                _trouble(doing, error)
                return _Nothing.TROUBLE
        if not tried:
            report.count("skipped")
        return _Nothing.TROUBLE

    def _at(self, endpoint: Endpoint, doing: str, ask: Callable[[Endpoint], _T]) -> _T | None:
        try:
            return ask(endpoint)
        except KilnError as error:
            _trouble(doing, error)
            return None

    def _fetch_local(self, key: bytes) -> Artifact | None:
        local = self._process().local
        if local is None or not local.usable:
            return None
        try:
            signed, memory, tier = local.fetch(key)
            return Artifact.verified(self._verified(signed, key), memory, tier)
        except NotFound:
            pass
        except KilnError as error:
            _trouble("socket", error)
        return None

    def _look(self, endpoint: Endpoint, key: bytes, *, latest: bool = False) -> Manifest:
        request = wire.LookupRequest(key=key, namespace=self.namespace, linearizable=latest)
        response = endpoint.unary("Lookup", request, wire.LookupResponse)
        if not response.HasField("entry"):
            raise NotFound
        return self._verified(response.entry.manifest, key, endpoint)

    def _fetch(self, endpoint: Endpoint, key: bytes) -> Artifact:
        request = wire.FetchRequest(key=key, namespace=self.namespace)
        limit = endpoint.patience(manifest.MAX_PACK_BYTES)
        call = endpoint.stream("Fetch", request, wire.FetchChunk, limit)
        header: Any = None
        described: Manifest | None = None
        memory = bytearray()
        filled = 0
        with endpoint.reading(call, self.settings.answer) as watchdog:
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

    def _compile(self, endpoint: Endpoint, request: Any) -> bytes:
        """Return the key under which the node has it now."""
        key = b""
        bound = self.settings.hold
        call = endpoint.stream("Compile", request, wire.CompileEvent, bound)
        with endpoint.reading(call, bound):
            for event in call:
                kind = event.WhichOneof("event")
                if kind == "started":
                    key = event.started.key
        if not key:
            raise Refused("the node named no key")
        return key

    def _lease(self, endpoint: Endpoint, key: bytes, end: float) -> Lease | str | None:
        """Return a lease; ``_READY``: there is an artifact now; ``None``: neither."""
        left = max(end - time.monotonic(), 0.0)
        # The node ends the wait itself; the watchdog is for one that does not.
        bound = max(left, self.settings.answer)
        request = wire.LeaseRequest(key=key, deadline_ms=int(bound * 1000))
        call = endpoint.stream("Lease", request, wire.LeaseEvent, bound + self.settings.hold)
        waited = False
        with endpoint.reading(call, bound + 1.0) as watchdog:
            for event in call:
                kind = event.WhichOneof("event")
                if kind == "granted":
                    token, grant = event.granted.token, event.granted.grant
                    lease = Lease(key, token, grant, endpoint, call, waited=waited)
                    self._process().leases.add(lease)
                    report.count("leases")
                    return lease
                if kind != "waiting":
                    call.cancel()
                    return _READY if kind == _READY else None
                if not waited:
                    waited = True
                    report.count("waits")
                    if left <= 0:
                        call.cancel()
                        return None
                    watchdog.feed(left + 1.0)
        return None

    def _verified(self, signed: Any, key: bytes, asked: Endpoint | None = None) -> Manifest:
        state = self._process()
        keys = state.trust.keys(signed.signer)
        if not keys and time.monotonic() - state.learned_at > _LEARN_EVERY:
            # A node that joined after this process asked. The socket names no keys.
            endpoint = asked or next(state.usable(), None)
            if endpoint is not None:
                state.learned_at = time.monotonic()
                endpoint.learn()
                keys = state.trust.keys(signed.signer)
        read = manifest.verify(signed, keys, key)
        if read.namespace != self.namespace:
            raise Refused(f"the artifact is of namespace {read.namespace!r}")
        return read


class _Unlock:
    """What a forked child does first. Keeps no client alive."""

    def __init__(self, client: Client) -> None:
        self._client = weakref.ref(client)

    def __call__(self) -> None:
        client = self._client()
        if client is not None:
            client._lock = threading.Lock()
            client._trust = client._trust.copy()


_shared_lock = threading.Lock()
_clients: dict[config.Settings, Client] = {}


def _shared(settings: Settings | None) -> Client | None:
    if settings is None:
        return None
    with _shared_lock:
        return _clients.setdefault(settings, Client(settings))


def _committed(endpoint: Endpoint, chunks: Iterator[Any], size: int) -> bool:
    """Publish. An artifact that was there already is as good: it is the key's."""
    endpoint.upload("Publish", chunks, size, wire.PublishResponse)
    return True


def _trouble(doing: str, error: KilnError) -> None:
    refused = isinstance(error, Refused)
    report.count("refused" if refused else "errors")
    if not isinstance(error, Stale):
        report.once(f"{doing} {type(error).__name__}", "%s: %s", doing, error)


def _close(reference: weakref.ref[Client]) -> None:
    client = reference()
    if client is not None:
        client.close()
