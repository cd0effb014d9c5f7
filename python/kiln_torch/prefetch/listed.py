"""The list of what a program used: keys, and for how many runs each went unused.

Invariant: what is read is bounded in entries and in bytes, whoever wrote it, and
names keys alone: each artifact is verified for itself, and used only if this very
key is asked for. A hostile list can waste some bytes, nothing else.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MOST_KEYS = 512
_MOST_BYTES = 1 << 20
_KEY_BYTES = 32
# Ranks of one job may share a list of which each uses its own part.
_UNUSED_RUNS = 8


def read(data: bytes | None) -> dict[bytes, int]:
    """Return each key with its unused runs, in order; nothing of what cannot be read."""
    if data is None or len(data) > _MOST_BYTES:
        return {}
    try:
        entries = json.loads(data)["keys"][:MOST_KEYS]
        found = {bytes.fromhex(key): int(unused) for key, unused in entries}
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return {}
    return {key: unused for key, unused in found.items() if len(key) == _KEY_BYTES}


def write(keys: Mapping[bytes, int]) -> bytes:
    """Return the list as ``read`` reads it."""
    return json.dumps({"keys": [[key.hex(), unused] for key, unused in keys.items()]}).encode()


def updated(before: Mapping[bytes, int], used: Iterable[bytes]) -> dict[bytes, int]:
    """Return the list after a run that used these keys: they come first."""
    after = dict.fromkeys(used, 0)
    for key, unused in before.items():
        if key not in after and unused + 1 < _UNUSED_RUNS:
            after[key] = unused + 1
    return dict(list(after.items())[:MOST_KEYS])
