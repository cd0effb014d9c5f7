"""Nodes that fail: relays in front of real ones, and sockets that talk nonsense.

The relay speaks gRPC to both sides and passes everything on as bytes, but for
what a test tells it to alter; so all that it does not alter is real.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from kiln_torch import wire

Alter = Callable[[bytes, int], "bytes | None"]


class Relay(grpc.GenericRpcHandler):
    """Passes calls on to a node."""

    def __init__(self, node: str) -> None:
        """Alter nothing yet."""
        self._channel = grpc.insecure_channel(node)
        self._server = grpc.server(ThreadPoolExecutor(16))
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        # By method: what becomes of the answer's nth message; `None` ends the answer there.
        self.alter: dict[str, Alter] = {}
        # Methods that answer with this error instead, and methods that never answer.
        self.fail: dict[str, grpc.StatusCode] = {}
        self.silent: set[str] = set()
        self.calls: list[str] = []
        self._released = threading.Event()
        self._server.start()

    def service(self, details: Any) -> Any:
        """Handle one call, as any kind of stream."""
        method = details.method

        def handle(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            name = method.rsplit("/", 1)[1]
            self.calls.append(name)
            if name in self.silent:
                self._released.wait(60)
                context.abort(grpc.StatusCode.CANCELLED, "the test is over")
            if name in self.fail:
                context.abort(self.fail[name], "the test says so")
            call = self._channel.stream_stream(method)(requests)
            context.add_callback(call.cancel)
            try:
                for at, message in enumerate(call):
                    altered = self.alter.get(name, lambda data, _: data)(message, at)
                    if altered is None:
                        call.cancel()
                        return
                    yield altered
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())

        return grpc.stream_stream_rpc_method_handler(handle)

    def close(self) -> None:
        """End all calls."""
        self._released.set()
        self._server.stop(0).wait()
        self._channel.close()


def tampered(data: bytes, at: int) -> bytes:
    """Alter a `Fetch`: the bytes behind the first chunk are turned round."""
    chunk = wire.FetchChunk.FromString(data)
    return data if at == 0 else wire.FetchChunk(data=chunk.data[::-1]).SerializeToString()


class Nonsense:
    """A port behind which is no node: ``garbage``, ``closed`` or ``silent``."""

    def __init__(self, how: str) -> None:
        """Listen."""
        self._how = how
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                if self._how == "closed":
                    connection.close()
                    continue
                if self._how == "garbage":
                    connection.sendall(b"\xde\xad\xbe\xef nonsense " * 100)
                self._open.append(connection)

    def close(self) -> None:
        """Stop."""
        # Wakes `accept`, which closing alone does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        for connection in self._open:
            connection.close()


class Proxy:
    """A TCP proxy that breaks what the server sends after its first bytes."""

    def __init__(self, server: str, how: str, after: int = 2000) -> None:
        """Break ``how``: garbage, truncated, silent, or by replacing bytes: ``old>new``."""
        host, _, port = server.rpartition(":")
        self._server = (host, int(port))
        self._how = how
        self._after = after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()
        self.broken = 0

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                self._open += [client, server]
                for target in (self._up, self._down):
                    thread = threading.Thread(target=target, args=(client, server), daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _down(self, client: socket.socket, server: socket.socket) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                broken = self._broken(data, passed)
                passed += len(data)
                if broken is None:
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(broken)

    def _broken(self, data: bytes, passed: int) -> bytes | None:
        if ">" in self._how:
            old, new = (part.encode() for part in self._how.split(">"))
            self.broken += old in data
            return data.replace(old, new)
        if passed + len(data) < self._after:
            return data
        self.broken += 1
        keep = data[: max(self._after - passed, 0)]
        if self._how == "truncated":
            return None
        return keep if self._how == "silent" else keep + b"\xde\xad" * 50

    def close(self) -> None:
        """Stop."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for thread in self._threads:
            thread.join(10)
