"""One node, over gRPC.

Invariant: every call has a deadline of its own; a node that let one pass, or
that cannot be reached, is not asked again in anybody's time until it answered a
probe. grpc is imported, and a channel made, at the first call of a process.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import report, wire
from .breaker import Breaker
from .errors import Failed, NotFound, Stale, Unreachable
from .known_dead import KnownDead
from .root import certified

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .config import Settings
    from .trust import Trust

_SERVICE = "/kiln.v1.Kiln/"
# Seconds after which a hello is given up, in nobody's time, and that importing grpc may
# take on a busy machine.
_HELLO = 3.0
_IMPORT = 2.0
# What a client of HTTP/2 says first, with its settings, of which there are none: a node answers
# with its own.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
# Slowest path on which a large artifact is still worth waiting for.
_LEAST_BYTES_A_SECOND = 4 << 20
_PARENT = re.compile("[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Nodes are reached directly, whatever http_proxy says.
    ("grpc.enable_http_proxy", 0),
    # A node that dies while a compile waits for it is found out by this.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.use_local_subchannel_pool", 1),
)


def _caller(token: str | None) -> tuple[tuple[str, str], ...] | None:
    """Who asks, and the span that runs this process, for its calls' traces: TRACEPARENT."""
    parent = os.environ.get("TRACEPARENT", "")
    said = (("traceparent", parent),) if _PARENT.fullmatch(parent) else ()
    if token:
        said += (("authorization", f"Bearer {token}"),)
    return said or None


class Endpoint:
    """A node's gRPC port."""

    def __init__(self, address: str, settings: Settings, trust: Trust) -> None:
        """Connect to nothing yet."""
        self.address = address
        self._settings = settings
        self._trust = trust
        # All endpoints together may cost `connect` before they are known to be dead.
        self._reach = settings.connect / max(len(settings.endpoints), 1)
        self._breaker = Breaker(self._hello, self._reach, _IMPORT, known=KnownDead(address))
        self._channel: Any = None

    @property
    def usable(self) -> bool:
        """Whether it works. The first time it is tried out, in this caller's time."""
        return not _forked() and self._breaker.closed and self._channel is not None

    def unary(self, method: str, request: Any, response: Any) -> Any:
        """Ask once."""
        with self._errors():
            call = self._channel.unary_unary(
                _SERVICE + method,
                request_serializer=type(request).SerializeToString,
                response_deserializer=response.FromString,
            )
            return call(
                request,
                timeout=self._settings.answer,
                metadata=self._caller(),
            )

    def stream(self, method: str, request: Any, response: Any, timeout: float) -> Any:
        """Ask, and return the call that streams the answers: read it under ``reading``."""
        with self._errors():
            call = self._channel.unary_stream(
                _SERVICE + method,
                request_serializer=type(request).SerializeToString,
                response_deserializer=response.FromString,
            )
            return call(request, timeout=timeout, metadata=self._caller())

    def upload(self, method: str, chunks: Iterable[Any], size: int, response: Any) -> Any:
        """Send a stream of messages, and return the answer."""
        with self._errors():
            call = self._channel.stream_unary(
                _SERVICE + method,
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=response.FromString,
            )
            return call(
                iter(chunks),
                timeout=self.patience(size),
                metadata=self._caller(),
            )

    def patience(self, size: int) -> float:
        """Seconds that moving ``size`` bytes may take."""
        return self._settings.answer + size / _LEAST_BYTES_A_SECOND

    @contextmanager
    def reading(self, call: Any, seconds: float) -> Iterator[_Watchdog]:
        """Bound the reading of a stream: see ``_Watchdog``."""
        watchdog = _Watchdog(call, seconds)
        try:
            with self._errors():
                yield watchdog
        finally:
            watchdog.stop()

    def _caller(self) -> tuple[tuple[str, str], ...] | None:
        return _caller(self._settings.current_token())

    def learn(self) -> None:
        """Ask for the keys of all signers."""
        status = self.unary("Status", wire.StatusRequest(), wire.StatusResponse)
        self._trust.learn(self._signers(status))

    def _signers(self, status: Any) -> list[tuple[int, bytes]]:
        roots = self._settings.roots
        if roots:
            return certified(status.signers, roots, self._settings.namespace)
        return [(signer.node, signer.key) for signer in status.signers]

    def close(self) -> None:
        """Close the channel."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        grpc = _grpc()
        if self._channel is None:
            raise Unreachable(f"{self.address}: closed")
        try:
            yield
        except grpc.RpcError as error:
            raise self._judged(error) from error
        except ValueError as error:
            # grpc's word for a channel that was closed meanwhile.
            raise Unreachable(f"{self.address}: {error}") from error

    def _judged(self, error: Any) -> Exception:
        grpc = _grpc()
        code, why = error.code(), f"{self.address}: {error.code().name}: {error.details()}"
        if trace := dict(error.trailing_metadata() or ()).get("kiln-trace"):
            # What the node logged about the call has the same id.
            why += f" (trace {trace})"
        if code is grpc.StatusCode.NOT_FOUND:
            return NotFound(why)
        if dict(error.trailing_metadata() or ()).get("kiln-kind") == "left":
            # No member of the cluster any more: another node is.
            self._fell(error.details())
            return Unreachable(why)
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            return Stale(why)
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            # The node is gone, or it lives and lost its quorum, or our watchdog bit.
            if code is grpc.StatusCode.CANCELLED or not self._connects():
                self._fell(error.details())
            return Unreachable(why)
        silent = code is grpc.StatusCode.DEADLINE_EXCEEDED
        if silent and "kiln-code" not in dict(error.trailing_metadata() or ()):
            self._fell("it did not answer in time")
            return Unreachable(why)
        if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
            return Unreachable(why)
        return Failed(why)

    def _fell(self, why: str | None) -> None:
        self._breaker.trip()
        report.count("endpoint_failures")
        report.once(f"endpoint {self.address}", "node %s is left out: %s", self.address, why)

    def _connects(self) -> bool:
        try:
            self._connection().close()
        except OSError:
            return False
        return True

    def _connection(self) -> socket.socket:
        host, _, port = self.address.rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), self._reach)

    def _answers(self) -> bool:
        """Whether it says something: without grpc, whose import costs a second."""
        try:
            with self._connection() as connection:
                if self.address in self._settings.encrypted:
                    return True
                connection.settimeout(_HELLO)
                connection.sendall(_PREFACE)
                return bool(connection.recv(1))
        except OSError:
            return False

    def _opened(self) -> Any:
        """A channel that connects when it is used: in TLS where the endpoint is https://."""
        grpc, told = _grpc(), self._settings
        if self.address not in told.encrypted:
            return grpc.insecure_channel(self.address, options=_OPTIONS)
        files = [Path(p).read_bytes() if p else None for p in (told.ca, told.cert_key, told.cert)]
        # The files in the order of grpc: authority, key, certificate. None: grpc's own.
        credentials = grpc.ssl_channel_credentials(*files)
        return grpc.secure_channel(self.address, credentials, options=_OPTIONS)

    def _hello(self, reached: Callable[[], None], loaded: Callable[[], None]) -> bool:
        """Connect, and learn whose signatures count."""
        if not self._answers():
            report.count("endpoint_failures")
            report.once(f"endpoint {self.address}", "node %s cannot be reached", self.address)
            return False
        reached()
        grpc = _grpc()
        try:
            channel = self._channel or self._opened()
        except OSError as error:
            report.count("endpoint_failures")
            report.once(f"endpoint {self.address}", "node %s: %s", self.address, error)
            return False
        loaded()
        ask = channel.unary_unary(
            f"{_SERVICE}Status",
            request_serializer=wire.StatusRequest.SerializeToString,
            response_deserializer=wire.StatusResponse.FromString,
        )
        try:
            caller = self._caller()
            status = ask(wire.StatusRequest(), timeout=_HELLO, metadata=caller)
            self._trust.learn(self._signers(status))
        except (grpc.RpcError, ValueError) as error:
            report.count("endpoint_failures")
            report.once(f"endpoint {self.address}", "node %s: %s", self.address, _details(error))
            if channel is not self._channel:
                channel.close()
            return False
        self._channel = channel
        return True


# The process that has threads of grpc: none of them is in its forked children, and
# a call there would hang for ever, whatever its deadline.
_grpc_process: int | None = None


def _grpc() -> Any:
    global _grpc_process
    if _grpc_process is None:
        # First: a child that is forked meanwhile would wait for this import for ever.
        _grpc_process = os.getpid()
    import grpc

    return grpc


def _forked() -> bool:
    if _grpc_process in (None, os.getpid()):
        return False
    if os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "").lower() in ("1", "true", "yes"):
        return False
    report.once("forked", "forked from a process that uses gRPC: no cache here, see the README")
    return True


def _details(error: Any) -> str:
    return str(getattr(error, "details", lambda: error)())


class _Watchdog:
    """Cancels a call that stalls; ``feed`` gives it more time."""

    def __init__(self, call: Any, seconds: float) -> None:
        self._call = call
        self._timer: threading.Timer | None = None
        self.feed(seconds)

    def feed(self, seconds: float) -> None:
        self.stop()
        self._timer = threading.Timer(seconds, self._call.cancel)
        self._timer.daemon = True
        self._timer.start()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
