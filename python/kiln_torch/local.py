"""The node on this machine: maps what it verified, through its unix socket.

Frames as in ``transfer.proto``: four bytes of length, big-endian, then a
message; the pack comes as a descriptor of sealed memory.
Invariant: memory is mapped only if the kernel vouches that it can neither be
written nor shrink any more; no byte of it is copied.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from . import report, wire
from .breaker import Breaker
from .errors import Failed, NotFound, Refused, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable

_PREFIX = 4
_MAX_RESPONSE = 8 << 20
_READ_AT_ONCE = 64 << 10
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class LocalNode:
    """One connection to the socket; safe to use from several threads."""

    def __init__(
        self,
        path: str,
        connect: float,
        answer: float,
        token: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Connect to nothing yet; ``token``: this client's now."""
        self._path = path
        self._token = token
        self._connect = connect
        self._answer = answer
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._breaker = Breaker(self._probe, connect, 0.0)

    @property
    def usable(self) -> bool:
        """Whether it worked when it was last asked."""
        return self._breaker.closed

    def fetch(self, key: bytes, namespace: str) -> tuple[Any, memoryview, str]:
        """Return the signed manifest, the mapped pack and its tier; none is verified."""
        asked = wire.TransferRequest(key=key, namespace=namespace, token=self._token() or "")
        request = asked.SerializeToString()
        try:
            with self._lock:
                response, descriptor = self._ask(request)
        except (OSError, Unreachable) as error:
            self._breaker.trip()
            raise Unreachable(f"{self._path}: {error}") from error
        try:
            return self._accept(response, descriptor)
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop()

    def _accept(self, response: Any, descriptor: int | None) -> tuple[Any, memoryview, str]:
        codes = wire.TRANSFER_CODES
        if response.code == codes["NOT_FOUND"]:
            raise NotFound
        if response.code != codes["OK"]:
            raise Failed(f"{self._path}: code {response.code}: {response.message}")
        if descriptor is None or not response.HasField("manifest"):
            raise Refused(f"{self._path}: an answer without memory or manifest")
        pack = mapped(descriptor, response.size)
        return response.manifest, pack, wire.TIERS.get(response.tier, "unspecified")

    def _ask(self, request: bytes) -> tuple[Any, int | None]:
        kept = self._socket is not None
        try:
            return self._exchange(request)
        except TimeoutError:
            raise
        except OSError:
            # The node closed the connection while it was idle, or was restarted.
            if not kept:
                raise
            return self._exchange(request)

    def _exchange(self, request: bytes) -> tuple[Any, int | None]:
        deadline = time.monotonic() + self._answer
        descriptors: list[int] = []
        try:
            connection = self._connected()
            connection.settimeout(self._answer)
            connection.sendall(len(request).to_bytes(_PREFIX, "big") + request)
            data, whole = b"", _PREFIX
            while len(data) < whole:
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
                came, fds, _, _ = socket.recv_fds(connection, _READ_AT_ONCE, 1, _CLOSE_ON_EXEC)
                descriptors.extend(fds)
                if not came:
                    raise ConnectionResetError("the node closed the connection")
                data += came
                if whole == _PREFIX and len(data) >= _PREFIX:
                    whole += int.from_bytes(data[:_PREFIX], "big")
                    if whole > _PREFIX + _MAX_RESPONSE:
                        raise Unreachable(f"a frame of {whole} bytes")
            if len(data) > whole or len(descriptors) > 1:
                raise Unreachable("more than an answer")
            response = wire.TransferResponse.FromString(data[_PREFIX:])
        except BaseException as error:
            # Nobody may read the rest of this answer as the next one.
            self._drop()
            for descriptor in descriptors:
                os.close(descriptor)
            if isinstance(error, (OSError, Unreachable)) or not isinstance(error, Exception):
                raise
            raise Unreachable("not an answer") from error
        return response, descriptors[0] if descriptors else None

    def _connected(self) -> socket.socket:
        if self._socket is None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.settimeout(self._connect)
                connection.connect(self._path)
            except BaseException:
                connection.close()
                raise
            self._socket = connection
        return self._socket

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _probe(self, *_: Callable[[], None]) -> bool:
        try:
            with self._lock:
                self._connected()
        except OSError as error:
            report.once(f"socket {self._path}", "the socket %s: %s", self._path, error)
            return False
        return True


def mapped(descriptor: int, size: int) -> memoryview:
    """Map sealed memory; ``Refused`` where anybody could still write to it."""
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError as error:
        raise Refused("a descriptor of memory that cannot be sealed") from error
    if seals & _SEALS != _SEALS:
        raise Refused("memory that is not sealed")
    if os.fstat(descriptor).st_size != size:
        raise Refused("memory of another size than announced")
    if size == 0:
        return memoryview(b"")
    return memoryview(mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ))
