"""Messages through a pipe, between this process and those that compile for it.

Invariant: a message is read whole or not at all; what was cut off is an end.
"""

from __future__ import annotations

from typing import Any, BinaryIO

_LENGTH = 8


def write(file: BinaryIO | Any, data: bytes) -> None:
    """Send one message."""
    file.write(len(data).to_bytes(_LENGTH, "big"))
    file.write(data)
    file.flush()


def read(file: BinaryIO | Any) -> bytes | None:
    """Return the next message; ``None`` at the end."""
    head = file.read(_LENGTH)
    if len(head) < _LENGTH:
        return None
    size = int.from_bytes(head, "big")
    data = file.read(size)
    return data if len(data) == size else None
