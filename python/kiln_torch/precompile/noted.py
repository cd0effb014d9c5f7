"""What was seen while guards were built, until the package asks for it.

Invariant: bounded; a guard state that nobody asks for is forgotten, and one that
was not noted is in no package.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from blake3 import blake3

from .dropped import Check

_MOST = 64


@dataclass
class Noted:
    """Of the guards of one compiled frame."""

    checks: tuple[Check, ...]
    # The classes of all objects that were guarded, and those that were traced by name.
    classes: tuple[type, ...]


_noted: OrderedDict[str, Noted] = OrderedDict()


def state_digest(state: bytes) -> str:
    """Return the name of a guard state."""
    return blake3(state).hexdigest()


def keep(state: bytes, noted: Noted) -> None:
    """Keep what was seen until ``take``."""
    _noted[state_digest(state)] = noted
    while len(_noted) > _MOST:
        _noted.popitem(last=False)


def take(state: bytes) -> tuple[str, Noted] | None:
    """Return what was seen, once, with the state's name."""
    digest = state_digest(state)
    noted = _noted.pop(digest, None)
    return None if noted is None else (digest, noted)
