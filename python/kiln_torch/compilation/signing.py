"""The key with which this user's own entries are signed.

Invariant: the private key is in a file that only its owner can read, or it is not
used; two processes that start at once end up with the same one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..manifest import SIGNING_CONTEXT
from ..wire import SignedManifest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

# The signer's number in what no node signed: nodes count from one.
LOCAL_SIGNER = 0
_SEED_BYTES = 32
_FILE = "compilation.key"


class UnsafeKey(Exception):
    """Others can read or replace the key file: nothing that it signed is worth trust."""


def state_folder() -> Path:
    """Return the user's folder for state that is no cache."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "kiln"


class LocalKey:
    """Signs entries, and says which signature counts."""

    def __init__(self, folder: Path | None = None) -> None:
        """Read the key in ``folder``, or make one there."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        path = (folder or state_folder()) / _FILE
        if not path.exists():
            _make(path)
        self._key: Ed25519PrivateKey = Ed25519PrivateKey.from_private_bytes(_read(path))
        self.public: bytes = self._key.public_key().public_bytes_raw()

    def sign(self, manifest: Any) -> Any:
        """Return ``manifest``, a wire message, signed."""
        manifest.producer = LOCAL_SIGNER
        data = manifest.SerializeToString()
        signature = self._key.sign(SIGNING_CONTEXT + data)
        return SignedManifest(manifest=data, signer=LOCAL_SIGNER, signature=signature)


def _make(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_SEED_BYTES))
            file.flush()
            os.fsync(file.fileno())
        # Unlike a rename it leaves the key of a process that was faster.
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(file.fileno())
        seed = file.read(_SEED_BYTES + 1)
    if facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) & 0o077:
        raise UnsafeKey(f"{path}: chmod 600 it, or delete it and the entries that it signed")
    if len(seed) != _SEED_BYTES:
        raise UnsafeKey(f"{path}: no key; delete it")
    return seed
