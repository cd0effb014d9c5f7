"""Entries of torch's remote caches, read without a look at each of their characters.

They are JSON with one long string in base64, 16 MB for a model of 16 layers, which
torch decodes from bytes as well as from text.
Invariant: what this reads, ``json.loads`` reads alike but for the type of ``data``;
anything else is left to it.
"""

from __future__ import annotations

import json
from typing import Any

_HEAD = b'{"data": "'


def entry(data: bytes) -> dict[str, Any] | None:
    """Return the entry with its ``data`` as bytes; ``None``: let JSON read it."""
    if not data.startswith(_HEAD):
        return None
    end = data.find(b'"', len(_HEAD))
    text = data[len(_HEAD) : end]
    if end < 0 or not text.isascii() or b"\\" in text:
        return None
    try:
        rest = json.loads(b'{"data": ""' + data[end + 1 :])
    except ValueError:
        return None
    if not isinstance(rest, dict) or rest.get("data") != "":
        return None
    return {**rest, "data": text}
