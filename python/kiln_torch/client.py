"""The client: look up, fetch, lease, publish, and say what was loaded.

Invariant: nothing here raises for what the network or a node does: the answer
is then that of a miss, counted in ``stats()`` and logged once. No byte is handed
out that was not checked against a manifest whose signer is trusted.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import threading
import time
import weakref
from enum import Enum
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any, TypeVar

from . import config, report, wire
from .committing import LIST, Committing
from .connections import Connections
from .errors import KilnError, NotFound, Refused, Stale, Unreachable
from .key import key_of, value_components
from .lease import Lease
from .manifest import Artifact, Fingerprint, Manifest, Target
from .prefetch import received
from .prefetch.remembered import Remembered
from .reading import Reading
from .trust import Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .config import Settings
    from .endpoint import Endpoint
    from .key import Component
    from .prefetch.received import Received

_T = TypeVar("_T")
# The lease stream's word for an artifact that is there.
_READY = "ready"


class _Nothing(Enum):
    """Why there is no answer."""

    # There is none: a node said so.
    NOT_FOUND = 0
    # Nobody could say, or what was said was refused.
    TROUBLE = 1


class Client:
    """A process's way to its cluster. Share one between threads."""

    def __init__(self, settings: Settings, prefetched: Received | None = None) -> None:
        """Connect to nothing yet. ``prefetched``: what this process's helper fetches."""
        self.settings = settings
        self._prefetched = prefetched
        self._reading = Reading(settings, self._process)
        self._committing = Committing(
            settings.namespace, self._process, self._first, self._at, prefetched
        )
        self._lock = threading.Lock()
        self._state: Connections | None = None
        self._trust = Trust(settings.signers, rooted=bool(settings.roots))
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
        found = self._first("lookup", lambda endpoint: self._reading.look(endpoint, key))
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
            self._first("lookup", lambda endpoint: self._reading.look(endpoint, key, latest=True))
            found = self._find(key, local=False)
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
        return self._committing.publish(
            lease,
            components,
            files,
            fingerprint=fingerprint,
            target=target,
            label=label,
            seconds=seconds,
            replace=replace,
        )

    def publish_later(
        self,
        lease: Lease | None,
        components: Sequence[Component],
        files: Mapping[str, bytes],
        **named: Any,
    ) -> bool:
        """Publish as ``publish`` does, behind the caller's back; whether it was queued.

        The bytes in ``files`` must not change any more. The lease is held until then.
        """
        return self._committing.later(lease, components, files, **named)

    def flush(self, seconds: float) -> bool:
        """Wait until all that was published later is published; whether that is so."""
        with self._lock:
            state = self._state
        # What a fork's parent has queued is the parent's.
        return state is None or state.pid != os.getpid() or state.publications.flush(seconds)

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
        state = self._process()
        state.loaded.add(keys)
        if state.remembered is not None:
            state.remembered.add(keys)

    def close(self) -> None:
        """Send what is queued, release all leases and close all connections."""
        with self._lock:
            state = self._state
        if state is not None and state.pid == os.getpid():
            # What is published meanwhile goes through it still.
            state.close()
        with self._lock:
            if self._state is state:
                self._state = None

    def _process(self) -> Connections:
        with self._lock:
            if self._state is None or self._state.pid != os.getpid():
                self._state = Connections(self.settings, self._trust, self._remembered())
                if multiprocessing.parent_process() is not None:
                    # These children end without what atexit was told.
                    Finalize(None, _close, args=(weakref.ref(self),), exitpriority=0)
            return self._state

    def _remembered(self) -> Remembered | None:
        """Return a new process's way to the list of what its program used."""
        if self._prefetched is None:
            return None
        name = self._prefetched.name
        key = key_of(value_components(self.namespace, name))

        def read() -> bytes | None:
            found = self._first("list", lambda endpoint: self._reading.fetch(endpoint, key))
            return None if isinstance(found, _Nothing) else bytes(found.file(LIST))

        return Remembered(read, lambda data: self._committing.write_list(name, data))

    def _find(self, key: bytes, *, local: bool = True) -> Artifact | _Nothing:
        state = self._process()
        # What this process has just made would be a miss, or its own lease a wait.
        state.publications.wait_for(key, self.settings.answer)
        found = self._prefetched.take(key) if self._prefetched is not None else None
        if found is not None:
            report.count("prefetched")
        found = found or (self._find_local(key) if local else None)
        if found is None or (found is _Nothing.NOT_FOUND and not state.local_serves):
            said_no = found is not None
            found = self._first("fetch", lambda e: self._reading.fetch(e, key))
            # A node of before 0.2 serves its own tenant alone there, and does not say which.
            state.local_blind |= said_no and isinstance(found, Artifact)
        if isinstance(found, _Nothing):
            report.count("misses")
        else:
            report.count("hits")
            report.count("bytes_fetched", found.manifest.pack_size)
        return found

    def _find_local(self, key: bytes) -> Artifact | _Nothing | None:
        """Ask the node on this machine; ``None``: there is none, or it cannot say."""
        state = self._process()
        if state.local is None or state.local_blind or not state.local.usable:
            return None
        try:
            found = self._reading.fetch_local(key)
            state.local_serves = True
            return found
        except NotFound:
            return _Nothing.NOT_FOUND
        except KilnError as error:
            _trouble("socket", error)
        return None

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
        return _clients.setdefault(settings, Client(settings, received.started()))


def _trouble(doing: str, error: KilnError) -> None:
    refused = isinstance(error, Refused)
    report.count("refused" if refused else "errors")
    if not isinstance(error, Stale):
        report.once(f"{doing} {type(error).__name__}", "%s: %s", doing, error)


def flush(seconds: float = 60.0) -> bool:
    """Wait until what this process compiled is published; whether that is so.

    For a warm-up that shall be over before the process is killed: at its own end a
    process waits by itself, KILN_EXIT_SECONDS at most.
    """
    end = time.monotonic() + seconds
    with _shared_lock:
        clients = list(_clients.values())
    return all(client.flush(max(end - time.monotonic(), 0.0)) for client in clients)


def _close(reference: weakref.ref[Client]) -> None:
    client = reference()
    if client is not None:
        client.close()
