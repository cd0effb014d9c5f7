"""Clients that behave: what each door answers them, and how soon, while others do not.

Runs as a process of its own, so that it waits for nobody but the node: one line of JSON for each
line that it reads (what it saw since the last), until its input ends.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
import urllib.request
from typing import TYPE_CHECKING

import grpc
from kiln_torch import wire
from kiln_torch.key import key_of, value_components

if TYPE_CHECKING:
    from collections.abc import Callable

# Of one answer, in seconds: what takes longer has failed.
PATIENCE = 10.0
# Between two questions at one door.
PAUSE = 0.05
# What is asked for.
NAME, VALUE = b"load:kept", b"v" * 16_384


class Door:
    """One door: its questions, one after the other."""

    def __init__(self, name: str, ask: Callable[[], None]) -> None:
        """Ask nothing yet."""
        self.name = name
        self._ask = ask
        self._lock = threading.Lock()
        self._took: list[float] = []
        self._failed: list[str] = []

    def run(self) -> None:
        """Ask for ever."""
        while True:
            began = time.monotonic()
            try:
                self._ask()
            except Exception as error:
                with self._lock:
                    self._failed.append(f"{type(error).__name__}: {error}"[:200])
            else:
                with self._lock:
                    self._took.append(time.monotonic() - began)
            time.sleep(PAUSE)

    def seen(self) -> dict[str, object]:
        """What it saw since the last time: answers, failures, milliseconds."""
        with self._lock:
            took, failed = sorted(self._took), self._failed
            self._took, self._failed = [], []
        at = lambda share: round(took[int(share * (len(took) - 1))] * 1e3, 2) if took else None  # noqa: E731
        return {
            "answers": len(took),
            "failed": len(failed),
            "why": sorted(set(failed))[:3],
            "p50_ms": at(0.5),
            "p99_ms": at(0.99),
            "most_ms": at(1.0),
        }


def address(text: str) -> tuple[str, int]:
    """`HOST:PORT`, as `socket` takes it."""
    host, port = text.rsplit(":", 1)
    return host, int(port)


def redis_get(resp: str) -> None:
    """A new connection, a value that must come whole."""
    with socket.create_connection(address(resp), PATIENCE) as sock:
        sock.sendall(b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(NAME), NAME))
        wanted = b"$%d\r\n%s\r\n" % (len(VALUE), VALUE)
        got = b""
        while len(got) < len(wanted):
            more = sock.recv(65_536)
            if not more:
                break
            got += more
    if got != wanted:
        raise RuntimeError(f"answered {got[:80]!r}")


def redis_set(resp: str) -> None:
    """Store what will be asked for."""
    with socket.create_connection(address(resp), PATIENCE) as sock:
        said = (b"SET", NAME, VALUE)
        sock.sendall(b"*3\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in said))
        if (answer := sock.recv(64)) != b"+OK\r\n":
            raise RuntimeError(f"answered {answer!r}")


def page(http: str) -> None:
    """Whether the node says that it is ready."""
    with urllib.request.urlopen(f"http://{http}/readyz", timeout=PATIENCE) as answer:
        answer.read()


def lookups(endpoint: str) -> Callable[[], None]:
    """A question of the index over one connection that stays."""
    call = grpc.insecure_channel(endpoint).unary_unary(
        "/kiln.v1.Kiln/Lookup",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=wire.LookupResponse.FromString,
    )
    request = wire.LookupRequest(key=key_of(value_components("default", NAME)))
    return lambda: call(request, timeout=PATIENCE)


def main() -> None:
    """The doors' addresses are the arguments: gRPC, HTTP, RESP."""
    endpoint, http, resp = sys.argv[1:]
    redis_set(resp)
    doors = [
        Door("grpc", lookups(endpoint)),
        Door("http", lambda: page(http)),
        Door("resp", lambda: redis_get(resp)),
    ]
    for door in doors:
        threading.Thread(target=door.run, daemon=True).start()
    for _ in sys.stdin:
        print(json.dumps({door.name: door.seen() for door in doors}), flush=True)


if __name__ == "__main__":
    main()
