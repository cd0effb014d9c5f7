"""Triton's remote cache: one artifact a kernel.

    TRITON_CACHE_MANAGER=triton.runtime.cache:RemoteCacheManager
    TRITON_REMOTE_CACHE_BACKEND=kiln_torch.triton:KilnBackend

Triton asks for the file ``__grp__NAME.json`` first, compiles where it is
missing, puts the kernel's files one by one, and that file last: then all are
published at once. What it asks for by another name (a driver's stub, the result
of autotuning) is a value of its own.
Invariant: no exception leaves the backend, every byte was verified before Triton
has it, and a lease ends with the backend that took it: one compile.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING

from triton.runtime.cache import RemoteCacheBackend

from . import report
from .client import Client
from .key import FINGERPRINT, GRAPH, NAMESPACE, Component, key_of
from .lease import Lease
from .manifest import Artifact, Fingerprint, Target
from .value import Values

if TYPE_CHECKING:
    from collections.abc import Mapping

_COMPILER = "triton"
_GROUP = "__grp__"


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
        self._lease = found
        return {}

    def _put(self, filename: str, data: bytes) -> None:
        if self._store is None:
            return
        if filename in self._names:
            self._store.values.put(self._name(filename), data)
            return
        self._files[filename] = data
        if not filename.startswith(_GROUP):
            return
        lease, self._lease = self._lease, None
        label = filename.removeprefix(_GROUP)
        target, versions = _described(self._files.get(label, b""))
        # Without a lease another process publishes, or nobody can.
        if lease is not None:
            self._store.client.publish(
                lease,
                self._components(self._store),
                self._files,
                fingerprint=Fingerprint.of(_COMPILER, versions),
                target=target,
                label=label.removesuffix(".json"),
                seconds=lease.age,
            )

    def _release(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()

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
