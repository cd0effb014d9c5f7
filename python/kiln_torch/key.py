"""The key: the same canonical encoding of components as ``proto/src/key.rs``.

Invariant: equal to the Rust side byte for byte (``tests/fixtures/keys.json`` is
checked by both); paths, hosts, ports, process ids and environment never enter.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from blake3 import blake3

if TYPE_CHECKING:
    from collections.abc import Iterable

GRAPH = "graph"
INPUTS = "inputs"
OPTIONS = "options"
FINGERPRINT = "fingerprint"
TARGET = "target"
NAMESPACE = "namespace"

# The fingerprint's compiler of what other tools store under names of their own.
VALUE = "value"

_LONGEST_VALUE = 96
_ENCODING = b"kiln-key-v1"


@dataclass(frozen=True)
class Field:
    """One fact that decides the output; a long value stands there as its digest."""

    name: str
    value: str
    # Follows from other fields: never named as the difference on its own account.
    derived: bool = False

    def __post_init__(self) -> None:
        """Shorten a long value."""
        encoded = self.value.encode()
        if len(encoded) > _LONGEST_VALUE:
            object.__setattr__(self, "value", f"blake3:{blake3(encoded).hexdigest()}")

    @classmethod
    def exact(cls, name: str, value: str, *, derived: bool) -> Field:
        """Make a field with the value as it is: how manifests are read."""
        field = object.__new__(cls)
        for attribute, given in (("name", name), ("value", value), ("derived", derived)):
            object.__setattr__(field, attribute, given)
        return field

    @classmethod
    def of_bytes(cls, name: str, data: bytes) -> Field:
        """Make a field whose value is the digest of ``data``."""
        return cls(name, f"blake3:{blake3(data).hexdigest()}")


@dataclass(frozen=True)
class Component:
    """One named part of a key."""

    name: str
    fields: tuple[Field, ...]

    @classmethod
    def of(cls, name: str, **values: str) -> Component:
        """Make a component of plain fields, in the order given."""
        return cls(name, tuple(Field(field, value) for field, value in values.items()))

    @cached_property
    def digest(self) -> bytes:
        """Digest of the encoded fields."""
        hasher = blake3()
        for field in self.fields:
            hasher.update(_framed(field.name.encode()))
            hasher.update(_framed(field.value.encode()))
        return hasher.digest()


def key_of(components: Iterable[Component]) -> bytes:
    """Return the 32 bytes that ``components`` decide."""
    hasher = blake3(_framed(_ENCODING))
    for component in components:
        hasher.update(_framed(component.name.encode()))
        hasher.update(_framed(component.digest))
    return hasher.digest()


def value_components(namespace: str, name: bytes | str) -> tuple[Component, ...]:
    """Return the components of another tool's key, as a RESP client's SET has them."""
    return (
        Component.of(GRAPH, key=value_name(name)),
        Component.of(FINGERPRINT, compiler=VALUE),
        Component.of(NAMESPACE, namespace=namespace),
    )


def value_name(name: bytes | str) -> str:
    """Return the text under which another tool's key is shown."""
    raw = name.encode() if isinstance(name, str) else name
    in_hex = f"hex:{raw.hex()}"
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return in_hex
    control = any(unicodedata.category(character) == "Cc" for character in text)
    return in_hex if control or text.startswith("hex:") else text


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(8, "big") + data
