"""The helper process: fetches and verifies what is listed, hands it over, and ends.

Speaks over the socket that it was started with: a line of JSON with the keys that are
listed, then one that says how large the memory is whose descriptor comes with it.
Invariant: hands over nothing that ``Client`` did not verify, no more bytes than
allowed, and in sealed memory; it ends after a bounded time, whatever the nodes do.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

from .. import config
from ..client import Client
from ..value import Values
from . import listed

if TYPE_CHECKING:
    from ..manifest import Artifact

# In all; who started this has begun without it long before.
_SECONDS = 60.0
_AT_ONCE = 8
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def main() -> None:
    """Do what the arguments say: descriptor of the socket, name of the list, most bytes."""
    descriptor, name, most_bytes = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    # Threads of gRPC would keep a process whose node is paused.
    limit = threading.Timer(_SECONDS, os._exit, (1,))
    limit.daemon = True
    limit.start()
    settings = config.from_env()
    with socket.socket(fileno=descriptor) as connection:
        connection.settimeout(_SECONDS)
        if settings is not None:
            prefetch(Client(settings), name, most_bytes, connection)
    os._exit(0)


def prefetch(client: Client, name: str, most_bytes: int, connection: socket.socket) -> None:
    """Fetch what the list ``name`` has, and hand it over."""
    keys = list(listed.read(Values(client).get(name)))
    connection.sendall(json.dumps({"listed": [key.hex() for key in keys]}).encode() + b"\n")
    if not keys:
        return
    memory, size, header = packed(fetched(client, keys, most_bytes))
    told = json.dumps({"size": size, "header": header}).encode() + b"\n"
    socket.send_fds(connection, [told], [memory])


def fetched(client: Client, keys: list[bytes], most_bytes: int) -> list[Artifact]:
    """Fetch several at once; those that fit together into ``most_bytes``."""
    end = time.monotonic() + _SECONDS / 2
    left = most_bytes
    lock = threading.Lock()

    def fetch(key: bytes) -> Artifact | None:
        nonlocal left
        if time.monotonic() > end:
            return None
        # What it is comes before its bytes: none of one that is too large.
        described = client.lookup(key)
        if described is None:
            return None
        with lock:
            if described.pack_size > left:
                return None
            left -= described.pack_size
        found = client.fetch(key)
        # It may have been replaced since.
        return found if found is None or len(found.pack) <= described.pack_size else None

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        asked = [threads.submit(fetch, key) for key in keys]
        return [found for each in as_completed(asked) if (found := each.result()) is not None]


def packed(artifacts: list[Artifact]) -> tuple[int, int, int]:
    """Return a descriptor of sealed memory with them, its size, and that of its header."""
    parts: list[bytes | memoryview] = []
    entries: list[dict[str, Any]] = []
    at = 0
    for artifact in artifacts:
        encoded = artifact.manifest.encoded
        places = [at, at + len(encoded), at + len(encoded) + len(artifact.pack)]
        entries.append({"key": artifact.key.hex(), "tier": artifact.tier, "at": places})
        parts += [encoded, artifact.pack]
        at = places[-1]
    # Its places count from behind the header, whose length depends on them: fixed width.
    header = _header(entries, 0)
    header = _header(entries, len(header))
    memory = os.memfd_create("kiln-prefetch", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(memory, "wb", closefd=False) as file:
        for part in (header, *parts):
            file.write(part)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
    return memory, len(header) + at, len(header)


def _header(entries: list[dict[str, Any]], base: int) -> bytes:
    placed = [{**each, "at": [f"{base + at:016d}" for at in each["at"]]} for each in entries]
    return json.dumps(placed).encode()
