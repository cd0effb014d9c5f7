"""The signed description of one artifact, and the artifact once it is verified.

Invariant: a ``Manifest`` from ``verify`` was signed by a key that is trusted,
its key follows from its components, and its files cover its pack under paths
that stay inside a folder. An ``Artifact`` exists only if its bytes hash to what
such a manifest says.
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from . import wire
from .errors import Refused
from .key import Component, Field, key_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Keeps a manifest's signature from being valid for anything else.
SIGNING_CONTEXT = b"kiln-manifest-v1\0"
MAX_FILES = 16_384
MAX_PACK_BYTES = 8 << 30
MAX_PIECES = 1024
_LONGEST_PATH = 1024
_HASH_BYTES = 32


@dataclass(frozen=True)
class Fingerprint:
    """The toolchain part of a key: compiler and versions that change its output."""

    compiler: str
    versions: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, compiler: str, versions: Mapping[str, str]) -> Fingerprint:
        """Make one; versions are sorted by name."""
        return cls(compiler, tuple(sorted(versions.items())))


@dataclass(frozen=True)
class Target:
    """What an output runs on: ``any``, ``gpu_90``, ``sm_90``, ``sm_90a``, ``compute_90``."""

    kind: str
    compute: int = 0
    arch_specific: bool = False

    @classmethod
    def any(cls) -> Target:
        """Files that are bound to no GPU."""
        return cls("FILES")

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read a target as ``str`` shows it."""
        if text == "any":
            return cls.any()
        prefix, _, rest = text.partition("_")
        kinds = {"sm": "CUBIN", "compute": "PTX", "gpu": "FILES"}
        digits = rest.removesuffix("a")
        if prefix not in kinds or not digits.isdecimal():
            message = f"{text!r} is no target"
            raise ValueError(message)
        return cls(kinds[prefix], int(digits), rest.endswith("a"))

    def __str__(self) -> str:
        """Show it as ``parse`` reads it."""
        if self.kind == "FILES" and not self.compute:
            return "any"
        prefix = {"CUBIN": "sm", "PTX": "compute", "FILES": "gpu"}[self.kind]
        return f"{prefix}_{self.compute}{'a' if self.arch_specific else ''}"


@dataclass(frozen=True)
class FileEntry:
    """One file: a named range of the pack."""

    path: str
    offset: int
    size: int
    digest: bytes


@dataclass(frozen=True)
class PieceRef:
    """An artifact that another one is made of: its key, and its pack as that was made."""

    key: bytes
    pack: bytes
    size: int


@dataclass(frozen=True)
class Manifest:
    """What an artifact is: its key with all that decided it, its files, its maker."""

    key: bytes
    namespace: str
    components: tuple[Component, ...]
    fingerprint: Fingerprint
    target: str
    files: tuple[FileEntry, ...]
    pack_digest: bytes
    pack_size: int
    producer: int
    compile_seconds: float
    label: str
    # Other artifacts that this one is stitched of, by position.
    pieces: tuple[PieceRef, ...] = ()
    # As it was signed.
    encoded: bytes = field(default=b"", repr=False, compare=False)


def read(data: bytes) -> Manifest:
    """Decode and validate, without asking who signed; never before bytes are used."""
    try:
        message = wire.Manifest.FromString(data)
    except Exception as error:
        raise Refused("the manifest cannot be read") from error
    manifest = Manifest(
        key=message.key,
        namespace=message.namespace,
        components=tuple(_component(component) for component in message.components),
        fingerprint=Fingerprint(
            message.fingerprint.compiler,
            tuple((version.name, version.value) for version in message.fingerprint.versions),
        ),
        target=_target(message.target),
        files=tuple(FileEntry(f.path, f.offset, f.size, f.digest) for f in message.files),
        pack_digest=message.pack_digest,
        pack_size=message.pack_size,
        producer=message.producer,
        compile_seconds=message.compile_seconds,
        label=message.label,
        pieces=tuple(PieceRef(p.key, p.pack_digest, p.pack_size) for p in message.pieces),
        encoded=bytes(data),
    )
    _validate(manifest)
    return manifest


def verify(signed: Any, keys: Iterable[bytes], wanted: bytes) -> Manifest:
    """Check signature, structure and key; ``keys`` are those the signer may have."""
    data = SIGNING_CONTEXT + signed.manifest
    if not any(signed_by(key, data, signed.signature) for key in keys):
        raise Refused(f"the manifest's signature is not node {signed.signer}'s")
    manifest = read(signed.manifest)
    if manifest.producer != signed.signer:
        raise Refused("the manifest names another producer than its signer")
    if manifest.key != wanted:
        raise Refused(f"the manifest is for key {manifest.key.hex()}, not {wanted.hex()}")
    return manifest


def signed_by(key: bytes, data: bytes, signature: bytes) -> bool:
    """Whether ``signature`` is that of the ed25519 ``key`` over ``data``."""
    # Imported here: `import torch` should not pay for it where nothing is fetched.
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def check_path(path: str) -> str | None:
    """Say why ``path`` may not be written below a folder; ``None``: it may."""
    if not 0 < len(path.encode()) <= _LONGEST_PATH:
        return "a path has 1 to 1024 bytes"
    if "\\" in path or any(unicodedata.category(character) == "Cc" for character in path):
        return "a path has no backslash or control character"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "a path is relative and has no empty, '.' or '..' part"
    return None


def _validate(manifest: Manifest) -> None:
    if key_of(manifest.components) != manifest.key:
        raise Refused("the manifest's key does not follow from its components")
    if not 0 < len(manifest.files) <= MAX_FILES:
        raise Refused(f"the manifest has {len(manifest.files)} files")
    if manifest.pack_size > MAX_PACK_BYTES:
        raise Refused(f"the manifest's {manifest.pack_size} bytes are too many")
    if not (math.isfinite(manifest.compile_seconds) and manifest.compile_seconds >= 0):
        raise Refused("the manifest's cost in seconds is no number")
    _check_pieces(manifest)
    end, previous = 0, b""
    for file in manifest.files:
        why = check_path(file.path)
        if why is None and file.path.encode() <= previous:
            why = "it is out of order"
        if why is None and (file.offset != end or len(file.digest) != _HASH_BYTES):
            why = "it does not follow the one before"
        if why is not None:
            raise Refused(f"the manifest's file {file.path!r}: {why}")
        end, previous = end + file.size, file.path.encode()
    if end != manifest.pack_size or len(manifest.pack_digest) != _HASH_BYTES:
        raise Refused("the manifest's files do not cover its pack")


def _check_pieces(manifest: Manifest) -> None:
    pieces = manifest.pieces
    if len(pieces) > MAX_PIECES:
        raise Refused(f"the manifest has {len(pieces)} pieces")
    if any(len(digest) != _HASH_BYTES for piece in pieces for digest in (piece.key, piece.pack)):
        raise Refused("a piece of the manifest has no key")
    if len({manifest.key, *(piece.key for piece in pieces)}) != len(pieces) + 1:
        raise Refused("a piece of the manifest comes twice, or is the whole")


def _component(message: Any) -> Component:
    fields = (Field.exact(f.name, f.value, derived=f.derived) for f in message.fields)
    component = Component(message.name, tuple(fields))
    if component.digest != message.digest:
        raise Refused(f"component {message.name!r}: its digest does not follow from its fields")
    return component


def _target(message: Any) -> str:
    kinds = {number: kind for kind, number in wire.KINDS.items()}
    kind = kinds.get(message.kind, "UNSPECIFIED")
    if kind == "UNSPECIFIED":
        raise Refused(f"the manifest's target is of a kind not known here: {message.kind}")
    return str(Target(kind, message.compute, message.arch_specific))


@dataclass(frozen=True)
class Artifact:
    """A verified artifact: its manifest and its bytes."""

    manifest: Manifest
    pack: memoryview = field(repr=False)
    # Where the node had it: memory, disk, peer or object.
    tier: str = "unspecified"

    @classmethod
    def verified(cls, manifest: Manifest, pack: memoryview, tier: str) -> Artifact:
        """Check every byte of ``pack`` against ``manifest``."""
        pack = pack.cast("B").toreadonly()
        if len(pack) != manifest.pack_size:
            raise Refused(f"{len(pack)} bytes came of {manifest.pack_size}")
        if _digest(pack) != manifest.pack_digest:
            raise Refused("the bytes are not those of the manifest")
        for entry in manifest.files:
            whole = entry.size == manifest.pack_size
            data = pack[entry.offset : entry.offset + entry.size]
            if entry.digest != (manifest.pack_digest if whole else _digest(data)):
                raise Refused(f"file {entry.path!r} is not that of the manifest")
        return cls(manifest, pack, tier)

    @property
    def key(self) -> bytes:
        """The artifact's key."""
        return self.manifest.key

    @property
    def files(self) -> dict[str, memoryview]:
        """All files by path, in path order; nothing is copied."""
        return {f.path: self.pack[f.offset : f.offset + f.size] for f in self.manifest.files}

    def file(self, path: str) -> memoryview:
        """Return the bytes of one file, not copied; ``KeyError`` if there is none."""
        for entry in self.manifest.files:
            if entry.path == path:
                return self.pack[entry.offset : entry.offset + entry.size]
        raise KeyError(path)


def _digest(data: memoryview) -> bytes:
    # Above this, blake3's own threads pay for themselves.
    threads = blake3.AUTO if len(data) >= 1 << 20 else 1
    return blake3(data, max_threads=threads).digest()
