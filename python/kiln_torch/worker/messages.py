"""Messages between a node and its worker: the part of protobuf that worker.proto uses.

Invariant: read and written by hand, so that a worker needs no package beside torch;
a message that is cut off or of another shape is an error, never a guess.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from .artifact import STANDALONE

LARGEST_MESSAGE = 1 << 30
# Fields of WorkerCompile that are neither text nor numbers.
_BYTES = {2: "archive", 9: "graph", 10: "constants"}


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode(*fields: tuple[int, int | float | str | bytes]) -> bytes:
    """A message of (number, value): ints as varints, floats as doubles, the rest by length."""
    out = bytearray()
    for number, value in fields:
        if isinstance(value, float):
            out += _varint(number << 3 | 1) + struct.pack("<d", value)
        elif isinstance(value, int):
            out += _varint(number << 3) + _varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += _varint(number << 3 | 2) + _varint(len(data)) + data
    return bytes(out)


def decode(message: bytes | memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Numbers and values of a message's fields; fixed-width ones are not among ours."""
    rest = memoryview(message)

    def varint() -> int:
        nonlocal rest
        value = shift = 0
        while True:
            if not rest or shift > 63:
                raise ValueError("a varint without end")
            byte, rest = rest[0], rest[1:]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while rest:
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
        elif tag & 7 == 2:
            size = varint()
            if size > len(rest):
                raise ValueError("a field beyond its message")
            value, rest = rest[:size], rest[size:]
            yield tag >> 3, value
        else:
            raise ValueError(f"wire type {tag & 7} is not expected")


def read_frame(stream: BinaryIO) -> bytes | None:
    """One message; None where the stream ended."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    size = int.from_bytes(head, "big")
    if size > LARGEST_MESSAGE:
        raise ValueError(f"a message of {size} bytes")
    body = stream.read(size)
    return body if len(body) == size else None


def write_frame(stream: BinaryIO, message: bytes) -> None:
    """Write one message."""
    stream.write(len(message).to_bytes(4, "big") + message)
    stream.flush()


@dataclass
class Job:
    """kiln.v1.WorkerCompile."""

    compiler: str = STANDALONE
    archive: bytes = b""
    graph: bytes = b""
    constants: bytes = b""
    options: dict[str, Any] = field(default_factory=dict)
    runtime_shape: int | None = None
    device: str = "cpu"
    compute: int = 0
    memory_bytes: int = 0
    cpu_seconds: int = 0

    @classmethod
    def parse(cls, message: bytes) -> Job:
        """Read the message."""
        job = cls()
        for number, value in decode(message):
            if isinstance(value, int):
                name = {4: "runtime_shape", 6: "compute", 7: "memory_bytes", 8: "cpu_seconds"}
                setattr(job, name[number], value)
            elif number == 3:
                option = {n: bytes(v).decode() for n, v in decode(value) if not isinstance(v, int)}
                job.options[option.get(1, "")] = json.loads(option.get(2, "null"))
            elif number in _BYTES:
                setattr(job, _BYTES[number], bytes(value))
            else:
                setattr(job, {1: "compiler", 5: "device"}[number], bytes(value).decode())
        return job
