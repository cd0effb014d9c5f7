"""What a root key says of signers.

Invariant: a key that is returned was certified by a root that this process was told
of, for its node, for this namespace and this time; what the node says adds none.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from . import wire
from .manifest import signed_by

if TYPE_CHECKING:
    from collections.abc import Iterable

_CONTEXT = b"kiln-root-v1\0"
_MS = 1000


def certified(
    signers: Iterable[Any], roots: tuple[bytes, ...], namespace: str
) -> list[tuple[int, bytes]]:
    """Return those ``signers``, with keys, that one of ``roots`` lets sign in ``namespace``."""
    now = int(time.time() * _MS)
    good = (each for each in signers if _allows(each, roots, namespace, now))
    return [(each.node, each.key) for each in good]


def _allows(signer: Any, roots: tuple[bytes, ...], namespace: str, now: int) -> bool:
    if not signer.HasField("certificate"):
        return False
    said = signer.certificate
    data = _CONTEXT + said.statement
    if not any(signed_by(root, data, said.signature) for root in roots):
        return False
    try:
        statement = wire.RootStatement.FromString(said.statement)
    except ValueError:
        return False
    if statement.WhichOneof("says") != "signer":
        return False
    of = statement.signer
    return (
        of.key == signer.key
        and of.node in (0, signer.node)
        and of.not_before_unix_ms <= now
        and (of.not_after_unix_ms == 0 or now < of.not_after_unix_ms)
        and any(_matches(pattern, namespace) for pattern in of.namespaces)
    )


def _matches(pattern: str, namespace: str) -> bool:
    if pattern.endswith("*"):
        return namespace.startswith(pattern[:-1])
    return pattern == namespace
