"""Triton's remote cache: one artifact a kernel.

    TRITON_CACHE_MANAGER=triton.runtime.cache:RemoteCacheManager
    TRITON_REMOTE_CACHE_BACKEND=kiln_torch.triton:KilnBackend

Triton asks for the file ``__grp__NAME.json`` first, compiles where it is
missing, puts the kernel's files one by one, and that file last: then all are
published at once, behind the caller's back. What it asks for by another name (a
driver's stub, the result of autotuning) is a value of its own.
Invariant: no exception leaves the backend, every byte was verified before Triton
has it, and a lease ends with the compile that took it: published, failed or given
up, whatever holds its traceback.
"""

from __future__ import annotations

import functools
import json
import sys
from typing import TYPE_CHECKING

from triton.runtime.cache import RemoteCacheBackend

from . import report
from .calls import Calls
from .client import Client
from .key import FINGERPRINT, GRAPH, NAMESPACE, Component, key_of
from .lease import Lease
from .manifest import Artifact, Fingerprint, Target
from .value import Values

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType

_COMPILER = "triton"
_GROUP = "__grp__"
# The call in which Triton looks a kernel up, makes it, and puts it: module and name.
_COMPILE = ("triton.compiler.compiler", "compile")
_calls = Calls()


class KilnBackend(RemoteCacheBackend):
    """What Triton asks: files of one key, by name."""

    def __init__(self, key: str) -> None:
        """Ask for nothing yet. ``key`` covers source, options, target and versions."""
        self._key = key
        self._store = _store()
        # Of the kernel in hand: fetched, or put and not yet published.
        self._files: dict[str, bytes] = {}
        self._names: set[str] = set()
        self._lease: Lease | None = None
        self._watched: int | None = None

    def get(self, filenames: list[str]) -> dict[str, bytes]:
        """Return those of the files that there are."""
        try:
            return self._get(list(filenames))
        except Exception as error:
            _swallowed("get", error)
            return {}

    def put(self, filename: str, data: bytes) -> None:
        """Take a file."""
        try:
            self._put(filename, bytes(data))
        except Exception as error:
            _swallowed("put", error)

    def __del__(self) -> None:
        """Let others compile what was not compiled here."""
        if getattr(self, "_lease", None) is not None:
            self._release()

    def _get(self, filenames: list[str]) -> dict[str, bytes]:
        if self._store is None:
            return {}
        if len(filenames) == 1 and filenames[0] not in self._files:
            if filenames[0].startswith(_GROUP):
                self._files = self._kernel(self._store, filenames[0])
            else:
                self._names.update(filenames)
                value = self._store.values.get(self._name(filenames[0]))
                return {} if value is None else {filenames[0]: value}
        found = {name: self._files[name] for name in filenames if name in self._files}
        if len(filenames) > 1 and len(found) == len(filenames):
            self._store.client.loaded([key_of(self._components(self._store))])
        return found

    def _kernel(self, store: _Store, group: str) -> dict[str, bytes]:
        key = key_of(self._components(store))
        found = store.client.acquire(key, store.client.settings.wait)
        if isinstance(found, Artifact):
            files = {name: bytes(data) for name, data in found.files.items()}
            return files if group in files else {}
        if found is not None and found.waited:
            # Another tried, and gave up: the kernel fails, or its process ended. All that
            # waited try at once, rather than each after the one before.
            _abandoned(found)
        elif found is not None:
            self._lease = found
            call = _compile_call()
            if call is not None:
                # A compile that fails puts nothing, and its traceback keeps this backend.
                self._watched = _calls.watch(call, functools.partial(_abandoned, found))
        return {}

    def _put(self, filename: str, data: bytes) -> None:
        if self._store is None:
            return
        if filename in self._names:
            self._store.values.put(self._name(filename), data, later=True)
            return
        self._files[filename] = data
        if not filename.startswith(_GROUP):
            return
        lease = self._take()
        label = filename.removeprefix(_GROUP)
        target, versions = _described(self._files.get(label, b""))
        # Without a lease another process publishes, or nobody can.
        if lease is not None:
            self._store.client.publish_later(
                lease,
                self._components(self._store),
                dict(self._files),
                fingerprint=Fingerprint.of(_COMPILER, versions),
                target=target,
                label=label.removesuffix(".json"),
                seconds=lease.age,
            )

    def _release(self) -> None:
        lease = self._take()
        if lease is not None:
            _abandoned(lease)

    def _take(self) -> Lease | None:
        """Return the lease, if there is one, for the caller to end."""
        lease, self._lease = self._lease, None
        watched, self._watched = self._watched, None
        if watched is not None:
            _calls.forget(watched)
        return lease

    def _name(self, filename: str) -> str:
        return f"{_COMPILER}:{self._key}:{filename}"

    def _components(self, store: _Store) -> tuple[Component, ...]:
        return (
            Component.of(GRAPH, key=self._key),
            Component.of(FINGERPRINT, compiler=_COMPILER),
            Component.of(NAMESPACE, namespace=store.client.namespace),
        )


class _Store:
    """What the backends of one process share."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.values = Values(client)


@functools.cache
def _store_of(client: Client) -> _Store:
    return _Store(client)


def _store() -> _Store | None:
    client = Client.from_env()
    return None if client is None else _store_of(client)


def _compile_call() -> FrameType | None:
    """Return the innermost call of Triton's compile in which this runs, if it does."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if (frame.f_globals.get("__name__"), frame.f_code.co_name) == _COMPILE:
            return frame
        frame = frame.f_back
    return None


def _abandoned(lease: Lease) -> None:
    """End the lease of a compile that put nothing."""
    report.count("abandoned")
    lease.release()


def _described(metadata: bytes) -> tuple[Target, Mapping[str, str]]:
    """Return what the kernel runs on, and what made it, for people to read."""
    try:
        read = json.loads(metadata)
        versions = {"triton": str(read["triton_version"])}
        arch = read["target"]["arch"]
        if read["target"]["backend"] == "cuda" and isinstance(arch, int):
            return Target("FILES", arch), versions
    except (ValueError, KeyError, TypeError):
        return Target.any(), {}
    return Target.any(), versions


def _swallowed(doing: str, error: Exception) -> None:
    report.count("bugs")
    report.once(f"triton {doing} {type(error).__name__}", "triton %s: %r", doing, error)
