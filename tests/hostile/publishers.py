"""Publishers of large artifacts, many at once, some of which stop half way."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
from kiln_torch import wire
from kiln_torch.key import value_components
from kiln_torch.manifest import Fingerprint, Target
from kiln_torch.packing import pack, publication

if TYPE_CHECKING:
    from collections.abc import Iterator

# How much a publisher that stalls sends before it does, in messages.
BEFORE = 4


class Publishers:
    """As many as there are artifacts, each of a file that they share and one of its own."""

    def __init__(self, endpoint: str, count: int, size: int) -> None:
        """Describe the artifacts: each is hashed, which takes its time."""
        self._endpoint = endpoint
        body = bytes(size - 8)

        def described(n: int) -> Any:  # noqa: ANN401 a message
            return pack(
                value_components("default", f"load:published:{n}"),
                {"own": n.to_bytes(8, "big"), "shared": body},
                fingerprint=Fingerprint("value"),
                target=Target.any(),
                namespace="default",
                label=f"load {n}",
                seconds=0.0,
            )

        with ThreadPoolExecutor(2) as pool:
            self._packed = list(pool.map(described, range(count)))

    def publish(self, seconds: float) -> str:
        """All at once; what became of them."""
        with ThreadPoolExecutor(len(self._packed)) as pool:
            said = list(pool.map(lambda packed: self._one(packed, None, seconds), self._packed))
        return _counts(said)

    def stall(self, seconds: float) -> str:
        """All at once, and all stop after a few bytes until the time is over."""
        over = threading.Event()
        timer = threading.Timer(seconds, over.set)
        timer.start()
        with ThreadPoolExecutor(len(self._packed)) as pool:
            said = list(pool.map(lambda packed: self._one(packed, over, seconds), self._packed))
        timer.cancel()
        return _counts(said)

    def _one(self, packed: Any, over: threading.Event | None, seconds: float) -> str:  # noqa: ANN401
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self._endpoint, options) as channel:
            call = channel.stream_unary(
                "/kiln.v1.Kiln/Publish",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=wire.PublishResponse.FromString,
            )
            try:
                call(self._messages(packed, over), timeout=seconds)
            except grpc.RpcError as error:
                return f"{error.code().name.lower()}: {error.details()[:60]}"
            return "published"

    @staticmethod
    def _messages(packed: Any, over: threading.Event | None) -> Iterator[Any]:  # noqa: ANN401
        for at, message in enumerate(publication(packed, replace=True)):
            if over is not None and at >= BEFORE:
                over.wait()
                return
            yield message


def _counts(said: list[str]) -> str:
    """Each end and how often it came."""
    return ", ".join(f"{said.count(s)} {s}" for s in sorted(set(said)))
