"""Where artifacts outlive the process: ``cache_dir`` alone, or the cluster.

Both answer a key with a verified artifact, or with a permit to make it, or with
nothing: make it without. Neither touches torch: any thread may ask.
Invariant: a permit ends when it is published under or released, so nobody waits
for a compile that failed.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Protocol

from .. import report
from ..key import key_of, value_components
from ..lease import Lease
from ..manifest import Artifact, Fingerprint, Target
from ..packing import pack
from .errors import CacheCorruptedError
from .local_cache import SUFFIX, LocalCache

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..asked import Asked
    from ..client import Client
    from ..key import Component


class Permit(Protocol):
    """The right to make what a key names."""

    def publish(
        self,
        components: Sequence[Component],
        files: Mapping[str, bytes],
        asked: Asked,
        seconds: float,
    ) -> bool:
        """Store what was made."""

    def release(self) -> None:
        """Give up."""


class Store(Protocol):
    """The second tier, behind the process's memory."""

    namespace: str
    # Stores of one process with one place have the same entries.
    place: str

    def empty(self) -> bool:
        """Whether it has surely nothing yet: then everything is to be compiled."""

    def acquire(self, key: bytes) -> Artifact | Permit | None:
        """Return the artifact, or the right to make it. May raise ``CacheCorruptedError``."""

    def fetch(self, key: bytes) -> Artifact | None:
        """Return the artifact if there is one. May raise ``CacheCorruptedError``."""

    def discard(self, key: bytes) -> bool:
        """Remove an entry that is of no use; ``False``: it cannot be done from here."""

    def loaded(self, key: bytes) -> None:
        """Say that an artifact was loaded."""

    def check(self) -> bool:
        """Whether what is stored comes back, as far as it can be told from here."""


class LocalStore:
    """Files of ``cache_dir``."""

    namespace = "local"

    def __init__(self, cache: LocalCache) -> None:
        """Store in ``cache``."""
        self.cache = cache
        self.place = str(cache.folder.resolve())

    def empty(self) -> bool:
        """Look for a first file."""
        return self.cache.size() == 0

    def acquire(self, key: bytes) -> Artifact | Permit | None:
        """Read the file."""
        return self.fetch(key) or _LocalPermit(self.cache, key)

    def fetch(self, key: bytes) -> Artifact | None:
        """Read the file."""
        return self.cache.read(filename(key), key)

    def discard(self, key: bytes) -> bool:
        """Delete the file."""
        return self.cache.delete(filename(key))

    def loaded(self, key: bytes) -> None:
        """Tell nobody."""

    def check(self) -> bool:
        """Write an entry, read it back, remove it."""
        components = value_components("check", secrets.token_hex(16))
        key, said = key_of(components), {"said": secrets.token_bytes(64)}
        name = filename(key)
        try:
            packed = pack(
                components,
                said,
                fingerprint=Fingerprint.of("check", {}),
                target=Target.any(),
                namespace=self.namespace,
                label="check",
                seconds=0.0,
            )
            self.cache.write(name, packed)
            found = self.cache.read(name, key)
            return found is not None and bytes(found.files["said"]) == said["said"]
        except (OSError, CacheCorruptedError) as error:
            report.log.warning("the cache failed its check: %s", error)
            return False
        finally:
            self.cache.delete(name)


class _LocalPermit:
    def __init__(self, cache: LocalCache, key: bytes) -> None:
        self._cache = cache
        self._key = key

    def publish(
        self,
        components: Sequence[Component],
        files: Mapping[str, bytes],
        asked: Asked,
        seconds: float,
    ) -> bool:
        packed = pack(
            components,
            files,
            fingerprint=asked.fingerprint,
            target=asked.target,
            namespace=LocalStore.namespace,
            label=asked.label,
            seconds=seconds,
        )
        try:
            written = self._cache.write(filename(self._key), packed)
        except OSError as error:
            # A full disk costs a compile next time.
            report.count("compilation.unsaved")
            report.once("cache_dir", "not saved: %s", error)
            return False
        return written is not None

    def release(self) -> None:
        pass


class ClusterStore:
    """The nodes that KILN_ENDPOINT names."""

    def __init__(self, client: Client) -> None:
        """Ask through ``client``, which raises nothing."""
        self._client = client
        self.namespace = client.namespace
        self.place = ",".join(client.settings.endpoints)

    def empty(self) -> bool:
        """Say no: what the fleet has is known only when it is asked."""
        return False

    def acquire(self, key: bytes) -> Artifact | Permit | None:
        """Ask; wait while another process makes it."""
        answer = self._client.acquire(key, self._client.settings.wait)
        return _ClusterPermit(self._client, answer) if isinstance(answer, Lease) else answer

    def fetch(self, key: bytes) -> Artifact | None:
        """Ask, and wait for nobody."""
        return self._client.fetch(key)

    def discard(self, key: bytes) -> bool:
        """Do nothing: what the fleet has is not one client's to remove."""
        del key
        return False

    def loaded(self, key: bytes) -> None:
        """Tell the node."""
        self._client.loaded([key])

    def check(self) -> bool:
        """Say yes: the client leaves out nodes that do not answer, and asks them again."""
        return True


class _ClusterPermit:
    def __init__(self, client: Client, lease: Lease) -> None:
        self._client = client
        self._lease = lease

    def publish(
        self,
        components: Sequence[Component],
        files: Mapping[str, bytes],
        asked: Asked,
        seconds: float,
    ) -> bool:
        return self._client.publish(
            self._lease,
            components,
            files,
            fingerprint=asked.fingerprint,
            target=asked.target,
            label=asked.label,
            seconds=seconds,
        )

    def release(self) -> None:
        self._lease.release()


def filename(key: bytes) -> str:
    """Return the name of a key's file: all of it."""
    return key.hex() + SUFFIX
