"""Files to a pack and its manifest, as a node takes them.

Invariant: files stand back to back in path order, and are never copied into one
buffer: they are sent as they are.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from . import wire
from .key import key_of
from .manifest import MAX_FILES, MAX_PACK_BYTES, check_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .key import Component
    from .manifest import Fingerprint, Target

_CHUNK = 1 << 20
_LONGEST_LABEL = 200


@dataclass(frozen=True)
class Packed:
    """An unsigned manifest and the pack's parts."""

    manifest: Any
    parts: tuple[memoryview, ...]
    size: int


def pack(
    components: Sequence[Component],
    files: Mapping[str, bytes],
    *,
    fingerprint: Fingerprint,
    target: Target,
    namespace: str,
    label: str,
    seconds: float,
) -> Packed:
    """Describe ``files``; ``ValueError`` where no artifact can have them."""
    message = wire.Manifest(
        key=key_of(components),
        namespace=namespace,
        compile_seconds=max(seconds, 0.0),
        created_unix_ms=int(time.time() * 1000),
        label=label[:_LONGEST_LABEL],
    )
    for component in components:
        entry = message.components.add(name=component.name, digest=component.digest)
        for field in component.fields:
            entry.fields.add(name=field.name, value=field.value, derived=field.derived)
    message.fingerprint.compiler = fingerprint.compiler
    for name, value in fingerprint.versions:
        message.fingerprint.versions.add(name=name, value=value)
    message.target.kind = wire.KINDS[target.kind]
    message.target.compute = target.compute
    message.target.arch_specific = target.arch_specific
    if not 0 < len(files) <= MAX_FILES:
        raise ValueError(f"an artifact has 1 to {MAX_FILES} files, not {len(files)}")
    whole, parts, size = blake3(), [], 0
    for path in sorted(files):
        why = check_path(path)
        if why is not None:
            raise ValueError(f"file {path!r}: {why}")
        data = memoryview(files[path]).cast("B")
        digest = blake3(data).digest()
        whole.update(data)
        message.files.add(path=path, offset=size, size=len(data), digest=digest)
        parts.append(data)
        size += len(data)
    if size > MAX_PACK_BYTES:
        raise ValueError(f"an artifact has at most {MAX_PACK_BYTES} bytes, not {size}")
    message.pack_digest, message.pack_size = whole.digest(), size
    return Packed(message, tuple(parts), size)


def publication(
    packed: Packed,
    *,
    token: int = 0,
    grant: bytes = b"",
    replace: bool = False,
) -> Iterator[Any]:
    """Return the messages that publish ``packed``: a header, then the bytes."""
    first = wire.PublishChunk()
    first.header.token = token
    first.header.grant = grant
    first.header.replace = replace
    first.header.manifest.CopyFrom(packed.manifest)
    yield first
    for part in packed.parts:
        for start in range(0, len(part), _CHUNK):
            yield wire.PublishChunk(data=bytes(part[start : start + _CHUNK]))
