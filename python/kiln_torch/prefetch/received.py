"""What the helper fetched, as this process takes it.

Invariant: nothing here raises, and waits are bounded and come once: until the helper
says what it fetches, and until it has that. What is handed out was verified by the
helper and lies in memory that nobody can write to any more. A forked child has
none of it, and no thread is started.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from typing import Any

from .. import manifest, report
from ..local import mapped
from ..manifest import Artifact
from . import process

# Until the helper has said what is listed: it had all the time that torch's import took.
_LISTED_SECONDS = 0.2
# Until all that is listed is there.
_FETCHED_SECONDS = 5.0
# An entry that other tools own may be replaced meanwhile.
_KEPT_SECONDS = 900.0
_READ_AT_ONCE = 64 << 10
_MOST_HEADER = 8 << 20
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_HELPER = "from kiln_torch.prefetch.helper import main; main()"


class Received:
    """The helper of one process, and what came of it."""

    def __init__(self, name: str, connection: socket.socket, helper: Any = None) -> None:
        """Take over the connection to ``helper``, which prefetches the list ``name``."""
        self.name = name
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._connection: socket.socket | None = connection
        self._helper = helper
        self._since = time.monotonic()
        self._patience = _LISTED_SECONDS
        self._read = b""
        self._descriptors: list[int] = []
        self._listed: frozenset[bytes] | None = None
        self._artifacts: dict[bytes, tuple[bytes, memoryview, str]] = {}
        # Of those that are to come as well.
        self._dropped: set[bytes] = set()

    def take(self, key: bytes) -> Artifact | None:
        """Return the artifact of ``key`` if it was prefetched; it is the caller's then."""
        if self._pid != os.getpid():
            return None
        with self._lock:
            if key in self._dropped:
                return None
            self._receive(key)
            if time.monotonic() - self._since > _KEPT_SECONDS:
                self._artifacts.clear()
            found = self._artifacts.pop(key, None)
        if found is None:
            return None
        encoded, pack, tier = found
        try:
            return Artifact(manifest.read(encoded), pack, tier)
        except Exception as error:
            report.count("bugs")
            report.once("prefetched", "prefetched: %r", error)
            return None

    def drop(self, key: bytes) -> None:
        """Forget ``key``: this process knows better."""
        if self._pid == os.getpid():
            with self._lock:
                self._dropped.add(key)
                self._artifacts.pop(key, None)

    def close(self) -> None:
        """Give up what has not come, and all that has."""
        if self._pid != os.getpid():
            return
        with self._lock:
            self._end()
            self._artifacts.clear()

    def _receive(self, key: bytes) -> None:
        """Read what the helper says, as far as ``key`` depends on it; with the lock held."""
        try:
            if self._connection is not None and self._listed is None:
                self._take_listed(self._line(self._patience))
            if self._connection is not None and self._listed is not None and key in self._listed:
                self._take_fetched(self._line(_FETCHED_SECONDS))
                self._end()
        except TimeoutError:
            self._patience = 0.0
            if self._listed is not None:
                # Slower than asking: what it has is not waited for again.
                report.count("prefetch_late")
                self._end()
        except Exception as error:
            report.count("prefetch_failed")
            report.log.debug("prefetch: %r", error)
            self._end()

    def _take_listed(self, line: bytes) -> None:
        self._listed = frozenset(bytes.fromhex(key) for key in json.loads(line)["listed"])

    def _take_fetched(self, line: bytes) -> None:
        told = json.loads(line)
        memory = mapped(self._descriptors[0], told["size"])
        if not 0 <= told["header"] <= _MOST_HEADER:
            raise ValueError("a header that is too large")
        for entry in json.loads(bytes(memory[: told["header"]])):
            at, middle, end = map(int, entry["at"])
            part = memory[at:middle], memory[middle:end]
            self._artifacts[bytes.fromhex(entry["key"])] = (bytes(part[0]), part[1], entry["tier"])

    def _line(self, seconds: float) -> bytes:
        connection, end = self._connection, time.monotonic() + seconds
        assert connection is not None
        while b"\n" not in self._read:
            connection.settimeout(max(end - time.monotonic(), 0.001))
            data, descriptors, _, _ = socket.recv_fds(connection, _READ_AT_ONCE, 1, _CLOSE_ON_EXEC)
            self._descriptors += descriptors
            if not data:
                raise ConnectionResetError("the helper ended")
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return line

    def _end(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []
        if self._helper is not None:
            # It ends by itself; a child that nobody asked about would stay a zombie.
            self._helper.poll()


_started: Received | None = None


def start(name: str, most_bytes: int) -> None:
    """Start the helper of this process: it inherits the environment, and so the settings."""
    global _started
    if _started is not None:
        return
    ours, theirs = socket.socketpair()
    with theirs:
        told = (str(theirs.fileno()), name, str(most_bytes))
        helper = process.start(_HELPER, *told, pass_fds=(theirs.fileno(),))
    if helper is None:
        ours.close()
        return
    _started = Received(name, ours, helper)


def started() -> Received | None:
    """Return what ``start`` started in this process, or in the one it was forked from."""
    return _started
